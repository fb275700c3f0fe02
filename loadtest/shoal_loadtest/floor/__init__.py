"""Floors: what the broker and the runtime do without Shoal, beside what they do with it, in one run.

`work` says what is done, `figures` how it is written down. The broker's floor: `roles` are the services without any
logic, `station` is the process of one of them, `channels` how it speaks with the broker, `fabric` the broker itself;
`chain` runs them, and Shoal beside them (`whole`). The runtime's: `loops` over drivers and over programs that start
sandboxes (`bare`). `latency` and `commands` are what a single message and a single command take.
"""
