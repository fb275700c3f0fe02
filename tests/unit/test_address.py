"""Who asks a broker is told to nobody who reads an error or a log."""

import pytest

import shoal
from shoal.bus.address import advice, shown, user_of
from shoal.bus.dialing import unreachable
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.protocol import UnreachableError
from shoal.client.errors import without_answer


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("tls://me:secret@broker:4222", "tls://broker:4222"),
        ("secret@broker", "broker"),
        ("nats://me:se@cret@broker:1", "nats://broker:1"),
        ("nats://me:secret@[::1]:4222,nats://secret@b:4222/blobs", "nats://[::1]:4222,nats://b:4222/blobs"),
        ("", ""),
    ],
)
def test_an_address_is_shown_without_who_asks(address: str, seen: str) -> None:
    assert shown(address) == seen


@pytest.mark.parametrize(
    ("address", "user"),
    [
        ("nats://me:secret@b:4222", "me"),
        ("nats://b:1,tls://me:secret@c:2", "me"),
        ("nats://secret@b:4222", ""),  # it may be a token
        ("nats://b:4222", ""),
        ("nats://me:secret@b:potatoes", ""),
    ],
)
def test_a_user_is_named_and_a_token_never(address: str, user: str) -> None:
    assert user_of(address) == user


def test_what_to_do_where_nobody_answers() -> None:
    assert advice("nats://b:1") == "start one with `shoal up`, or set SHOAL_URL to where yours is"
    assert "shoal up" not in advice("tls://b:1,tls://c:1")
    assert "shoal up" not in str(shoal.Unreachable("tls://b:1", "no answer"))
    told = str(without_answer("tls://b:1", unreachable("tls://b:1", "no answer")))
    assert told.count("see that its brokers run") == 1


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("nats://me:secret@127.0.0.1:1", shoal.Unreachable),
        ("nats://me:secret@127.0.0.1:potatoes", shoal.BadRequest),
    ],
)
async def test_no_error_has_a_password(address: str, error: type[shoal.ShoalError]) -> None:
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1") as told:
        await JetStreamBus.connect(address, connect_timeout=0.5)
    assert "secret" not in str(told.value)
    with pytest.raises(error, match=r"127\.0\.0\.1") as seen:
        async with shoal.connect(address):
            pass
    assert "secret" not in f"{seen.value}{seen.value.__dict__}"
