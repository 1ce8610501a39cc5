"""Commands about images: the store's own, in the words that users of engines know."""

from __future__ import annotations

import os
import sys

from runtime.cli.options import STORE
from runtime.errors import RunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

_TRANSPORTS = ("oci", "oci-archive", "docker-archive", "docker", "rootfs", "dir", "host")


def pass_on(command: str, rest: list[str], root: str) -> int:
    """Run the store's command in this process; its exit code. ``root``: where containers are.

    Raises:
        RunError: the store is not installed.
    """
    if command in ("pull", "push") and not {"-h", "--help"} & set(rest):
        rest = _with_registry(command, rest)
    code = _store([STORE[command], *rest])
    if command == "rmi" and code == 0:
        sweep_trees(root)
    return code


def sweep_trees(root: str) -> None:
    """Remove the directory trees of images that are no more."""
    if not os.path.isdir(f"{root}/trees"):
        return
    from runtime import imagetrees, state

    def used() -> list[str]:
        return [
            str(path)
            for container in state.Containers(root).all()
            for path in (container.config.get("source") or {}).get("lowers") or ()
        ]

    imagetrees.sweep(root, used)


def _store(words: list[str]) -> int:
    try:
        from cowstore.cli.main import main
    except ImportError as error:
        raise RunError(f"the image store is not installed: {error}") from None
    place = os.environ.get("PYUNION_STORE", "")
    return int(main([*(["--root", place] if place else []), *words], called="pyrun", verbs=STORE))


def _has_transport(word: str) -> bool:
    return word.partition(":")[0] in _TRANSPORTS and ":" in word


def _with_registry(command: str, rest: list[str]) -> list[str]:
    """``pull NAME`` and ``push NAME`` mean the registry that the name names."""
    names = [word for word in rest if not word.startswith("-")]
    if command == "push" and len(names) == 1:
        return [*rest, f"docker://{names[0]}"]
    if command == "pull" and names and not _has_transport(names[0]):
        return [f"docker://{word}" if word == names[0] else word for word in rest]
    return rest


def save(options: dict[str, Any], rest: list[str], root: str) -> int:
    """``pyrun save``: an archive that engines load."""
    if len(rest) != 1:
        raise RunError("expected one image", "pyrun save --output FILE IMAGE")
    kind = options.get("archive", "docker-archive")
    if kind not in ("docker-archive", "oci-archive"):
        raise RunError(f"--format {kind}: unknown", "docker-archive or oci-archive")
    output = options.get("output") or "-"
    if output == "-" and sys.stdout.isatty():
        raise RunError("an archive is not for a terminal", "give --output FILE")
    if ":" in output:
        raise RunError(f"--output {output}: a colon in the name", "choose another name")
    # What is written to standard output is the archive alone.
    name = f":{rest[0]}" if kind == "oci-archive" else ""
    return _store(["export", "--quiet", rest[0], f"{kind}:{output}{name}"])


def load(options: dict[str, Any], rest: list[str], root: str) -> int:
    """``pyrun load``: docker's archives, and OCI's."""
    if rest:
        raise RunError(f"load {rest[0]}: not understood", "pyrun load --input FILE")
    path = options.get("input") or "-"
    with _as_file(path) as file:
        return _store(["import", f"{_kind_of(file, path)}:{file}"])


def import_(options: dict[str, Any], rest: list[str], root: str) -> int:
    """``pyrun import``: a root filesystem, or whatever else the store brings in."""
    if not 1 <= len(rest) <= 2:
        raise RunError("expected a file and a name", "pyrun import FILE NAME")
    if _has_transport(rest[0]):
        return _store(["import", *rest])
    with _as_file(rest[0]) as file:
        name = rest[1:] or [os.path.basename(rest[0]).partition(".")[0]]
        if name == ["-"]:
            raise RunError("no name for the image", "pyrun import - NAME")
        return _store(["import", f"rootfs:{file}", *name])


class _as_file:
    """The path of a file; of standard input (``-``) a copy for as long as it is needed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.copy: IO[bytes] | None = None

    def __enter__(self) -> str:
        if self.path != "-":
            if not os.path.exists(self.path):
                raise RunError(f"{self.path}: no such file or directory")
            return self.path
        if sys.stdin.isatty():
            raise RunError("an archive does not come from a terminal", "give a file")
        import shutil
        import tempfile

        place = os.environ.get("TMPDIR", "/var/tmp")
        self.copy = tempfile.NamedTemporaryFile(prefix="pyrun-", dir=place)
        shutil.copyfileobj(sys.stdin.buffer, self.copy)
        self.copy.flush()
        return self.copy.name

    def __exit__(self, *_error: object) -> None:
        if self.copy is not None:
            self.copy.close()


def _kind_of(path: str, shown: str) -> str:
    """Whose archive it is, by the names in it."""
    import tarfile

    try:
        with tarfile.open(path) as archive:
            names = {member.name.removeprefix("./") for member in archive}
    except OSError as error:
        raise RunError(f"{shown}: {error.strerror}") from None
    except tarfile.TarError:
        names = set()
    if "manifest.json" in names:
        return "docker-archive"
    if "index.json" in names:
        return "oci-archive"
    raise RunError(f"{shown}: not an archive of images", "pyrun import FILE NAME for a root")
