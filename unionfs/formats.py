"""Names and bytes that layers carry on disk.

The table is in ``docs/formats.md``; sources are the kernel's
Documentation/filesystems/overlayfs.rst, fuse-overlayfs and the OCI image
specification ("layer.md"). Nothing here touches a filesystem.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


WH_PREFIX: Final = b".wh."
WH_OPAQUE: Final = b".wh..wh..opq"
#: Where a mount shows its root once more (docs/concurrency.md, "The second root"); never on disk.
SECOND_ROOT: Final = b".wh..pyunion.root"

#: Prefixes whose attributes belong to the union. Through a mount they are
#: hidden, and what a user sets under them is escaped: ``P X`` is kept as
#: ``P overlay.X`` (overlayfs's rule, applied to every family that we honour).
PRIVATE_PREFIXES: Final = (b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs.")
ESCAPE: Final = b"overlay."

TRUSTED: Final = b"trusted.overlay."
USER: Final = b"user.overlay."

OPAQUE: Final = b"opaque"
REDIRECT: Final = b"redirect"
METACOPY: Final = b"metacopy"
WHITEOUT: Final = b"whiteout"
IMPURE: Final = b"impure"
ORIGIN: Final = b"pyunion.origin"

FUSE_OPAQUE: Final = b"user.fuseoverlayfs.opaque"
OPAQUE_NAMES: Final = frozenset(prefix + OPAQUE for prefix in PRIVATE_PREFIXES)
REDIRECT_NAMES: Final = frozenset({TRUSTED + REDIRECT, USER + REDIRECT})
METACOPY_NAMES: Final = (TRUSTED + METACOPY, USER + METACOPY)
WHITEOUT_NAMES: Final = (TRUSTED + WHITEOUT, USER + WHITEOUT)
IMPURE_NAMES: Final = frozenset({TRUSTED + IMPURE, USER + IMPURE})
ORIGIN_NAMES: Final = (TRUSTED + ORIGIN, USER + ORIGIN)

OVERRIDE_STAT: Final = b"user.containers.override_stat"
OVERRIDE_STAT_NAMES: Final = (
    b"security.fuseoverlayfs.override_stat",
    OVERRIDE_STAT,
    b"user.fuseoverlayfs.override_stat",
)

REDIRECT_MAX: Final = 256

ACL_ACCESS: Final = b"system.posix_acl_access"
ACL_DEFAULT: Final = b"system.posix_acl_default"
#: The kernel asks for it before it changes a file's data (security/commoncap.c).
CAPABILITY: Final = b"security.capability"


def is_private(name: bytes) -> bool:
    """Whether an attribute on disk is ours (escaped ones included)."""
    return name.startswith(PRIVATE_PREFIXES)


def escape(name: bytes) -> bytes:
    """The name on disk of an attribute that a user calls ``name``."""
    for prefix in PRIVATE_PREFIXES:
        if name.startswith(prefix):
            return prefix + ESCAPE + name[len(prefix) :]
    return name


def unescape(name: bytes) -> bytes | None:
    """What a user calls the attribute ``name`` on disk; None: not for users."""
    for prefix in PRIVATE_PREFIXES:
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            return prefix + rest[len(ESCAPE) :] if rest.startswith(ESCAPE) else None
    return name
