"""What the environment says of TLS: used where it is right, and explained where it is not."""

import subprocess
from pathlib import Path

import pytest

import shoal
from architecture.project import ROOT
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.tls import TlsError, tls_from_environment
from shoal.wire.quantities import BadValueError


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("certificates")
    subprocess.run(
        ["sh", ROOT / "infra/nats/certificates.sh", where, "one"], check=True, timeout=60, stdout=subprocess.DEVNULL
    )
    return where


def environment(where: Path, **changed: str) -> dict[str, str]:
    names = {"CA": "ca.pem", "CERT": "client.pem", "KEY": "client-key.pem", **changed}
    return {f"SHOAL_TLS_{name}": str(where / file) for name, file in names.items() if file}


def test_nothing_said() -> None:
    assert tls_from_environment({}) is None
    assert tls_from_environment({"SHOAL_TLS_CA": ""}) is None


def test_the_authority_is_trusted_and_nobody_else(certificates: Path) -> None:
    context = tls_from_environment(environment(certificates))
    assert context is not None
    (trusted,) = context.get_ca_certs()
    assert "Shoal trial authority" in str(trusted["subject"])
    assert context.check_hostname
    without = tls_from_environment(environment(certificates, CERT="", KEY=""))
    assert without is not None


@pytest.mark.parametrize(
    ("changed", "variable", "says"),
    [
        ({"CA": "absent.pem"}, "SHOAL_TLS_CA", "No such file"),
        ({"CERT": "absent.pem"}, "SHOAL_TLS_CERT", "No such file"),
        ({"KEY": "absent.pem"}, "SHOAL_TLS_KEY", "No such file"),
        ({"CA": "client-key.pem"}, "SHOAL_TLS_CA", "no certificate in PEM format"),
        ({"CERT": "client-key.pem"}, "SHOAL_TLS_CERT", "no certificate in PEM format"),
        ({"KEY": "client.pem"}, "SHOAL_TLS_KEY", "no private key in PEM format"),
        ({"KEY": "one-key.pem"}, "SHOAL_TLS_KEY", "is not the key of .*client.pem, which SHOAL_TLS_CERT names"),
        ({"KEY": ""}, "SHOAL_TLS_KEY", "SHOAL_TLS_CERT is set"),
        ({"CERT": ""}, "SHOAL_TLS_CERT", "SHOAL_TLS_KEY is set"),
        ({"CA": "broken.pem"}, "SHOAL_TLS_CA", "no certificates that can be used"),
        ({"KEY": "locked-key.pem"}, "SHOAL_TLS_KEY", "cannot be used"),
    ],
)
def test_what_is_wrong_is_named(certificates: Path, changed: dict[str, str], variable: str, says: str) -> None:
    (certificates / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nnot one\n-----END CERTIFICATE-----\n")
    subprocess.run(
        ["openssl", "pkey", "-in", certificates / "client-key.pem", "-aes256", "-passout", "pass:secret",
         "-out", certificates / "locked-key.pem"],
        check=True, timeout=30,
    )  # fmt: skip
    with pytest.raises(TlsError, match=f"^{variable}: .*{says}") as caught:
        tls_from_environment(environment(certificates, **changed))
    assert caught.value.field == variable
    assert isinstance(caught.value, BadValueError)  # so that a service ends as one that is configured wrongly


async def test_connecting_says_so_too(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_TLS_CA", str(certificates / "absent.pem"))
    with pytest.raises(TlsError, match=r"SHOAL_TLS_CA: .*absent\.pem cannot be read"):
        await JetStreamBus.connect("tls://127.0.0.1:1")
    with pytest.raises(shoal.BadRequest, match=r"SHOAL_TLS_CA: .*absent\.pem cannot be read"):
        await shoal.connect("tls://127.0.0.1:1")
