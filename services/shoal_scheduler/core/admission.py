"""What a rollout may ask for; each refusal is one sentence that names the field and what would be right."""

import re
from typing import Final

from shoal.wire.messages import RolloutSpec

_TEMPLATE: Final = re.compile(r"host|(dir|tar):/[^\0]*")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER: Final = re.compile(r"([a-z_][a-z0-9_-]{0,31}|[0-9]{1,9}(:[0-9]{1,9})?)?")
_LONGEST_MS: Final = 7 * 86_400_000
_MIB: Final = 1024**2


def problem(spec: RolloutSpec) -> tuple[str, str] | None:
    """Return the code and the sentence of what is wrong with a spec, or None."""
    if not _TEMPLATE.fullmatch(spec.template):
        return "unknown_template", f"unknown template {spec.template!r}: use host, dir:/path or tar:/path"
    sentence = _bad(spec)
    return ("bad_request", sentence) if sentence else None


def _bad(spec: RolloutSpec) -> str | None:
    r = spec.resources
    numbers = (
        ("n", spec.n, 1, 100_000),
        ("timeout_ms", spec.timeout_ms, 1, _LONGEST_MS),
        ("max_attempts", spec.max_attempts, 1, 255),
        ("resources.memory", r.memory, 16 * _MIB, 2**60),
        ("resources.cpu_milli", r.cpu_milli, 1, 10**7),
        ("resources.pids", r.pids, 4, 2**22),
        ("resources.disk", r.disk, 1, 2**60),
    )
    for field, number, least, most in numbers:
        if not least <= number <= most:
            return f"{field}: {number} cannot be used; give a number from {least} to {most}"
    if len(spec.commands) not in (0, 1, spec.n):
        return f"commands: there are {len(spec.commands)}; give none, one for all, or one for each of the {spec.n}"
    for command in spec.commands:
        if bool(command.argv) == bool(command.line):
            return "commands: each needs either argv or line, and not both"
        if command.timeout_ms < 0 or command.output_limit < 0:
            return "commands: timeout_ms and output_limit are 0 or more"
    for name, value in (pair for env in (spec.env, *(c.env for c in spec.commands)) for pair in env):
        if not _NAME.fullmatch(name):
            return f"env: {name!r} is no variable's name; use letters, digits and '_', not beginning with a digit"
        if "\0" in value:
            return f"env: the value of {name} holds a NUL character; remove it"
    for user in (spec.user, *(command.user for command in spec.commands)):
        if not _USER.fullmatch(user):
            return f"user: {user!r} cannot be used; give a user's name, a uid or uid:gid"
    return None
