"""What a log is good for, once services are functions of it: any past state, every decision checked, other policies.

services     whose logs can be folded: what is installed
rebuilding   the state of a partition at a moment, from a checkpoint and the log after it
verifying    the recorded inboxes through the present code, every effect compared with what was recorded
recorded     what was asked for (`demand`) and what became of it (`course`), as a recording has it
changes      what if: other policies, other fleets, other demand
simulating   demand through the real cores and a `fleet` of simulated machines, on simulated time
loading      recorded requests once more, into another cluster
"""
