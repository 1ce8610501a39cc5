"""Images for the workloads: OCI archives of one layer, made from a root filesystem's tar."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bench.projects import extract
from bench.trees import MAKERS, Site
from bench.workload import Skipped

#: What the images are called, in the archives and by everybody who reads them.
NAME: Final = "localhost/bench:latest"
#: One of so many files differs in the second image.
_STEP: Final = 20
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_PROGRAMS: Final = ("true", "sleep")


class _Hashed:
    """A file for writing that knows the sha256 of what went through."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file
        self._sum = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._sum.update(data)
        return self._file.write(data)

    def digest(self) -> str:
        """As OCI writes it."""
        return f"sha256:{self._sum.hexdigest()}"


def layer(source: Path, target: Path, *, differ: bool) -> str:
    """Write ``source`` again as a layer, gzip; its diffID.

    Names become relative, as layers have them. ``differ``: one of 20 files gets other content.
    """
    with open(target, "wb") as raw:
        with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6, mtime=0) as packed:
            hashed = _Hashed(packed)
            stream: Any = hashed  # of a file, tarfile uses write() alone here
            with tarfile.open(source) as old:
                with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as new:
                    _copy(old, new, differ=differ)
    return hashed.digest()


def _copy(old: tarfile.TarFile, new: tarfile.TarFile, *, differ: bool) -> None:
    for number, member in enumerate(old):
        member.name = member.name.removeprefix("./").lstrip("/") or "."
        if member.islnk():
            member.linkname = member.linkname.removeprefix("./").lstrip("/")
        if not member.isreg():
            new.addfile(member)
            continue
        source = old.extractfile(member)
        assert source is not None
        if differ and number % _STEP == 0 and member.size:
            content = f"{number}".encode() + source.read()
            member.size = len(content)
            source = io.BytesIO(content)
        new.addfile(member, source)


def archive(target: Path, blob: Path, diff_id: str) -> None:
    """An oci-archive of one image whose one layer is ``blob`` (image-spec, image-layout.md)."""
    machine = platform.machine()
    config = {
        "architecture": _MACHINES.get(machine, machine),
        "os": "linux",
        "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created_by": "pyunion bench"}],
    }
    with open(blob, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    kind = "application/vnd.oci.image"
    described = {
        "mediaType": f"{kind}.layer.v1.tar+gzip",
        "digest": f"sha256:{digest}",
        "size": blob.stat().st_size,
    }
    with tarfile.open(target, "w") as tar:
        _add(tar, "oci-layout", {"imageLayoutVersion": "1.0.0"})
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": _blob(tar, f"{kind}.config.v1+json", config),
            "layers": [described],
        }
        entry = _blob(tar, f"{kind}.manifest.v1+json", manifest)
        entry["annotations"] = {"org.opencontainers.image.ref.name": NAME}
        tar.add(blob, f"blobs/sha256/{digest}")
        _add(tar, "index.json", {"schemaVersion": 2, "manifests": [entry]})


def _blob(tar: tarfile.TarFile, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(value).encode()
    digest = hashlib.sha256(data).hexdigest()
    _add(tar, f"blobs/sha256/{digest}", value)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}


def _add(tar: tarfile.TarFile, name: str, value: dict[str, Any]) -> None:
    data = json.dumps(value).encode()
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


# -- trees --------------------------------------------------------------------------


def _images(site: Site) -> list[Path]:
    """``first.tar`` and ``second.tar``, OCI archives, most of whose files are equal.

    Beside them, for those who only unpack: ``first.tar.gz`` and ``second.tar.gz``.
    """
    source = site.get("archive")[0].parent / "root.tar"
    place = site.top / "l"
    place.mkdir()
    for name, differ in (("first", False), ("second", True)):
        blob = place / f"{name}.tar.gz"
        archive(place / f"{name}.tar", blob, layer(source, blob, differ=differ))
    return [place]


def _container(site: Site) -> list[Path]:
    """A root that has ``true`` and ``sleep``; ``image.tar`` beside it holds the same."""
    root = site.top / "root"
    source = site.get("archive")[0].parent / "root.tar"
    root.mkdir()
    if _has(source, _PROGRAMS):
        extract(source, root, owners=site.root)
        shutil.copy(site.get("images")[0] / "first.tar", site.top / "image.tar")
    else:
        _small(root)
        tar, blob = site.top / "root.tar", site.top / "root.tar.gz"
        with tarfile.open(tar, "w") as packed:
            packed.add(root, ".", filter=_of_root)
        archive(site.top / "image.tar", blob, layer(tar, blob, differ=False))
        site.note("container", f"{' and '.join(_PROGRAMS)} of this machine with their libraries")
    for name in ("proc", "sys", "dev", "tmp"):
        (root / name).mkdir(exist_ok=True)
    return [root]


def _of_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _has(source: Path, programs: tuple[str, ...]) -> bool:
    with tarfile.open(source) as tar:
        names = {member.name.removeprefix("./").lstrip("/") for member in tar}
    return all(names & {f"bin/{program}", f"usr/bin/{program}"} for program in programs)


def _small(root: Path) -> None:
    """Programs of the host at their own places, with the libraries that ldd(1) names."""
    (root / "etc").mkdir()
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\n")
    for program in _PROGRAMS:
        found = shutil.which(program)
        if found is None:
            raise Skipped(f"{program} is not installed")
        _take(root, found, f"/usr/bin/{program}")
        said = subprocess.run(["ldd", found], capture_output=True, text=True, check=False).stdout
        for word in said.split():
            if word.startswith("/"):
                _take(root, word, word)
    if not (root / "bin").exists():
        os.symlink("usr/bin", root / "bin")


def _take(root: Path, source: str, name: str) -> None:
    target = root / name.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(os.path.realpath(source), target)


_TREES: Final[dict[str, Callable[[Site], list[Path]]]] = {
    "images": _images,
    "container": _container,
}
MAKERS.update(_TREES)
