"""The `shoal` command: one module per group of commands, imported when it is used."""
