"""What every driver must do. A driver's test class inherits this and offers a fixture `driver`, opened."""

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from shoal.machine.lineage import grown
from shoal.wire.messages import Blob, Command, CommandResult, EndReason, InputFile, Resources, Snapshot
from shoal_executor.drivers.layers import DEEPEST
from shoal_executor.drivers.protocol import (
    Driver,
    DriverError,
    NoSuchSandboxError,
    NotRunError,
    SandboxFileError,
    SettledError,
    Started,
    StartFailed,
    StartSpec,
    UnsupportedError,
)

HOST = Snapshot("host", "host")

MANY = """
import os, time
for number in range({most}):
    try:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    except OSError as error:
        print(number, error.errno, flush=True)
        raise SystemExit(9)
print(number, flush=True)
"""
"""Starts so many processes that stay; says how many there were when the next was refused, and with which error."""


def fresh(stem: str = "r") -> str:
    return f"{stem}{secrets.token_hex(5)}-0"


async def start(driver: Driver, names: Sequence[str], spec: StartSpec) -> list[Started | StartFailed]:
    """Return what came of each."""
    outcomes: list[Started | StartFailed] = []
    async for outcome in driver.start(names, spec):
        outcomes += [Started((name,)) for name in outcome.names] if isinstance(outcome, Started) else [outcome]
    return outcomes


async def one(driver: Driver, snapshot: Snapshot = HOST, **options: object) -> str:
    """Start one sandbox; returns its name."""
    name = fresh()
    spec = StartSpec(snapshot, **options)  # type: ignore[arg-type]  # the tests name real fields
    assert await start(driver, [name], spec) == [Started((name,))]
    return name


async def sh(driver: Driver, name: str, line: str, **options: object) -> CommandResult:
    return await driver.run(name, Command(line=line, **options))  # type: ignore[arg-type]  # as above


def processes(pattern: str) -> str:
    """Return a shell line that counts the sandbox's processes whose arguments match, with nothing but coreutils."""
    return f"for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2>/dev/null | grep -c '{pattern}'"


def needs_snapshots() -> None:
    if os.geteuid() != 0 or shutil.which("mkfs.erofs") is None:
        pytest.skip("snapshots of live sandboxes need root, and mkfs.erofs of erofs-utils")


class Blobs:
    """A node's blobs, as a driver is lent them."""

    def __init__(self) -> None:
        self.paths: dict[str, Path] = {}

    def add(self, path: Path) -> Blob:
        content = path.read_bytes()
        blob = Blob(hashlib.sha256(content).hexdigest(), len(content))
        self.paths[blob.digest] = path
        return blob

    async def path_of(self, blob: Blob) -> Path:
        try:
            return self.paths[blob.digest]
        except KeyError:
            raise DriverError(f"blob {blob.digest} is not here") from None


def chain(place: Path, blobs: Blobs, length: int) -> Snapshot:
    """Return a snapshot of so many layers on top of the host, each with a file of its own number in /root."""
    layers = []
    for number in range(length):
        (place / f"{number}/root").mkdir(parents=True)
        (place / f"{number}/root/of-{number}").touch()
        made, of = place / f"{number}.erofs", place / f"{number}"
        subprocess.run(["mkfs.erofs", "-d0", made, of], check=True, capture_output=True, timeout=60)
        layers.append(blobs.add(made))
    return Snapshot(f"{length:064x}", "host", layers=tuple(layers), template="host")


class DriverConformance:
    """Inherited by each driver."""

    @pytest.fixture
    def blobs(self) -> Blobs:
        """What the driver's disks come from; its `driver` fixture takes this."""
        return Blobs()

    real = True
    """Whether commands are carried out, or only simulated."""

    # --- any driver

    async def test_starts_lists_and_ends_many(self, driver: Driver) -> None:
        await driver.prepare(HOST)
        names = [fresh() for _ in range(12)]
        outcomes = await start(driver, names, StartSpec(HOST))
        assert set(outcomes) == {Started((name,)) for name in names}
        assert set(names) <= set(await driver.list())
        await driver.destroy(names[:6])
        assert set(await driver.list()) & set(names) == set(names[6:])
        await driver.destroy(names)  # those that are gone are passed over
        assert not set(await driver.list()) & set(names)

    async def test_runs_a_command(self, driver: Driver) -> None:
        name = await one(driver)
        result = await sh(driver, name, "echo hello")
        assert result.exit_code == 0
        assert b"hello" in result.stdout
        assert not result.timed_out
        await driver.destroy([name])

    async def test_a_sandbox_that_is_gone_takes_nothing(self, driver: Driver) -> None:
        name = await one(driver)
        await driver.destroy([name])
        with pytest.raises(NoSuchSandboxError):
            await sh(driver, name, "true")
        with pytest.raises(NoSuchSandboxError):
            await driver.read_file(name, "a")
        with pytest.raises(NoSuchSandboxError):
            await driver.write_file(name, "a", b"")

    async def test_files_in_pieces(self, driver: Driver) -> None:
        name = await one(driver)
        assert await driver.write_file(name, "deep/er/a.bin", b"0123456789") == 10
        assert await driver.write_file(name, "deep/er/a.bin", b"abc", offset=10) == 13
        piece = await driver.read_file(name, "deep/er/a.bin", offset=8, limit=3)
        assert (piece.data, piece.size, piece.eof) == (b"89a", 13, False)
        assert (await driver.read_file(name, "deep/er/a.bin", offset=11)).eof
        assert await driver.write_file(name, "deep/er/a.bin", b"x") == 1  # offset 0 truncates
        with pytest.raises(SandboxFileError, match="absent"):
            await driver.read_file(name, "absent")
        await driver.destroy([name])

    async def test_input_files_are_there_from_the_start(self, driver: Driver) -> None:
        name = await one(driver, files=(InputFile("in.txt", b"given", 0o600),))
        assert (await driver.read_file(name, "in.txt")).data == b"given"
        await driver.destroy([name])

    async def test_output_has_its_limit(self, driver: Driver) -> None:
        name = await one(driver)
        pieces: list[bytes] = []
        command = Command(line="echo " + "x" * 500, output_limit=100)
        result = await driver.run(name, command, lambda _, data: pieces.append(data))
        streamed = b"".join(pieces)
        assert (len(streamed), len(result.stdout), result.stdout_tail) == (100, 100, 50)
        assert result.stdout_dropped > 300
        assert result.stdout == streamed[:50] + b"x" * 49 + b"\n"  # the end of it is there
        await driver.destroy([name])

    async def test_an_id_is_run_once_and_its_result_is_kept_until_it_is_settled(self, driver: Driver) -> None:
        name = await one(driver)
        first = await driver.run(name, Command(line="echo one"), id="a")
        again = await driver.run(name, Command(line="echo two"), id="a")
        assert b"one" in first.stdout
        assert again == first
        assert b"three" in (await driver.run(name, Command(line="echo three"), id="b")).stdout
        driver.settle(name, ["a", "never"])
        with pytest.raises(SettledError, match="settled"):
            await driver.run(name, Command(line="echo four"), id="a")
        assert b"three" in (await driver.run(name, Command(line="echo five"), id="b")).stdout
        assert b"six" in (await driver.run(name, Command(line="echo six"), id="never")).stdout  # it never was
        await driver.destroy([name])
        driver.settle(name, ["b"])  # of one that is gone: nothing to forget

    async def test_runs_a_command_in_each_of_many(self, driver: Driver) -> None:
        names = [await one(driver) for _ in range(5)]
        await driver.destroy(names[3:4])
        jobs = [Command(line=f"echo {number}") for number in range(5)]
        found = {names[at]: result async for some in driver.run_each(names, jobs, id="job") for at, result in some}
        assert set(found) == set(names)
        assert isinstance(found.pop(names[3]), NoSuchSandboxError)
        for number, name in enumerate(names):
            if name in found:
                result = found[name]
                assert isinstance(result, CommandResult)
                assert f"{number}".encode() in result.stdout
                assert await driver.run(name, Command(line="echo again"), id="job") == result  # it has its id
        two = driver.run_each(names[:2], jobs[:2], id="job")
        again = {names[at]: result async for some in two for at, result in some}
        assert again == {name: found[name] for name in names[:2]}
        all_of_them = driver.run_each(names[:3], [Command(line="echo same")], id="same")
        same = {at: result async for some in all_of_them for at, result in some}  # one is for all
        assert sorted(same) == [0, 1, 2]
        assert all(isinstance(result, CommandResult) and b"same" in result.stdout for result in same.values())
        assert b"two" in (await driver.run(names[0], Command(line="echo two"), id="other")).stdout
        await driver.destroy(names)

    async def test_close_ends_everything_and_may_come_twice(self, driver: Driver) -> None:
        await one(driver)
        await driver.close()
        assert await driver.list() == []
        await driver.close()

    # --- drivers that carry commands out

    async def test_commands_share_files_and_background_processes(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver)
        await sh(driver, name, "sleep 1000 & echo $! > pid; echo one > state")
        result = await sh(driver, name, "kill -0 $(cat pid) && cat state")
        assert (result.exit_code, result.stdout) == (0, b"one\n")
        await driver.destroy([name])

    async def test_whoever_asks_with_the_id_of_a_command_under_way_waits_for_it(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver)
        for session in (False, True):
            command = Command(line="echo x >> runs; while [ ! -e go ]; do sleep 0.01; done; echo $?", session=session)
            both = [asyncio.create_task(driver.run(name, command, id=f"s{session}")) for _ in range(2)]
            while (await sh(driver, name, "test -s runs")).exit_code:
                pass
            await sh(driver, name, "touch go")
            first, second = await asyncio.gather(*both)
            assert first == second
            assert (await driver.read_file(name, "runs")).data == b"x\n"
            await sh(driver, name, "rm go runs")
        await driver.destroy([name])

    async def test_a_large_output_is_given_whole_and_again(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver)
        line = "yes 0123456789abcde | head -c 5000000; yes | head -c 2000000 >&2"
        command = Command(line=line, output_limit=4_000_000)
        for _ in range(2):
            result = await driver.run(name, command, id="large")
            assert result.stdout == (b"0123456789abcde\n" * 250_000)
            assert result.stderr == b"y\n" * 1_000_000
            assert (result.stdout_dropped, result.stderr_dropped) == (1_000_000, 0)
        driver.settle(name, ["large"])
        assert (await driver.run(name, Command(line="echo on"), id="small")).stdout == b"on\n"
        nameless = await driver.run(name, command)  # its answer could not be asked for again
        assert len(nameless.stdout) + nameless.stdout_dropped == 5_000_000
        await driver.destroy([name])

    @pytest.mark.parametrize("how", ["plain", "session", "python"])
    async def test_of_an_output_over_its_limit_the_beginning_and_the_end_are_kept(
        self, driver: Driver, how: str
    ) -> None:
        self.needs_real()
        name = await one(driver)
        line = "echo begin; yes 0123456789abcde | head -c 3000000; echo the end; (echo on; yes; ) | head -c 31 >&2"
        code = "import sys; print('begin'); sys.stdout.write('0123456789abcde\\n' * 187500); print('the end')"
        code += "; _ = sys.stderr.write('on\\n' + 'y\\n' * 14)"
        command = Command(line=line, session=how == "session", output_limit=31)
        if how == "python":
            command = Command(python=code, output_limit=31)
        for id in ("", "once", "once"):
            result = await driver.run(name, command, id=id)
            assert result.stdout == b"begin\n0123456789" + b"9abcde\nthe end\n"[-15:]
            assert (result.stdout_dropped, result.stdout_tail) == (6 + 3_000_000 + 8 - 31, 15)
            assert (result.stderr, result.stderr_dropped, result.stderr_tail) == (b"on\n" + b"y\n" * 14, 0, 0)
        large = msgspec.structs.replace(command, output_limit=2_500_000)
        result = await driver.run(name, large, id="large")
        assert (len(result.stdout), result.stdout_dropped) == (2_500_000, 500_014)
        assert result.stdout.startswith(b"begin\n0123")
        assert result.stdout.endswith(b"cde\nthe end\n")
        assert result.stdout[: -result.stdout_tail] == (b"begin\n" + b"0123456789abcde\n" * 90_000)[:1_250_000]
        await driver.destroy([name])

    async def test_argv_line_cwd_env_and_stdin(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver, env=(("GIVEN", "by spec"),))
        shown = await driver.run(name, Command(("sh", "-c", 'echo "$1"', "sh", "a  b; $(no)")))
        assert shown.stdout == b"a  b; $(no)\n"
        assert (await sh(driver, name, "pwd", cwd="/usr")).stdout == b"/usr\n"
        assert (await sh(driver, name, 'echo "$GIVEN $MORE"', env=(("MORE", "now"),))).stdout == b"by spec now\n"
        for session in (False, True):  # characters are those of UTF-8, unless another locale is given
            counted = "printf '\u00e9' | wc -m"
            assert (await sh(driver, name, counted, session=session)).stdout == b"1\n"
            assert (await sh(driver, name, counted, session=session, env=(("LC_ALL", "C"),))).stdout == b"2\n"
        assert (await sh(driver, name, "printf '\u00e9' | wc -m", env=(("LANG", "C"),))).stdout == b"2\n"
        much = bytes(range(256)) * 2000
        assert (await sh(driver, name, "wc -c", stdin=much)).stdout.strip() == str(len(much)).encode()
        assert (await sh(driver, name, "cat")).stdout == b""  # no input is an end, not a wait
        await driver.destroy([name])

    async def test_exit_codes_signals_and_what_cannot_be_started(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver)
        assert (await sh(driver, name, "exit 3")).exit_code == 3
        assert (await sh(driver, name, "kill -TERM $$")).exit_code == 128 + 15
        missing = await driver.run(name, Command(("no-such-program",)))
        assert missing.exit_code == 127
        assert b"no-such-program" in missing.stderr
        nowhere = await sh(driver, name, "true", cwd="/no/such/place")
        assert nowhere.exit_code == 126
        assert b"/no/such/place" in nowhere.stderr
        stranger = await sh(driver, name, "true", user="no-such-user")
        assert stranger.exit_code == 126
        await driver.destroy([name])

    async def test_a_timeout_kills_the_command_and_spares_the_rest(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver)
        await sh(driver, name, "sleep 1000 & echo $! > pid")
        result = await sh(driver, name, "echo begun; sleep 600 & sleep 600", timeout_ms=300)
        assert result.timed_out
        assert result.stdout == b"begun\n"
        assert (await sh(driver, name, "kill -0 $(cat pid)")).exit_code == 0
        assert (await sh(driver, name, processes("[s]leep 600"))).stdout == b"0\n"
        await driver.destroy([name])

    @pytest.mark.parametrize(
        "line",
        [
            "timeout 1000 sleep 603",  # which makes a group of its own
            "cd /tmp && timeout 1000 sleep 603; true",
            "setsid sleep 603 & sleep 603",
            "timeout 1000 setsid sh -c 'sleep 603 & sleep 603; true'; true",
        ],
    )
    async def test_a_timeout_kills_what_the_command_runs_in_groups_of_their_own(
        self, driver: Driver, line: str
    ) -> None:
        self.needs_real()
        name = await one(driver)
        await sh(driver, name, "setsid sleep 1000 & timeout 1000 sleep 1000 & echo $! > pid")
        count = processes("[s]leep 603")
        running = asyncio.create_task(sh(driver, name, line))
        async with asyncio.timeout(20):
            while (await sh(driver, name, count)).stdout == b"0\n":
                pass
            running.cancel()
            while (await sh(driver, name, count)).stdout != b"0\n":
                pass
        assert (await sh(driver, name, line, timeout_ms=500)).timed_out
        async with asyncio.timeout(20):
            while (await sh(driver, name, count)).stdout != b"0\n":
                pass
        assert (await sh(driver, name, "kill -0 $(cat pid)")).exit_code == 0
        assert (await sh(driver, name, processes("[s]leep 1000"))).stdout == b"3\n"
        await driver.destroy([name])

    async def test_a_timeout_may_be_as_long_as_anybody_likes(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver)
        for way in (Command(line="echo on"), Command(line="echo on", session=True), Command(python="print('on')")):
            for timeout_ms in (10_000_000_000, 2**53):
                result = await driver.run(name, msgspec.structs.replace(way, timeout_ms=timeout_ms))
                assert (result.stdout, result.timed_out) == (b"on\n", False)
        await driver.destroy([name])

    async def test_streams_both_channels_as_they_come(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver)
        seen: list[tuple[int, bytes]] = []
        first = asyncio.Event()

        def sink(channel: int, data: bytes) -> None:
            seen.append((channel, data))
            first.set()

        line = "echo out; echo err >&2; while [ ! -e go ]; do sleep 0.02; done; echo end"
        running = asyncio.create_task(driver.run(name, Command(line=line), sink))
        async with asyncio.timeout(20):
            await first.wait()  # before the command has ended
            await driver.write_file(name, "go", b"")
            result = await running
        assert result.stdout == b"out\nend\n" == b"".join(data for channel, data in seen if channel == 1)
        assert result.stderr == b"err\n" == b"".join(data for channel, data in seen if channel == 2)
        await driver.destroy([name])

    async def test_the_session_keeps_its_directory_and_variables(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver)
        assert (await sh(driver, name, "cd /usr; greeting=hello; f() { echo f; }", session=True)).exit_code == 0
        kept = await sh(driver, name, 'pwd; echo "$greeting"; f; echo err >&2; false', session=True)
        assert (kept.exit_code, kept.stdout, kept.stderr) == (1, b"/usr\nhello\nf\n", b"err\n")
        slow = await sh(driver, name, "sleep 600", session=True, timeout_ms=200)
        assert slow.timed_out
        assert (await sh(driver, name, "pwd", session=True)).stdout == b"/usr\n"  # the shell outlived it
        assert (await sh(driver, name, "exit 7", session=True)).exit_code == 7
        assert (await sh(driver, name, "pwd", session=True)).stdout != b"/usr\n"  # a new shell
        unended = await sh(driver, name, "printf no-newline", session=True)
        assert unended.stdout == b"no-newline"
        await driver.destroy([name])

    async def test_a_timeout_of_the_session_ends_its_command_and_nothing_earlier(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver)
        left = await sh(driver, name, "sleep 1000 & echo $! > pid", session=True)
        assert left.exit_code == 0
        alive = "kill -0 $(cat pid)"
        slow = await sh(driver, name, "x=5; sleep 600", session=True, timeout_ms=300)
        assert slow.timed_out
        assert (await sh(driver, name, f"{alive} && echo $x", session=True)).stdout == b"5\n"
        for endless in ("while :; do sleep 0.2; done", "while :; do :; done"):
            async with asyncio.timeout(20):
                assert (await sh(driver, name, endless, session=True, timeout_ms=300)).timed_out
            assert (await sh(driver, name, f"{alive} && echo on", session=True)).stdout == b"on\n"
        await driver.destroy([name])

    async def test_a_line_of_the_session_finds_the_exit_code_of_the_one_before(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver)

        async def line(text: str, **options: object) -> tuple[int, bytes]:
            result = await sh(driver, name, text, session=True, **options)
            return result.exit_code, result.stdout

        assert await line("(exit 7)") == (7, b"")
        assert await line("echo $?") == (0, b"7\n")
        assert await line("echo $?; false") == (1, b"0\n")
        assert await line("echo $? $x $PWD; declare -F; set -e", cwd="/usr", env=(("x", "5"),)) == (0, b"1 5 /usr\n")
        assert await line("(exit 3)") == (3, b"")  # which `set -e` ends it for
        assert await line("echo $?$x") == (0, b"0\n")  # a new one
        await driver.destroy([name])

    async def test_a_line_of_the_session_may_send_elsewhere_what_it_and_later_ones_write(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver)
        for line, code in (("exec > out; echo in", 0), ("echo more; false", 1), ("exec 1>&-; (exit 3)", 3), ("x=5", 0)):
            ended = await sh(driver, name, line, session=True, timeout_ms=20_000)
            assert (ended.exit_code, ended.timed_out, ended.stdout) == (code, False, b""), line
        assert (await sh(driver, name, "cat out")).stdout == b"in\nmore\n"
        await driver.destroy([name])

    async def test_what_the_session_left_running_may_write_between_its_lines(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver)
        for number in (1, 2):
            left = await sh(driver, name, f"(sleep 0.2; echo late; echo late >&2; touch {number}) & x=5", session=True)
            assert (left.exit_code, left.stdout, left.stderr) == (0, b"", b"")
            async with asyncio.timeout(20):
                while (await sh(driver, name, f"test -e {number}")).exit_code:
                    pass
            after = await sh(driver, name, "echo $x", session=True)
            assert (after.exit_code, after.stdout, after.stderr) == (0, b"5\n", b"")
        await driver.destroy([name])

    async def test_a_session_whose_line_waits_for_an_earlier_one_outlives_its_timeout(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver)
        left = await sh(driver, name, "cd /usr; x=5; f() { echo f; }; sleep 1000 & pid=$!", session=True)
        assert left.exit_code == 0
        for waits in ("wait", "wait $pid", "sleep 1000 & wait; true"):
            async with asyncio.timeout(20):
                assert (await sh(driver, name, waits, session=True, timeout_ms=300)).timed_out
            kept = await sh(driver, name, "kill -0 $pid && echo $x $PWD && f", session=True)
            assert kept.stdout == b"5 /usr\nf\n", waits
        became = await sh(driver, name, "exec sleep 1000", session=True, timeout_ms=300)
        assert (became.timed_out, became.exit_code) == (True, 137)
        assert (await sh(driver, name, "echo anew$x", session=True)).stdout == b"anew\n"
        await driver.destroy([name])

    async def test_the_session_takes_any_line(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver)

        async def line(text: str) -> tuple[int, bytes]:
            result = await sh(driver, name, text, session=True, timeout_ms=20_000)
            return result.exit_code, result.stdout

        large = "".join(f"{number} of 'many' $x `y` \\ lines\n" for number in range(10_000))
        code, wrote = await line(f"cat <<'END' | tee large | md5sum\n{large}END\n")
        assert (code, wrote.split()[0].decode()) == (0, hashlib.md5(large.encode()).hexdigest())
        assert await line("  echo short  ") == (0, b"short\n")
        assert await line("echo a\0b") == (0, b"ab\n")
        assert await line("IFS=e; echo caf\u00e9") == (0, "caf\u00e9\n".encode())
        assert await line("printf '%s,' $__s 'a b'; unset IFS") == (0, b"a b,")
        assert await line("set -ea; x=5") == (0, b"")
        assert await line("echo $x; env | grep -c ^__s=. || true") == (0, b"5\n0\n")
        assert await line("set +ea") == (0, b"")
        for broken in ("echo 'not closed", "return 3", "if; fi", "echo $((1 / 0)); echo on"):
            code, said = await line(broken)
            assert (code != 0, said) == (True, b""), broken
        first = large.encode().partition(b"\n")[0]
        assert await line('exec 3<large; read -r first <&3; echo "$x $first"') == (0, b"5 " + first + b"\n")
        assert await line("IFS=0; (exit 100)") == (100, b"")
        assert await line("unset IFS; readonly z=1") == (0, b"")
        refused = await sh(driver, name, "true", session=True, env=(("z", "2"),), timeout_ms=20_000)
        assert (refused.exit_code, refused.timed_out) == (1, False)
        code, said = await line("trap 'echo \"$BASH_COMMAND\"' DEBUG; false")  # says how the end is marked, too
        assert (code, said.splitlines()[0]) == (1, b"false"), said
        assert (await line("trap - DEBUG"))[0] == 0
        assert await line("printf prom; exit 5") == (5, b"prom")
        assert await line('for fd in {11..99}; do eval "exec $fd>&-"; done; echo closed') == (0, b"closed\n")
        assert await line("echo lost") == (1, b"")  # the shell hears nothing any more, and is replaced
        assert await line("echo back") == (0, b"back\n")
        assert await line("exec 10>&-") == (0, b"")  # where it keeps its own input meanwhile: it ends unasked
        assert await line("echo new") == (0, b"new\n")
        await driver.destroy([name])

    async def test_many_commands_at_once(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver)
        results = await asyncio.gather(*(sh(driver, name, f"sleep 0.05; echo {i}") for i in range(24)))
        assert [result.stdout for result in results] == [f"{i}\n".encode() for i in range(24)]
        await driver.destroy([name])

    async def test_a_destroyed_sandbox_ends_its_commands(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver)
        running = asyncio.create_task(sh(driver, name, "sleep 600"))
        await sh(driver, name, "true")
        await driver.destroy([name])
        with pytest.raises(NoSuchSandboxError) as caught:
            await running
        assert caught.value.reason is EndReason.RELEASED

    async def test_a_cancelled_command_is_killed(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver)
        running = asyncio.create_task(sh(driver, name, "sleep 601"))
        count = processes("[s]leep 601")
        async with asyncio.timeout(20):
            while (await sh(driver, name, count)).stdout == b"0\n":
                pass
            running.cancel()
            while (await sh(driver, name, count)).stdout != b"0\n":
                pass
        await driver.destroy([name])

    @pytest.mark.parametrize(
        ("endless", "next"),
        [
            (Command(line="echo begun; touch begun; sleep 602"), Command(line="echo on")),
            (Command(line="echo begun; touch begun; sleep 602", session=True), Command(line="echo on", session=True)),
            (
                Command(python="print('begun', flush=True); open('begun', 'w')\nwhile True: pass"),
                Command(python="print('on')"),
            ),
        ],
        ids=["command", "session", "python"],
    )
    async def test_a_command_that_is_given_up_is_killed_and_says_so(
        self, driver: Driver, endless: Command, next: Command
    ) -> None:
        self.needs_real()
        name = await one(driver)
        running = asyncio.create_task(driver.run(name, endless, id="a"))
        async with asyncio.timeout(20):
            while not (await sh(driver, name, "test -e begun")).exit_code == 0:
                pass
            driver.give_up(name, "a")
            driver.give_up(name, "a")
            result = await running
            assert (result.given_up, result.timed_out, result.stdout) == (True, False, b"begun\n")
            assert result.exit_code != 0
            assert (await driver.run(name, next, id="b")).stdout == b"on\n"
            driver.give_up(name, "b")  # too late
            assert await driver.run(name, endless, id="a") == result
            assert (await driver.run(name, next, id="b")).stdout == b"on\n"
        async with asyncio.timeout(20):  # killed with its command; it ends when it next has a turn
            while (await sh(driver, name, processes("[s]leep 602"))).stdout != b"0\n":
                await asyncio.sleep(0.05)
        await driver.destroy([name])

    @pytest.mark.parametrize(
        ("before", "command"),
        [
            (Command(line="cat go", session=True), Command(line="touch ran", session=True)),
            (Command(python="open('go').read()"), Command(python="open('ran', 'w')")),
        ],
        ids=["session", "python"],
    )
    async def test_a_command_that_is_given_up_before_it_begins_is_never_run(
        self, driver: Driver, before: Command, command: Command
    ) -> None:
        self.needs_real()
        name = await one(driver)
        await sh(driver, name, "mkfifo go")
        driver.give_up(name, "early")
        with pytest.raises(NotRunError, match="given up"):
            await driver.run(name, command, id="early")
        slow = asyncio.create_task(driver.run(name, before, id="slow"))
        queued = asyncio.create_task(driver.run(name, command, id="queued"))
        await sh(driver, name, "true")  # both are there
        driver.give_up(name, "queued")
        async with asyncio.timeout(20):
            for _ in range(2):
                with pytest.raises(NotRunError, match="given up"):
                    await queued
                queued = asyncio.create_task(driver.run(name, command, id="queued"))
            with pytest.raises(NotRunError):
                await queued
            await sh(driver, name, "echo > go")
            assert (await slow).exit_code == 0
        assert (await sh(driver, name, "test -e ran")).exit_code == 1
        await driver.destroy([name])

    @pytest.mark.parametrize(
        ("before", "command"),
        [
            (Command(line="cat go", session=True), Command(line="echo on", session=True)),
            (Command(python="open('go').read()"), Command(python="print('on')")),
        ],
        ids=["session", "python"],
    )
    async def test_a_command_that_is_cancelled_before_its_turn_is_run_for_whoever_asks_for_it_still(
        self, driver: Driver, before: Command, command: Command
    ) -> None:
        self.needs_real()
        name = await one(driver)
        await sh(driver, name, "mkfifo go")
        slow = asyncio.create_task(driver.run(name, before, id="slow"))
        first = asyncio.create_task(driver.run(name, command, id="queued"))
        await asyncio.sleep(0)
        second = asyncio.create_task(driver.run(name, command, id="queued"))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await sh(driver, name, "echo > go")
        async with asyncio.timeout(20):
            assert (await slow).exit_code == 0
            assert (await second).stdout == b"on\n"
            assert (await driver.run(name, command, id="queued")).stdout == b"on\n"
        await driver.destroy([name])

    async def test_file_errors_are_of_the_sandbox_not_of_the_driver(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver, resources=Resources(disk=4 * 1024**2))
        with pytest.raises(SandboxFileError, match="directory"):
            await driver.read_file(name, "/usr")
        with pytest.raises(SandboxFileError):
            await driver.write_file(name, "/usr/bin/new", b"")
        await sh(driver, name, "mkfifo pipe")
        with pytest.raises(SandboxFileError):
            await driver.read_file(name, "pipe")
        with pytest.raises(SandboxFileError, match="space"):
            await driver.write_file(name, "big", bytes(8 * 1024**2))
        await driver.destroy([name])

    @pytest.mark.parametrize(
        "spoilt",
        [
            "rm /etc/passwd; mkfifo /etc/passwd",
            "rm /etc/passwd; ln -s /dev/zero /etc/passwd",
            "printf 'root:x:0:0::/ro\\0ot:/bin/sh\nnobody:x:99999999999:1::/:/bin/sh\n' > /etc/passwd",
        ],
        ids=["a pipe for accounts", "no end of accounts", "odd accounts"],
    )
    async def test_a_sandbox_that_is_spoilt_from_inside_goes_on(self, driver: Driver, spoilt: str) -> None:
        self.needs_real()
        name = await one(driver)
        await sh(driver, name, spoilt)
        async with asyncio.timeout(20):
            with contextlib.suppress(SandboxFileError):  # nobody may know any more where its home is
                await driver.write_file(name, "solve.py", b"1")
            other = await sh(driver, name, "id -u", user="nobody", timeout_ms=10_000)
            assert (other.exit_code, other.stdout) in ((126, b""), (0, b"65534\n"))
            assert (await sh(driver, name, "echo on", timeout_ms=10_000)).stdout == b"on\n"
        await driver.destroy([name])

    async def test_nothing_inside_ends_or_stops_its_first_process(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver)
        for line in ("kill -KILL 1", "kill -STOP 1", "kill -TERM 1", "kill -SEGV 1", "kill -KILL -1"):
            await sh(driver, name, f"{line}; exit 1", timeout_ms=10_000)
            async with asyncio.timeout(20):
                assert (await sh(driver, name, "echo on", timeout_ms=10_000)).stdout == b"on\n"
        assert (await sh(driver, name, "sleep 600 & kill -0 1 && kill $! && ! wait $!", user="root")).exit_code == 0
        await driver.destroy([name])

    @pytest.mark.parametrize(
        "bomb",
        [
            "i=0; while [ $i -lt 200 ]; do sleep 600 & i=$((i+1)); done",
            "python3 -c 'import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(600,)).start()'",
            "python3 -c 'import os\nwhile True:\n  try: os.fork()\n  except OSError: pass'",
            "python3 -c 'import os\nfor _ in range(400): os.fork() or os._exit(0)'",
        ],
        ids=["processes", "threads", "their children", "zombies"],
    )
    async def test_more_processes_than_it_may_have_are_refused_and_it_goes_on(self, driver: Driver, bomb: str) -> None:
        self.needs_real()
        if os.geteuid() != 0:
            pytest.skip("root makes the control groups that limit processes")  # in zygote nothing else does
        name = await one(driver, resources=Resources(pids=24))
        assert (await sh(driver, name, bomb, timeout_ms=4000)).exit_code
        for _ in range(20):  # what is killed is on its way out for a while
            await sh(driver, name, "kill -KILL -1", timeout_ms=10_000)
            many = await driver.run(name, Command(("python3", "-c", MANY.format(most=200)), timeout_ms=20_000))
            if many.stdout == b"22 11\n":
                break
            await asyncio.sleep(0.1)
        assert (many.exit_code, many.stdout) == (9, b"22 11\n"), "with the agent and what starts them, 24"
        await driver.destroy([name])

    async def test_what_fails_on_a_full_disk_says_so(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver, resources=Resources(disk=4 * 1024**2))
        assert not (await sh(driver, name, "false")).disk_full
        full = await sh(driver, name, "head -c 8388608 /dev/zero > big")
        assert full.exit_code
        assert full.disk_full
        assert not (await sh(driver, name, "true")).disk_full
        await driver.destroy([name])

    async def test_the_deepest_snapshot_is_there_whole(self, driver: Driver, tmp_path: Path, blobs: Blobs) -> None:
        self.needs_real()
        needs_snapshots()
        snapshot = await asyncio.to_thread(chain, tmp_path / "chain", blobs, DEEPEST)
        name = await one(driver, snapshot, resources=Resources(memory=64 * 1024**2))
        result = await sh(driver, name, "echo /root/of-* | wc -w")
        assert result.stdout == b"%d\n" % DEEPEST, result
        await driver.write_file(name, "/root/of-0", b"written")
        await driver.destroy([name])

    @pytest.mark.parametrize("path", ["dir", "in.txt/below", "/proc/none", "x" * 256])
    async def test_a_file_that_cannot_be_put_into_it_is_whose_it_was(self, driver: Driver, path: str) -> None:
        self.needs_real()
        given = (InputFile("in.txt", b"x"), InputFile("dir/in.txt", b"x"), InputFile(path, b"x"))
        (outcome,) = await start(driver, [fresh()], StartSpec(HOST, files=given))
        assert isinstance(outcome, StartFailed)
        assert outcome.reason is EndReason.BAD_INPUT
        assert outcome.detail.startswith(f"input file {path}")

    async def test_a_bad_snapshot_is_refused(self, driver: Driver) -> None:
        self.needs_real()
        (outcome,) = await start(driver, [fresh()], StartSpec(Snapshot("dir-x", "dir", "/no/such/directory")))
        assert isinstance(outcome, StartFailed)
        assert "/no/such/directory" in outcome.detail
        assert outcome.reason is EndReason.START_FAILED

    async def test_python_keeps_its_state_from_call_to_call(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver)
        first = await driver.run(name, Command(python="import os\nx = 41\nprint('set')"))
        assert (first.exit_code, first.stdout, first.stderr) == (0, b"set\n", b"")
        again = await driver.run(name, Command(python="x += 1\nx, os.environ['A']", env=(("A", "b"),), cwd="/tmp"))
        assert again.stdout == b"(42, 'b')\n"
        assert (await driver.run(name, Command(python="os.getcwd()"))).stdout == b"'/tmp'\n"
        await driver.destroy([name])

    async def test_python_tells_errors_exits_and_what_programs_print(self, driver: Driver) -> None:
        self.needs_real()
        name = await one(driver)
        failed = await driver.run(name, Command(python="def f():\n    return 1 / 0\nf()"))
        assert failed.exit_code == 1
        assert failed.stderr.startswith(b"Traceback (most recent call last):\n")
        assert b"return 1 / 0" in failed.stderr
        assert failed.stderr.endswith(b"ZeroDivisionError: division by zero\n")
        assert b"served" not in failed.stderr
        assert (await driver.run(name, Command(python="import sys; sys.exit(3)"))).exit_code == 3
        assert (await driver.run(name, Command(python="1 +"))).exit_code == 1
        printed = await driver.run(
            name, Command(python="import subprocess\nsubprocess.run(['echo', 'out']).returncode")
        )
        assert printed.stdout == b"out\n0\n"
        pieces: list[bytes] = []
        await driver.run(name, Command(python="print('streamed')"), lambda _, data: pieces.append(data))
        assert b"".join(pieces) == b"streamed\n"
        await driver.destroy([name])

    async def test_python_that_takes_too_long_is_interrupted_and_one_that_ends_is_begun_anew(
        self, driver: Driver
    ) -> None:
        self.needs_real()
        name = await one(driver)
        await driver.run(name, Command(python="x = 1"))
        late = await driver.run(name, Command(python="import time\ntime.sleep(600)", timeout_ms=300))
        assert late.timed_out
        assert (await driver.run(name, Command(python="x"))).stdout == b"1\n"  # it was interrupted, no more
        ended = await driver.run(name, Command(python="import os\nos._exit(7)"))
        assert ended.exit_code != 0
        assert b"the interpreter ended" in ended.stderr
        assert b"NameError" in (await driver.run(name, Command(python="x"))).stderr
        await driver.destroy([name])

    async def test_a_captured_disk_is_started_from_as_it_was(
        self, driver: Driver, tmp_path: Path, blobs: Blobs
    ) -> None:
        self.needs_real()
        needs_snapshots()
        name = await one(driver)
        line = (
            "echo 1 > kept; mkdir -p a/b; echo 2 > a/b/c; rm /etc/hosts; rm -r /var/log; mkdir /var/log; chown 7:8 kept"
        )
        assert (await sh(driver, name, line)).exit_code == 0
        first = await self.captured(driver, name, tmp_path / "first", blobs)
        await sh(driver, name, "echo later > kept; rm -r a")
        names = [fresh(), fresh()]
        assert len(await start(driver, names, StartSpec(first))) == 2
        for each in names:
            look = (
                "cat kept a/b/c; find kept -printf '%U %G\\n'; test -e /etc/hosts; echo $?; find /var/log -mindepth 1"
            )
            assert (await sh(driver, each, look)).stdout == b"1\n2\n7 8\n1\n"
        await sh(driver, names[0], "echo 3 >> kept; rm -r a; echo new > /etc/hosts")
        second = await self.captured(driver, names[0], tmp_path / "second", blobs, first)
        last = await one(driver, second)
        look = "cat kept /etc/hosts; echo *; cat /root/a/b/c"
        assert (await sh(driver, last, look)).stdout == b"1\n3\nnew\nkept\n"
        assert (await sh(driver, names[1], "cat kept a/b/c")).stdout == b"1\n2\n"
        assert (await sh(driver, name, "cat kept")).stdout == b"later\n"
        await driver.destroy([name, *names, last])

    async def test_what_runs_stands_still_while_it_is_captured_and_goes_on(
        self, driver: Driver, tmp_path: Path, blobs: Blobs
    ) -> None:
        self.needs_real()
        needs_snapshots()
        name = await one(driver)
        await driver.run(name, Command(line="x=5; cd /tmp", session=True))
        await driver.run(name, Command(python="y = 6"))
        waiting = asyncio.create_task(
            sh(driver, name, "echo on > out; until [ -e /root/go ]; do sleep 0.05; done; cat out")
        )
        await sh(driver, name, "until [ -e /root/out ]; do sleep 0.05; done")
        await self.captured(driver, name, tmp_path / "kept", blobs)
        assert (await sh(driver, name, "touch /root/go")).exit_code == 0
        assert (await waiting).stdout == b"on\n"
        assert (await driver.run(name, Command(line="echo $x $PWD", session=True))).stdout == b"5 /tmp\n"
        assert (await driver.run(name, Command(python="y"))).stdout == b"6\n"
        gone = tmp_path / "gone"
        gone.mkdir()
        if not driver.keeps_memory:
            with pytest.raises(UnsupportedError, match="processes"):
                await driver.capture(name, gone, memory=False, hold=True)
            assert (await sh(driver, name, "echo on")).stdout == b"on\n"
        await driver.destroy([name])

    async def test_a_capture_tells_which_commands_had_come_to_their_end(self, driver: Driver, tmp_path: Path) -> None:
        self.needs_real()
        needs_snapshots()
        name = await one(driver)
        await driver.run(name, Command(line="true"), id="settled")
        driver.settle(name, ["settled"])
        await driver.run(name, Command(line="true"), id="ended")
        line = "touch on; until [ -e go ]; do sleep 0.01; done"
        under_way = asyncio.create_task(driver.run(name, Command(line=line), id="on"))
        while (await sh(driver, name, "test -e on")).exit_code:
            pass
        kept = tmp_path / "kept"
        kept.mkdir()
        assert (await driver.capture(name, kept, memory=False)).finished == ("ended",)
        await sh(driver, name, "touch go")
        assert (await under_way).exit_code == 0
        (kept / "layer").unlink()
        assert (await driver.capture(name, kept, memory=False)).finished == ("ended", "on")
        await driver.destroy([name])

    async def test_what_starts_processes_all_the_time_stands_still_all_the_same(
        self, driver: Driver, tmp_path: Path
    ) -> None:
        self.needs_real()
        needs_snapshots()
        name = await one(driver)
        for _ in range(3):
            await sh(driver, name, "while :; do sleep 0.002; done >/dev/null 2>&1 &")
        code = "import subprocess\nwhile True:\n  subprocess.run(['true'])\n  open('count', 'a').write('x')"
        await driver.write_file(name, "busy.py", code.encode())
        await sh(driver, name, "python3 busy.py >/dev/null 2>&1 & until [ -s count ]; do sleep 0.02; done")
        for number in range(12):
            directory = tmp_path / f"kept{number}"
            directory.mkdir()
            await driver.capture(name, directory, memory=False)
        before = (await driver.read_file(name, "count", limit=0)).size
        async with asyncio.timeout(20):
            while (await driver.read_file(name, "count", limit=0)).size <= before:
                await asyncio.sleep(0.02)
        await driver.destroy([name])

    async def test_one_that_is_held_has_lost_nothing(self, driver: Driver, tmp_path: Path, blobs: Blobs) -> None:
        self.needs_real()
        needs_snapshots()
        name = await one(driver)
        await sh(driver, name, "echo 1 > kept")
        await self.captured(driver, name, tmp_path / "first", blobs, hold=True)
        await driver.go_on(name)
        assert (await sh(driver, name, "echo 2 >> kept; cat kept")).stdout == b"1\n2\n"
        held = await self.captured(driver, name, tmp_path / "second", blobs, hold=True)
        await driver.destroy([name])
        again = await one(driver, held)
        assert (await sh(driver, again, "cat kept")).stdout == b"1\n2\n"
        await driver.destroy([again])

    async def test_what_is_in_memory_is_kept_and_goes_on_in_every_copy(
        self, driver: Driver, tmp_path: Path, blobs: Blobs
    ) -> None:
        self.needs_memory(driver)
        name = await one(driver, env=(("WHO", "the first"),))
        await sh(driver, name, "i=0; while :; do i=$((i+1)); echo $i > /root/count; sleep 0.02; done >/dev/null 2>&1 &")
        await driver.run(name, Command(line="x=5; cd /tmp; exec 9> open; echo 1 >&9", session=True))
        await driver.run(name, Command(python="y = open('/root/f', 'w+'); n = y.write('abc')"))
        await sh(driver, name, "echo held > /dev/shm/held; echo 1 > kept")
        first = await self.captured(driver, name, tmp_path / "first", blobs, memory=True)
        names = [fresh(), fresh()]
        for each in names:
            assert await start(driver, [each], StartSpec(first, env=(("WHO", each),))) == [Started((each,))]
        for each in (name, *names):
            assert (
                await driver.run(each, Command(line="echo 2 >&9; echo $x $PWD; cat open", session=True))
            ).stdout == (b"5 /tmp\n1\n2\n")
            assert (await driver.run(each, Command(python="y.write('d'); y.seek(0); y.read()"))).stdout.endswith(
                b"'abcd'\n"
            )
            assert (await sh(driver, each, "cat /dev/shm/held kept")).stdout == b"held\n1\n"
            who = b"the first\n" if each == name else f"{each}\n".encode()
            assert (await sh(driver, each, "echo $WHO")).stdout == who
            before = int((await driver.read_file(each, "/root/count")).data or b"0")
            async with asyncio.timeout(20):
                while int((await driver.read_file(each, "/root/count")).data or b"0") <= before:
                    await asyncio.sleep(0.02)
        await sh(driver, names[0], "echo 2 >> kept")
        second = await self.captured(driver, names[0], tmp_path / "second", blobs, first, memory=True)
        await driver.destroy([name, *names])
        last = await one(driver, second)
        assert (await sh(driver, last, "cat kept")).stdout == b"1\n2\n"
        assert (await driver.run(last, Command(line="echo $x", session=True))).stdout == b"5\n"
        await driver.destroy([last])

    async def test_commands_under_way_go_on_where_memory_is_kept(
        self, driver: Driver, tmp_path: Path, blobs: Blobs
    ) -> None:
        self.needs_memory(driver)
        name = await one(driver)
        command = Command(line="echo on > out; until [ -e /root/go ]; do sleep 0.05; done; cat out; echo once >> ran")
        waiting = asyncio.create_task(driver.run(name, command, id="w"))
        await sh(driver, name, "until [ -e /root/out ]; do sleep 0.05; done")
        kept = asyncio.create_task(self.captured(driver, name, tmp_path / "kept", blobs, memory=True))
        asked = [asyncio.create_task(sh(driver, name, f"echo {i}")) for i in range(8)]
        first = await kept
        assert [(await each).stdout for each in asked] == [f"{i}\n".encode() for i in range(8)]
        await sh(driver, name, "touch /root/go")
        assert (await waiting).stdout == b"on\n"
        assert (await sh(driver, name, "cat ran")).stdout == b"once\n"
        copy = await one(driver, first)
        again = asyncio.create_task(driver.run(copy, command, id="w"))  # it runs there: nothing is run twice
        await sh(driver, copy, "sleep 0.2; touch /root/go")
        assert (await again).stdout == b"on\n"
        assert (await sh(driver, copy, "cat ran")).stdout == b"once\n"
        await driver.destroy([name, copy])

    async def test_one_that_is_held_with_its_memory_goes_on_or_is_started_again(
        self, driver: Driver, tmp_path: Path, blobs: Blobs
    ) -> None:
        self.needs_memory(driver)
        name = await one(driver)
        await driver.run(name, Command(python="n = 1"))
        await self.captured(driver, name, tmp_path / "first", blobs, memory=True, hold=True)
        assert name in await driver.list()
        await driver.go_on(name)
        assert (await driver.run(name, Command(python="n = n + 1; n"))).stdout == b"2\n"
        held = await self.captured(driver, name, tmp_path / "second", blobs, memory=True, hold=True)
        await driver.destroy([name])
        again = await one(driver, held)
        assert (await driver.run(again, Command(python="n"))).stdout == b"2\n"
        await driver.destroy([again])

    async def test_what_cannot_be_captured_is_said_and_nothing_is_left(self, driver: Driver, tmp_path: Path) -> None:
        kept = tmp_path / "kept"
        kept.mkdir()
        with pytest.raises(NoSuchSandboxError):
            await driver.capture(fresh(), kept, memory=False)
        name = await one(driver)
        if not driver.keeps_memory:
            with pytest.raises(UnsupportedError, match="isolation"):
                await driver.capture(name, kept, memory=True)
        assert list(kept.iterdir()) == []
        assert (await sh(driver, name, "echo on")).exit_code == 0
        await driver.destroy([name])

    async def captured(
        self,
        driver: Driver,
        name: str,
        directory: Path,
        blobs: Blobs,
        origin: Snapshot = HOST,
        *,
        memory: bool = False,
        hold: bool = False,
    ) -> Snapshot:
        """Capture a sandbox, and return what starts from it."""
        directory.mkdir()
        kept = await driver.capture(name, directory, memory=memory, hold=hold)
        assert (kept.memory is not None) == memory
        assert {path.name for path in directory.iterdir()} == {"layer", *(("memory",) if memory else ())}
        image = blobs.add(kept.memory) if kept.memory is not None else None
        return grown(origin, blobs.add(kept.layer), image, driver.isolation)

    def needs_memory(self, driver: Driver) -> None:
        self.needs_real()
        if not driver.keeps_memory:
            pytest.skip("this driver keeps no memory")

    def needs_real(self) -> None:
        if not self.real:
            pytest.skip("this driver carries no command out")  # the simulated one only says that it did
