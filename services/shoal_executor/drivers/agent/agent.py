"""The first process of a sandbox: carries out what the driver asks, reaps, and ends with its fork server.

One thread, one poll, everything imported, so it needs nothing of the image. Its driver may be killed: then its link
ends. Where a fork server is, what runs goes on, and the fork server hands it a link to the next one; else it ends.
"""

import contextlib
import os
import resource
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from shoal.wire.values import CommandResult
from shoal_executor.drivers.agent import frames, recall, stillness
from shoal_executor.drivers.agent.commands import Call, Running, not_started, spawn
from shoal_executor.drivers.agent.deeds import Deeds
from shoal_executor.drivers.agent.interpreter import Interpreter
from shoal_executor.drivers.agent.line import Line
from shoal_executor.drivers.agent.programs import home
from shoal_executor.drivers.agent.serial import Serial
from shoal_executor.drivers.agent.session import Session
from shoal_executor.drivers.agent.watching import Watching, patience_ms

_READ: Final = 65_536


def heed_signals() -> None:
    """Have ends of children wake the agent that this process becomes, or its clones do."""
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # commands must not inherit Python's


class Agent:
    """Serves one link after the other, until the fork server at the end of its lifeline is gone.

    Without a lifeline it serves one link until its end, and begins when it is told to. `few_calls`: see `programs`.
    """

    def __init__(
        self, link: Line, lifeline: socket.socket | None, env: dict[str, str], user: str, inputs: int, *,
        few_calls: bool = False,
    ) -> None:  # fmt: skip
        self._few_calls = few_calls
        self._link: Line | None = link
        self._lifeline = lifeline
        self._settings(env, user, inputs)
        self._watching = Watching()
        self._unpacker = frames.Unpacker()
        self._out = bytearray()
        self._by_pid: dict[int, Running] = {}
        self._recall = recall.Recall()
        self._deeds = Deeds()
        self._heard: deque[frames.Ask] = deque()
        self._stopped: list[int] | None = None
        self._eager = False
        self._session = Serial(self, lambda: Session(self._env, self._user, few_calls=few_calls))
        self._python = Serial(self, lambda: Interpreter.cold(self._env, self._user, few_calls=few_calls))
        self._serials = (self._session, self._python)

    def _settings(self, env: dict[str, str], user: str, inputs: int) -> None:
        self._env = env
        self._user = user
        self._missing = inputs
        self._home_: str | None = env.get("HOME")

    @property
    def _home(self) -> str:
        """Where relative paths of files begin; looked up when there is one, because most sandboxes are given none."""
        self._home_ = self._home_ or home(self._user)
        return self._home_

    def warmed(self, requests: socket.socket, cgroups: list[int], capabilities: frozenset[int]) -> None:
        """Take the interpreter as a copy of the template's warm one, which takes requests on this socket."""
        make = partial(Interpreter.copied, requests, cgroups, capabilities, self._env, self._user)
        self._python = Serial(self, make)
        self._serials = (self._session, self._python)
        self._eager = True

    def serve(self) -> None:
        """Run for ever; the process ends with the lifeline, or with the link where there is none."""
        self.begin()
        while True:
            self.turn()

    def begin(self) -> None:
        """Say that you are there."""
        self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        assert self._link is not None
        self.watch(self._link.fileno(), select.POLLIN, self._from_driver)
        self.watch(self._wake[0], select.POLLIN, partial(self._reap, self._wake[0]))
        if self._lifeline is not None:
            self.watch(self._lifeline.fileno(), select.POLLIN, partial(self._from_server, self._lifeline))
            self.tell(frames.Up(0, missing=self._missing))
        if self._eager:
            with contextlib.suppress(OSError):  # whoever asks for it will be told
                self._python.open()

    def end(self) -> None:
        """Let go of what `begin` took; the link and the lifeline are whoever's made them."""
        signal.set_wakeup_fd(-1)
        for fd in self._wake:
            os.close(fd)

    def turn(self) -> None:
        """Wait until something is to be done, and do it."""
        self._watching.turn(self._patience())
        self._expire()

    # --- the link

    def tell(self, message: frames.Tell) -> None:
        """Send a word to the driver; without one, it goes nowhere."""
        if self._link is not None:
            self._out += frames.pack(message)
            self._flush()

    def _flush(self) -> None:
        if self._link is None:
            return
        try:
            while self._out:
                del self._out[: self._link.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self._unlink()
            return
        self._watching.press(self._link.fileno(), self._flush if self._out else None)

    def _unlink(self) -> None:
        """The driver is gone. What runs goes on, and nobody waits for it."""
        if self._lifeline is None:
            os._exit(0)
        if self._link is not None:
            self.unwatch(self._link.fileno())
            self._link.close()
            self._link = None
        self._forget_driver()

    def _forget_driver(self) -> None:
        self._out.clear()
        self._unpacker = frames.Unpacker()
        self._thaw()
        for call in self._recall.under_way:
            call.detach()

    def _from_server(self, lifeline: socket.socket) -> None:
        data, fds, _, _ = socket.recv_fds(lifeline, 16, 1)
        if not data:
            os._exit(0)
        link = socket.socket(fileno=fds[0])
        link.set_inheritable(False)  # before a command that waits could inherit it
        link.setblocking(False)
        self._unlink()  # what was half said on the old link is said anew on the new one
        self._work()
        self._link = link
        self.watch(link.fileno(), select.POLLIN, self._from_driver)
        self.tell(frames.Up(0, missing=self._missing))

    def _from_driver(self) -> None:
        if self._link is None:
            return
        try:
            data = self._link.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._unlink()
            self._work()
            return
        self._heard.extend(map(frames.asks.decode, self._unpacker.feed(data)))
        self._work()

    def _work(self) -> None:
        """Do what was asked and not done yet; whoever asked may be gone. While frozen, only what ends that counts."""
        while self._heard:
            if self._stopped is not None and not any(isinstance(it, frames.Thaw | frames.Begin) for it in self._heard):
                return
            self._thaw()
            self._obey(self._heard.popleft())

    def _obey(self, asked: frames.Ask) -> None:
        match asked:
            case frames.Run():
                self._asked(asked)
            case frames.Begin(id=id, env=env, user=user, inputs=inputs, processes=processes):
                self._forget_driver()
                if processes:
                    resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
                self._settings(dict(env), user, inputs)
                self.tell(frames.Up(id, missing=inputs))
            case frames.Settle(keys=keys):
                self._recall.settle(keys)
            case frames.Rest():
                self.tell(self._recall.rest(asked))
            case frames.Write() | frames.Read() | frames.Manage():
                told = self._deeds.answer(asked, self._home)
                if isinstance(told, frames.Wrote):
                    self._missing = max(self._missing - 1, 0)  # they come before any other
                self.tell(told)
            case frames.Freeze() if self._link is not None:
                self._freeze(asked)
            case frames.Cancel(id=id):
                for running in self._by_pid.values():
                    if running.call.id == id:
                        running.kill()
                for serial in self._serials:
                    serial.cancel(id)
            case frames.GiveUp(key=key):
                for running in self._by_pid.values():
                    if running.call.key == key:
                        running.give_up()
                for serial in self._serials:
                    serial.give_up(key)
                self._recall.give_up(key)

    def _freeze(self, asked: frames.Freeze) -> None:
        try:
            self._stopped = stillness.stop()
            if asked.sync:
                os.sync()
        except OSError as error:
            self.tell(frames.Failed(asked.id, str(error.strerror)))
            return
        self._collect()  # what had come to its end when the others were stopped
        if asked.whole and (why := stillness.unkeepable()):
            self._thaw()
            self.tell(frames.Failed(asked.id, f"its memory cannot be kept: {why}"))
            return
        # A warm interpreter that nobody asked anything is what its template's would be again.
        spared = self._python.ours if self._eager and not self._python.asked else 0
        self.tell(frames.Frozen(asked.id, stillness.holding(spared), self._recall.finished))

    def _thaw(self) -> None:
        if self._stopped is not None:
            stillness.go_on(self._stopped)
            self._stopped = None

    # --- commands

    def _asked(self, asked: frames.Run) -> None:
        known = self._recall.known(asked.key)
        if isinstance(known, Call):
            known.attach(asked)
        elif known is not None:
            self.tell(recall.told(asked.id, known))
        elif (why := self._recall.never(asked)) is not None:
            self.tell(why)
        else:
            call = Call(asked)
            self._recall.begin(call)
            if call.command.python:
                self._python.ask(call)
            elif call.command.session:
                self._session.ask(call)
            else:
                self._run(call)

    def _run(self, call: Call) -> None:
        try:
            running = spawn(call, self._env, self._user, few_calls=self._few_calls)
        except OSError as error:
            self.done(call, not_started(call.command, error))
            return
        self._adopt(running)

    def done(self, call: Call, result: CommandResult) -> None:
        """Keep a result, and tell whoever waits for it."""
        self._recall.finish(call, result)
        if call.id is not None:
            self.tell(recall.told(call.id, result))

    def not_run(self, call: Call, before: Call | None = None, seconds: float = 0.0) -> None:
        """Nothing was run of a command that waited for its turn: whoever asks for it again has it run."""
        self._recall.forget(call)
        if call.id is not None:
            self.tell(recall.not_run(call.id, before, seconds))

    def output(self, call: Call, channel: int, data: bytes) -> None:
        """Send a piece of output where it is streamed."""
        if data and call.stream and call.id is not None:
            self.tell(frames.Output(call.id, channel, data))

    def _adopt(self, running: Running) -> None:
        self._by_pid[running.pid] = running
        for channel, fd in running.outputs.items():
            self.watch(fd, select.POLLIN, partial(self._drain, running, channel))
        if running.stdin is not None:
            self.watch(running.stdin, select.POLLOUT, partial(self._feed, running))

    def _drain(self, running: Running, channel: int) -> None:
        fd = running.outputs.get(channel)
        if fd is None:
            return  # closed by an event of the same turn
        for _ in range(64):
            try:
                data = os.read(fd, _READ)
            except BlockingIOError:
                return
            if not data:
                self._forget(fd)
                del running.outputs[channel]
                return
            kept = running.take(channel, data)
            if not running.ended:
                self.output(running.call, channel, kept)

    def _feed(self, running: Running) -> None:
        if running.stdin is None:
            return
        try:
            sent = os.write(running.stdin, running.input[:_READ])
            running.input = running.input[sent:]
        except BlockingIOError:
            return
        except OSError:
            running.input = b""
        if not running.input:
            self._forget(running.stdin)
            running.stdin = None

    def _reap(self, wake: int) -> None:
        os.read(wake, 4096)  # there is something
        self._collect()

    def _collect(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if (running := self._by_pid.pop(pid, None)) is not None:
                self._finish(running, os.waitstatus_to_exitcode(status))
            for serial in self._serials:
                if serial.ours == pid:
                    serial.gone(os.waitstatus_to_exitcode(status))

    def _finish(self, running: Running, code: int) -> None:
        for channel in tuple(running.outputs):
            self._drain(running, channel)  # what it wrote is all there; what it left running is read and let go later
        running.ended = True
        if running.stdin is not None:
            self._forget(running.stdin)
            running.stdin = None
        self.done(running.call, running.result(code))

    def _patience(self) -> int | None:
        """Return for how many ms nothing has to be done by itself."""
        if self._stopped is not None:
            return None
        deadlines = [running.deadline for running in self._by_pid.values() if running.deadline is not None]
        return patience_ms(deadlines + [each.deadline for each in self._serials if each.deadline is not None])

    def _expire(self) -> None:
        if self._stopped is not None:
            return
        now = time.monotonic()
        for running in self._by_pid.values():
            if running.deadline is not None and now >= running.deadline:
                running.expire()
        for serial in self._serials:
            serial.look(now)

    # ---

    def watch(self, fd: int, events: int, react: Callable[[], None]) -> None:
        """Call react whenever the descriptor is ready."""
        self._watching.add(fd, events, react)

    def unwatch(self, fd: int) -> None:
        """Watch it no longer. May come twice."""
        self._watching.remove(fd)

    def _forget(self, fd: int) -> None:
        self.unwatch(fd)
        os.close(fd)
