"""One protocol for ordered, durable logs, and its implementations: `jetstream` and `memory`."""
