"""Peers: other ways to fan units of work out over a machine, beside Shoal, in one run.

Each peer is a small module of `workers`, run in a virtual environment of its own with exact versions (`locks`), so
that nothing here imports one. `catalogue` lists them, `environments` makes the environments, `harness` starts a peer,
asks it and ends all its processes (`processes`), `measuring` takes turns, `report` puts side by side what came of it.
"""
