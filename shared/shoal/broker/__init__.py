"""A NATS server of one's own: `embedded` runs one beside the services that need it."""

from shoal.broker.embedded import BrokerError, EmbeddedBroker

__all__ = ["BrokerError", "EmbeddedBroker"]
