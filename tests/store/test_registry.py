"""Pull and push against a real registry, with skopeo on the other side where it is there."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from cowstore import NotFound, Refused, Store, StoreError
from cowstore.fsck import check
from cowstore.registry import auth
from cowstore.registry.auth import Credentials
from cowstore.registry.login import login, logout
from cowstore.repair import repair
from tests.store.archives import M, digest, index_layout, oci_layout, tar

BIG = os.urandom(3 << 20)
LAYERS = [tar([M("a", BIG), M("b", b"1")]), tar([M("c", b"2" * 5000)])]


class Registry:
    """docker-registry, serving a directory on loopback until the test ends."""

    def __init__(self, path: Path, extra: str = "") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.path = path
        (path / "registry").mkdir(parents=True)
        config = path / "config.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {path}/registry}}}}\n"
            f"http: {{addr: 127.0.0.1:{self.port}}}\n{extra}"
        )
        self.log = open(path / "log", "wb")  # noqa: SIM115
        self.process = subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdout=self.log, stderr=self.log
        )
        self._wait()

    def _wait(self) -> None:
        while self.process.poll() is None:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
        raise AssertionError((self.path / "log").read_text())

    def ref(self, name: str) -> str:
        return f"docker://127.0.0.1:{self.port}/{name}"

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.log.close()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    if shutil.which("docker-registry") is None:
        pytest.skip("needs docker-registry")
    made = Registry(tmp_path / "reg")
    yield made
    made.stop()


def blob_count(store: Store) -> int:
    return len(store.database.rows("SELECT 1 FROM blobs"))


def test_there_and_back(store: Store, registry: Registry, tmp_path: Path) -> None:
    came = oci_layout(tmp_path / "o", LAYERS)
    store.import_image(f"oci:{tmp_path}/o:t", "x")
    assert store.push("x", registry.ref("x/y:1"), insecure=True) == came
    with Store(tmp_path / "second", durability="none").open() as second:
        image = second.pull(registry.ref("x/y:1"), insecure=True)
        assert image.id == came and image.names == (f"127.0.0.1:{registry.port}/x/y:1",)
        assert second.pull(f"{registry.ref('x/y')}@{came}", "z", insecure=True).id == came
        assert check(second, full=True) == []
        assert os.listdir(tmp_path / "second/partial") == []
        with pytest.raises(NotFound):
            second.pull(registry.ref("x/y:2"), insecure=True)
        with pytest.raises(NotFound):
            second.pull(registry.ref("nothing:1"), insecure=True)


def test_skopeo_on_the_other_side(store: Store, registry: Registry, tmp_path: Path) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("needs skopeo")
    came = oci_layout(tmp_path / "o", LAYERS)
    plain = ["skopeo", "copy", "-q", "--insecure-policy"]
    target = registry.ref("from-skopeo:1")
    command = [*plain, "--dest-tls-verify=false", f"oci:{tmp_path}/o:t", target]
    subprocess.run(command, check=True)
    image = store.pull(target, "x", insecure=True)
    assert image.id == came
    store.push("x", registry.ref("from-us:1"), insecure=True)
    source = registry.ref("from-us:1")
    command = [*plain, "--src-tls-verify=false", source, f"oci:{tmp_path}/back:t"]
    subprocess.run(command, check=True)
    index = json.loads((tmp_path / "back/index.json").read_text())
    assert index["manifests"][0]["digest"] == came


def test_an_index_goes_there_and_back(store: Store, registry: Registry, tmp_path: Path) -> None:
    data = index_layout(tmp_path / "o", nested=False)  # skopeo knows no index in an index
    image = store.import_image(f"oci:{tmp_path}/o", "x", all_platforms=True)
    ref = registry.ref("multi:1")
    assert store.push("x", ref, all_platforms=True, insecure=True) == digest(data)
    with Store(tmp_path / "second", durability="none").open() as second:
        assert second.pull(ref, "x", all_platforms=True, insecure=True).id == image.id
        assert len(second.images()) == 3 and second.index_of("x") == digest(data)
        assert second.push("x", ref, all_platforms=True, insecure=True) == digest(data)
        assert check(second, full=True) == []
    if shutil.which("skopeo") is None:
        return
    command = ["skopeo", "copy", "-q", "--all", "--insecure-policy", "--src-tls-verify=false"]
    subprocess.run([*command, ref, f"oci:{tmp_path}/back:t"], check=True)
    theirs = tmp_path / "back/blobs/sha256" / digest(data)[7:]
    assert theirs.read_bytes() == data


def test_nothing_goes_over_plain_http_unless_asked(store: Store, registry: Registry) -> None:
    with pytest.raises(StoreError) as caught:
        store.pull(registry.ref("x:1"))
    assert "--insecure" in caught.value.hint


class Meddler(socketserver.ThreadingTCPServer):
    """A proxy in front of a registry: counts bytes of blobs, and cuts connections."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int) -> None:
        self.behind = port
        self.cuts: list[int] = []
        self.requests: list[str] = []
        self.sent = 0
        self.ranges = True
        self.lie = False
        super().__init__(("127.0.0.1", 0), Passing)
        self.port = self.server_address[1]
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


class Passing(BaseHTTPRequestHandler):
    server: Meddler
    protocol_version = "HTTP/1.0"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _pass(self) -> None:
        import http.client

        self.server.requests.append(f"{self.command} {self.path}")
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size) if size else None
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.behind)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
        if not self.server.ranges:
            headers.pop("Range", None)
        headers["Host"] = f"127.0.0.1:{self.server.port}"
        if body is not None and self.command == "PATCH" and self.server.cuts:
            self.server.cuts.pop(0)
            upstream.close()
            self.close_connection = True
            return
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in ("connection", "transfer-encoding"):
                self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if "/blobs/sha256" in self.path and len(data) > 10_000:
            if self.server.lie:
                data = b"\0" * len(data)
            if self.server.cuts:
                data = data[: self.server.cuts.pop(0)]
            self.server.sent += len(data)
        self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _pass


@pytest.fixture
def meddler(registry: Registry, store: Store, tmp_path: Path) -> Iterator[Meddler]:
    """The proxy; ``x:1`` is behind it."""
    oci_layout(tmp_path / "o", LAYERS)
    with Store(tmp_path / "origin", durability="none").open() as origin:
        origin.import_image(f"oci:{tmp_path}/o:t", "x")
        origin.push("x", registry.ref("x:1"), insecure=True)
    made = Meddler(registry.port)
    yield made
    made.stop()


def test_a_broken_download_goes_on_where_it_was(store: Store, meddler: Meddler) -> None:
    meddler.cuts = [500_000, 700_000]
    store.pull(f"docker://127.0.0.1:{meddler.port}/x:1", insecure=True)
    size = store.database.rows("SELECT max(size) FROM blobs")[0][0]
    assert meddler.sent < size + 100_000, "nothing came twice"


def test_a_download_goes_on_in_a_later_run(store: Store, meddler: Meddler) -> None:
    meddler.cuts = [500_000, *[0] * 20]
    ref = f"docker://127.0.0.1:{meddler.port}/x:1"
    with pytest.raises(StoreError) as caught:
        store.pull(ref, insecure=True, jobs=1)
    assert "pull again" in caught.value.hint and store.images() == []
    (part,) = os.listdir(store.layout.path("partial"))
    assert os.stat(store.layout.path("partial", part)).st_size == 500_000
    meddler.cuts, before = [], meddler.sent
    store.pull(ref, insecure=True)
    size = store.database.rows("SELECT max(size) FROM blobs")[0][0]
    assert meddler.sent - before < size - 400_000


def test_without_ranges_it_comes_again(store: Store, meddler: Meddler) -> None:
    meddler.cuts, meddler.ranges = [500_000], False
    store.pull(f"docker://127.0.0.1:{meddler.port}/x:1", insecure=True)


def test_what_is_wrong_is_not_gone_on_with(store: Store, meddler: Meddler) -> None:
    ref = f"docker://127.0.0.1:{meddler.port}/x:1"
    meddler.lie = True
    with pytest.raises(Refused):
        store.pull(ref, insecure=True)
    assert os.listdir(store.layout.path("partial")) == [] and store.images() == []
    meddler.lie = False
    store.pull(ref, insecure=True)


def test_a_layer_that_is_here_is_not_asked_for(store: Store, meddler: Meddler) -> None:
    ref = f"docker://127.0.0.1:{meddler.port}/x:1"
    store.pull(ref, insecure=True)
    meddler.requests.clear()
    store.pull(ref, insecure=True)
    assert sum("/blobs/" in request for request in meddler.requests) == 1  # the configuration


def test_a_mirror_is_asked_first(store: Store, registry: Registry, meddler: Meddler) -> None:
    with contextlib.suppress(StoreError):
        store.pull("docker://registry.invalid/x:1", insecure=True)
    image = store.pull(
        "docker://registry.invalid/x:1",
        mirrors=("127.0.0.1:1", f"127.0.0.1:{meddler.port}"),
        insecure=True,
    )
    assert image.names == ("registry.invalid/x:1",)


def test_an_upload_that_breaks_is_taken_up(store: Store, meddler: Meddler) -> None:
    store.pull(f"docker://127.0.0.1:{meddler.port}/x:1", "x", insecure=True)
    meddler.cuts = [0, 0]
    digest = store.push("x", f"docker://127.0.0.1:{meddler.port}/other:1", insecure=True)
    assert digest == store.resolve("x").id and meddler.cuts == []


def test_blobs_are_mounted_and_not_sent_twice(store: Store, meddler: Meddler) -> None:
    place = f"docker://127.0.0.1:{meddler.port}"
    store.pull(f"{place}/x:1", "x", insecure=True)
    meddler.requests.clear()
    store.push("x", f"{place}/other:1", insecure=True)
    asked = [r for r in meddler.requests if "mount=" in r]
    assert len(asked) == 2 and not any(
        r.startswith("PATCH") and "/x/" in r for r in meddler.requests
    )
    assert sum(r.startswith("PATCH") for r in meddler.requests) == 1  # the configuration
    meddler.requests.clear()
    store.push("x", f"{place}/other:2", insecure=True)
    assert not any(r.startswith(("POST", "PATCH")) for r in meddler.requests)


def test_repairs_come_from_the_registry(tmp_path: Path, meddler: Meddler) -> None:
    with Store(tmp_path / "r", durability="none", blobs="drop").open() as store:
        image = store.pull(f"docker://127.0.0.1:{meddler.port}/x:1", "x", insecure=True)
        for digest in image.layers:
            with store.layers.manifest(digest) as manifest:
                for name in manifest.names():
                    os.unlink(store.layout.object(name))
        os.unlink(store.layout.blob(image.config_digest))
        os.unlink(store.layout.blob(image.id))
        findings = check(store, full=True)
        assert set(repair(store, findings, insecure=True)) == set(findings)
        assert check(store, full=True) == []


# -- credentials -----------------------------------------------------------------------------


def authfile(path: Path, **document: Any) -> str:
    path.write_text(json.dumps(document))
    return str(path)


def encoded(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def _check_login(host: str, path: Path, right: str) -> None:
    with pytest.raises(StoreError, match="401"):
        login(host, "user", "no", authfile=str(path), insecure=True)
    assert not path.exists()
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"auths": {"other": encoded("a:b")}, "kept": 1}))
    assert login(host, "user", "secret", authfile=str(path), insecure=True) == str(path)
    assert path.stat().st_mode & 0o777 == 0o600
    found = json.loads(path.read_text())
    assert found["kept"] == 1 and found["auths"]["other"] == encoded("a:b")
    assert found["auths"][host] == json.loads(Path(right).read_text())["auths"][host]
    logout(host, authfile=str(path))
    assert list(json.loads(path.read_text())["auths"]) == ["other"]
    with pytest.raises(StoreError, match="no credentials"):
        logout(host, authfile=str(path))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_basic_authentication(store: Store, tmp_path: Path) -> None:
    if shutil.which("docker-registry") is None:
        pytest.skip("needs docker-registry")
    if shutil.which("htpasswd") is None:
        pytest.skip("needs htpasswd (apache2-utils)")
    made = subprocess.run(
        ["htpasswd", "-Bbn", "user", "secret"], check=True, capture_output=True, text=True
    )
    (tmp_path / "htpasswd").write_text(made.stdout)
    extra = f"auth: {{htpasswd: {{realm: test, path: {tmp_path}/htpasswd}}}}\n"
    registry = Registry(tmp_path / "reg", extra)
    try:
        oci_layout(tmp_path / "o", LAYERS)
        store.import_image(f"oci:{tmp_path}/o:t", "x")
        ref = registry.ref("x:1")
        wrong = authfile(
            tmp_path / "wrong.json", auths={f"127.0.0.1:{registry.port}": encoded("user:no")}
        )
        right = authfile(
            tmp_path / "right.json", auths={f"127.0.0.1:{registry.port}": encoded("user:secret")}
        )
        for bad in (None, wrong):
            with pytest.raises(StoreError) as caught:
                store.push("x", ref, insecure=True, authfile=bad)
            assert "cowstore login" in caught.value.hint
        store.push("x", ref, insecure=True, authfile=right)
        assert store.pull(ref, "y", insecure=True, authfile=right).id == store.resolve("x").id
        _check_login(f"127.0.0.1:{registry.port}", tmp_path / "new/auth.json", right)
    finally:
        registry.stop()


class Tokens(Passing):
    """A registry that wants a token, which another path of it gives for a password."""

    def _pass(self) -> None:
        server = self.server
        server.requests.append(f"{self.command} {self.path}")
        if self.path.startswith("/token"):
            allowed = self.headers.get("Authorization") == Credentials("u", "p").basic()
            body = json.dumps({"token": "T" if allowed else ""}).encode()
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(body)
        elif self.headers.get("Authorization") != "Bearer T":
            self.send_response(401)
            realm = f"http://127.0.0.1:{server.port}/token"
            challenge = f'Bearer realm="{realm}",service="s",scope="repository:x:pull"'
            self.send_header("WWW-Authenticate", challenge)
            self.end_headers()
        else:
            super()._pass()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _pass


def test_token_authentication(store: Store, meddler: Meddler, tmp_path: Path) -> None:
    meddler.RequestHandlerClass = Tokens
    ref = f"docker://127.0.0.1:{meddler.port}/x:1"
    file = authfile(tmp_path / "a.json", auths={f"127.0.0.1:{meddler.port}": encoded("u:p")})
    store.pull(ref, insecure=True, authfile=file)
    assert any("scope=repository%3Ax%3Apull" in r for r in meddler.requests)
    empty = authfile(tmp_path / "b.json", auths={})
    with pytest.raises(StoreError, match="no token"):
        store.pull(ref, insecure=True, authfile=empty)


def test_credentials_of_the_longest_prefix(tmp_path: Path) -> None:
    file = authfile(
        tmp_path / "a.json",
        auths={
            "r.example": encoded("host:1"),
            "r.example/team": encoded("team:2"),
            "https://index.docker.io/v1/": encoded("hub:3:4"),
            "t.example": {"identitytoken": "I"},
        },
    )
    assert auth.find("r.example", "other/x", file) == Credentials("host", "1")
    assert auth.find("r.example", "team/x", file) == Credentials("team", "2")
    assert auth.find("docker.io", "library/x", file) == Credentials("hub", "3:4")
    assert auth.find("t.example", "x", file) == Credentials(token="I")
    assert auth.find("nobody.example", "x", file) is None
    assert "3" not in repr(auth.find("docker.io", "library/x", file))
    with pytest.raises(StoreError, match="no such file"):
        auth.find("x", "y", str(tmp_path / "nothing"))


def test_a_helper_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-mine"
    helper.write_text(
        '#!/bin/sh\nread host; echo "{\\"Username\\": \\"$host\\", \\"Secret\\": \\"s\\"}"\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    file = authfile(tmp_path / "a.json", credHelpers={"r.example": "mine", "s.example": "../x"})
    assert auth.find("r.example", "x", file) == Credentials("r.example", "s")
    with pytest.raises(StoreError, match="not the name"):
        auth.find("s.example", "x", file)
