"""The intermediate process: it mounts the root filesystem and serves it.

It lives in the outer user namespace, parent of the container's, with an id that
no container has, and cannot be traced: container root can neither signal it nor
look into it. The mount is handed to the container as a detached tree and is
gone here, so the last process of the container ends this one too.
"""

from __future__ import annotations

import os

from runtime.errors import RunError
from runtime.lazy import put_off
from runtime.sys import calls
from unionfs.trees import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.plan import Plan, RootPlan


#: What serves a union, in the order of import.
_MODULES = (
    "unionfs.types", "unionfs.sys.calls", "unionfs.layer", "unionfs.upper", "unionfs.union",
    "unionfs.ops", "unionfs.options", "unionfs.daemon", "unionfs.engine.wire",
    "unionfs.engine.direct", "unionfs.engine.mounting", "cowstore.viewlayer",
)  # fmt: skip


def load() -> None:
    """Import what serves a union, and put off what it may never need."""
    put_off("inspect", "json", "shutil", "socket", "subprocess", "traceback")
    for name in _MODULES:
        try:
            __import__(name)
        except ImportError:
            return  # told when it is needed


def _words(plan: Plan) -> list[str]:
    """The ``-o`` words for the union."""
    root = plan.root

    def escaped(path: str) -> str:
        return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")

    words = [f"lowerdir={':'.join(escaped(path) for path in root.lowers)}"]
    if root.upper:
        words += [f"upperdir={escaped(root.upper)}", f"workdir={escaped(root.work)}"]
    for name, ranges in (("uidmapping", plan.ids.view_uids), ("gidmapping", plan.ids.view_gids)):
        if ranges:
            words.append(f"{name}={':'.join(f'{a}:{b}:{c}' for a, b, c in ranges)}")
    return [*words, *root.options]


def _mount_union(plan: Plan) -> tuple[int, Callable[[], None]]:
    """The union's detached tree, and what serves it until it is gone."""
    from unionfs import daemon
    from unionfs import options as mount_options
    from unionfs.engine.mounting import MountRequest, open_mounted

    root = plan.root
    options = mount_options.build(
        [",".join(_words(plan))], lowers=[], upper=None, work=None, mountpoint=root.mountpoint
    )
    if root.view:
        from cowstore import viewhash
        from cowstore.viewlayer import opener

        opened = options.union.replace(open_layer=opener(root.roots))
        options = options.replace(union=opened)
    options = mount_options.check(options)
    union = daemon.open_union(options)
    request = MountRequest(
        mountpoint=plan.root.mountpoint,
        source="pyunion",
        fstype="fuse.pyunion",
        read_only=options.union.read_only,
        suid=True,
        dev=False,
        noexec=False,
        atime=False,
        allow_other=True,
        detached=True,
    )
    mounted = open_mounted(request)
    tree = mounted.take()
    discard = root.transient and bool(root.upper)
    # By descriptor: when they are removed, their directory may have another name.
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    discarded = [
        (os.open(os.path.dirname(path), flags), os.path.basename(path))
        for path in ((root.upper, root.work) if discard else ())
    ]

    def serve() -> None:
        if root.view:
            viewhash.load()  # while others mount what goes on top
        daemon.Daemon(options, union, mounted, None, discard=discard).serve(None)
        for parent, name in discarded:
            remove_tree(parent, name)

    return tree, serve


def _mount_kernel(root: RootPlan) -> int:
    """The kernel's overlayfs; files of an image's tree lead to the contents in the stores."""
    from runtime import overlay

    try:
        return overlay.mount(
            root.lowers,
            root.upper,
            root.work,
            leads_to=[f"{place}/objects" for place in root.roots],
            volatile=root.transient,
        )
    except OSError as error:
        raise RunError(
            f"overlayfs in the kernel: {error.strerror}",
            "use --storage union, which needs /dev/fuse (pyrun info), or --storage copy",
        ) from None


def mount_root(plan: Plan) -> tuple[int, Callable[[], None] | None]:
    """The root's detached tree, and how to serve it (None: the kernel does).

    Raises:
        RunError, UserError: it cannot be mounted.
    """
    root = plan.root
    if root.kind == "kernel":
        return _mount_kernel(root), None
    if root.kind == "plain":
        tree = calls.open_tree(calls.AT_FDCWD, os.fsencode(root.lowers[0]), recursive=True)
        calls.mount_setattr(tree, b"", add=calls.MOUNT_ATTR_NODEV, recursive=True)
        return tree, None
    return _mount_union(plan)


def hide(daemon_id: int) -> None:
    """Leave the container's ids, and become untraceable.

    The effective id stays: files are made by it. Signals ask for the real and the saved one
    (kill(2)), tracing for all and for dumpability (ptrace(2), "Ptrace access mode checking").
    """
    if daemon_id >= 0:
        os.setresgid(daemon_id, 0, daemon_id)
        os.setresuid(daemon_id, 0, daemon_id)
    calls.set_dumpable(False)


def close_all_but(keep: list[int]) -> None:
    """Nothing of the caller stays open here but what is named."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    calls.close_others(keep)
