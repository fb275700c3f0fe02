"""Who asks a broker is told to nobody who reads an error or a log."""

import pytest

import shoal
from shoal.bus.address import shown
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.protocol import UnreachableError


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


@pytest.mark.parametrize("address", ["nats://me:secret@127.0.0.1:1", "nats://me:secret@127.0.0.1:potatoes"])
async def test_no_error_has_a_password(address: str) -> None:
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1") as told:
        await JetStreamBus.connect(address, connect_timeout=0.5)
    assert "secret" not in str(told.value)
    with pytest.raises(shoal.Unreachable, match=r"127\.0\.0\.1") as seen:
        async with shoal.connect(address):
            pass
    assert "secret" not in f"{seen.value}{seen.value.__dict__}"
