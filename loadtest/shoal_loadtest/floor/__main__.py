"""`python -m shoal_loadtest.floor`: the command by itself."""

from shoal_loadtest.floor.alone import alone
from shoal_loadtest.floor.command import floor

if __name__ == "__main__":
    alone(floor, "floor")
