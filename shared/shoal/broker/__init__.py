"""NATS servers of one's own: `embedded` runs one beside the services that need it, `cluster` three."""

from shoal.broker.cluster import EmbeddedCluster, leader_of, wait_until_whole
from shoal.broker.embedded import BrokerError, EmbeddedBroker, running_pid

__all__ = ["BrokerError", "EmbeddedBroker", "EmbeddedCluster", "leader_of", "running_pid", "wait_until_whole"]
