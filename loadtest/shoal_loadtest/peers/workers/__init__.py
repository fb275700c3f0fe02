"""What runs in the peers' own environments: nothing of it imports more than the standard library and its peer.

(Those of Shoal, and of the programs that it compares with, run where Shoal is installed.)
"""
