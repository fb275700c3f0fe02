"""What connections to a broker are encrypted with, as the environment says."""

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from shoal.bus.protocol import BusError
from shoal.wire.quantities import BadValueError

CA: Final = "SHOAL_TLS_CA"
CERTIFICATE: Final = "SHOAL_TLS_CERT"
KEY: Final = "SHOAL_TLS_KEY"


class TlsError(BusError, BadValueError):
    """What the environment says of TLS is not usable; `field` names the variable."""


def tls_from_environment(environment: Mapping[str, str] = os.environ) -> ssl.SSLContext | None:
    """Return what SHOAL_TLS_CA, SHOAL_TLS_CERT and SHOAL_TLS_KEY say, None where none of them is set.

    Each names a file in PEM format: whom to trust as a broker (without it: whom this machine trusts), and what to show
    a broker that asks who is there. Raises TlsError.
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
