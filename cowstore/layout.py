"""Where things lie in a store; see docs/store.md, "The tree on disk"."""

from __future__ import annotations

import errno
import os

from cowstore.errors import StoreError
from unionfs.sys.userns import in_initial_user_namespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FORMAT: Final = b"cowstore 1\n"
#: Bytes that are kept free for removing something when the disk is full.
_RESERVE: Final = 256 << 10
_DIRECTORIES: Final = (
    "blobs/sha256",
    "objects",
    "layers",
    "views",
    "trees",
    "snapshots",
    "ready",
    "partial",
    "locks",
    "tmp",
    "trash",
)
#: The alphabet of URL-safe base64: first characters of object names, and so their directories.
FANOUT: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def owns_all() -> bool:
    """Whether any owner can be given to a file: as root, in no user namespace of our own."""
    return os.geteuid() == 0 and in_initial_user_namespace()


def default_root() -> str:
    """Where this user's store is if nothing is said; root of a user namespace is a user."""
    told = os.environ.get("PYUNION_STORE")
    if told:
        return told
    if owns_all():
        return "/var/lib/pyunion/store"
    home = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return os.path.join(home, "pyunion/store")


class Layout:
    """Paths inside one store. Making one touches nothing."""

    __slots__ = ("read_only", "root")

    def __init__(self, root: str, *, read_only: bool = False) -> None:
        self.root = "/" + os.path.abspath(root).lstrip("/")  # abspath leaves two in front
        self.read_only = read_only

    def path(self, *parts: str) -> str:
        """A path beneath the root."""
        return os.path.join(self.root, *parts)

    def blob(self, digest: str) -> str:
        """Where the blob with a digest is, if it is kept."""
        return f"{self.root}/blobs/sha256/{digest[7:9]}/{digest[7:]}"

    def partial(self, digest: str) -> str:
        """Where the beginning of a blob is kept while it is not whole."""
        return f"{self.root}/partial/sha256-{digest[7:]}"

    def object(self, name: str) -> str:
        """Where the content object of a name is."""
        return f"{self.root}/objects/{name[0]}/{name[1:]}"

    def layer(self, diff_id: str) -> str:
        """The manifest of a layer."""
        return f"{self.root}/layers/{diff_id[7:]}"

    def view(self, chain_id: str) -> str:
        """The index of the merged tree of a chain of layers."""
        return f"{self.root}/views/{chain_id[7:]}"

    def tree(self, chain_id: str, flavour: str) -> str:
        """The same as a directory."""
        return f"{self.root}/trees/{chain_id[7:]}.{flavour}"

    def snapshot(self, snapshot: str) -> str:
        """The directory of a snapshot."""
        return f"{self.root}/snapshots/{snapshot}"

    def prepare(self) -> None:
        """Make the store's directories, or check that they are ours.

        Raises:
            StoreError: no store there, not writable, or of a newer format.
        """
        try:
            self._check_format()
            return
        except FileNotFoundError:
            if self.read_only:
                raise StoreError(f"{self.root}: no store there") from None
        except OSError as error:
            raise StoreError(f"{self.root}: {error.strerror}") from None
        try:
            self._create()
        except OSError as error:
            where = os.fsdecode(error.filename) if error.filename else self.root
            hint = "" if error.errno == errno.ENOSPC else "choose another place with --root"
            raise StoreError(f"{where}: {error.strerror}", hint) from None

    def _check_format(self) -> None:
        with open(f"{self.root}/format", "rb") as file:
            found = file.read(64)
        if found != FORMAT:
            text = found.decode("ascii", "replace").strip()
            raise StoreError(
                f"{self.root}: the store's format is {text!r}, this program knows 'cowstore 1'",
                "use the version of cowstore that made it",
            )

    def _create(self) -> None:
        import contextlib

        os.makedirs(self.root, 0o700, exist_ok=True)
        present = set(os.listdir(self.root))
        if (
            present
            - {"format", "store.db", "lost+found", "reserve"}
            - {d.split("/")[0] for d in _DIRECTORIES}
        ):
            raise StoreError(f"{self.root}: not empty, and not a store", "choose another --root")
        os.chmod(self.root, 0o700)
        for name in _DIRECTORIES:
            os.makedirs(self.path(name), 0o700, exist_ok=True)
        for char in FANOUT:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.path("objects", char), 0o700)
        from cowstore.spread import spread

        for name in ("tmp", "snapshots"):
            spread(self.path(name))
        # Last: a store without it is not begun yet, and making it again changes nothing.
        draft = self.path(f"tmp/format.{os.getpid()}")
        with open(draft, "wb") as file:
            file.write(FORMAT)
        os.rename(draft, self.path("format"))
        self.keep_reserve()

    def keep_reserve(self) -> None:
        """Keep some room, so that something can be removed from a full disk."""
        path = self.path("reserve")
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            return  # it is there, or even that is too much
        try:
            os.posix_fallocate(fd, 0, _RESERVE)
        except OSError:
            os.unlink(path)
        finally:
            os.close(fd)

    def use_reserve(self) -> None:
        """Give it up if it is needed; ``keep_reserve`` afterwards."""
        found = os.statvfs(self.root)
        if found.f_bavail * found.f_frsize < _RESERVE:
            import contextlib

            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path("reserve"))


def fsync_directory(path: str) -> None:
    """fsync(2) of a directory: what was renamed into it stays there."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(path: str) -> None:
    """Remove a directory and what is in it, whatever the modes; what cannot be removed stays."""
    from unionfs.trees import remove_tree

    try:
        parent = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        remove_tree(parent, os.path.basename(path), leave=True)
    finally:
        os.close(parent)
