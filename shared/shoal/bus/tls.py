"""What connections to a broker are encrypted with, as the environment says."""

import os
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from shoal.bus.certificate import ends_at
from shoal.bus.protocol import BusError
from shoal.wire.quantities import BadValueError

CA: Final = "SHOAL_TLS_CA"
CERTIFICATE: Final = "SHOAL_TLS_CERT"
KEY: Final = "SHOAL_TLS_KEY"


class TlsError(BusError, BadValueError):
    """What the environment says of TLS is not usable; `field` names the variable."""


class NotAcceptedError(ConnectionError):
    """The broker does not accept the certificate of this client, or that it has none. `said`: it says so itself."""

    def __init__(self, text: str, said: bool = False) -> None:
        super().__init__(text)
        self.said = said


def not_accepted(error: Exception, encrypted: bool) -> NotAcceptedError | None:
    """Return what an error before the broker's first answer means where it is about our certificate, else None.

    `encrypted`: whether TLS was up. In TLS 1.3 it is before the broker has looked at the certificate; its refusal
    comes as an alert, or only as the end of the connection where it was written to meanwhile.
    """
    reason = (error.reason or "") if isinstance(error, ssl.SSLError) else ""
    alert = "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason)
    if not alert and (not encrypted or isinstance(error, TimeoutError)):
        return None
    what = (
        f"it does not accept this client's certificate ({reason.lower().replace('_', ' ')})"
        if alert
        else "it ended the connection when TLS was up, as one does that does not accept the client's certificate"
    )
    return NotAcceptedError(
        f"{what}; name one that is valid and of an authority that it trusts, with its key, in {CERTIFICATE} and {KEY}",
        alert,
    )


def tls_from_environment(environment: Mapping[str, str] = os.environ) -> ssl.SSLContext | None:
    """Return what SHOAL_TLS_CA, SHOAL_TLS_CERT and SHOAL_TLS_KEY say, None where none of them is set.

    Each names a file in PEM format: whom to trust as a broker (without it: whom this machine trusts), and what to show
    a broker that asks who is there. Raises TlsError, also for a certificate that is valid no more.
    """
    ca, certificate, key = (environment.get(name, "") for name in (CA, CERTIFICATE, KEY))
    if not (ca or certificate or key):
        return None
    for name, one, other in ((CERTIFICATE, certificate, KEY), (KEY, key, CERTIFICATE)):
        if one and not environment.get(other):
            raise TlsError(other, f"{name} is set; the two go together, so name a file here or unset both")
    for name, path, begins in (
        (CA, ca, "-----BEGIN CERTIFICATE"),
        (CERTIFICATE, certificate, "-----BEGIN CERTIFICATE"),
        (KEY, key, "PRIVATE KEY-----"),
    ):
        if path:
            _check(name, path, begins)
    try:
        context = ssl.create_default_context(cafile=ca or None)
    except ssl.SSLError as error:
        raise TlsError(CA, f"{ca} holds no certificates that can be used ({_reason(error)})") from error
    if certificate:
        try:
            context.load_cert_chain(certificate, key, password="")  # none, rather than ask at a terminal
        except ssl.SSLError as error:
            if "MISMATCH" in (error.reason or ""):
                raise TlsError(KEY, f"{key} is not the key of {certificate}, which {CERTIFICATE} names") from error
            raise TlsError(
                KEY, f"{key} and {certificate}, which {CERTIFICATE} names, cannot be used ({_reason(error)})"
            ) from error
        end_s = ends_at(Path(certificate).read_text(errors="replace"))
        if end_s is not None and end_s <= time.time():
            ended = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(end_s))
            raise TlsError(CERTIFICATE, f"{certificate} was valid until {ended}; name one that is valid")
    return context


def _check(name: str, path: str, begins: str) -> None:
    try:
        text = Path(path).read_text(errors="replace")
    except OSError as error:
        raise TlsError(name, f"{path} cannot be read: {error.strerror}") from error
    if begins not in text:
        what = "private key" if name == KEY else "certificate"
        raise TlsError(name, f"{path} holds no {what} in PEM format")


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
