"""Writing the file of ``codecache``."""

from __future__ import annotations

import marshal
import os
from importlib import util
from importlib.util import MAGIC_NUMBER

from unionfs import codecache
from unionfs.codecache import HEADER, MAGIC
from unionfs.errors import suppress
from unionfs.record import Row

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

_PACKAGES: Final = ("unionfs", "cowstore", "runtime")
#: What of others a start imports.
_OTHERS: Final = (
    "bisect", "ctypes", "ctypes._endian", "struct", "types", "xxhash", "xxhash.version",
)  # fmt: skip
#: What precedes the code in a file of cached code: PEP 552.
_PYC_HEADER: Final = 16


class _Module(Row):
    """A module whose code is cached."""

    name: str
    package: bool
    source: str
    code: bytes
    modified: int
    size: int


def write(directory: str, path: str) -> None:
    """Write the file, if the code of all modules is cached."""
    tops = [f"{directory}/{name}" for name in _PACKAGES]
    directories = [top for package in tops for top, names, _ in os.walk(package) if _trim(names)]
    names = [*_names(directory, directories), *_OTHERS]
    found: list[_Module] = []
    for name in names:
        spec = util.find_spec(name)
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            continue  # compiled, or built in
        module = _cached(name, spec.origin)
        if module is None:
            return
        found.append(module)
    index, code, at = {}, [], 0
    for module in found:
        end = at + len(module.code)
        index[module.name] = (
            module.package, module.source, module.modified, module.size, at, end,
        )  # fmt: skip
        code.append(module.code)
        at = end
    times = [(place, codecache.modified(place)) for place in directories]
    head = marshal.dumps((directory, times, index))
    sizes = (HEADER + len(head) + at, len(head))
    data = [MAGIC, *(size.to_bytes(8, "little") for size in sizes), head, *code]
    draft = f"{path}.{os.getpid()}"
    try:
        with open(draft, "xb") as file:
            file.writelines(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(draft, path)
    except OSError:
        with suppress(OSError):
            os.unlink(draft)


def _trim(names: list[str]) -> bool:
    """Leave out what holds no modules, while walking."""
    names[:] = [name for name in names if name != "__pycache__"]
    return True


def _names(directory: str, directories: list[str]) -> Iterator[str]:
    """Names of all modules in there."""
    for place in directories:
        package = os.path.relpath(place, directory).replace("/", ".")
        for name in sorted(os.listdir(place)):
            stem, extension = os.path.splitext(name)
            if extension == ".py" and stem != "__main__":
                yield package if stem == "__init__" else f"{package}.{stem}"


def _cached(name: str, source: str) -> _Module | None:
    """A module's cached code; None: there is none, or it is not of this source."""
    try:
        found = os.stat(source)
        with open(util.cache_from_source(source), "rb") as file:
            data = file.read()
    except OSError:
        return None
    stamp = (int(found.st_mtime) & 0xFFFFFFFF, found.st_size & 0xFFFFFFFF)
    told = b"".join((0, *stamp)[at].to_bytes(4, "little") for at in range(3))
    if data[:_PYC_HEADER] != MAGIC_NUMBER + told:
        return None
    package = os.path.basename(source) == "__init__.py"
    return _Module(name, package, source, data[_PYC_HEADER:], found.st_mtime_ns, found.st_size)
