"""What an upper directory has of the root that it shows in place of."""

from __future__ import annotations

import errno
import os

from cowstore.layout import owns_all


def look_like(upper: str, root: tuple[int, int, int, int, dict[bytes, bytes]]) -> None:
    """Give an upper all that an image's root has, which ``viewformat.root_of`` tells."""
    mode, uid, gid, mtime, xattrs = root
    for name, value in xattrs.items():
        if name.endswith(b".override_stat"):
            continue  # it would be taken for ours
        try:
            os.setxattr(upper, name, value)
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM):  # those of root, to others
                raise
    if owns_all():
        if (uid, gid) != (0, 0):
            os.chown(upper, uid, gid)
        os.chmod(upper, mode)
    else:
        try:
            os.setxattr(upper, "user.containers.override_stat", b"%d:%d:%04o" % (uid, gid, mode))
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
    os.utime(upper, ns=(mtime, mtime))
