"""What can be awaited, or entered with `async with`: a connection, a rollout."""

from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Generic, TypeVar

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

    def __init__(self, open: Callable[[], Coroutine[Any, Any, T]], end: Callable[[T], Awaitable[None]]) -> None:
        self._open = open
        self._end = end
        self._opened: T | None = None

    def __await__(self) -> Generator[Any, None, T]:
        return self._open().__await__()

    async def __aenter__(self) -> T:
        self._opened = await self._open()
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        opened, self._opened = self._opened, None
        assert opened is not None
        with noting(error, f"{opened!r} is not ended"):
            await self._end(opened)
