"""The executor: touches the machine, and nothing else does.

Owns its nodes' sandboxes. Hears `shoal.executor.<executor>.>` (starts and ends from placement, commands from trainers).
Says readiness, results and ends into the rollout log, freed slots into the placement log, and what commands returned
into the trajectory.
"""
