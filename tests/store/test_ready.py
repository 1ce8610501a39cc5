"""What a start knows of an image without the database, and when it must not believe it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cowstore import Store, ready
from cowstore import collect as collecting
from cowstore.collect import collect
from cowstore.endings import bury_session
from cowstore.fsck import check
from cowstore.layout import Layout
from cowstore.locks import Session, dead_sessions, kept
from cowstore.mounting import hold, release
from cowstore.ready import Ready
from runtime import images
from tests.store.archives import M, digest, tar
from tests.store.conftest import AddImage

_ROOT = (0o755, 0, 0, 0, {b"user.a": b"1"})


def _settled(store: Store) -> bytes:
    """The database's state; it is not told right after a change."""
    store.close()
    end = time.monotonic() + 5
    while (found := ready.state(store.layout)) is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def _keep(store: Store, name: str) -> Ready:
    image = store.resolve(name)
    view = store.lowers(image).places[0]
    known = Ready(_settled(store), image.id, {"Cmd": ["a"]}, image.digests, view, ("x=1",), _ROOT)
    ready.keep(store.layout, name, known)
    return known


def _find(store: Store, name: str) -> Ready | None:
    return ready.find(store.layout, name, ready.state(store.layout))


@pytest.mark.parametrize("name", ["x", "localhost/a:1", "50%2f", "docker.io/library/b", "é"])
def test_what_is_kept_is_found(store: Store, add: AddImage, name: str) -> None:
    add(tar([M("a", b"1")]), name="x")
    known = _keep(store, "x")
    ready.keep(store.layout, name, known)
    assert _find(store, name) == known
    assert _find(store, "other") is None and _find(store, "x" * 300) is None
    session = ready.hold(store.layout, known)
    assert session is not None and kept(store.layout, session.name) == list(known.keeps)
    session.close()
    assert os.listdir(store.layout.path("tmp")) == []


@pytest.mark.parametrize("open_elsewhere", [False, True])
def test_any_change_ends_it(store: Store, add: AddImage, open_elsewhere: bool) -> None:
    add(tar([M("a", b"1")]), name="x")
    other = None
    if open_elsewhere:  # then the log stays, and the file's times say nothing
        other = subprocess.Popen(
            [sys.executable, "-c", "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]);"
             "db.execute('DELETE FROM cache'); db.commit();"
             "db.execute('SELECT * FROM names').fetchall(); print(); input()",
             store.layout.path("store.db")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert other.stdout is not None
        other.stdout.readline()
    try:
        known = _keep(store, "x")
        assert _find(store, "x") == known
        store.tag("x", "y")
        store.close()
        assert _find(store, "x") is None and ready.hold(store.layout, known) is None
        assert os.listdir(store.layout.path("tmp")) == [], "a session that was not to be"
    finally:
        if other is not None:
            other.communicate(b"\n")
    store.lowers("x")
    assert _keep(store, "x").state != known.state


def test_reading_ends_nothing(store: Store, add: AddImage) -> None:
    add(tar([M("a", b"1")]), name="x")
    known = _keep(store, "x")
    store.images()
    store.close()
    collect(store)  # which removes nothing, but forgets
    store.close()
    assert ready.state(store.layout) == known.state


def test_a_database_that_was_just_written_is_not_believed(store: Store, add: AddImage) -> None:
    """Written once more within the same tick it would have the same times."""
    add(tar([M("a", b"1")]), name="x")
    store.close()
    os.utime(store.layout.path("store.db"))
    assert ready.state(store.layout) is None


@pytest.mark.parametrize("harm", ["empty", "other", "boot", "view"])
def test_damage_is_nothing_known(
    store: Store, add: AddImage, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tar([M("a", b"1")]), name="x")
    known = _keep(store, "x")
    path = Path(store.layout.path("ready", "=x"))
    data = path.read_bytes()
    if harm == "empty":
        path.write_bytes(b"")
    elif harm == "other":
        path.write_bytes(bytes(len(data)))
    elif harm == "boot":
        monkeypatch.setattr(ready, "boot_id", lambda: "1" * 32)
    else:
        os.unlink(known.view)
    assert _find(store, "x") is None


def test_where_nothing_can_be_written(
    store: Store, add: AddImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tar([M("a", b"1")]), name="x")

    def fail(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", fail)
    _keep(store, "x")
    assert os.listdir(store.layout.path("ready")) == []


def test_a_collection_leaves_what_sessions_keep(store: Store, add: AddImage) -> None:
    image = add(tar([M("a", b"1")]), name="x")
    known = _keep(store, "x")
    session = ready.hold(store.layout, known)
    assert session is not None
    store.remove("x")
    assert os.path.exists(known.view) and store.database.has_layer(image.layers[0])
    assert check(store, full=True) == []
    assert os.listdir(store.layout.path("ready")) == []
    session.close()
    collect(store)
    assert not os.path.exists(known.view) and not store.layer_list()


def test_a_session_that_only_keeps_does_not_hold_objects_up(store: Store, add: AddImage) -> None:
    """Containers run for weeks; what came and went meanwhile is free."""
    add(tar([M("a", b"1")]), name="x")
    session = Session(store.layout, [digest(b"x")])
    add(tar([M("b", b"content of another")]), name="y")
    store.remove("y")
    assert collect(store).objects == 0 and len(check(store, full=True)) == 0
    names = [name for _, _, names in os.walk(store.layout.path("objects")) for name in names]
    assert len(names) == 1
    session.close()


def test_a_session_waits_for_a_collection_that_has_listed_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or what it keeps would be taken behind its back."""
    mark = collecting._mark
    made: list[Session] = []

    def meanwhile(*what: Any) -> Any:
        thread.start()
        thread.join(0.1)
        assert not made
        return mark(*what)

    thread = threading.Thread(target=lambda: made.append(Session(store.layout, ["sha256:x"])))
    monkeypatch.setattr(collecting, "_mark", meanwhile)
    collect(store)
    thread.join(5)
    made[0].close()


def test_what_comes_between_a_mark_and_a_sweep_stays(
    store: Store, add: AddImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that comes back, and a container on it, just when its last name has gone."""
    archive = tar([M("a", b"1")])
    add(archive, name="x")
    view = store.lowers("x").places[0]
    sweep = collecting._sweep_layers
    held: list[Any] = []

    def meanwhile(swept: Store) -> None:
        if not held:
            held.append(hold(store, add(archive, name="x")))
            store.lowers("x")
        sweep(swept)

    monkeypatch.setattr(collecting, "_sweep_layers", meanwhile)
    store.remove("x")
    assert os.path.exists(view) and check(store, full=True) == []
    release(held[0])


def test_sessions_that_end_beside_a_collection(store: Store) -> None:
    """Neither fails."""
    end = time.monotonic() + 1.5
    failed: list[BaseException] = []

    def sessions() -> None:
        try:
            while time.monotonic() < end:
                Session(store.layout, ["sha256:x"]).close()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=sessions) for _ in range(2)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        collecting.living_sessions(store, 0)
        for name in dead_sessions(store.layout):
            bury_session(store, name)
    for thread in threads:
        thread.join()
    assert failed == [] and os.listdir(store.layout.path("tmp")) == []


def test_what_is_kept_is_written_whole_or_not_at_all(store: Store) -> None:
    """A file of more than a page, where only a page can be had."""
    script = (
        "import resource, signal, sys\n"
        "from cowstore.layout import Layout\nfrom cowstore.locks import Session\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "Session(Layout(sys.argv[1]), [f'sha256:{number:064x}' for number in range(61)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, store.layout.root], capture_output=True, text=True
    )
    assert done.returncode and "File too large" in done.stderr
    assert os.listdir(store.layout.path("tmp")) == []


def test_a_log_whose_index_is_lost_tells_nothing(store: Store, add: AddImage) -> None:
    add(tar([M("a", b"1")]), name="x")
    _settled(store)
    script = (
        "import os, sqlite3, sys\ndb = sqlite3.connect(sys.argv[1])\n"
        'db.execute("DELETE FROM names")\ndb.commit()\nos._exit(0)\n'
    )
    path = store.layout.path("store.db")
    subprocess.run([sys.executable, "-c", script, path], check=True)
    assert ready.state(store.layout) is not None
    os.unlink(f"{path}-shm")
    assert ready.state(store.layout) is None
    assert ready.state(Layout("/etc/passwd")) is None


def test_a_start_that_has_opened_the_database_asks_it(
    store: Store, add: AddImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of an image is not looked at then: that would take SQLite's locks away."""
    monkeypatch.setenv("PYUNION_STORE", store.layout.root)
    image = add(tar([M("a", b"1")]), name="x")
    store.lowers(image)
    _settled(store)

    def lease(place: str) -> None:
        (tmp_path / place).mkdir()
        paths = (str(tmp_path / place / "upper"), str(tmp_path / place / "work"))
        source, fd = images.lease(image.id, *paths)
        os.close(fd)
        images.end_lease(source.session)

    assert images.find("x")[0] == image.id
    lease("first")
    images.release()
    assert _find(store, "x") is not None, "kept for the second"
    assert images.find("x")[0] == image.id and images._opened.store is None
    with images._opened as opened:
        opened.images()
    monkeypatch.setattr(ready, "state", lambda _layout: pytest.fail("asked beside the database"))
    lease("second")
    images.release()


_STARTS = """
import os, random, sys, time
from cowstore import Store, ready
from cowstore.errors import StoreError
from cowstore.layout import Layout
from cowstore.mounting import hold
from cowstore.viewformat import root_of

layout = Layout(sys.argv[1])
end = time.monotonic() + float(sys.argv[2])
quick = slow = 0
while time.monotonic() < end:
    now = ready.state(layout)
    known = ready.find(layout, "x", now)
    time.sleep(random.choice([0, 0.01]))  # for a removal to come in between
    session = ready.hold(layout, known) if known else None
    if session is not None:
        quick += 1
    else:
        store = Store(layout.root)
        try:
            image = store.resolve("x")
            time.sleep(random.choice([0, 0.03]))
            session = hold(store, image)
            view = store.lowers(image).places[0]
        except StoreError:
            store.close()
            continue
        slow += 1
        keeps = (*image.layers, image.chain)
        known = ready.Ready(now or b"", image.id, {}, keeps, view, (), root_of(view))
        if now is not None:
            ready.keep(layout, "x", known)
        store.close()
    assert os.path.exists(known.view), "the view of what is held"
    for keep in known.keeps[:-1]:
        assert os.path.exists(layout.layer(keep)), "a layer of what is held"
    time.sleep(0.001)
    assert os.path.exists(known.view) and os.path.exists(layout.layer(known.keeps[0]))
    session.close()
print(quick, slow)
"""


def test_starts_beside_removals(
    store: Store, add: AddImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a start holds is there, whoever removes and imports at the same time."""
    mark = collecting._mark

    def slowly(*what: Any) -> Any:
        time.sleep(0.02)  # for a start to come in between
        return mark(*what)

    monkeypatch.setattr(collecting, "_mark", slowly)
    archives = [tar([M("a", b"%d" % number)]) for number in range(3)]
    add(archives[0], name="x")
    store.lowers("x")
    store.close()
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", _STARTS, store.layout.root, "4"], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    chance = random.Random(7)
    end = time.monotonic() + 4
    while time.monotonic() < end:
        store.remove("x")
        add(chance.choice(archives), name="x")
        store.close()
        time.sleep(chance.choice([0, 0.05, 0.3]))
    quick = 0
    for process in starts:
        said, wrong = process.communicate()
        assert process.returncode == 0, wrong
        quick += int(said.split()[0])
    assert quick > 20
    collect(store)
    assert check(store, full=True) == []
