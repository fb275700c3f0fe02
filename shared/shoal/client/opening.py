"""What can be awaited, or entered with `async with`: a connection, a rollout."""

import sys
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

T = TypeVar("T")


@contextmanager
def noting(error: BaseException | None, trouble: str) -> Iterator[None]:
    """Do what is to be done last. Where an error passes already, that goes on, with a note of what fails here."""
    try:
        yield
    except Exception as failed:
        if error is None:
            raise
        error.add_note(f"{trouble}: {failed}")


class Opening(Generic[T]):
    """`await` it and end what it gives yourself, or enter it with `async with`, which ends it."""

    _begun = True  # until it is made

    def __init__(self, open: Callable[[], Coroutine[Any, Any, T]], end: Callable[[T], Awaitable[None]]) -> None:
        self._open = open
        self._end = end
        self._opened: T | None = None
        self._begun = False

    def __await__(self) -> Generator[Any, None, T]:
        self._begun = True
        return self._open().__await__()

    async def __aenter__(self) -> T:
        self._begun = True
        self._opened = await self._open()
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        opened, self._opened = self._opened, None
        assert opened is not None
        with noting(error, f"{opened!r} is not ended"):
            await self._end(opened)

    def __del__(self) -> None:
        if not self._begun and not sys.is_finalizing():
            warnings.warn(f"{self._what()} was never awaited: nothing was asked for", RuntimeWarning, stacklevel=2)

    def _what(self) -> str:
        return f"{self._open.__qualname__.partition('.<locals>')[0].rpartition('.')[2]}()"

    if not TYPE_CHECKING:  # whoever checks types hears that there is no such thing

        def _not_yet(self, *_: object) -> NoReturn:
            raise TypeError(f"{self._what()} is not there yet: await it, or enter it with `async with`")

        __iter__ = __aiter__ = __enter__ = __exit__ = _not_yet

        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("_"):  # what Python itself looks for
                raise AttributeError(name)
            raise AttributeError(
                f"{self._what()} is not there yet, so it has no {name}: await it, or enter it with `async with`"
            )
