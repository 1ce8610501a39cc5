"""A private network: a published port, another container in the same network, a port in use."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
import urllib.request

import pytest

from runtime import network
from runtime.facts import find_program
from tests.runtime.conftest import PATIENCE, Pyrun
from tests.runtime.test_lifecycle import wait_for_line

_SERVER = """
import socket
listener = socket.create_server(("", 80))
print("up", flush=True)
while True:
    peer, _ = listener.accept()
    peer.sendall(b"hello")
    peer.close()
"""
_CLIENT = "import socket; print(socket.create_connection(('127.0.0.1', 80)).recv(10).decode())"


def _needs_helper() -> None:
    if not network.find_helper()[1]:
        pytest.skip("neither pasta nor slirp4netns is installed")
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("/dev/net/tun is missing or not for us")


def test_a_published_port_and_a_shared_network(root_pyrun: Pyrun) -> None:
    _needs_helper()
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        publish = ("-p", f"127.0.0.1:{port}:80")
        done = root_pyrun("run", "--rm", *publish, "--rootfs", "/", "true", code=125)
        assert done.stderr.startswith(f"error: port 127.0.0.1:{port}/tcp: address already in use")
    publish = ("-p", "127.0.0.1::80")  # any that is free
    root_pyrun("run", "-d", "--name", "w", *publish, "--rootfs", "/", sys.executable, "-c", _SERVER)
    wait_for_line(root_pyrun, "w")
    address, _, port = root_pyrun("port", "w", "80").stdout.strip().rpartition(":")
    with socket.create_connection((address, int(port)), PATIENCE) as connection:
        assert connection.recv(10) == b"hello"
    join = ("--network", "container:w", "--rootfs", "/")
    assert root_pyrun("run", "--rm", *join, sys.executable, "-c", _CLIENT).stdout == "hello\n"


def test_a_copy_needs_nobodys_port(root_pyrun: Pyrun) -> None:
    """The container is not started for it."""
    _needs_helper()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    published = ("-p", f"127.0.0.1:{port}:80")
    root_pyrun("create", "--name", "w", *published, "--rootfs", "/", "true")
    with socket.create_server(("127.0.0.1", port)):
        assert "hostname" in root_pyrun("cp", "w:/etc/hostname", "-").stdout
        assert "address already in use" in root_pyrun("start", "w", code=125).stderr


def test_slirp4netns_where_names_are_long(root_pyrun: Pyrun) -> None:
    """A socket's name has 108 bytes (unix(7)); a user's home and a container's id are longer."""
    _needs_helper()
    if not find_program("slirp4netns"):
        pytest.skip("neither pasta nor slirp4netns is installed")
    root = root_pyrun.place / ("long" * 20) / "pyrun"
    base = ("--root", str(root), "run", "--network", "slirp4netns", "-p", "127.0.0.1::80")
    root_pyrun(*base, "-d", "--name", "w", "--rootfs", "/", sys.executable, "-c", _SERVER)
    try:
        address, _, port = root_pyrun("--root", str(root), "port", "w", "80").stdout.rpartition(":")
        end = time.monotonic() + PATIENCE
        said = b""
        while said != b"hello" and time.monotonic() < end:
            with contextlib.suppress(OSError):  # until it listens
                with socket.create_connection((address, int(port)), PATIENCE) as connection:
                    said = connection.recv(10)
            time.sleep(0.05)
        assert said == b"hello"
    finally:
        root_pyrun("--root", str(root), "rm", "--force", "w")


_WEB = """
import http.server, os
os.chdir("/usr/share")
open("/usr/share/page", "w").write("of the container")
server = http.server.ThreadingHTTPServer(("", 8080), http.server.SimpleHTTPRequestHandler)
print("up", flush=True)
server.serve_forever()
"""


def test_a_web_server_of_an_ordinary_user_answers_from_outside(any_pyrun: Pyrun) -> None:
    _needs_helper()
    words = ("run", "-d", "--name", "w", "-p", "127.0.0.1::8080", "--rootfs", "/")
    single = ("--userns", "single") if any_pyrun.kind == "single" else ()
    any_pyrun(*words, *single, sys.executable, "-c", _WEB)
    wait_for_line(any_pyrun, "w")
    address, _, port = any_pyrun("port", "w", "8080").stdout.strip().rpartition(":")
    for _ in range(3):
        with urllib.request.urlopen(f"http://{address}:{port}/page", timeout=PATIENCE) as answer:
            assert answer.status == 200 and answer.read() == b"of the container"
    assert not os.path.exists("/usr/share/page")
    any_pyrun("rm", "--force", "w")
    with pytest.raises(OSError):
        socket.create_connection((address, int(port)), PATIENCE)


def test_without_a_helper_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.errors import RunError
    from runtime.request import RunRequest

    monkeypatch.setattr(network, "find_program", lambda _name: "")
    with pytest.raises(RunError) as caught:
        network.choose(RunRequest(image="x", network="private"))
    assert "passt" in caught.value.hint
    assert "no network" in network.choose(RunRequest(image="x")).note


def test_a_published_port_is_free_again_after_a_killed_supervisor(any_pyrun: Pyrun) -> None:
    _needs_helper()
    single = ("--userns", "single") if any_pyrun.kind == "single" else ()
    words = ("run", "-d", *single, "--rootfs", str(any_pyrun.rootfs))
    any_pyrun(*words, "--name", "w", "-p", "127.0.0.1::80", "sleep", "1000")
    port = any_pyrun("port", "w", "80").stdout.strip().rpartition(":")[2]
    (told,) = (any_pyrun.place / "pyrun/containers").glob("*/state.json")
    supervisor = json.loads(told.read_text())["supervisor"]
    watched = os.pidfd_open(supervisor)
    os.kill(supervisor, signal.SIGKILL)
    assert select.select([watched], [], [], PATIENCE)[0]
    os.close(watched)
    any_pyrun("rm", "--force", "w")
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        done = any_pyrun(
            *words, "--name", "x", "-p", f"127.0.0.1:{port}:80", "sleep", "1000", code=None
        )
        if done.returncode == 0:
            break
        assert "address already in use" in done.stderr, done
    assert done.returncode == 0, done


def test_a_port_that_the_dead_have_left(root_pyrun: Pyrun) -> None:
    """Their volumes stay locked meanwhile by who starts another with volumes."""
    _needs_helper()
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    words = ("--rm", "-p", f"127.0.0.1:{port}:80", "-v", "/data", "--rootfs", "/")
    root_pyrun("run", "-d", *words, "sleep", "1000")
    (state,) = (root_pyrun.place / "pyrun").glob("containers/*/state.json")
    os.kill(json.loads(state.read_text())["supervisor"], signal.SIGKILL)
    end = time.monotonic() + PATIENCE
    while root_pyrun("run", *words, "true", code=None).returncode:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_an_address_of_another_host(root_pyrun: Pyrun) -> None:
    _needs_helper()
    words = ("run", "--rm", "-p", "192.0.2.1::80", "--rootfs", "/", "true")
    assert "ADDRESS" in root_pyrun(*words, code=125).stderr
