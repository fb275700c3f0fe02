"""What is told of a round through the servers of an address."""

import pytest

from shoal.bus.dialing import Attempts
from shoal.bus.permissions import Violation, violation
from shoal.bus.protocol import NotAllowedError, UnreachableError
from shoal.bus.tls import NotAcceptedError

ADDRESS = "nats://acme:secret@a:1,nats://b:1,nats://c:1"
UNKNOWN = Exception("nats: 'Authorization Violation'")
REFUSED = ConnectionRefusedError("nobody listens")


def told(*errors: Exception) -> UnreachableError:
    attempts = Attempts(ADDRESS, 6.0)
    assert attempts.share_s == 2.0
    for number, error in enumerate(errors, 1):
        attempts.failure(number, error)
        attempts.failure(number, OSError("what follows from it, as the connection is closed"))
        assert attempts.failed.is_set() is (number == 3)
    assert "secret" not in str(attempts.error())
    return attempts.error()


def test_each_reason_is_told_once() -> None:
    error = told(REFUSED, TimeoutError(), REFUSED)
    assert str(error).startswith(
        "no broker answers at nats://a:1,nats://b:1,nats://c:1 (nobody listens; no answer within 2 s); start one"
    )
    assert not isinstance(error, NotAllowedError)


def test_nothing_was_heard() -> None:
    assert "(no answer within 2 s)" in str(told())


def test_one_that_does_not_let_us_in_is_what_counts() -> None:
    error = told(REFUSED, UNKNOWN, TimeoutError())
    assert isinstance(error, NotAllowedError)
    assert "does not let in user acme" in str(error)
    assert "shoal up" not in str(error)


def test_a_certificate_that_is_not_accepted() -> None:
    assert isinstance(told(REFUSED, NotAcceptedError("it said so", said=True), REFUSED), NotAllowedError)
    # An end without a word may have any cause where the others are not there either.
    assert not isinstance(told(REFUSED, NotAcceptedError("it ended"), REFUSED), NotAllowedError)
    assert isinstance(told(*[NotAcceptedError("it ended")] * 3), NotAllowedError)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('nats: permissions violation for publish to "a.b"', Violation("publish", "a.b")),
        ('nats: Permissions Violation for Subscription to "_INBOX.>"', Violation("subscription", "_inbox.>")),
        ("nats: authorization violation", None),
        ("nats: maximum payload violation", None),
    ],
)
def test_what_is_forbidden_is_read_from_what_the_broker_says(text: str, what: Violation | None) -> None:
    assert violation(Exception(text)) == what


def test_subjects_come_in_lower_case() -> None:
    what = Violation("publish", "shoal.rollout.0.a.run.request")
    assert what.forbids("publish", "shoal.rollout.0.a.Run.request")
    assert not what.forbids("subscription", "shoal.rollout.0.a.Run.request")
    assert not what.forbids("publish", "shoal.rollout.0.a.Run.requests")
