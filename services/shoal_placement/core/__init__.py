"""Placement's core: which node holds which sandboxes (`fleet`), and what waits for room (`placement`)."""
