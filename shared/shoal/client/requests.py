"""From what people write to what is published, checked: nothing is sent that cannot be right."""

import posixpath
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar, Unpack

import msgspec

from shoal.client.errors import BadRequest
from shoal.client.scheduling import Scheduling, scheduled
from shoal.wire import messages, subjects
from shoal.wire.codec import UndecodableError, decode, encode
from shoal.wire.messages import Command, InputFile, OnLost, RolloutSpec, RolloutSubmitted
from shoal.wire.outputs import IN_MESSAGE, LARGEST
from shoal.wire.quantities import BadValueError, parse_bytes, parse_seconds

MOST_SANDBOXES: Final = 100_000
MOST_BYTES: Final = 700_000
"""Bytes of one encoded request: a broker takes 1 MiB by default, and what others add must fit as well."""
PIECE: Final = 256 * 1024
"""Bytes of a file in one message."""

ROLLOUT: Final = "a rollout's id, such as rollout.id"
_PATH: Final = "a path in the sandbox, such as 'solve.py' or '/tmp/x'"
_USER: Final = "a user's name or number, such as 'nobody' or '1000'"

_LONGEST_NAME: Final = 255

CommandLike = str | Sequence[str] | Command
FileLike = bytes | str | Path
T = TypeVar("T")


def checked(parse: Callable[..., T], *args: object) -> T:
    """Call a parser of the contract; its BadValueError becomes a BadRequest."""
    try:
        return parse(*args)
    except BadValueError as error:
        raise BadRequest(error.field, error.problem) from error


def whole_number(value: object, name: str, least: int, most: int) -> int:
    """Return value if it is an integer from least to most. Raises BadRequest."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadRequest(name, f"{value!r} is not a whole number from {least} to {most}")
    return value


def text(value: object, name: str, right: str) -> str:
    """Return value if it is a str that can be sent; `right` says what would be. Raises BadRequest."""
    if not isinstance(value, str) or "\0" in value or not (value.isascii() or _encodable(value)):
        raise BadRequest(name, f"{value!r} cannot be used; write {right}, as a str")
    return value if type(value) is str else str.__str__(value)  # what is more than a str is not encoded


def sendable(value: str, name: str, what: str = "it") -> str:
    """Return a str that can be sent; `what` it is, for people. Raises BadRequest."""
    try:
        value.isascii() or value.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(
            name, f"{what} is no UTF-8 ({error.reason}, at {error.start}); escape that, or mend it"
        ) from None
    return value


def truth(value: object, name: str) -> bool:
    """Return value if it is True or False. Raises BadRequest."""
    if value is not True and value is not False:
        raise BadRequest(name, f"{value!r} cannot be used; write True or False")
    return value


def content(value: object, name: str, what: str = "it") -> bytes:
    """Return the bytes of what a file or an input is to hold; `what` it is, for people. Raises BadRequest."""
    try:
        if isinstance(value, str):
            return value.encode()
        return value if type(value) is bytes else bytes(memoryview(value))  # type: ignore[arg-type]  # it says if not
    except UnicodeEncodeError as error:
        raise BadRequest(name, f"{what} is no UTF-8 ({error.reason}, at {error.start}); give bytes") from error
    except TypeError as error:
        raise BadRequest(name, f"{what} is of type {type(value).__name__}; give bytes, or text as a str") from error


def file_path(value: object, name: str) -> str:
    """Return value if it can be a path in a sandbox. Raises BadRequest."""
    path = text(value, name, _PATH)
    if not path:
        raise BadRequest(name, f"it is empty; write {_PATH}")
    return path


def mapping(value: object, name: str, right: str) -> Mapping[Any, Any]:
    """Return value if it maps something, for None what is empty; `right` says what would be. Raises BadRequest."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadRequest(name, f"{value!r} cannot be used; write a dict, such as {right}")
    return value


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def milliseconds(value: float | str | None, name: str) -> int:
    """Return a duration in ms, at least 1; 0 for None. Raises BadRequest."""
    return 0 if value is None else max(round(checked(parse_seconds, value, name) * 1000), 1)


def patience(value: float | str | None, name: str) -> float | None:
    """Return for how many seconds to wait; 0 is not at all, None for ever. Raises BadRequest."""
    return 0.0 if value == 0 and value is not False else None if value is None else checked(parse_seconds, value, name)


@dataclass(frozen=True, slots=True)
class Resources:
    """Limits of one sandbox: memory and disk as sizes (`"256MiB"`, or bytes), cpu in cores, pids as a count.

    Raises BadRequest for what is no such limit.
    """

    memory: int | str = "256MiB"
    cpu: float = 1.0
    pids: int = 256
    disk: int | str = "128MiB"
    wire: messages.Resources = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.cpu, bool) or not isinstance(self.cpu, int | float) or not 0.001 <= self.cpu <= 10_000:
            raise BadRequest("cpu", f"{self.cpu!r} is not a number of cores from 0.001 to 10000, such as 0.5 or 2")
        limits = messages.Resources(
            checked(parse_bytes, self.memory, "memory"),
            round(self.cpu * 1000),
            whole_number(self.pids, "pids", 1, 4_194_304),
            checked(parse_bytes, self.disk, "disk"),
        )
        object.__setattr__(self, "wire", limits)


def pairs(env: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """Return an environment as the wire has it. Raises BadRequest."""
    found = []
    for name, value in mapping(env, "env", "{'LANG': 'C'}").items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise BadRequest("env", f"{name!r} is not the name of a variable; it may hold neither '=' nor a NUL")
        if not isinstance(value, str) or "\0" in value:
            raise BadRequest("env", f"the value of {name} must be a str without NUL, not {value!r}")
        found.append((sendable(name, "env", f"the name {name!r}"), sendable(value, "env", f"the value of {name}")))
    return tuple(found)


def command(
    what: CommandLike,
    *,
    timeout: float | str | None = None,
    cwd: str = "",
    env: Mapping[str, str] | None = None,
    stdin: bytes | str | None = None,
    user: str = "",
    output_limit: int | str | None = None,
    session: bool = False,
) -> Command:
    """Return a command as the wire has it: a str is a line for a shell, a list of str is a program and its arguments.

    timeout in seconds or as `"30s"`; output_limit in bytes of each stream, at most 16 MiB (64 KiB).
    Raises BadRequest.
    """
    if isinstance(what, Command):
        return what
    line = ""
    argv: tuple[str, ...] = ()
    if isinstance(what, str):
        line = what
        if not line.strip():
            raise BadRequest("command", "it is empty; write a shell line such as 'python3 solve.py', or a list")
    else:
        argv = tuple(what) if isinstance(what, Iterable) else ()
        if not argv or not all(isinstance(part, str) for part in argv) or not argv[0]:
            raise BadRequest("command", f"{what!r} is not a list of str that begins with a program's name")
        if session:
            raise BadRequest("command", "a session takes shell lines; write the command as one str")
    if session and stdin is not None:
        raise BadRequest("stdin", "a line for the session has none; redirect it from a file, or leave session=True out")
    if session and user:
        raise BadRequest(
            "user", "the session is its rollout's user's; write 'su' into the line, or leave session=True out"
        )
    if "\0" in line or any("\0" in part for part in argv):
        raise BadRequest("command", "it holds a NUL character, which no program can be given")
    for part in (line, *argv):
        sendable(part, "command")
    limit = Command().output_limit if output_limit is None else checked(parse_bytes, output_limit, "output_limit")
    if limit > LARGEST:
        raise BadRequest("output_limit", f"{limit} exceeds 16 MiB; write more than that to a file and read the file")
    return Command(
        argv,
        line,
        text(cwd, "cwd", "a directory, such as '/tmp'"),
        pairs(env),
        b"" if stdin is None else content(stdin, "stdin"),
        milliseconds(timeout, "timeout"),
        limit,
        text(user, "user", _USER),
        truth(session, "session"),
    )


def commands_of(given: Iterable[CommandLike], timeout: float | str | None = None) -> tuple[Command, ...]:
    """Return many commands as the wire has them. Raises BadRequest, which says which of them it is about."""
    found: list[Command] = []
    for one in given:
        try:
            found.append(command(one, timeout=timeout))
        except BadRequest as error:
            raise BadRequest("commands", f"the {error.field} of number {len(found)}: {error.problem}") from error
    return tuple(found)


def shown(value: Command) -> str:
    """Return a command as people would type it."""
    return value.line or value.python or shlex.join(value.argv)


def input_files(files: Mapping[str, FileLike] | None) -> tuple[InputFile, ...]:
    """Return files as the wire has them; a Path is read from this machine, with its mode. Raises BadRequest."""
    found = []
    for name, what in mapping(files, "files", "{'solve.py': 'print(42)'}").items():
        path, mode = _input_path(name), 0o644
        if isinstance(what, Path):
            try:
                data, mode = what.read_bytes(), what.stat().st_mode & 0o777
            except OSError as error:
                raise BadRequest("files", f"cannot read {what}: {error.strerror}") from error
        else:
            data = content(what, "files", f"the content of {path!r}")
        found.append(InputFile(path, data, mode))
    places = {posixpath.normpath(file.path): file.path for file in found}
    for place, path in places.items():
        while place := place.rpartition("/")[0]:
            if place in places:
                raise BadRequest("files", f"{path!r} is below {places[place]!r}, which is a file, not a directory")
    return tuple(found)


def _input_path(name: object) -> str:
    path = file_path(name, "files")
    if path.endswith("/") or posixpath.basename(path) in (".", ".."):
        raise BadRequest("files", f"{path!r} is a directory; write a file's path, such as 'solve.py'")
    if any(len(part.encode()) > _LONGEST_NAME for part in path.split("/")):
        raise BadRequest(
            "files", f"{path[:80]!r}... has a name of more than {_LONGEST_NAME} bytes, which no disk takes"
        )
    return path


def rollout_spec(
    template: object,
    n: int | None,
    *,
    timeout: float | str | None = None,
    resources: Resources | None = None,
    command: CommandLike | None = None,
    commands: Sequence[CommandLike] | None = None,
    files: Mapping[str, FileLike] | None = None,
    env: Mapping[str, str] | None = None,
    user: str = "",
    on_lost: str | None = None,
    max_attempts: int = 3,
    priority: int = 0,
    isolation: str = "",
    checkpoint_every: float | str | None = None,
    checkpoint_commands: int = 0,
    warm: str = "",
    idle_after: float | str | None = None,
    **scheduling: Unpack[Scheduling],
) -> RolloutSpec:
    """Return the spec of a rollout. Raises BadRequest for everything that can be known to be wrong beforehand."""
    template = str(template) if template is not None else ""
    if not template.strip():
        raise BadRequest("template", "it is empty; write 'host', 'dir:PATH' or 'tar:PATH', or give a snapshot")
    sendable(template, "template")
    if command is not None and commands is not None:
        raise BadRequest("commands", "give either command (all run it) or commands (one for each sandbox), not both")
    if isinstance(commands, str):
        raise BadRequest("commands", "it is one str; write command=..., or a list with one command for each sandbox")
    if commands is not None and not isinstance(commands, Iterable):
        raise BadRequest("commands", f"{commands!r} is no list with one command for each sandbox")
    if resources is not None and not isinstance(resources, Resources):
        raise BadRequest("resources", f"{resources!r} are none; write shoal.Resources(memory='1GiB')")
    given = (_command(command),) if command is not None else commands_of(commands or ())
    if any(each.output_limit > IN_MESSAGE for each in given):
        raise BadRequest("output_limit", "what travels with a rollout returns at most 256 KiB; use sandbox.run")
    if commands is not None and n is None:
        n = len(given)
    n = whole_number(1 if n is None else n, "n", 1, MOST_SANDBOXES)
    if commands is not None and len(given) not in (1, n):
        raise BadRequest("commands", f"there are {len(given)} for {n} sandboxes; give one, or one for each")
    if not isinstance(warm, str):
        raise BadRequest("warm", f"{warm!r} is no Python code; write it as a str, such as 'import numpy'")
    sendable(warm, "warm")
    policy = (OnLost.RESTART if given else OnLost.FAIL) if on_lost is None else on_lost
    if policy not in tuple(OnLost):
        raise BadRequest("on_lost", f"{on_lost!r} is no policy; write 'fail', 'restart' or 'resume'")
    spec = RolloutSpec(
        template,
        n,
        given,
        (resources or Resources()).wire,
        input_files(files),
        pairs(env),
        text(user, "user", _USER),
        milliseconds(timeout, "timeout") or RolloutSpec(template, n).timeout_ms,
        OnLost(policy),
        whole_number(max_attempts, "max_attempts", 1, 255),
        whole_number(priority, "priority", -(2**31), 2**31 - 1),
        text(isolation, "isolation", "a driver's name, such as 'zygote' or 'gvisor'"),
        milliseconds(checkpoint_every, "checkpoint_every"),
        whole_number(checkpoint_commands, "checkpoint_commands", 0, 10**6),
        warm,
        milliseconds(idle_after, "idle_after"),
    )
    return scheduled(spec, scheduling) if scheduling else spec


_command = command  # `rollout_spec` has a parameter of this name


def check_size(message: RolloutSubmitted) -> bytes:
    """Return the encoded request. Raises BadRequest when it is more than a message can hold."""
    payload = encode(message)
    if len(payload) > MOST_BYTES:
        raise BadRequest(
            "files" if message.spec.files else "commands",
            f"the request has {len(payload)} bytes, at most {MOST_BYTES} fit; put large files into a template"
            " (dir:PATH, tar:PATH), or write them with sandbox.files.write",
        )
    try:
        decode(payload)
    except UndecodableError as error:  # who cannot read it cannot say so either: it does not know who asks
        at = re.search(r"`\$\[4\]\[(\d+)\]", str(error))  # the spec has the fourth place
        field = message.spec.__struct_fields__[int(at[1])] if at else "rollout"
        raise BadRequest(field, f"no service could read it: {error}") from error
    return payload


def split(commands: Sequence[Command], base_bytes: int, rest: str) -> list[tuple[int, int]]:
    """Return `(first, count)` parts of commands, each within the limits of one request that has base_bytes already.

    `rest` is the field that has the most of those.
    """
    parts: list[tuple[int, int]] = []
    first, size = 0, base_bytes
    for number, one in enumerate(commands):
        weight = len(encode_command(one))
        if base_bytes + weight > MOST_BYTES:
            raise BadRequest(
                rest if base_bytes > weight else "commands",
                f"command {number} and the {rest} have {base_bytes + weight} bytes, at most {MOST_BYTES} fit; put large"
                " files into a template (dir:PATH, tar:PATH)",
            )
        if number > first and (size + weight > MOST_BYTES or number - first == MOST_SANDBOXES):
            parts.append((first, number - first))
            first, size = number, base_bytes
        size += weight
    if first < len(commands):
        parts.append((first, len(commands) - first))
    return parts


def encode_command(one: Command) -> bytes:
    """Return a command's bytes inside a request."""
    return msgspec.msgpack.encode(one)


def token(value: str, name: str) -> str:
    """Return value if it can be a tenant's or run's name. Raises BadRequest."""
    if not isinstance(value, str):
        raise BadRequest(name, f"{value!r} is not a name; write letters, digits, '-' or '_'")
    return checked(subjects.token, value, name)
