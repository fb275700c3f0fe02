"""A template's warm interpreter: the image's own Python, which ran the template's code and is copied into sandboxes.

It runs code of whoever made the template, so it is apart from the host like a sandbox: a root, a network and so on of
its own, no capability, a filter. Unlike one it has no user namespace of its own: it is root of its template's, which
makes it the owner of its sandboxes' user namespaces, and lets it enter those that give it the descriptors. A process
can enter only pid namespaces below its own: fork server, warm interpreter and sandboxes are all below the template's.
"""

import json
import os
import resource
import signal
import socket
from collections.abc import Sequence
from typing import Final

from shoal_executor.drivers import kernel
from shoal_executor.drivers.agent import frames
from shoal_executor.drivers.agent.interpreter import find, first, source
from shoal_executor.drivers.agent.programs import PATH
from shoal_executor.drivers.zygote.becoming import Counted, Root, confine, inside, stacked, usual_descriptors
from shoal_executor.drivers.zygote.steps import take

_DISK: Final = 256 * 1024**2
_SHM: Final = 64 * 1024**2


class WarmingError(Exception):
    """The template's code failed; the text is what it said."""


def launch(template: frames.Template, lowers: list[str], counted: Sequence[Counted] = ()) -> socket.socket:
    """Start it; returns the socket on which sandboxes ask for copies. `counted`: see `count_apart`.

    Raises WarmingError, OSError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asking, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)  # one request, with its environment, and many
    pid = kernel.clone(kernel.NEWNS | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWNET)
    if pid == 0:
        try:
            _become(template, lowers, counted, theirs, asked)
        except BaseException as error:
            theirs.send(f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(1)
    theirs.close()
    asked.close()
    told = {"code": template.warm, "filter": template.filter.hex(), "requests": _REQUESTS}
    with ours:
        ours.send(json.dumps(told).encode())
        said = ours.recv(1 << 16)
        if said != b"ready":
            raise WarmingError(said.decode(errors="replace").strip() or "it ended")
    return asking


_CONTROL: Final = 3
_REQUESTS: Final = 4
_SOURCE: Final = 5


def _become(
    template: frames.Template,
    lowers: list[str],
    counted: Sequence[Counted],
    control: socket.socket,
    requests: socket.socket,
) -> None:
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    for fd in template.cgroups:
        os.write(fd, b"0")
    text = source()
    for fd, place in ((control.fileno(), 64), (requests.fileno(), 65), (text, 66)):
        os.dup2(fd, place)
    for place, fd in ((64, _CONTROL), (65, _REQUESTS), (66, _SOURCE)):
        os.dup2(place, fd)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    Root(stacked(_DISK, lowers, []), inside(_SHM)).make()
    resource.setrlimit(resource.RLIMIT_NOFILE, usual_descriptors())
    for kind, limits in counted:
        resource.setrlimit(kind, limits)
    os.closerange(6, 1 << 20)
    take(confine(frozenset(), template.warm_filter))
    full = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root", **dict(template.env)}
    os.chdir("/root")
    argv, its = first(full, _SOURCE, "warm", _CONTROL)
    os.execve(find(full), ["python3", *argv], its)  # noqa: S606 - no shell is wanted
