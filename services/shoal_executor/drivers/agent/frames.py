"""What driver and agent say to each other: length-prefixed MessagePack, typed, and checked like any stranger's word."""

import struct
from typing import Final

import msgspec

from shoal.wire.values import Command, CommandResult, FileEntry, FileOp

PROTOCOL: Final = 12
"""Changes with anything in here and with what fork server and agent do: those of another number are not adopted."""
LARGEST: Final = 4 * 1024 * 1024
IN_FRAME: Final = 1024 * 1024
"""Bytes of each output stream that are told with a command's end; what is more is asked for."""
LARGEST_ORDER: Final = 256 * 1024
DESCRIPTORS: Final = 253
"""As many as a message of a unix socket may bring (SCM_MAX_FD)."""
AGENT: Final = 1
"""The agent's number in every sandbox: it is the first process there."""
_HEAD: Final = struct.Struct(">I")


class Ask(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A request of the driver; `id` returns with its answer."""

    id: int


class Run(Ask, frozen=True):
    """Run a command; with `stream`, send its output as it comes, too.

    With a `key` that was seen before nothing is run: the answer is that of the first time, as soon as there is one.
    """

    command: Command
    stream: bool
    key: str = ""


class Settle(Ask, frozen=True):
    """The results with these keys need be kept no longer. Has no answer."""

    keys: tuple[str, ...]


class Rest(Ask, frozen=True):
    """Send a piece of what the command with this key wrote, which has ended; the answer is `Piece`, or `Settled`."""

    key: str
    channel: int
    offset: int
    limit: int


class Write(Ask, frozen=True):
    """Write a piece of a file. With a `key` that was seen nothing is written: the answer is that of the first time."""

    path: str
    data: bytes
    offset: int
    mode: int
    key: str = ""


class Read(Ask, frozen=True):
    """Read a piece of a file."""

    path: str
    offset: int
    limit: int


class Manage(Ask, frozen=True):
    """Look at files, or change which there are; with a `key` as `Write`. `going_on`: the answer before was `more`."""

    op: FileOp
    path: str
    to: str = ""
    recursive: bool = False
    key: str = ""
    going_on: bool = False


class Begin(Ask, frozen=True):
    """Serve a driver that knows nothing of what went before; the answer is `Up`, with this id.

    `inputs`: how many files it writes before the sandbox counts as started. `processes`: how many processes and threads
    each user may have from now on, 0 where something else limits them.
    """

    env: tuple[tuple[str, str], ...]
    user: str
    inputs: int
    processes: int = 0


class Freeze(Ask, frozen=True):
    """Stop every process of the sandbox, and do nothing yourself, until `Thaw` or `Begin`.

    `sync`: have everything written to the disk first. `whole`: all its memory is about to be kept; `Failed` if that
    cannot be.
    """

    sync: bool = False
    whole: bool = False


class Thaw(Ask, frozen=True):
    """Let the processes go on. Has no answer."""


class Cancel(Ask, frozen=True):
    """Kill the command that was asked for with this id."""


class GiveUp(Ask, frozen=True):
    """Nobody wants the command with this key any more: kill it, and run it never. Its answer comes as ever."""

    key: str


class Tell(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A word of the agent."""

    id: int


class Up(Tell, frozen=True):
    """The sandbox is made, or `error` says why it could not be; said on every link. `missing`: how many of the input

    files have not been written yet.
    """

    error: str = ""
    missing: int = 0


class Output(Tell, frozen=True):
    """A piece of a streamed command's output."""

    channel: int
    data: bytes


class Done(Tell, frozen=True):
    """A command ended. The result has the beginning of what it wrote; `sizes`: bytes of all of stdout and stderr."""

    result: CommandResult
    sizes: tuple[int, int] = (0, 0)


class Settled(Tell, frozen=True):
    """The command was run before, and its result was settled: it is not here any more."""


class NotRun(Tell, frozen=True):
    """Nothing was run of a command, nor will be: it was given up, or waited too long for the one `before` it.

    `before` is that one's key; `what` it is, and for how many seconds it has been running.
    """

    before: str = ""
    what: str = ""
    seconds: float = 0.0


class Wrote(Tell, frozen=True):
    """A piece of a file was written; `size` is the whole file's."""

    size: int


class Piece(Tell, frozen=True):
    """A piece of a file."""

    data: bytes
    size: int
    eof: bool


class Managed(Tell, frozen=True):
    """What was found; `more`: there is more, to be told or to be removed."""

    entries: tuple[FileEntry, ...] = ()
    more: bool = False


class Frozen(Tell, frozen=True):
    """Every process stands still. `holding` says what is in memory alone, in words for people; empty for nothing.

    `finished`: the keys of the commands that have come to their end, and whose results were not settled.
    """

    holding: str = ""
    finished: tuple[str, ...] = ()


class Failed(Tell, frozen=True):
    """A file operation failed, in words for people."""

    detail: str


class Template(msgspec.Struct, frozen=True):
    """What a fork server is started with: the paths of its image and of the host's /usr (or ""), and of an empty

    directory; the first of its uids outside, -1 without root; descriptors of sockets to the driver and for the next
    one, and how many seconds it waits for that; the compiled filter of its sandboxes; of mounted disks, the lowest
    first, in the place of an image; code for its warm interpreter, which has this environment, this filter, and
    descriptors of its control groups.
    """

    image: str
    usr: str
    scratch: str
    base: int
    control: int
    listener: int
    patience_s: float
    filter: bytes
    disks: tuple[int, ...] = ()
    warm: str = ""
    env: tuple[tuple[str, str], ...] = ()
    warm_filter: bytes = b""
    cgroups: tuple[int, ...] = ()


class Order(msgspec.Struct, frozen=True, array_like=True):
    """What the fork server is asked: fork `name` (descriptors: its agent's socket, so many disks to stack on top of its

    template, the lowest first, and so many control groups); kill it; or tell `where` it is. `inputs`: how many files
    the driver writes before the sandbox counts as started.
    """

    name: str
    kill: bool = False
    disk: int = 0
    shm: int = 0
    user: str = ""
    env: tuple[tuple[str, str], ...] = ()
    inputs: int = 0
    layers: int = 0
    where: bool = False
    groups: int = 0


class Event(msgspec.Struct, frozen=True, array_like=True):
    """What the fork server says: it is `ready`, or `broken`, or `unwarmed` where its code failed; a sandbox `ended`,

    or `failed` to be forked; or, to a driver that has come back, a sandbox is `here` (descriptor: a new socket to its
    agent); or `where` one is. With `ready` and `where` comes a descriptor of the process, with `where` none when it has
    ended.
    """

    kind: str
    name: str = ""
    status: int = 0
    detail: str = ""


encode = msgspec.msgpack.Encoder().encode
asks: Final = msgspec.msgpack.Decoder(
    Begin | Run | Settle | Rest | Write | Read | Manage | Freeze | Thaw | Cancel | GiveUp
)
tells: Final = msgspec.msgpack.Decoder(
    Up | Output | Done | Settled | NotRun | Wrote | Piece | Managed | Frozen | Failed
)
orders: Final = msgspec.msgpack.Decoder(Order)
templates: Final = msgspec.msgpack.Decoder(Template)
events: Final = msgspec.msgpack.Decoder(Event)


def pack(message: Ask | Tell) -> bytes:
    """Return a message with its length before it."""
    body = encode(message)
    return _HEAD.pack(len(body)) + body


class Unpacker:
    """Cuts a byte stream into messages' bodies."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the bodies that are complete now. Raises ValueError for one larger than any honest one."""
        self._buffer += data
        found: list[bytes] = []
        while len(self._buffer) >= _HEAD.size:
            (length,) = _HEAD.unpack_from(self._buffer)
            if length > LARGEST:
                raise ValueError(f"a message of {length} bytes")
            if len(self._buffer) < _HEAD.size + length:
                break
            found.append(bytes(self._buffer[_HEAD.size : _HEAD.size + length]))
            del self._buffer[: _HEAD.size + length]
        return found
