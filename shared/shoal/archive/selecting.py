"""Which messages are about a tenant or a run: those with its name in their subject, or about one of its rollouts."""

from shoal.bus.protocol import Delivery
from shoal.wire.codec import UndecodableError, decode
from shoal.wire.messages import AnyMessage, DeadLetter, SnapshotAdded
from shoal.wire.streams import stream_of
from shoal.wire.subjects import SYSTEM


class Selection:
    """Says of each message whether it is wanted; all are where neither tenant nor run is named.

    Some name only a rollout, so the rollouts are remembered from what came before: their own log goes first.
    """

    def __init__(self, tenant: str = "", run: str = "") -> None:
        self._tenant = tenant
        self._run = run
        self._rollouts: set[str] = set()

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return not self._tenant and not self._run

    def wants(self, delivery: Delivery) -> bool:
        """Return whether a message is about what is wanted."""
        return self.everything or self._wants(delivery.subject, delivery.payload)

    def _wants(self, subject: str, payload: bytes) -> bool:
        kind, *tokens = subject.split(".")[1:]
        if kind == "rollout":
            return self._in_rollout_log(tokens, payload)
        if kind == "trajectory":
            return self._is(*tokens[1:3])
        try:
            message = decode(payload)
        except UndecodableError:
            return False
        if isinstance(message, DeadLetter):
            return self._buried(message)
        if kind == "snapshot" and not self._run:
            return tokens[0] == self._tenant
        if isinstance(message, SnapshotAdded):
            return message.origin.rpartition("-")[0] in self._rollouts
        return self._about(message)

    def _in_rollout_log(self, tokens: list[str], payload: bytes) -> bool:
        if not self._is(*tokens[1:3]):
            return False
        try:
            self._rollouts.add(getattr(decode(payload), "rollout", ""))
        except UndecodableError:
            pass
        return True

    def _is(self, tenant: str = SYSTEM, run: str = SYSTEM) -> bool:
        return self._tenant in ("", tenant) and self._run in ("", run)

    def _about(self, message: AnyMessage) -> bool:
        rollout = getattr(message, "rollout", None)
        if rollout is None:
            return False
        tenant, run = getattr(message, "tenant", None), getattr(message, "run", None)
        if tenant is not None and run is not None:
            return self._is(tenant, run)
        return rollout in self._rollouts

    def _buried(self, letter: DeadLetter) -> bool:
        try:
            stream_of(letter.subject)
        except ValueError:
            return False
        return self._wants(letter.subject, letter.payload)
