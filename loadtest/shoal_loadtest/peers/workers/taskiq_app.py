"""The taskiq application: what its workers and its client both import."""

import os

from taskiq_nats import NATSObjectStoreResultBackend, PullBasedJetStreamBroker

URL = os.environ.get("LOADTEST_NATS", "nats://127.0.0.1:4222")
# Not the push-based one: with that a client is a member of the queue, too, and is given tasks that it never runs. And
# one message a pull, as it is by default: a larger pull waits until it is full.
broker = PullBasedJetStreamBroker(servers=[URL]).with_result_backend(
    NATSObjectStoreResultBackend(servers=[URL], keep_results=True)
)


async def _noop(number: int) -> int:
    return number


noop = broker.task(_noop)
