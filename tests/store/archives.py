"""Archives for tests: members made by the standard library or by hand, and OCI layouts of them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

REG, LNK, SYM, CHR, BLK, DIR, FIFO = (
    tarfile.REGTYPE,
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)


@dataclass
class M:
    """A member: its name is taken as it is."""

    name: str
    data: bytes = b""
    type: bytes = REG
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = 1_700_000_000
    target: str = ""
    device: tuple[int, int] = (0, 0)
    pax: dict[str, str] = field(default_factory=dict)


def d(name: str, **more: Any) -> M:
    """A directory."""
    return M(name, type=DIR, mode=more.pop("mode", 0o755), **more)


def tar(members: Iterable[M], form: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.type, info.mode, info.mtime = member.type, member.mode, member.mtime
            info.uid, info.gid = member.uid, member.gid
            info.linkname = member.target
            info.devmajor, info.devminor = member.device
            info.pax_headers = dict(member.pax)
            info.size = len(member.data) if member.type == REG else 0
            archive.addfile(info, io.BytesIO(member.data) if member.type == REG else None)
    return out.getvalue()


def digest(data: bytes) -> str:
    """sha256 as OCI writes it."""
    return "sha256:" + sha256(data).hexdigest()


def gzipped(data: bytes) -> bytes:
    """gzip by another level than the store's own, so that nothing agrees by accident."""
    return gzip.compress(data, 1, mtime=0)


def oci_layout(
    path: Path, layers: list[bytes], tag: str = "t", *, compress: bool = True, **config: Any
) -> str:
    """Write an OCI layout of layers given as archives; the manifest's digest."""
    blobs = path / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        (blobs / digest(data)[7:]).write_bytes(data)
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    base = "application/vnd.oci.image"
    kind = f"{base}.layer.v1.tar" + ("+gzip" if compress else "")
    packed = [put(gzipped(layer) if compress else layer, kind) for layer in layers]
    document = {
        "created": "2024-01-01T00:00:00Z",
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        "history": [{"created_by": f"layer {n}"} for n in range(len(layers))],
    }
    described = put(json.dumps(document).encode(), f"{base}.config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{base}.manifest.v1+json",
        "config": described,
        "layers": packed,
        "annotations": {"org.example.kept": "yes"},
    }
    entry = put(json.dumps(manifest, indent=1).encode(), f"{base}.manifest.v1+json")
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
    entry["platform"] = {"os": "linux", "architecture": "amd64"}
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return str(entry["digest"])


def index_layout(path: Path, *, nested: bool = True) -> bytes:
    """An OCI layout of an index: three platforms, one of them in an index of its own."""
    kind = "application/vnd.oci.image.index.v1+json"

    def put(entries: list[dict[str, Any]]) -> dict[str, Any]:
        document = {"schemaVersion": 2, "mediaType": kind, "manifests": entries}
        data = json.dumps(document, indent=3).encode()
        (path / "blobs/sha256" / digest(data)[7:]).write_bytes(data)
        return {"mediaType": kind, "digest": digest(data), "size": len(data)}

    entries = []
    for arch in ("amd64", "arm64", "riscv64"):
        oci_layout(path, [tar([M("same", b"0" * 5000), M(arch)])], Labels={"arch": arch})
        entries += json.loads((path / "index.json").read_text())["manifests"]
        entries[-1]["platform"]["architecture"] = arch
    outer = put([*entries[:2], put(entries[2:])] if nested else entries)
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [outer]}))
    return (path / "blobs/sha256" / str(outer["digest"])[7:]).read_bytes()
