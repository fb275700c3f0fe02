"""The snapshot catalogue's state machine."""
