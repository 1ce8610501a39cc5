"""``cp``, ``diff``, ``commit`` and ``export``."""

from __future__ import annotations

import os
import stat
import sys

from runtime import images, jsonio, lifecycle, prepare, state, userns
from runtime.channel import pair, raise_if_error
from runtime.cli.output import show
from runtime.errors import RunError
from runtime.session import Session
from unionfs.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import tarfile
    from collections.abc import Callable
    from typing import IO, Any


def _split(word: str) -> tuple[str, str]:
    """(container, path) of ``NAME:PATH``; no container for a path of the host."""
    name, colon, path = word.partition(":")
    if not colon or "/" in name or word.startswith((".", "/")) or name == "":
        return "", word
    return name, path or "/"


def cp(options: dict[str, Any], rest: list[str], root: str) -> int:
    """``pyrun cp``: through a tar stream, packed and unpacked on the side where the files are."""
    if len(rest) != 2:
        raise RunError("expected a source and a target", "pyrun cp NAME:/path . ")
    (source, source_path), (target, target_path) = _split(rest[0]), _split(rest[1])
    if bool(source) == bool(target):
        raise RunError("one side must be a container's path", "pyrun cp NAME:/path .")
    container = state.Containers(root).find(source or target)
    import tarfile

    with Session(container, root) as session:
        if source:
            _copy_out(session, source_path, target_path, tarfile)
        else:
            _copy_in(session, source_path, target_path, tarfile)
    return 0


def _pack(out: IO[bytes], path: str, name: str) -> None:
    """A tar stream of ``path`` under ``name``; symlinks as they are, one filesystem."""
    import tarfile

    device = os.lstat(path).st_dev

    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        _add(archive, path, name, device)


def _add(archive: tarfile.TarFile, path: str, name: str, device: int) -> None:
    """One name and what is beneath; what is mounted over is an empty directory."""
    found = os.lstat(path)
    if found.st_mode & 0o170000 == 0o140000:
        return  # a socket has no place in an archive
    archive.add(path, name or ".", recursive=False)
    if found.st_mode & 0o170000 == 0o040000 and found.st_dev == device:
        for entry in sorted(os.listdir(path)):
            _add(
                archive, f"{path.rstrip('/')}/{entry}", f"{name}/{entry}" if name else entry, device
            )


def _copy_out(session: Session, source: str, target: str, module: Any) -> None:
    read, write = os.pipe2(os.O_CLOEXEC)
    inside = "/" + os.path.normpath(f"/{source}").lstrip("/")
    contents = source.endswith("/.")
    name = "." if contents else os.path.basename(inside) or "."
    if target != "-" and not contents and not os.path.isdir(target):
        if target.endswith("/"):
            raise RunError(f"{target}: no such directory")
        name = os.path.basename(target)
        target = os.path.dirname(target) or "."
        if not os.path.isdir(target):
            raise RunError(f"{target}: no such directory")

    def pack() -> None:
        os.close(read)
        if not os.path.lexists(inside):
            raise RunError(f"{source}: no such file or directory in the container")
        with open(write, "wb") as out:
            _pack(out, inside, name)

    pid = session.inside(pack)
    os.close(write)
    with open(read, "rb") as stream:
        if target == "-":
            _pour(stream, sys.stdout.buffer)
        else:
            _unpack(stream, target, module, owners=False)
    session.finish(pid)


def _pour(source: IO[bytes], target: IO[bytes]) -> None:
    while data := source.read(1 << 20):
        target.write(data)
    target.flush()


def _unpack(stream: IO[bytes], target: str, module: Any, *, owners: bool) -> None:
    """Unpack below ``target``; what would lead out of it is refused (tarfile's filters)."""
    try:
        with module.open(fileobj=stream, mode="r|") as archive:
            archive.extraction_filter = _as_ours if not owners else module.fully_trusted_filter
            for member in archive:
                if member.isfifo() or member.isdev():
                    sys.stderr.write(f"pyrun: {printable(member.name)}: not a file, left out\n")
                _check_replaceable(os.path.join(target, member.name), member)
                if member.islnk() and not _make_room(member, target):
                    continue
                archive.extract(member, target, set_attrs=True, numeric_owner=owners)
    except module.FilterError as error:
        raise RunError(f"refused: {error}") from None
    except module.ReadError:
        return  # nothing was packed; the other side tells why


def _check_replaceable(path: str, member: tarfile.TarInfo) -> None:
    """Files and links take the place of such alone: a device would get their mode, or go.

    Raises:
        RunError: something else is there.
    """
    if member.isdir():
        return
    try:
        mode = (os.stat if member.isreg() else os.lstat)(path).st_mode
    except OSError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
        raise RunError(f"{path}: neither a file nor a directory, and left as it is")


def _as_ours(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
    """Files on the host are the caller's; names and links stay below the target."""
    if not (member.islnk() or member.issym() or member.isreg() or member.isdir()):
        return None
    checked = _within(member, path)
    return checked and checked.replace(
        mode=member.mode & 0o777, uid=os.geteuid(), gid=os.getegid(), uname="", gname="", deep=False
    )


def _within(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
    """As it is and root's, but below the target: names, what they pass through, hard links."""
    import tarfile

    checked = tarfile.tar_filter(member, path)
    if member.islnk():
        checked = tarfile.data_filter(member, path)
    return checked and checked.replace(mode=member.mode, uid=0, gid=0, deep=False)


def _make_room(member: tarfile.TarInfo, place: str) -> bool:
    """Take away what has the name of a hard link; False: it is that link already.

    Raises:
        tarfile.FilterError: it would not be below ``place``.
    """
    _within(member, place)
    path = os.path.join(place, member.name)
    if os.path.lexists(path) and (os.path.islink(path) or not os.path.isdir(path)):
        target = os.path.join(place, member.linkname)
        if os.path.lexists(target) and os.path.samestat(os.lstat(path), os.lstat(target)):
            return False
        os.unlink(path)
    return True


def _renamed(path: str, top: str) -> str:
    """A member's path with another first part."""
    head, slash, tail = path.partition("/")
    return f"{top}{slash}{tail}" if head else path


def _copy_in(session: Session, source: str, target: str, module: Any) -> None:
    read, write = os.pipe2(os.O_CLOEXEC)
    contents = source.endswith("/.") or source == "-"
    if source != "-" and not os.path.lexists(source):
        raise RunError(f"{source}: no such file or directory")
    own_name = os.path.basename(os.path.abspath(source))

    def unpack() -> None:
        os.close(write)
        # The container's own symlinks are followed to what is named, those of the archive nowhere.
        base = os.path.realpath("/" + os.path.normpath(f"/{target}").lstrip("/"))
        with open(read, "rb") as stream:
            into = os.path.isdir(base)
            if not into and target.endswith("/") and not contents:
                raise RunError(f"{target}: no such directory in the container")
            place = base if into else os.path.dirname(base)
            if not os.path.isdir(place):
                raise RunError(f"{place}: no such directory in the container")
            wanted = own_name if into else os.path.basename(base)
            with module.open(fileobj=stream, mode="r|") as archive:
                archive.extraction_filter = _within
                for member in archive:
                    if ".." in member.name.split("/"):
                        raise RunError(f"refused: {member.name} would be outside of {base}")
                    if not contents:
                        member.name = _renamed(member.name, wanted)
                        if member.islnk():
                            member.linkname = _renamed(member.linkname, wanted)
                    _check_replaceable(os.path.join(place, member.name), member)
                    if member.islnk() and not _make_room(member, place):
                        continue
                    archive.extract(member, place, numeric_owner=True)

    def checked() -> None:
        try:
            unpack()
        except module.FilterError as error:
            raise RunError(f"refused: {error}") from None

    pid = session.inside(checked)
    os.close(read)
    try:
        with open(write, "wb") as out:
            if source == "-":
                _pour(sys.stdin.buffer, out)
            else:
                _pack(out, os.path.abspath(source), "." if contents else own_name)
    except BrokenPipeError:
        pass  # the other side tells why
    session.finish(pid)


def export(options: dict[str, Any], rest: list[str], root: str) -> int:
    """``pyrun export``: the root filesystem, without what is mounted in it."""
    if len(rest) != 1:
        raise RunError("expected one container", "pyrun export CONTAINER >FILE")
    output = options.get("output")
    if not output and sys.stdout.isatty():
        raise RunError("a tar archive is not for a terminal", "give --output FILE")
    container = state.Containers(root).find(rest[0])
    import tarfile  # noqa: F401  (the child cannot import it)

    with Session(container, root) as session:
        read, write = os.pipe2(os.O_CLOEXEC)

        def pack() -> None:
            os.close(read)
            with open(write, "wb") as out:
                _pack(out, "/", "")

        pid = session.inside(pack)
        os.close(write)
        with open(read, "rb") as stream:
            if output:
                _keep(stream, output, lambda: session.finish(pid))
            else:
                _pour(stream, sys.stdout.buffer)
                session.finish(pid)
    return 0


def _keep(source: IO[bytes], path: str, finish: Callable[[], None]) -> None:
    """Into a file that takes its name when it is whole: what has the name before is not lost.

    Raises:
        OSError: the file cannot be made.
        RunError: of ``finish``, which tells whether all has come.
    """
    path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe, a device
        with open(path, "wb") as file:
            _pour(source, file)
        finish()
        return
    draft = f"{path}.{os.getpid()}.new"
    with open(draft, "xb") as file:
        try:
            _pour(source, file)
            finish()
            os.fsync(file.fileno())
            os.rename(draft, path)
        except BaseException:
            os.unlink(draft)
            raise


def diff(options: dict[str, Any], rest: list[str], root: str) -> int:
    """``pyrun diff``: one line a change: A, M or D, and the path."""
    if len(rest) != 1:
        raise RunError("expected one container", "pyrun diff CONTAINER")
    container = state.Containers(root).find(rest[0])
    source = _compared(container)
    if (container.config.get("request") or {}).get("storage_opt"):
        raise RunError("what this container changes is in memory, seen by itself alone", "pyrun cp")
    image = str(container.config.get("image_id") or "")
    items = jsonio.loads(_as_owner(lambda: jsonio.dumps(_changes(source, image, root))))
    if not show(options, items):
        sys.stdout.write("".join(f"{item['Kind']} {item['Path']}\n" for item in items))
    return 0


def _compared(container: state.Container) -> images.Source:
    """What a container has changed, and of what.

    Raises:
        RunError: it has a copy of everything, which tells no more what it was.
    """
    source = lifecycle.source_of(container)
    if source.storage == "copy":
        raise RunError(
            "this container has a copy of everything, and what changed in it is not known",
            "pyrun export CONTAINER | pyrun import - NAME",
        )
    return source


def _as_owner(work: Callable[[], str]) -> str:
    """What ``work`` gives, called in a child that is root of the container's ids.

    Raises:
        RunError: what it raised.
    """
    ours, theirs = pair()
    read, write = os.pipe2(os.O_CLOEXEC)

    def answer() -> None:
        text = work()
        images.release()
        with open(write, "wb", closefd=False) as out:
            out.write(text.encode())

    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            os.close(read)
            userns.run_mapped(answer)
        except BaseException as error:
            theirs.send_error(error)
        finally:
            os._exit(0)
    theirs.close()
    os.close(write)
    with open(read, "rb") as stream:
        text = stream.read().decode(errors="replace")
    message, _ = ours.receive()
    ours.close()
    os.waitpid(pid, 0)
    raise_if_error(message)
    if not text:
        raise RunError("the changes cannot be read")
    return text


def _changes(source: images.Source, image: str, root: str) -> list[dict[str, str]]:
    if image:
        return images.changes(source, image)
    from unionfs import diff as union_diff

    upper, work = os.fsencode(source.upper), os.fsencode(source.work)
    lowers = [os.fsencode(path) for path in (*source.lowers, prepare.places(root))]
    return [
        {"Kind": change.status, "Path": "/" + os.fsdecode(change.path)}
        for change in union_diff.changes(upper, lowers, (work,))
    ]


def commit(options: dict[str, Any], rest: list[str], root: str) -> int:
    """``pyrun commit``: prints the new image's id."""
    if len(rest) != 2:
        raise RunError("expected a container and a name", "pyrun commit CONTAINER IMAGE")
    container = state.Containers(root).find(rest[0])
    if (container.config.get("request") or {}).get("storage_opt"):
        raise RunError("what this container changes is in memory", "pyrun export, and pyrun import")
    image = str(container.config.get("image_id") or "")
    if not image:
        raise RunError(
            "this container was not made from an image",
            "pyrun export CONTAINER | pyrun import - NAME",
        )
    source = _compared(container)
    words = (options.get("author", ""), options.get("message", ""), options.get("change", ()))

    def work() -> str:
        return images.commit(source, image, rest[1], *words)

    # A union keeps owners in attributes; on overlayfs files belong to them.
    made = _as_owner(work) if source.storage == "kernel" else work()
    sys.stdout.write(f"{made}\n")
    return 0
