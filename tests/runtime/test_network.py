"""A private network: a published port, another container in the same network, a port in use."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from runtime import network
from tests.runtime.conftest import Pyrun
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
    root_pyrun("run", "-d", "--name", "w", *publish, "--rootfs", "/", sys.executable, "-c", _SERVER)
    wait_for_line(root_pyrun, "w")
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        assert connection.recv(10) == b"hello"
    assert root_pyrun("port", "w", "80").stdout == f"127.0.0.1:{port}\n"
    join = ("--network", "container:w", "--rootfs", "/")
    assert root_pyrun("run", "--rm", *join, sys.executable, "-c", _CLIENT).stdout == "hello\n"


def test_without_a_helper_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.errors import RunError
    from runtime.request import RunRequest

    monkeypatch.setattr(network, "find_program", lambda _name: "")
    with pytest.raises(RunError) as caught:
        network.choose(RunRequest(image="x", network="private"))
    assert "passt" in caught.value.hint
    assert "no network" in network.choose(RunRequest(image="x")).note
