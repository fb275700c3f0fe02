"""What a load test does, as a declarative file: its shape, how it is read and checked, and what it is made of. Pure."""
