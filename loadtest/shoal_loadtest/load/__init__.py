"""The load generator: a trainer without objects, in a process of its own, told what to do by whoever measures."""
