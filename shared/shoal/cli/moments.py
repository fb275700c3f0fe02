"""Moments as people write them: how long ago, such as `2h`, or when, such as `2026-03-01T12:00`."""

import time
from datetime import datetime

from shoal.wire.quantities import BadValueError, parse_seconds


def moment_ms(text: str, field: str, now_ms: int | None = None) -> int:
    """Return a moment in ms since the epoch; a time without a zone is a local one. Raises BadValueError."""
    try:
        return int(datetime.fromisoformat(text).astimezone().timestamp() * 1000)
    except ValueError:
        pass
    try:
        ago = parse_seconds(text, field)
    except BadValueError:
        problem = f"{text!r} is neither how long ago, such as 2h, nor a time, such as 2026-03-01T12:00 or ...T12:00:05Z"
        raise BadValueError(field, problem) from None
    return (time.time_ns() // 1_000_000 if now_ms is None else now_ms) - int(ago * 1000)


def window_ms(since: str | None, until: str | None) -> tuple[int | None, int | None]:
    """Return a time from when on, and until when; either need not be named. Raises BadValueError where it is empty."""
    since_ms, until_ms = optional_ms(since, "since"), optional_ms(until, "until")
    if since_ms is not None and until_ms is not None and since_ms > until_ms:
        raise BadValueError("since", f"{since!r} is later than --until {until!r}: write the earlier one as --since")
    return since_ms, until_ms


def optional_ms(text: str | None, field: str) -> int | None:
    """Return a moment that need not be named. Raises BadValueError."""
    return None if text is None else moment_ms(text, field)
