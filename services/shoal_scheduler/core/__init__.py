"""The scheduler's core: `admission` says what may run, `scheduler` in what order and what became of it."""
