"""The first process of a sandbox and how a driver speaks with it: shared by the drivers that run real commands."""
