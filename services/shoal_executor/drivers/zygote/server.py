"""The fork server of one template: enters the template once, then forks sandboxes out of itself.

Run as a program of its own (`python -I -m shoal_executor.drivers.zygote.server`) with an empty environment. As root it
begins with the host's privileges for as long as it takes to mount; before anything of a template or a tenant could run
it has left them behind for a user namespace in which root is nobody outside. What it forks is born with its imports
done.

It outlives its driver, so that sandboxes do: when the driver is gone it listens for the next one, tells it what is here
and hands it new links to the agents. When none comes in time it ends, and its sandboxes with it.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from typing import Final, NamedTuple, NoReturn

from shoal_executor.drivers import kernel
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.agent.agent import heed_signals
from shoal_executor.drivers.zygote.becoming import LINK, Entrance, Way, count_apart
from shoal_executor.drivers.zygote.entering import RANGE, descend, enter_template
from shoal_executor.drivers.zygote.owners import Owners
from shoal_executor.drivers.zygote.rehearsal import rehearse
from shoal_executor.drivers.zygote.warm import WarmingError, launch

_ENDS: Final = 1024
"""How many of the last ends are told again to the next driver: more than a socket holds unread."""
_ROOM: Final = socket.CMSG_SPACE(frames.DESCRIPTORS * struct.calcsize("i"))
_CUT: Final = socket.MSG_TRUNC | socket.MSG_CTRUNC
_READY: Final = frames.Event("ready", status=frames.PROTOCOL)
_FLAGS: Final = (
    kernel.NEWUSER | kernel.NEWNS | kernel.NEWPID | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWNET
)  # fmt: skip


class Sandbox(NamedTuple):
    """One sandbox: its first process, and our end of the lifeline its agent holds on to."""

    pid: int
    lifeline: socket.socket
    owner: int


class Server:
    """One template's fork server. `patience_s`: how long it waits for a driver when it has none. `owners`: of

    sandboxes' user namespaces; by default all are root's.
    """

    def __init__(
        self,
        control: socket.socket,
        listener: socket.socket,
        single: bool,
        patience_s: float,
        entrance: Entrance,
        owners: Owners | None = None,
    ) -> None:
        self._owners = owners
        self._control: socket.socket | None = control
        self._listener = listener
        self._patience_s = patience_s
        self._alone_since = 0.0
        self._entrance = entrance
        self._single = single
        self._map = b"0 0 1" if single else b"0 0 %d" % RANGE
        self._sandboxes: dict[str, Sandbox] = {}
        self._names: dict[int, str] = {}
        self._ends: dict[str, int] = {}
        self._buffer = memoryview(bytearray(frames.LARGEST_ORDER))
        self._wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        self._poll = select.poll()
        self._poll.register(self._wake_r, select.POLLIN)
        self._poll.register(control, select.POLLIN)

    def serve(self) -> None:
        """Fork, kill and reap as told, until no driver comes any more."""
        self._say_of(os.getpid(), _READY)
        while True:
            for fd, _ in self._poll.poll(self._patience_ms()):
                if fd == self._wake_r:
                    self._reap()
                elif fd == self._listener.fileno():
                    self._welcome()
                else:
                    self._obey()

    def _patience_ms(self) -> int | None:
        if self._control is not None:
            return None
        left = self._alone_since + self._patience_s - time.monotonic()
        if left <= 0:
            os._exit(0)  # which takes the sandboxes along
        return int(left * 1000) + 1

    def _say(self, event: frames.Event, *fds: int) -> None:
        if self._control is not None:
            try:
                if fds:
                    socket.send_fds(self._control, [frames.encode(event)], fds)
                else:
                    self._control.send(frames.encode(event))
                return
            except OSError:
                self._lose_driver()

    def _say_of(self, pid: int, event: frames.Event) -> None:
        """Say it with a descriptor of a process: numbers mean something else to the driver."""
        process = os.pidfd_open(pid)
        try:
            self._say(event, process)
        finally:
            os.close(process)

    def _note_end(self, name: str, status: int) -> None:
        """Keep it for the next driver: that it was sent to this one does not say that it was read before a kill."""
        self._ends[name] = status
        if self._control is not None:
            while len(self._ends) > _ENDS:
                del self._ends[next(iter(self._ends))]

    def _lose_driver(self) -> None:
        """The driver is gone: listen for the next one."""
        if self._control is None:
            return
        self._poll.unregister(self._control)
        self._control.close()
        self._control = None
        self._alone_since = time.monotonic()
        self._poll.register(self._listener, select.POLLIN)

    def _welcome(self) -> None:
        """A driver has come: tell it what ended lately, what is here, and that this was all."""
        self._control, _ = self._listener.accept()
        self._control.setblocking(True)
        self._poll.unregister(self._listener)
        self._poll.register(self._control, select.POLLIN)
        for name, status in self._ends.items():
            self._say(frames.Event("ended", name, status))
        for name, sandbox in self._sandboxes.items():
            ours, theirs = socket.socketpair()
            with ours, theirs:
                with contextlib.suppress(OSError):  # it is dying and not dead yet: its link is one to nobody
                    socket.send_fds(sandbox.lifeline, [b"link"], [ours.fileno()])
                self._say(frames.Event("here", name), theirs.fileno())
        self._say_of(os.getpid(), _READY)

    def _obey(self) -> None:
        if self._control is None:
            return
        try:
            size, ancillary, flags, _ = self._control.recvmsg_into((self._buffer,), _ROOM)
        except OSError:
            size, ancillary, flags = 0, [], 0
        if not size:
            self._lose_driver()
            return
        fds = [fd for _, _, data in ancillary for (fd,) in struct.iter_unpack("i", data)]
        try:
            self._carry_out(frames.orders.decode(self._buffer[:size]), fds, cut=bool(flags & _CUT))
        except ValueError as error:  # no driver of ours sends one; what is here must not end with it
            sys.stderr.write(f"an order of {size} bytes cannot be read: {error}\n")
        finally:
            for fd in fds:
                os.close(fd)

    def _carry_out(self, order: frames.Order, fds: list[int], *, cut: bool) -> None:
        if order.kill:
            with contextlib.suppress(KeyError, ProcessLookupError):
                os.kill(self._sandboxes[order.name].pid, signal.SIGKILL)
            return
        if order.where:
            known = self._sandboxes.get(order.name)
            if known is None:
                self._say(frames.Event("where", order.name))
            else:
                self._say_of(known.pid, frames.Event("where", order.name))
            return
        try:
            if cut or len(fds) != 1 + order.layers + order.groups:  # without all of them it would have no limits
                raise OSError(f"of {1 + order.layers + order.groups} descriptors {len(fds)} came")
            self._fork(order, fds)
        except OSError as error:
            self._say(frames.Event("failed", order.name, detail=str(error)))

    def _fork(self, order: frames.Order, fds: list[int]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        owner = self._owners.take() if self._owners is not None else 0
        try:
            way = self._entrance.prepare(order, fds[0], theirs.fileno(), fds[1:])
            pid = kernel.clone_for(owner, _FLAGS) if owner else kernel.clone(_FLAGS)
            if pid == 0:
                self._become(way)
        except BaseException:
            ours.close()
            self._give_back(owner)
            raise
        finally:
            theirs.close()
        try:
            if self._single:
                _write(f"/proc/{pid}/setgroups", b"deny")
            _write(f"/proc/{pid}/uid_map", self._map)
            _write(f"/proc/{pid}/gid_map", self._map)
            ours.send(b"x")
        except OSError:
            ours.close()
            self._give_back(owner)
            os.kill(pid, signal.SIGKILL)  # it waits for a word, and has the other end of that link itself
            raise
        self._ends.pop(order.name, None)  # another of that name
        self._sandboxes[order.name] = Sandbox(pid, ours, owner)
        self._names[pid] = order.name

    def _give_back(self, owner: int) -> None:
        if self._owners is not None:
            self._owners.give_back(owner)

    def _become(self, way: Way) -> NoReturn:
        """Be the sandbox."""
        try:
            agent = self._entrance.become(way)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.write(LINK, frames.pack(frames.Up(0, f"{type(error).__name__}: {error}")))
            os._exit(1)
        try:
            agent.serve()
        except BaseException:
            traceback.print_exc()  # into the fork server's log, on the host
        finally:
            os._exit(1)

    def _reap(self) -> None:
        os.read(self._wake_r, 4096)  # there is something
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            name = self._names.pop(pid, None)
            if name is not None:
                gone = self._sandboxes.pop(name)
                gone.lifeline.close()
                self._give_back(gone.owner)
                self._note_end(name, status)
                self._say(frames.Event("ended", name, status))


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def main() -> None:
    """`server`, with a `Template` on standard input: see `frames`. Descriptors it names are inherited."""
    with open(os.dup(0), "rb") as given:
        template = frames.templates.decode(given.read())
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.umask(0o022)
    control, listener = socket.socket(fileno=template.control), socket.socket(fileno=template.listener)
    try:
        counted = count_apart() if template.base >= 0 else []
        lowers = enter_template(template.image, template.usr, template.scratch, template.base, list(template.disks))
        descend()
        warm: socket.socket | None = None
        if template.warm:
            warm = launch(template, lowers, counted)
        for fd in template.cgroups:
            os.close(fd)
        heed_signals()
        rehearse()
        owners = Owners.where_it_may() if template.base >= 0 and warm is None else None
        entrance = Entrance(lowers, template.filter, warm, counted, owned=owners is not None)
        server = Server(control, listener, template.base < 0, template.patience_s, entrance, owners)
    except WarmingError as error:
        control.send(frames.encode(frames.Event("unwarmed", detail=str(error))))
        sys.exit(1)
    except OSError as error:
        control.send(frames.encode(frames.Event("broken", detail=str(error))))
        sys.exit(1)
    gc.collect()
    gc.freeze()
    gc.disable()
    server.serve()


if __name__ == "__main__":
    main()
