"""pyunion: a union filesystem in user space.

A stack of read-only lower directories and one writable upper directory are
shown as one POSIX filesystem. ``ops`` is the table of contents.
"""

__version__ = "0.1.0"


def compiled() -> bool:
    """Whether the hot modules run as mypyc compiled them of the same source (see setup.py)."""
    from unionfs import resolve

    return not resolve.__file__.endswith(".py")
