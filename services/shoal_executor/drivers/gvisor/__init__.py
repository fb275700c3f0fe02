"""The driver `gvisor`: sandboxes that runsc runs, with a kernel of their own, whose whole memory can be kept.

A sandbox is one container: its root is an overlay made on the host, whose upper half is what it wrote; its first
process is the agent, in a Python brought from the host (`closure`), which speaks with the driver over two sockets that
are its standard input and output. A checkpoint keeps that process with all others, so a copy of it only has to be told
whom it serves now. See docs/adr/0011.
"""
