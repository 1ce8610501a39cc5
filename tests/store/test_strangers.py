"""Registries that are slow of speech or up to no good, and layers that come in side by side."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from cowstore import Store, StoreError
from cowstore.fsck import check
from cowstore.reference import check_mirror, check_registry, parse_ref
from tests.store.archives import M, oci_layout, tar
from tests.store.stub import Answer, Stub

LARGE = os.urandom(5 << 20)
SHARED = [M(f"s{n}", b"%d" % n * 700) for n in range(100)]


def test_layers_with_the_same_new_contents_come_in_at_once(tmp_path: Path) -> None:
    """Small and large files that are in several layers, none of them here before."""
    layers = [
        tar([M(f"own{n}", b"%d" % n * 9000), M(f"large{n}", LARGE + b"%d" % (n % 2)), *SHARED])
        for n in range(6)
    ]
    oci_layout(tmp_path / "o", layers)
    for number in range(3):
        with (
            Stub(tmp_path / "o") as stub,
            Store(tmp_path / f"s{number}", durability="none").open() as store,
        ):
            image = store.pull(stub.ref(), insecure=True, jobs=6)
            assert len(image.layers) == 6
            assert check(store, full=True) == []
            assert [store.layers.manifest(layer).facts.diff_id for layer in image.layers] == list(
                image.layers
            )


def test_a_layer_that_is_here_is_looked_at(broken_store: Store, tmp_path: Path) -> None:
    """A manifest that is another layer's, or not what it was, is replaced by the next import."""
    store = broken_store
    oci_layout(tmp_path / "o", [tar([M("a", b"1")]), tar([M("b", b"2")])])
    image = store.import_image(f"oci:{tmp_path}/o:t", "x")
    one, two = (Path(store.layout.layer(layer)) for layer in image.layers)
    one.write_bytes(two.read_bytes())
    with pytest.raises(StoreError, match="another's manifest"):
        store.merged(image.layers)
    store.import_image(f"oci:{tmp_path}/o:t", "x")
    assert check(store, full=True) == []
    data = bytearray(two.read_bytes())
    data[-1] ^= 1
    two.write_bytes(data)
    store.import_image(f"oci:{tmp_path}/o:t", "x")
    assert check(store, full=True) == []


def _authfile(path: Path, *hosts: str) -> str:
    secret = base64.b64encode(b"alice:s3cret").decode()
    path.write_text(json.dumps({"auths": {host: {"auth": secret} for host in hosts}}))
    return str(path)


@pytest.mark.parametrize("how", ["Bearer", "Basic"])
def test_credentials_are_for_the_registry_alone(store: Store, tmp_path: Path, how: str) -> None:
    """Whoever a blob is redirected to may ask for a login, and gets nothing."""
    oci_layout(tmp_path / "o", [tar([M("a", b"1")])])

    def other(method: str, path: str, headers: Mapping[str, str]) -> Answer | None:
        if path.startswith("/token"):
            return 200, {}, b'{"token": "t"}'
        challenge = f'{how} realm="http://{elsewhere.host}/token",service="s"'
        return 401, {"WWW-Authenticate": challenge}, b"{}"

    def leads_away(method: str, path: str, headers: Mapping[str, str]) -> Answer | None:
        if "/blobs/" in path:
            return 307, {"Location": f"http://{elsewhere.host}{path}"}, b""
        return None

    with Stub(say=other) as elsewhere, Stub(tmp_path / "o", leads_away) as stub:
        authfile = _authfile(tmp_path / "auth.json", stub.host)
        with pytest.raises(StoreError, match="wants a login"):
            store.pull(stub.ref(), insecure=True, authfile=authfile)
        assert elsewhere.seen and not any(authorization for _, authorization in elsewhere.seen)
        assert not any("/token" in request for request, _ in elsewhere.seen)


@pytest.mark.parametrize(
    ("status", "data"),
    [(404, b'{"errors": 5}'), (403, b'{"errors": null}'), (404, b"[" * 60_000), (400, b"[1]"),
     (404, b'{"errors": [1, {"message": {}}]}')],
)  # fmt: skip
def test_errors_that_are_none(store: Store, status: int, data: bytes) -> None:
    with (
        Stub(say=lambda *_: (status, {}, data)) as stub,
        pytest.raises(StoreError, match=r"x|not found"),
    ):
        store.pull(stub.ref(), insecure=True)


@pytest.mark.parametrize("document", [b"[]", b"5", b"[" * 60_000, b"{}", b'{"token": 5}'])
def test_tokens_that_are_none(store: Store, document: bytes) -> None:
    def say(method: str, path: str, headers: Mapping[str, str]) -> Answer:
        if path.startswith("/token"):
            return 200, {}, document
        return 401, {"WWW-Authenticate": f'Bearer realm="http://{stub.host}/token"'}, b""

    with Stub(say=say) as stub, pytest.raises(StoreError, match="no token"):
        store.pull(stub.ref(), insecure=True)


def test_a_refusal_is_no_end_of_a_blob(store: Store, tmp_path: Path) -> None:
    """A name with 416 in it: what came so far is kept."""
    oci_layout(tmp_path / "o", [tar([M("a", os.urandom(50_000))])])
    manifest = json.loads(manifest_of(tmp_path / "o"))
    (layer,) = manifest["layers"]

    def say(method: str, path: str, headers: Mapping[str, str]) -> Answer | None:
        return (403, {}, b"{}") if path.endswith(layer["digest"]) else None

    part = Path(store.layout.partial(layer["digest"]))
    part.write_bytes((tmp_path / "o/blobs/sha256" / layer["digest"][7:]).read_bytes()[:20_000])
    with Stub(tmp_path / "o", say) as stub, pytest.raises(StoreError, match="403"):
        store.pull(stub.ref("app416:1"), insecure=True)
    assert part.stat().st_size == 20_000


def manifest_of(layout: Path) -> bytes:
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    return (layout / "blobs/sha256" / str(entry["digest"])[7:]).read_bytes()


@pytest.mark.parametrize("host", ["localhost:99999", "localhost:0", "localhost:65536", "[::1"])
def test_ports_that_are_none(host: str) -> None:
    for check_it in (check_registry, check_mirror, lambda text: parse_ref(f"docker://{text}/x")):
        with pytest.raises(StoreError, match="not a registry"):
            check_it(host)
    assert check_registry("localhost:65535") and check_registry("[::1]") == "[::1]"
