"""How something asynchronous is reached without `async`: its methods, each waited for in the thread of a portal."""

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, get_args

from shoal.client.belonging import Live
from shoal.client.portal import Portal

P = ParamSpec("P")
R = TypeVar("R")
W = TypeVar("W", bound="Faced")


class Faced(Live):
    """Something asynchronous, and the portal to its loop. Two that stand for the same are equal."""

    def __init__(self, portal: Portal, inner: Any) -> None:
        self._portal = portal
        self._inner = inner

    if not TYPE_CHECKING:  # whoever is checked has what is written down, and hears of a slip

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):  # nobody's business; and there is no `_inner` before there is all of it
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return getattr(self._inner, name)

    def __dir__(self) -> Iterable[str]:
        return [name for name in super().__dir__() if name.startswith("__") or not name.startswith("_")]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Faced) and self._inner is other._inner

    def __hash__(self) -> int:
        return hash((Faced, id(self._inner)))

    def __repr__(self) -> str:
        return repr(self._inner)


def plain(method: Callable[Concatenate[Any, P], Awaitable[R]]) -> Callable[Concatenate[Any, P], R]:
    """Return a method that gives what the awaited one does."""

    def call(self: Faced, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._portal.call(method(self._inner, *args, **kwargs))

    _describe(call, method)
    return call


def giving(method: Callable[Concatenate[Any, P], Awaitable[Any]], wrapper: type[W]) -> Callable[Concatenate[Any, P], W]:
    """Return a method that gives the face of what the awaited one does."""

    def call(self: Faced, /, *args: P.args, **kwargs: P.kwargs) -> W:
        return wrapper(self._portal, self._portal.call(method(self._inner, *args, **kwargs)))

    _describe(call, method, wrapper)
    return call


def iterating(
    method: Callable[Concatenate[Any, P], AsyncGenerator[R, None]],
) -> Callable[Concatenate[Any, P], Iterator[R]]:
    """Return a method that yields what the asynchronous generator does."""

    def call(self: Faced, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        return self._portal.each(method(self._inner, *args, **kwargs))

    _describe(call, method, Iterator[get_args(inspect.signature(method).return_annotation)[0]])  # type: ignore[misc]  # only known when it runs
    return call


def _describe(call: Any, method: Any, gives: object = None) -> None:
    """Have a method look like the asynchronous one to whoever asks for help, but for what it gives."""
    call.__name__, call.__qualname__, call.__doc__ = method.__name__, method.__qualname__, method.__doc__
    call.__wrapped__ = method
    signature = inspect.signature(method)
    call.__signature__ = signature if gives is None else signature.replace(return_annotation=gives)
