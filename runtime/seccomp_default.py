"""The default seccomp profile, as an OCI section made for a set of capabilities.

Everything that the kernel's tables know is allowed, but for what a container
has no use for or what a capability must go with; a number that no table knows
gives ENOSYS, so that programs take their older way.
"""

from __future__ import annotations

from runtime.sys.syscalls import NATIVE, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ENOSYS = 38
_EPERM = 1

#: Refused to all: keys are not namespaced, the others are attack surface or for hosts alone.
_NEVER = (
    "add_key keyctl request_key userfaultfd io_uring_setup io_uring_enter io_uring_register"
    " kexec_load kexec_file_load create_module get_kernel_syms query_module uselib nfsservctl"
    " _sysctl vm86 vm86old swapon swapoff lookup_dcookie vserver map_shadow_stack ustat sysfs"
).split()

#: Refused unless the capability is there.
_WITH = {
    "CAP_SYS_ADMIN": (
        "mount umount umount2 pivot_root fsopen fsconfig fsmount fspick open_tree open_tree_attr"
        " move_mount mount_setattr setns unshare sethostname setdomainname quotactl quotactl_fd"
        " fanotify_init listmount statmount"
    ).split(),
    "CAP_BPF": ["bpf"],
    "CAP_PERFMON": ["perf_event_open"],
    "CAP_DAC_READ_SEARCH": ["open_by_handle_at"],
    "CAP_SYS_BOOT": ["reboot"],
    "CAP_SYS_CHROOT": ["chroot"],
    "CAP_SYS_MODULE": ["init_module", "finit_module", "delete_module"],
    "CAP_SYS_PACCT": ["acct"],
    "CAP_SYS_PTRACE": ["kcmp", "pidfd_getfd", "process_madvise"],
    "CAP_SYS_RAWIO": ["iopl", "ioperm"],
    "CAP_SYS_TIME": ["settimeofday", "stime", "clock_settime", "clock_settime64"],
    "CAP_SYS_TTY_CONFIG": ["vhangup"],
    "CAP_SYS_NICE": ["mbind", "set_mempolicy", "migrate_pages", "move_pages",
                     "set_mempolicy_home_node"],
    "CAP_SYSLOG": ["syslog"],
}  # fmt: skip

#: CAP_SYS_ADMIN stands for the younger ones too (capabilities(7)).
_BY_ADMIN = ("CAP_BPF", "CAP_PERFMON", "CAP_SYSLOG")

_NAMESPACE_FLAGS = 0x7E020080  # CLONE_NEW* but for the signal bits
#: Families of sockets for nobody here: AF_ALG, the kernel's own ciphers (CVE-2026-31431), and
#: AF_VSOCK, which no network namespace keeps apart.
_FAMILIES = (38, 40)
_INT = 0xFFFFFFFF
_CHOWN = "chown fchown lchown fchownat chown32 fchown32 lchown32".split()


def default_profile(
    capabilities: tuple[str, ...], machine: str, *, fake_chown: bool = False
) -> dict[str, Any]:
    """The section; ``fake_chown``: one id is all there is, and chown(2) shall do as if."""
    refused = list(_NEVER)
    for capability, names in _WITH.items():
        by_admin = capability in _BY_ADMIN and "CAP_SYS_ADMIN" in capabilities
        if capability not in capabilities and not by_admin:
            refused += names
    conditional = ["personality", "socketcall"]
    rules: list[dict[str, Any]] = []
    if fake_chown:
        rules.append({"names": _CHOWN, "action": "SCMP_ACT_ERRNO", "errnoRet": 0})
        conditional += _CHOWN
    if "CAP_SYS_ADMIN" not in capabilities:
        # clone3's flags are in memory, where a filter cannot look: ENOSYS makes libraries take
        # clone, whose flags are an argument.
        conditional += ["clone", "clone3"]
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
        rules.append(
            {
                "names": ["clone"],
                "action": "SCMP_ACT_ALLOW",
                "args": [
                    {
                        "index": 0,
                        "value": _NAMESPACE_FLAGS,
                        "valueTwo": 0,
                        "op": "SCMP_CMP_MASKED_EQ",
                    }
                ],
            }
        )
        refused.append("clone")
    for value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF):
        rules.append(
            {
                "names": ["personality"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}],
            }
        )
    for family in _FAMILIES:
        # An int: the kernel takes the lower half of the argument alone, and so does the rule.
        args = [{"index": 0, "value": _INT, "valueTwo": family, "op": "SCMP_CMP_MASKED_EQ"}]
        rules.append(
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM, "args": args}
        )
    # Its family is in memory, where a filter cannot look; libraries have taken socket since
    # Linux 4.3.
    rules.append({"names": ["socketcall"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    refused.append("personality")
    known = {name for arch in NATIVE.get(machine, ()) for name in table(arch)}
    allowed = known - set(refused) - set(conditional)
    rules.append({"names": sorted(refused), "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM})
    rules.append({"names": sorted(allowed), "action": "SCMP_ACT_ALLOW"})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _ENOSYS,
        "architectures": list(NATIVE.get(machine, ())),
        "syscalls": rules,
    }
