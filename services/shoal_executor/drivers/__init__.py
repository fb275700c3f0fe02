"""Ways to isolate a sandbox: one protocol, one module or package for each way, one conformance suite for all."""
