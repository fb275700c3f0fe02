"""What nothing in a container may do to its first process, the agent: end it, stop it, or lower its limits.

Linux lets no process kill the first of its own pid namespace; runsc's kernel does, and the sandbox ends with it, as if
the platform had lost it: a program that fails would be run again. So the calls that name the agent are refused, by the
container's own kernel.
"""

from typing import Final

from shoal_executor.drivers.agent import frames

_CALLS: Final = (
    ("kill", 0, 1), ("prlimit64", 0, 2), ("tkill", 0, None), ("tgkill", 0, None), ("rt_sigqueueinfo", 0, None),
    ("rt_tgsigqueueinfo", 0, None), ("pidfd_open", 0, None), ("ptrace", 1, None), ("process_vm_readv", 0, None),
    ("process_vm_writev", 0, None),
)  # fmt: skip
"""Each with which argument says whom it is about, and perhaps which one is 0 where it does nothing but ask."""
FILTER: Final = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [
        {
            "names": [name],
            "action": "SCMP_ACT_ERRNO",
            "args": [
                {"index": whom, "value": 0xFFFFFFFF, "valueTwo": frames.AGENT, "op": "SCMP_CMP_MASKED_EQ"},
                *([{"index": asks, "value": 0, "op": "SCMP_CMP_NE"}] if asks is not None else []),
            ],
        }
        for name, whom, asks in _CALLS
    ],
}
"""For `linux.seccomp` of a container's configuration. What does not fit is EPERM."""
