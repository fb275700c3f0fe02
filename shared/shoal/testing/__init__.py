"""What stands in for the world in tests: simulated time, logs with faults, and replicas of cores that crash.

`world` is a seeded heap of events, `log` a broker on it, `replica` runs a pure core over a log as the real shell does,
`faults` says how often what goes wrong, and `campaign` runs many seeds and shrinks what fails. `virtual` and `faulty`
do the same for code that uses asyncio and a bus. All of it depends on nothing but its seed.
"""
