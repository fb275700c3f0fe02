"""What `shoal status` and `shoal archive info` say of messages that cores failed on."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shoal.cli.exits import Exit, Failure
from shoal.cli.output import moment, say

if TYPE_CHECKING:
    from shoal.machine.passing import Failure as Failed


def passed_over(values: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Return the messages that the services leave out, and those they failed on once, by what the cluster's bucket has.

    Raises Failure.
    """
    from shoal.machine.passing import decoded
    from shoal.wire.streams import PASSED_KEYS

    found: list[dict[str, Any]] = []
    for key in sorted(values):
        first, _, partition = key.partition(".")
        if first == PASSED_KEYS:
            try:
                record = decoded(values[key], partition)
            except ValueError as error:
                raise Failure(Exit.INFRASTRUCTURE, str(error)) from error
            found += [_shown(partition, each, passed=True) for each in record.passed]
            found += [] if record.noted is None else [_shown(partition, record.noted, passed=False)]
    return found


def _shown(partition: str, each: "Failed", *, passed: bool) -> dict[str, Any]:
    return {
        "partition": partition, "sequence": each.sequence, "passed_over": passed, "why": each.why,
        "version": each.version, "at_ms": each.at_ms,
    }  # fmt: skip


def tell(found: Sequence[Mapping[str, Any]]) -> None:
    """Say it to people."""
    for each in found:
        twice, once = "is passed over: it was failed on twice", "was failed on once, and is not passed over"
        say(
            f"message {each['sequence']} of the log of {each['partition']} {twice if each['passed_over'] else once}"
            f" ({each['why']}; {each['version']}; {moment(each['at_ms'])})"
        )
