"""The executor's edge: messages in, the driver's work, messages out."""

from shoal_executor.service.executor import ExecutorService
from shoal_executor.service.offer import Offer

__all__ = ["ExecutorService", "Offer"]
