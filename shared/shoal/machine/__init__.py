"""What a pure core is: a message in, effects out, nothing else. See `core` for the laws."""
