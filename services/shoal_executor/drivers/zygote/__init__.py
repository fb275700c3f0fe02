"""Sandboxes forked out of a warmed process, one fork server for each template.

`driver` is the executor's side; `server` a program of its own that enters a template and forks; `agent` what the fork
becomes: the sandbox's first process. `link` and `frames` are what they say to each other.
"""
