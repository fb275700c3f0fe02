"""A trainer's side of Shoal: connect, ask for sandboxes, run commands in them, hear how they ended.

It is asynchronous; `shoal.sync` has the same methods without `await`.
"""
