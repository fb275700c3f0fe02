"""A NATS server of one's own: `embedded` runs one beside the services that need it."""

from shoal.broker.embedded import BrokerError, EmbeddedBroker, running_pid

__all__ = ["BrokerError", "EmbeddedBroker", "running_pid"]
