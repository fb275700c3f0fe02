"""What a rollout may ask for; each refusal is one sentence that names the field and what would be right."""

import re
from typing import Final

from shoal.wire.messages import RolloutSpec, Snapshot

_TEMPLATE: Final = re.compile(r"host|(dir|tar):/[^\0]*|snapshot:[0-9a-f]{8,64}|[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")
_SOURCE: Final = re.compile(r"(oci|docker|docker-archive|template):")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LABEL: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,62}")
_USER: Final = re.compile(r"([a-z_][a-z0-9_-]{0,31}|[0-9]{1,9}(:[0-9]{1,9})?)?")
_LONGEST_MS: Final = 7 * 86_400_000
_MIB: Final = 1024**2
_ENV: Final = 128 * 1024
"""Bytes of the variables of a rollout's every command; of a program's arguments and variables, Linux takes 2 MiB."""


def problem(spec: RolloutSpec) -> tuple[str, str] | None:
    """Return the code and the sentence of what is wrong with a spec, or None."""
    if not _TEMPLATE.fullmatch(spec.template):
        if _SOURCE.match(spec.template):
            todo = "build a template of it first (`shoal template build NAME --from SOURCE`), and start from its name"
            return "unknown_template", f"{spec.template!r} is what templates are made of, and none itself: {todo}"
        known = "host, dir:/path, tar:/path, snapshot:DIGEST or the name of a template or snapshot"
        return "unknown_template", f"unknown template {spec.template!r}: use {known}"
    sentence = _bad(spec)
    return ("bad_request", sentence) if sentence else None


def wants(spec: RolloutSpec, snapshot: Snapshot | None) -> str:
    """Return the isolation a rollout needs, empty for any: what was kept of a memory fits only where it was."""
    return spec.isolation or (snapshot.isolation if snapshot else "")


def unfit(spec: RolloutSpec, snapshot: Snapshot) -> tuple[str, str] | None:
    """Return the code and the sentence of why a rollout cannot start from a snapshot, or None."""
    if spec.isolation in ("", snapshot.isolation) or not snapshot.isolation:
        return None
    what = "memory" if snapshot.memory else "warm interpreter"
    sentence = f"isolation: the snapshot's {what} is for {snapshot.isolation!r}, not {spec.isolation!r}"
    return "unsupported_isolation", sentence


def lasting(template: str) -> bool:
    """Return whether what a template stood for a moment ago may be believed: a name may stand for another by now."""
    return template == "host" or template.startswith(("dir:", "tar:", "snapshot:"))


def _bad(spec: RolloutSpec) -> str | None:
    r = spec.resources
    numbers = (
        ("n", spec.n, 1, 100_000),
        ("timeout_ms", spec.timeout_ms, 1, _LONGEST_MS),
        ("max_attempts", spec.max_attempts, 1, 255),
        ("checkpoint_every_ms", spec.checkpoint_every_ms, 0, _LONGEST_MS),
        ("checkpoint_commands", spec.checkpoint_commands, 0, 10**6),
        ("idle_after_ms", spec.idle_after_ms, 0, _LONGEST_MS),
        ("min_ready", spec.min_ready, 0, max(spec.n, 0)),
        ("start_within_ms", spec.start_within_ms, 0, _LONGEST_MS),
        ("lifetime_ms", spec.lifetime_ms, 0, _LONGEST_MS),
        ("resources.memory", r.memory, 16 * _MIB, 2**60),
        ("resources.cpu_milli", r.cpu_milli, 1, 10**7),
        ("resources.pids", r.pids, 4, 2**22),
        ("resources.disk", r.disk, 1, 2**60),
    )
    for field, number, least, most in numbers:
        if not least <= number <= most:
            return f"{field}: {number} cannot be used; give a number from {least} to {most}"
    for name, value in (*spec.labels, *(((spec.spread_over, "x"),) if spec.spread_over else ())):
        if not _LABEL.fullmatch(name) or not value or "\0" in value:
            return f"labels: {name!r} = {value!r} is no label; use letters, digits, '.', '-' and '_', and a value"
    if len(spec.commands) not in (0, 1, spec.n):
        return f"commands: there are {len(spec.commands)}; give none, one for all, or one for each of the {spec.n}"
    for command in spec.commands:
        if bool(command.argv) + bool(command.line) + bool(command.python) != 1:
            return "commands: each needs either argv, line or python, and only one of them"
        if command.timeout_ms < 0 or command.output_limit < 0:
            return "commands: timeout_ms and output_limit are 0 or more"
        if (command.session or command.python) and (command.stdin or command.user):
            return (
                "commands: stdin and user are of a command that is neither a session's line nor python; leave them out"
            )
    for name, value in (pair for env in (spec.env, *(c.env for c in spec.commands)) for pair in env):
        if not _NAME.fullmatch(name):
            return f"env: {name!r} is no variable's name; use letters, digits and '_', not beginning with a digit"
        if "\0" in value:
            return f"env: the value of {name} holds a NUL character; remove it"
    size = sum(len(name) + len(value.encode()) + 2 for name, value in spec.env)  # as a program has them: NAME=VALUE\0
    if size > _ENV:
        return f"env: {size} bytes cannot be used; give at most {_ENV}, and what is larger as a file"
    for user in (spec.user, *(command.user for command in spec.commands)):
        if not _USER.fullmatch(user):
            return f"user: {user!r} cannot be used; give a user's name, a uid or uid:gid"
    return None
