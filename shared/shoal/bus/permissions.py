"""What the broker's permissions forbid, told at once to whoever asked for it.

A broker does not answer what it forbids: it says so beside, with a subject in lower case.
"""

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, Final, Literal, NamedTuple, TypeVar

from shoal.bus.address import shown, user_of
from shoal.bus.ending import end
from shoal.bus.protocol import NotAllowedError

_VIOLATION: Final = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"', re.IGNORECASE)
_NOT_LET_IN: Final = re.compile(r"authorization violation|authentication (expired|revoked)", re.IGNORECASE)

Answer = TypeVar("Answer")


class Violation(NamedTuple):
    """One thing that was forbidden; `subject` is in lower case."""

    what: Literal["publish", "subscription"]
    subject: str

    def forbids(self, what: str, subject: str) -> bool:
        """Return whether it is of this."""
        return self.what == what and self.subject == subject.lower()

    def error(self, address: str, publish: str, heard: str) -> NotAllowedError | None:
        """Return the error of whoever publishes there and hears answers there, None where it forbids neither."""
        if self.forbids("publish", publish):
            return not_allowed(address, "publish", publish)
        if self.forbids("subscription", heard):
            return not_allowed(address, "subscription", heard)
        return None


def violation(error: Exception) -> Violation | None:
    """Return what an error of the connection says of permissions, None for any other error."""
    found = _VIOLATION.search(str(error))
    if found is None:
        return None
    return Violation("publish" if found[1].lower() == "publish" else "subscription", found[2].lower())


def _who(address: str) -> str:
    user = user_of(address)
    return f"user {user}" if user else "this client"


def not_allowed(address: str, what: Literal["publish", "subscription"], subject: str) -> NotAllowedError:
    """Return the error of whoever wanted to publish there, or to hear answers there."""
    deed = "publish to" if what == "publish" else "subscribe to"
    if subject.startswith("shoal."):
        advice = "a tenant's clients name their tenant (`--tenant`, SHOAL_TENANT or `connect(tenant=...)`)"
    else:
        advice = "this takes a user who may, such as that of the services"
    return NotAllowedError(f"{_who(address)} may not {deed} {subject}: the broker's permissions forbid it; {advice}")


def knows_not(error: Exception) -> bool:
    """Return whether an error says that the broker does not know who connects."""
    return _NOT_LET_IN.search(str(error)) is not None


def not_let_in(address: str) -> NotAllowedError:
    """Return the error of whoever the broker does not know."""
    who = f"user {user_of(address)} with this password" if user_of(address) else "who gives no user and password"
    return NotAllowedError(
        f"the broker at {shown(address)} does not let in {who}; an address says who connects as"
        " nats://USER:PASSWORD@HOST:4222"
    )


class Requests:
    """Requests under way, each of which ends where its subject is forbidden."""

    def __init__(self, address: str, inbox: str) -> None:
        """`inbox`: what subjects begin with on which answers are heard."""
        self._address = address
        self._inbox = f"{inbox}."
        self._waiting: dict[asyncio.Future[None], str] = {}

    async def answer(self, subject: str, asking: Coroutine[Any, Any, Answer]) -> Answer:
        """Return the answer. Raises what `asking` does, and NotAllowedError."""
        task = asyncio.create_task(asking, name=f"ask {subject}")
        denied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[denied] = subject
        either: set[asyncio.Future[Any]] = {task, denied}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if denied.done():
                denied.result()
            return await task
        finally:
            del self._waiting[denied]
            denied.cancel()
            await end(task)

    def forbidden(self, what: Violation) -> bool:
        """Fail what cannot be asked, or all where no answer can be heard. Returns whether there was any."""
        unheard = what.what == "subscription" and what.subject.startswith(self._inbox.lower())
        hit = False
        for denied, subject in self._waiting.items():
            if denied.done():
                continue
            if unheard:
                denied.set_exception(not_allowed(self._address, "subscription", f"{self._inbox}>"))
            elif what.forbids("publish", subject):
                denied.set_exception(not_allowed(self._address, "publish", subject))
            else:
                continue
            hit = True
        return hit
