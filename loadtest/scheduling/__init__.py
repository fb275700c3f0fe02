"""Policies side by side: the real scheduler and placement cores on simulated nodes and simulated time."""
