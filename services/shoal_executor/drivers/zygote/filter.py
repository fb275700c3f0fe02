"""The seccomp filter of every sandbox, compiled once by libseccomp: it denies what could be a way out."""

import errno
import functools
import os
from typing import Final

from shoal_executor.drivers.agent import frames

_NAMESPACES: Final = 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x00020000

_DENIED: Final = (
    "mount umount2 pivot_root open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr setns unshare "
    "ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd "
    "bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register "
    "add_key request_key keyctl "
    "init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff "
    "open_by_handle_at name_to_handle_at lookup_dcookie fanotify_init "
    "acct quotactl quotactl_fd nfsservctl syslog settimeofday clock_settime clock_adjtime adjtimex "
    "iopl ioperm vhangup uselib ustat modify_ldt move_pages migrate_pages "
    "sethostname setdomainname"
).split()

_FAMILIES: Final = frozenset((1, 2, 10, 16))
"""UNIX, INET, INET6, NETLINK. Others lead out of a network namespace (VSOCK) or into code of the kernel's that

programs in a sandbox have no use for.
"""
_LOW: Final = 32
"""Families below are named one by one; in those from here on, one of the higher bits is set."""


@functools.cache
def compile_filter(allow: tuple[str, ...] = ()) -> bytes:
    """Return the program, which lets these calls pass besides. Raises RuntimeError where libseccomp is not there."""
    try:
        import pyseccomp  # it needs a library that only this isolation does
    except OSError as error:
        raise RuntimeError(f"libseccomp is missing ({error}): apt install libseccomp2") from None

    rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
    for name in (each for each in _DENIED if each not in allow):
        try:
            rules.add_rule(pyseccomp.ERRNO(errno.EPERM), name)
        except (ValueError, OSError, RuntimeError):
            continue  # a system call this architecture, or this libseccomp, does not know
    # New namespaces by clone are refused by their flags; clone3 hides its flags in memory, so programs are told it is
    # not there, and use clone.
    for bit in range(32):
        flag = 1 << bit
        if flag & _NAMESPACES:
            rules.add_rule(pyseccomp.ERRNO(errno.EPERM), "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag))
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    # TIOCSTI and TIOCLINUX type into a terminal.
    for request in (0x5412, 0x541C):
        rules.add_rule(
            pyseccomp.ERRNO(errno.EPERM), "ioctl", pyseccomp.Arg(1, pyseccomp.MASKED_EQ, 0xFFFFFFFF, request)
        )
    # As a kernel without them says it.
    refused = [(0xFFFFFFFF, family) for family in range(_LOW) if family not in _FAMILIES]
    refused += [(1 << bit, 1 << bit) for bit in range(_LOW.bit_length() - 1, 32)]
    for mask, value in refused:
        for call in ("socket", "socketpair"):
            rules.add_rule(
                pyseccomp.ERRNO(errno.EAFNOSUPPORT), call, pyseccomp.Arg(0, pyseccomp.MASKED_EQ, mask, value)
            )
    # A limit of the agent's own, lowered, would end it.
    agent = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, 0xFFFFFFFF, frames.AGENT)
    rules.add_rule(pyseccomp.ERRNO(errno.EPERM), "prlimit64", agent, pyseccomp.Arg(2, pyseccomp.NE, 0))
    read, write = os.pipe()
    with open(read, "rb") as source, open(write, "wb") as sink:
        rules.export_bpf(sink)
        sink.close()
        return source.read()
