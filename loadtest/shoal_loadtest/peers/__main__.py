"""`python -m shoal_loadtest.peers`: the command by itself."""

from shoal_loadtest.floor.alone import alone
from shoal_loadtest.peers.command import peers

if __name__ == "__main__":
    alone(peers, "peers")
