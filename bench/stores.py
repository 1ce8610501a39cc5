"""Image stores and what does a part of their work: how each takes the same archives.

cowstore and podman keep images and writable copies of them; umoci unpacks bundles, makes layers of
what was changed in them, and needs skopeo for other formats; tar only unpacks the layer.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
from pathlib import Path
from typing import Final

from bench import tool
from bench.account import Account, as_root
from bench.archives import NAME
from bench.peers import FINDERS, Found
from bench.stage import Stage
from bench.tool import Tool
from bench.workload import IMAGE

#: Files above this size are not changed: what is copied up is not the question here.
_LARGEST: Final = 1 << 16
_CHANGE: Final = (
    "import sys; from bench.stores import change; change(sys.argv[2], int(sys.argv[1]))"
)


def change(top: str, count: int) -> None:
    """Append to the first ``count`` small files below ``top``, in the order of their names.

    Raises:
        OSError: there are fewer.
    """
    left = count
    for place, dirs, names in os.walk(top):
        dirs.sort()
        for name in sorted(names):
            path = os.path.join(place, name)
            status = os.lstat(path)
            if not left:
                return
            if stat.S_ISREG(status.st_mode) and status.st_size <= _LARGEST:
                with open(path, "ab") as file:
                    file.write(b"x" * 100)
                left -= 1
    if left:
        raise OSError(0, f"only {count - left} files to change, not {count}")


class Store(Tool):
    """One of them.

    Attributes:
        place: all that it keeps; new for each turn.
        one, two: the OCI archives.
        snapshots: it makes and mounts writable copies; ``commits``: changes become an image.
    """

    snapshots = True
    mounts = True
    commits = True

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        # The images' files are root's: an ordinary user changes them inside a container only.
        self.commits = self.commits and not self.rootless
        self.place = Path(stage.scratch) / "store"
        self.place.mkdir()
        self.one, self.two = (Path(stage.lowers[0]) / name for name in ("first.tar", "second.tar"))

    def bring(self, archive: Path, name: str) -> None:
        """Import an OCI archive."""
        raise NotImplementedError

    def create(self, name: str) -> list[str]:
        """The command that makes a snapshot of the first image."""
        raise NotImplementedError

    def mount(self, name: str, mnt: str) -> list[str]:
        """The command that mounts it; where it says itself, if not on ``mnt``."""
        raise NotImplementedError

    def unmount(self, name: str, mnt: str) -> None:
        """The reverse."""
        raise NotImplementedError

    def change(self, name: str, count: int) -> None:
        """Change so many files of the snapshot."""
        raise NotImplementedError

    def commit(self, name: str) -> list[str]:
        """The command that makes an image of the snapshot."""
        raise NotImplementedError

    def export(self, target: Path) -> list[str]:
        """The command that writes the first image as a docker-archive."""
        raise NotImplementedError

    def disk(self) -> int:
        """Bytes on disk of all that it keeps, each inode once."""
        seen: dict[tuple[int, int], int] = {}
        with as_root():
            for top, dirs, files in os.walk(self.place):
                for name in ("", *dirs, *files):
                    status = os.lstat(os.path.join(top, name))
                    seen[status.st_dev, status.st_ino] = status.st_blocks * 512
        return sum(seen.values())

    def edit(self, count: int, *top: str) -> list[str]:
        """The command that changes files below ``top``, in an interpreter that can be run."""
        python = self.command[0] if "python" in self.command[0] else sys.executable
        return [python, "-P", "-c", _CHANGE, str(count), *top]


class Cowstore(Store):
    """Ours."""

    own = True

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.python = self.command[0]
        self.environment["PYUNION_STORE"] = str(self.place)

    def bring(self, archive: Path, name: str) -> None:
        self.call("import", "-q", f"oci-archive:{archive}", name)

    def create(self, name: str) -> list[str]:
        return [*self.command, "snapshot", "create", "-q", "--id", name, "one"]

    def mount(self, name: str, mnt: str) -> list[str]:
        return [*self.command, "mount", name, mnt]

    def unmount(self, name: str, mnt: str) -> None:
        words = [self.python, "-P", "-m", "unionfs", "umount", mnt]
        self.stage.call(words, env=self.environment)

    def change(self, name: str, count: int) -> None:
        mnt = os.path.join(self.stage.scratch, name)
        os.mkdir(mnt)
        self.stage.call(self.mount(name, mnt), env=self.environment)
        self.stage.call(self.edit(count, mnt), env=self.environment)
        self.unmount(name, mnt)

    def commit(self, name: str) -> list[str]:
        return [*self.command, "snapshot", "commit", "-q", name, "changed"]

    def export(self, target: Path) -> list[str]:
        return [*self.command, "export", "-q", "one", f"docker-archive:{target}"]


class Podman(Store):
    """podman with the kernel's overlayfs; a snapshot is a container that does not run."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.mounts = not self.rootless  # only inside of podman unshare
        self.command = [*self.command, *tool.podman_words(self.place, self.run_time)]

    def bring(self, archive: Path, name: str) -> None:
        said = self.call("load", "-q", "-i", str(archive))
        self.call("tag", said.split()[-1], f"localhost/{name}")

    def create(self, name: str) -> list[str]:
        return [*self.command, "create", "--network", "none", "--name", name, "one", "true"]

    def mount(self, name: str, mnt: str) -> list[str]:
        return [*self.command, "mount", name]

    def unmount(self, name: str, mnt: str) -> None:
        self.call("umount", name)

    def change(self, name: str, count: int) -> None:
        mount = shlex.join(self.mount(name, ""))
        words = ["sh", "-c", f'place=$({mount}) && exec "$@" "$place"', "sh", *self.edit(count)]
        self.stage.call(words, env=self.environment)
        self.unmount(name, "")

    def commit(self, name: str) -> list[str]:
        return [*self.command, "commit", "-q", name, "localhost/changed"]

    def export(self, target: Path) -> list[str]:
        return [*self.command, "save", "-q", "-o", str(target), "localhost/one"]


class Umoci(Store):
    """umoci: the archive unpacked is an OCI layout, from which it unpacks a bundle."""

    snapshots = False
    mounts = False

    def bring(self, archive: Path, name: str) -> None:
        layout = self.place / f"layout-{name}"
        layout.mkdir()
        owner = ["--no-same-owner"] if self.rootless else []
        unpack = ["tar", "-xf", str(archive), "-C", str(layout), *owner]
        self.stage.call(unpack, env=self.environment)
        user = ["--rootless"] if self.rootless else []
        self.call("unpack", *user, "--image", f"{layout}:{NAME}", str(self.place / name))

    def change(self, name: str, count: int) -> None:
        top = str(self.place / "one" / "rootfs")
        self.stage.call(self.edit(count, top), env=self.environment)

    def commit(self, name: str) -> list[str]:
        image = f"{self.place}/layout-one:changed"
        return [*self.command, "repack", "--image", image, str(self.place / "one")]

    def export(self, target: Path) -> list[str]:
        copy = ["skopeo", "--insecure-policy", "copy", "-q"]
        return [*copy, f"oci:{self.place}/layout-one:{NAME}", f"docker-archive:{target}:{NAME}"]


class Tar(Store):
    """tar: the layer alone."""

    snapshots = False
    mounts = False
    commits = False

    def bring(self, archive: Path, name: str) -> None:
        (self.place / name).mkdir()
        owner = ["--no-same-owner", "--exclude=dev"] if self.rootless else []
        self.call("-xzf", f"{archive}.gz", "-C", str(self.place / name), *owner)

    def export(self, target: Path) -> list[str]:
        return [*self.command, "-cf", str(target), "-C", str(self.place / "one"), "."]


STORES: Final[dict[str, type[Store]]] = {
    "cowstore": Cowstore,
    "podman": Podman,
    "umoci": Umoci,
    "tar": Tar,
}


def store(stage: Stage) -> Store:
    """The driver of the stage's peer."""
    return STORES[stage.order.peer](stage)


def find(full: bool, account: Account | None) -> Found:
    """The stores of this machine."""
    found = Found([], [])
    tool.program(found, "tar", "plain", IMAGE)
    tool.program(found, "umoci", "umoci", IMAGE, "skopeo")
    tool.program(found, "podman", "podman", IMAGE)
    tool.ours(found, "cowstore", "cowstore.cli.main:program", IMAGE, account)
    return found


FINDERS[IMAGE] = find
