"""Content-addressed bytes: where they are kept for all nodes, and what a node has of them at hand."""
