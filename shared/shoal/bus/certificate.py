"""Until when a certificate is valid: the one thing of it that Python's TLS does not tell its owner."""

import ssl
from datetime import UTC, datetime
from typing import Final

_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"
_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
_BEFORE_VALIDITY: Final = 3  # serial number, algorithm, issuer


def ends_at(text: str) -> float | None:
    """Return when the first certificate of a text in PEM format ends (seconds since 1970), None where unclear."""
    _, begin, rest = text.partition(_BEGIN)
    body, end, _ = rest.partition(_END)
    if not end:
        return None
    try:
        return _end(ssl.PEM_cert_to_DER_cert(begin + body + end))
    except (ValueError, IndexError):
        return None


def _end(der: bytes) -> float:
    """Return the end of a certificate in DER, as RFC 5280 has it. Raises ValueError, IndexError."""
    _, at, _ = _value(der, 0)  # the certificate, what is signed of it, and in that the version, which may be absent
    _, at, _ = _value(der, at)
    if der[at] == _VERSION:
        _, _, at = _value(der, at)
    for _ in range(_BEFORE_VALIDITY):
        _, _, at = _value(der, at)
    _, at, _ = _value(der, at)
    _, _, at = _value(der, at)  # when it begins
    kind, at, stop = _value(der, at)
    digits = der[at:stop].decode("ascii")
    if kind == _UTC_TIME:  # two digits of the year, which are of 1950 to 2049
        digits = ("19" if digits[:2] >= "50" else "20") + digits
    return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _value(der: bytes, at: int) -> tuple[int, int, int]:
    """Return the kind of what stands there, and where its value begins and stops."""
    kind, size, at = der[at], der[at + 1], at + 2
    if size >= 0x80:
        count = size & 0x7F
        size, at = int.from_bytes(der[at : at + count]), at + count
    return kind, at, at + size
