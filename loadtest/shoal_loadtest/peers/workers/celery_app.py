"""The Celery application: what its worker and its client both import."""

import os

from celery import Celery

URL = os.environ.get("LOADTEST_REDIS", "redis://127.0.0.1:6379/0")
PREFETCH = 64

app = Celery("peer", broker=URL, backend=URL)
app.conf.update(
    worker_prefetch_multiplier=PREFETCH,
    task_acks_late=True,
    task_serializer="json",
    result_serializer="json",
    result_expires=3600,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
)


def _noop(number: int) -> int:
    return number


noop = app.task(_noop)
