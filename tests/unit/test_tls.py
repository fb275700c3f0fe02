"""What the environment says of TLS: used where it is right, and explained where it is not."""

import ssl
import subprocess
import time
from pathlib import Path

import pytest

import shoal
from architecture.project import ROOT
from shoal.bus.certificate import ends_at
from shoal.bus.jetstream import JetStreamBus
from shoal.bus.tls import TlsError, not_accepted, tls_from_environment
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


@pytest.fixture(scope="module")
def expired(certificates: Path) -> Path:
    """A certificate whose last day was yesterday."""
    request = ["openssl", "req", "-new", "-key", "client-key.pem", "-subj", "/CN=client", "-out", "old.csr"]
    sign = ["openssl", "x509", "-req", "-in", "old.csr", "-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial"]
    for command in (request, [*sign, "-days", "-1", "-out", "old.pem"]):
        subprocess.run(command, cwd=certificates, check=True, timeout=30, stderr=subprocess.DEVNULL)
    return certificates / "old.pem"


def test_a_certificate_that_is_valid_no_more_is_refused_at_once(certificates: Path, expired: Path) -> None:
    with pytest.raises(TlsError, match=r"^SHOAL_TLS_CERT: .*old\.pem was valid until \d{4}-\d\d-\d\d .* UTC") as caught:
        tls_from_environment(environment(certificates, CERT=expired.name))
    assert caught.value.field == "SHOAL_TLS_CERT"


@pytest.mark.parametrize("name", ["ca.pem", "client.pem", "one.pem", "old.pem"])
def test_the_end_of_a_certificate_is_read_as_openssl_reads_it(certificates: Path, expired: Path, name: str) -> None:
    command = ["openssl", "x509", "-in", str(certificates / name), "-noout", "-enddate"]
    said = subprocess.run(command, check=True, timeout=30, capture_output=True, text=True).stdout
    first = (certificates / name).read_text()
    more = expired.read_text()
    assert ends_at(f"words before it\n{first}{more}") == ssl.cert_time_to_seconds(said.strip().partition("=")[2])


def test_an_end_after_2049_has_four_digits_of_the_year(certificates: Path) -> None:
    command = ["openssl", "req", "-x509", "-new", "-key", "ca-key.pem", "-days", "20000", "-subj", "/CN=far"]
    made = subprocess.run(command, cwd=certificates, check=True, timeout=30, capture_output=True, text=True).stdout
    end_s = ends_at(made)
    assert end_s is not None
    assert abs(end_s - time.time() - 20000 * 86400) < 86400


@pytest.mark.parametrize("body", ["", "AAAA", "MIIB", "not base64!"])
def test_what_is_no_certificate_has_no_end(body: str) -> None:
    assert ends_at(f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n") is None
    assert ends_at(body) is None


def alert(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "encrypted", "said"),
    [
        (alert("TLSV13_ALERT_CERTIFICATE_REQUIRED"), True, True),
        (alert("SSLV3_ALERT_BAD_CERTIFICATE"), False, True),  # TLS 1.2 tells during the handshake
        (alert("TLSV1_ALERT_UNKNOWN_CA"), False, True),
        (BrokenPipeError(), True, False),
        (RuntimeError("the handler is closed"), True, False),
        (BrokenPipeError(), False, None),
        (alert("CERTIFICATE_VERIFY_FAILED"), False, None),  # theirs, not ours
        (TimeoutError(), True, None),
    ],
)
def test_what_says_that_our_certificate_is_not_accepted(error: Exception, encrypted: bool, said: bool | None) -> None:
    found = not_accepted(error, encrypted)
    assert (None if found is None else found.said) is said


async def test_connecting_says_so_too(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_TLS_CA", str(certificates / "absent.pem"))
    with pytest.raises(TlsError, match=r"SHOAL_TLS_CA: .*absent\.pem cannot be read"):
        await JetStreamBus.connect("tls://127.0.0.1:1")
    with pytest.raises(shoal.BadRequest, match=r"SHOAL_TLS_CA: .*absent\.pem cannot be read"):
        await shoal.connect("tls://127.0.0.1:1")
