"""Writing the file of ``codecache``."""

from __future__ import annotations

import marshal
import os
import re
from importlib.machinery import EXTENSION_SUFFIXES, SourceFileLoader

from unionfs import codecache
from unionfs.codecache import HEADER, MAGIC
from unionfs.errors import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

#: All that is imported at a start.
PACKAGES: Final = ("unionfs", "cowstore", "runtime")


def write(directory: str, path: str) -> None:
    """Write the file; who cannot goes without."""
    draft = f"{path}.{os.getpid()}"
    try:
        # Nobody else's from the first moment: who may open it now can write it later.
        file = open(draft, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115
    except OSError:
        return
    try:
        with file:
            file.writelines(_contents(directory))
            # As cached code, it is for whoever may read the source, and nobody else may write it.
            mode = os.stat(codecache.__file__).st_mode
            os.fchmod(file.fileno(), mode & 0o644)
            file.flush()
            os.fsync(file.fileno())
        os.rename(draft, path)
    except OSError:
        pass
    finally:
        with suppress(OSError):
            os.unlink(draft)


def _contents(directory: str) -> list[bytes]:
    """The file, in parts."""
    # The times first: what changes meanwhile makes the file one of the past.
    directories = [name for top in PACKAGES for name in _directories(directory, top)]
    times = [(name, codecache.changed(f"{directory}/{name}")) for name in directories]
    index, code, at = {}, [], 0
    modules = list(_modules(directory, directories))
    needs = _needs(directory, modules)
    for name, source in modules:
        place = f"{directory}/{source}"
        try:
            found = os.stat(place)
            # From where Python keeps it, or compiled now.
            data = marshal.dumps(SourceFileLoader(name, place).get_code(name))
        except (OSError, SyntaxError, ValueError):
            continue
        package = os.path.basename(source) == "__init__.py"
        end = at + len(data)
        index[name] = (package, source, found.st_ctime_ns, found.st_size, at, end, needs[name])
        code.append(data)
        at = end
    head = marshal.dumps((times, index))
    sizes = (HEADER + len(head) + at, len(head))
    return [MAGIC, *(size.to_bytes(8, "little") for size in sizes), head, *code]


def _directories(directory: str, top: str) -> Iterator[str]:
    """A package and the packages in it, as paths below ``directory``."""
    for place, names, files in os.walk(f"{directory}/{top}"):
        names[:] = [name for name in names if name.isidentifier() and name != "__pycache__"]
        if "__init__.py" in files:
            yield os.path.relpath(place, directory)


def _modules(directory: str, directories: list[str]) -> Iterator[tuple[str, str]]:
    """Names and sources of all modules in there that are not compiled."""
    for place in directories:
        names = sorted(os.listdir(f"{directory}/{place}"))
        for name in names:
            stem, extension = os.path.splitext(name)
            compiled = any(f"{stem}{suffix}" in names for suffix in EXTENSION_SUFFIXES)
            if extension != ".py" or not stem.isidentifier() or compiled:
                continue
            if stem in ("__main__", "start"):
                continue  # run by its name only; what this file stands in for
            package = place.replace("/", ".")
            yield package if stem == "__init__" else f"{package}.{stem}", f"{place}/{name}"


#: A statement on its own, not within others, with all that is in its parentheses.
_IMPORT: Final = re.compile(r"^(?:import|from (\S+) import) *(\([^)]*\)|.*)$", re.MULTILINE)


def _needs(directory: str, modules: list[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """By name which of the others a module imports whenever it is imported, in order.

    None of those that in turn import it.
    """
    known = {name for name, _ in modules}
    direct = {}
    for name, source in modules:
        try:
            with open(f"{directory}/{source}", encoding="utf-8") as file:
                found = list(_imported(file.read()))
        except (OSError, ValueError):
            found = []
        parents = [name.rpartition(".")[0]]
        direct[name] = [each for each in dict.fromkeys((*parents, *found)) if each in known]
    all_of = {name: _all(direct, name) for name in direct}
    return {
        name: tuple(other for other in others if name not in all_of[other])
        for name, others in direct.items()
    }


def _imported(text: str) -> Iterator[str]:
    """What a module's statements import, not those within others: packages, then modules."""
    for package, rest in _IMPORT.findall(text):
        listed = (part.split()[0] for part in rest.strip("()").split(",") if part.strip())
        names = [package, *(f"{package}.{name}" for name in listed)] if package else list(listed)
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _all(direct: dict[str, list[str]], name: str) -> set[str]:
    """A module and what comes with it."""
    found = {name}
    waiting = [name]
    while waiting:
        for other in direct[waiting.pop()]:
            if other not in found:
                found.add(other)
                waiting.append(other)
    return found
