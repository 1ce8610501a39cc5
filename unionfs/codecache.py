"""The code of all our modules in one file, for starts that import fifty of them.

The import system looks for each module along a path, opens its cached code (PEP 3147) and makes
objects that describe both; together that takes longer than running the modules. This file is made
of that code and lies beside it, as what is cached of ``unionfs.start``, with an index. What it
holds of a module is used while the source's ctime and size are what they were; the file is made
anew when a module or a directory of modules has changed. Who may not write there goes without.
Processes that stay let go of it.

What a module imports of ours, whenever it is imported, is made before it, without the import
system: that takes as long for a module as its code does.
"""

from __future__ import annotations

import gc
import marshal
import os
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER
from _imp import _fix_co_filename  # type: ignore[attr-defined]
from _thread import _count

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Sequence
    from types import CodeType, ModuleType
    from typing import Any, Final
else:
    import _signal

_Module: Any = type(sys)
_HERE: Final = os.path.dirname(os.path.abspath(__file__))
#: The form of this file, and that of the interpreter's code.
MAGIC: Final = b"pyunion3" + MAGIC_NUMBER
#: And the size of the file, and the size of what describes the code.
HEADER: Final = len(MAGIC) + 16


class CodeCache:
    """A finder and loader of modules (importlib.abc) over such a file.

    ``index``: by name whether it is a package, its source below ``directory``, when that was
    changed (ctime) in ns, its size in bytes, from where to where its code is, ``begin`` bytes
    from the start of the file, which was ``seen`` so, and which modules of ours it imports.
    """

    def __init__(
        self,
        path: str,
        directory: str,
        index: dict[str, tuple[bool, str, int, int, int, int, tuple[str, ...]]],
        begin: int,
        seen: tuple[int, int, int],
    ) -> None:
        self._path = path
        self._directory = directory
        self._index = index
        self._begin = begin
        self._seen = seen

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        if name not in self._index:
            return None
        known = sys.modules.get(name)
        if not _count():  # no other thread that may want one meanwhile
            fd = self._open()
            if fd >= 0:
                try:
                    self._make_all(fd, name)
                finally:
                    os.close(fd)
        made = sys.modules.get(name)
        if made is not known and made is not None:
            return made.__spec__  # on the way, by what that one imports as it begins
        return self._spec(name)

    def _spec(self, name: str, fd: int = -1) -> ModuleSpec | None:
        """With the code; None: it is to be found elsewhere. ``fd`` of the file, if it is open."""
        entry = self._index.get(name)
        if entry is None:
            return None
        package, source, time, size, start, end, _ = entry
        place = f"{self._directory}/{source}"
        try:
            found = os.stat(place)
        except OSError:
            return None
        if found.st_ctime_ns != time or found.st_size != size:
            self._forget()
            return None
        code = self._read(start, end, place, fd)
        if code is None:
            self.close()
            return None
        loader: Any = self
        spec = ModuleSpec(name, loader, origin=place, is_package=package)
        spec.has_location = True
        spec.cached = self._path
        spec.loader_state = code
        if package:
            spec.submodule_search_locations = [os.path.dirname(place)]
        return spec

    def _make_all(self, fd: int, name: str) -> None:
        """Make the modules that one imports, and what those do, unless they are there."""
        entry = self._index.get(name)
        if entry is None:
            return
        for other in entry[6]:
            if other not in sys.modules:
                self._make_all(fd, other)
                if not self._make(fd, other):
                    return  # as ever, then: with the error in its place

    def _make(self, fd: int, name: str) -> bool:
        """A module as the import system makes it; False: it could not be."""
        parent, _, child = name.rpartition(".")
        spec = self._spec(name, fd) if not parent or parent in sys.modules else None
        if spec is None:
            return False
        module = _Module(name)
        module.__spec__ = spec
        module.__loader__ = spec.loader
        module.__package__ = spec.parent
        module.__file__ = spec.origin
        module.__cached__ = spec.cached
        if spec.submodule_search_locations is not None:
            module.__path__ = spec.submodule_search_locations
        sys.modules[name] = module
        try:
            self.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, Exception):
                return False
            raise
        if parent:
            setattr(sys.modules[parent], child, module)
        return True

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """See importlib.abc.Loader: the one that is made already, if there is one."""
        return sys.modules.get(spec.name) if spec.loader_state is None else None

    def exec_module(self, module: ModuleType) -> None:
        """See importlib.abc.Loader."""
        spec: Any = module.__spec__
        code, spec.loader_state = spec.loader_state, None
        if code is not None:
            exec(code, module.__dict__)

    def _open(self) -> int:
        """A descriptor of the file; -1: it is another by now."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return -1
        if _seen(fd) == self._seen:
            return fd
        os.close(fd)
        return -1

    def _read(self, start: int, end: int, place: str, fd: int) -> CodeType | None:
        """A module's code; None: the file is another by now.

        It is not kept open, as processes close descriptors that they do not know, and not
        read as a whole: most of it is not wanted, and memory costs more than calls.
        """
        own = self._open() if fd < 0 else -1
        try:
            data = os.pread(max(fd, own), end - start, self._begin + start)
        except OSError:
            data = b""
        finally:
            if own >= 0:
                os.close(own)
        if len(data) != end - start:
            return None
        try:
            code: CodeType = marshal.loads(data)
        except (EOFError, TypeError, ValueError):
            self._forget()
            return None
        _fix_co_filename(code, place)  # it may be compiled elsewhere
        return code

    def _forget(self) -> None:
        """The file is out of date: the next start makes it anew."""
        if not sys.dont_write_bytecode:
            try:  # noqa: SIM105  (contextlib is slow to load)
                os.unlink(self._path)
            except OSError:
                pass

    def close(self) -> None:
        """Modules are found as ever from here on."""
        self._index = {}


def use(directory: str = os.path.dirname(_HERE)) -> None:
    """Import modules of ours from the file from here on; makes it if need be.

    ``directory`` holds our packages. While they are imported an interrupt ends this process
    without a word, until ``errors.interruptible``.
    """
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    if sys.flags.optimize or sys.pycache_prefix is not None:
        return
    path = f"{directory}/unionfs/__pycache__/start.{sys.implementation.cache_tag}.pyc"
    cache = _open(path, directory)
    if cache is None and not sys.dont_write_bytecode and os.access(os.path.dirname(path), os.W_OK):
        from unionfs import codecaching

        codecaching.write(directory, path)
        cache = _open(path, directory)
    if cache is not None:
        sys.meta_path.insert(0, cache)


def leave() -> None:
    """The start is over, for a process that stays: from here on it collects garbage.

    The code's memory is given back; what is there is not looked through again and again, and
    stays shared with what was forked before.
    """
    for finder in sys.meta_path:
        if isinstance(finder, CodeCache):
            finder.close()
    gc.freeze()
    gc.enable()


def _seen(fd: int) -> tuple[int, int, int]:
    """What tells that a file is the same: inode, size, ctime in ns."""
    found = os.fstat(fd)
    return found.st_ino, found.st_size, found.st_ctime_ns


def _open(path: str, directory: str) -> CodeCache | None:
    """None: there is none, of another Python, damaged, or not of the modules of now."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        seen = _seen(fd)
        head = os.pread(fd, HEADER, 0)
        size, index_size = (
            int.from_bytes(head[at : at + 8], "little") for at in (len(MAGIC), len(MAGIC) + 8)
        )
        if head[: len(MAGIC)] != MAGIC or size != seen[1] or index_size > size:
            return None
        directories, index = marshal.loads(os.pread(fd, index_size, HEADER))
    except (OSError, EOFError, TypeError, ValueError):
        return None
    finally:
        os.close(fd)
    if any(changed(f"{directory}/{name}") != time for name, time in directories):
        return None
    return CodeCache(path, directory, index, HEADER + index_size, seen)


def changed(path: str) -> int:
    """When a file was last changed (ctime), in ns; 0: it is not there."""
    try:
        return os.stat(path).st_ctime_ns
    except OSError:
        return 0
