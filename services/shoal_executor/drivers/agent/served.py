"""The sandbox's interpreter: runs pieces of code one after the other, and keeps their state. Standard library only.

It is not imported by Shoal but given, as text, to whatever Python the image has (3.8 or newer). `serve` takes requests
on a socket: four bytes of length, then JSON of code, cwd and env; it answers each with the exit code in four bytes, and
says first which process it is. What the code prints goes where any program's output goes.

`warm` is a template's interpreter: it runs the template's code once, and after that forks copies of itself into
sandboxes, whose first processes ask for them. It has no capability, and its filter of system calls leaves it `setns`
alone of all that touches namespaces: it owns the sandboxes' user namespaces, and they hand it the descriptors.
"""

import ast
import gc
import json
import linecache
import os
import signal
import socket
import struct
import sys
import time
import traceback
import types
import typing

_LENGTH = struct.Struct(">I")
_CODE = struct.Struct(">i")
_SPARES = 2
_REQUEST = 1 << 20  # bytes of a request for a copy, its environment among them: more than an agent can send
_OVER = 77  # with this a spare says that there is nobody any more to ask for copies


def serve(control: socket.socket, space: "dict[str, object]") -> None:
    """Run what comes, until nobody is there any more."""
    own = os.getpid()
    control.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    control.sendall(_CODE.pack(own))
    number = 0
    while True:
        body = _read(control)
        if body is None:
            os._exit(0)
        number += 1
        asked = json.loads(body)
        try:
            status = _run(asked, space, f"<python {number}>")
        except KeyboardInterrupt:  # it came when the code was done
            status = 130
        if os.getpid() != own:
            os._exit(0)  # a child that the code forked and let fall through to here
        control.sendall(_CODE.pack(status))


def namespace() -> "dict[str, object]":
    """Return the variables of a fresh `__main__`."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    return module.__dict__


def run(code: str, space: "dict[str, object]", name: str) -> None:
    """Run code; the repr of a last expression that is not None is printed. Raises whatever it raises."""
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)
    tree = ast.parse(code, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), space)  # noqa: S102 - running code is what this is for
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), name, "eval"), space)  # noqa: S307 - as above
        if value is not None:
            sys.stdout.write(repr(value) + "\n")


def warm(control: socket.socket, space: "dict[str, object]") -> None:
    """Run the template's code, then fork into sandboxes for as long as there is anybody to ask for it."""
    control.set_inheritable(False)
    data = control.recv(1 << 20)
    told = json.loads(data)
    try:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        holding = ctypes.PyDLL(None)  # keeps the interpreter's lock
        run(told["code"], space, "<warm>")
        sys.stdout.flush()
        gc.collect()
        gc.freeze()  # what collections in its copies do not look at stays shared
    except BaseException:
        control.send(traceback.format_exc()[-4096:].encode())
        os._exit(1)
    program = bytes.fromhex(told["filter"])
    requests = socket.socket(fileno=told["requests"])
    requests.set_inheritable(False)
    spares = {_spare(requests, holding, libc, program, space, ctypes) for _ in range(_SPARES)}
    control.send(b"ready")
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid not in spares:
            continue
        spares.remove(pid)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == _OVER:
            os._exit(0)
        if status:  # it ended without a request, and that must not go on at full speed
            time.sleep(0.1)
        spares.add(_spare(requests, holding, libc, program, space, ctypes))


def _spare(
    requests: socket.socket, holding: typing.Any, libc: typing.Any, program: bytes, space: "dict[str, object]",
    ctypes: typing.Any,
) -> int:  # fmt: skip
    """Fork one that waits for a request, so that a request does not wait for a fork; returns its pid."""
    pid = int(holding.fork())  # not os.fork: what that repairs in a child, the copy that it forks repairs, too
    if pid:
        return pid
    fds = []  # type: typing.List[int]
    status = 1
    try:
        data, ancillary, _, _ = requests.recvmsg(_REQUEST, socket.CMSG_SPACE(4 * 32))
        if not data:
            os._exit(_OVER)
        fds += [fd for _, _, each in ancillary for (fd,) in struct.iter_unpack("i", each[: len(each) // 4 * 4])]
        status = 0  # a sandbox that ended before its turn came is no reason to let the next one wait
        _enter(json.loads(data), fds, libc, program, space, ctypes)
    except BaseException as error:
        if len(fds) > 2:
            os.write(fds[2], f"the warm interpreter cannot enter the sandbox: {error!r}\n".encode())
    finally:
        os._exit(status)


def _enter(
    asked: "dict[str, typing.Any]", fds: "list[int]", libc: typing.Any, program: bytes, space: "dict[str, object]",
    ctypes: typing.Any,
) -> None:  # fmt: skip
    """Become the interpreter of the sandbox whose control socket, output, namespaces and control groups these are."""

    def check(result: int, what: str) -> None:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, what + ": " + os.strerror(number))

    talk, out, err = fds[:3]
    namespaces, groups = fds[3 : 3 + asked["namespaces"]], fds[3 + asked["namespaces"] :]
    for fd in groups:
        os.write(fd, b"0")
    for fd in namespaces:  # the user namespace first: with it come the rights over the others
        check(libc.setns(fd, 0), "setns")
    if os.fork():
        os._exit(0)  # whoever enters a pid namespace is not in it: only its children are
    os.setsid()
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    talk = os.dup2(talk, 3)
    os.closerange(4, 1 << 16)
    kept = set(asked["capabilities"])
    for capability in range(64):
        if capability not in kept and libc.prctl(24, capability, 0, 0, 0) < 0:  # PR_CAPBSET_DROP
            break
    if asked["uid"]:
        os.setgroups([])
        os.setgid(asked["gid"])
        os.setuid(asked["uid"])
    else:
        bits = sum(1 << capability for capability in kept)
        low, high = bits & 0xFFFFFFFF, bits >> 32
        head = struct.pack("Ii", 0x20080522, 0)
        check(libc.capset(head, struct.pack("IIIIII", low, low, 0, high, high, 0)), "capset")
    check(libc.prctl(38, 1, 0, 0, 0), "no_new_privs")

    class Program(ctypes.Structure):  # type: ignore[misc] # ctypes is a parameter: it is the image's own
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    check(libc.prctl(22, 2, ctypes.byref(Program(len(program) // 8, program)), 0, 0), "seccomp")
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["home"])
    serve(socket.socket(fileno=talk), space)


def _run(asked: "dict[str, typing.Any]", space: "dict[str, object]", name: str) -> int:
    try:
        if asked["cwd"]:
            os.chdir(asked["cwd"])
        for key, value in asked["env"].items():
            os.environ[key] = value
        run(asked["code"], space, name)
        status = 0
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            status = (end.code or 0) & 0xFF
        else:
            sys.stderr.write(f"{end.code}\n")
            status = 1
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != name:
            trace = trace.tb_next  # our own frames are nothing to whoever wrote the code
        traceback.print_exception(type(error), error, trace)
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # the code closed or replaced it
    return status


def _read(control: socket.socket) -> "bytes | None":
    head = _exactly(control, _LENGTH.size)
    return None if head is None else _exactly(control, _LENGTH.unpack(head)[0])


def _exactly(control: socket.socket, size: int) -> "bytes | None":
    data = b""
    while len(data) < size:
        try:
            piece = control.recv(min(size - len(data), 1 << 16))
        except KeyboardInterrupt:  # it came when nothing was running
            continue
        except OSError:
            return None
        if not piece:
            return None
        data += piece
    return data
