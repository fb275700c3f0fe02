"""The FastStream application: workers that take from one stream and answer into another."""

import os

from faststream import FastStream
from faststream.nats import JStream, NatsBroker, PullSub

URL = os.environ.get("LOADTEST_NATS", "nats://127.0.0.1:4222")
BATCH = 100
TASKS = JStream("tasks", subjects=["tasks.*"])
RESULTS = JStream("results", subjects=["results.*"])

broker = NatsBroker(URL, logger=None)  # it would log every message twice
app = FastStream(broker)


async def _noop(number: int) -> int:
    return number


subscribed = broker.subscriber("tasks.noop", stream=TASKS, durable="workers", pull_sub=PullSub(batch_size=BATCH))
published = broker.publisher("results.noop", stream=RESULTS)
noop = subscribed(published(_noop))
