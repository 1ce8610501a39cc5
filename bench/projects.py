"""Lower trees of the kind that people work in: a system, a repository, a program, a library."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.trees import MAKERS, Site
from bench.workload import Skipped

#: What is installed in a system in the row apt-install: small, and with dependencies.
PACKAGES: Final = ("git", "less")
_SECONDS: Final = 600


def _run(command: list[str], place: Path) -> None:
    """Run a program in ``place``. Raises Skipped with the end of what it said if it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=place,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_SECONDS,
        )
    except FileNotFoundError:
        raise Skipped(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Skipped(f"{command[0]} took more than {_SECONDS} s") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise Skipped(f"{command[0]} failed: {' '.join(said)}")


# -- a system -----------------------------------------------------------------------


def _release() -> str:
    """Debian's name of the host's release, else "stable"."""
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME" and "debian" in Path("/etc/os-release").read_text().lower():
            return value.strip('"')
    return "stable"


def _host_files(limit: int) -> Iterator[str]:
    """Files of the host's /usr/share, at most ``limit`` of them and none above 1 MiB."""
    found = 0
    for place, dirs, names in os.walk("/usr/share"):
        dirs.sort()
        for name in sorted(names):
            path = os.path.join(place, name)
            if os.lstat(path).st_size <= 1 << 20:
                yield path
                found += 1
                if found == limit:
                    return


def _archive(site: Site) -> list[Path]:
    """``root.tar`` beside an empty lower: a Debian root, or a part of the host."""
    lower = site.top / "l"
    lower.mkdir()
    target = site.top / "root.tar"
    if site.archive is not None:
        os.symlink(site.archive.resolve(), target)
        site.note("archive", f"{site.archive.name}, {site.archive.stat().st_size >> 20} MiB")
        return [lower]
    if site.root and site.sizes.system and shutil.which("mmdebstrap"):
        try:
            _run(["mmdebstrap", "--variant=minbase", _release(), str(target)], site.top)
        except Skipped:
            target.unlink(missing_ok=True)
        else:
            size = target.stat().st_size >> 20
            site.note("archive", f"Debian {_release()} minbase by mmdebstrap, {size} MiB")
            return [lower]
    names = list(_host_files(site.sizes.archive))
    listing = site.top / "names"
    listing.write_bytes(b"\0".join(os.fsencode(name) for name in names))
    _run(["tar", "-cPf", str(target), "--null", f"--files-from={listing}"], site.top)
    site.note("archive", f"{len(names)} files of /usr/share of this machine")
    return [lower]


def extract(archive: Path, place: Path, *, owners: bool) -> None:
    """Unpack a root filesystem but for its devices. Raises Skipped if that fails."""
    owner = [] if owners else ["--no-same-owner"]
    _run(["tar", "-xf", str(archive), "--exclude=./dev", *owner], place)


def _system(site: Site) -> list[Path]:
    """The archive unpacked, as a lower."""
    _archive(site)
    extract(site.top / "root.tar", site.top / "l", owners=site.root)
    (site.top / "root.tar").unlink()
    return [site.top / "l"]


_FETCH: Final = """
set -e
mkdir -p dev proc etc
mount --bind /dev dev
mount -t proc proc proc
cp /etc/resolv.conf etc/resolv.conf
export DEBIAN_FRONTEND=noninteractive
chroot . apt-get -q update
chroot . apt-get -q -y --no-install-recommends --download-only install "$@"
"""


def _apt(site: Site) -> list[Path]:
    """A Debian root whose apt has all that it needs to install PACKAGES, as a lower."""
    if not site.root:
        raise Skipped("needs root")
    lowers = _system(site)
    if not (lowers[0] / "usr/bin/apt-get").exists():
        raise Skipped("needs a Debian root (mmdebstrap and its packages, or --archive)")
    unshare = ["unshare", "--mount", "--propagation=private"]
    _run([*unshare, "sh", "-c", _FETCH, "sh", *PACKAGES], lowers[0])
    return lowers


# -- a repository -------------------------------------------------------------------


_GIT: Final = (
    "user.name=bench",
    "user.email=bench@localhost",
    "init.defaultBranch=main",
    "gc.auto=0",
    "maintenance.auto=0",
)


def git(place: Path) -> list[str]:
    """git for ``place``, without what users configured."""
    words = [word for setting in _GIT for word in ("-c", setting)]
    return ["git", *words, "-C", str(place)]


def _source(generator: random.Random, lines: int) -> str:
    return "".join(f"line {generator.getrandbits(64):x} {number}\n" for number in range(lines))


def _git(site: Site) -> list[Path]:
    """A work tree as the lower, on the branch ``main``; ``other`` differs in each fifth file.

    ``origin.git`` beside it is what the row git-clone clones.
    """
    generator = random.Random(2)
    lower = site.top / "l"
    lower.mkdir()
    command = git(lower)
    _run([*command, "init", "-q"], lower)
    for number in range(site.sizes.repository):
        place = lower / f"part{number // 400}" / f"unit{number // 20}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"source{number}.txt").write_text(_source(generator, 40))
    _run([*command, "add", "."], lower)
    _run([*command, "commit", "-qm", "first"], lower)
    _run([*command, "checkout", "-qb", "other"], lower)
    for number in range(0, site.sizes.repository, 5):
        place = lower / f"part{number // 400}" / f"unit{number // 20}"
        (place / f"source{number}.txt").write_text(_source(generator, 41))
    _run([*command, "commit", "-qam", "second"], lower)
    _run([*command, "checkout", "-q", "main"], lower)
    _run([*command, "repack", "-qad"], lower)
    _run(["git", "clone", "-q", "--bare", str(lower), "origin.git"], site.top)
    return [lower]


# -- a program ----------------------------------------------------------------------

_HEADER: Final = """#include <stdio.h>
#include <stdlib.h>
#include <string.h>
struct item{n} {{ int key; char name[32]; struct item{n} *next; }};
int work{n}(int depth);
"""

_UNIT: Final = """{includes}
static struct item{n} table[64];
static int compare(const void *a, const void *b) {{
    return ((const struct item{n} *)a)->key - ((const struct item{n} *)b)->key;
}}
int work{n}(int depth) {{
    for (int i = 0; i < 64; i++) {{
        table[i].key = (i * 7919 + depth) % 101;
        snprintf(table[i].name, sizeof table[i].name, "%d-%d", depth, i);
        table[i].next = i ? &table[i - 1] : NULL;
    }}
    qsort(table, 64, sizeof table[0], compare);
    return table[depth & 63].key{calls};
}}
"""

_MAKEFILE: Final = """objects := $(patsubst %.c,%.o,$(wildcard src/*.c))
program: $(objects)
\tcc -o $@ $^
%.o: %.c
\tcc -O0 -Iinclude -c -o $@ $<
"""


def _program(site: Site) -> list[Path]:
    """A C program of many units; each includes ten headers."""
    lower = site.top / "l"
    (lower / "src").mkdir(parents=True)
    (lower / "include").mkdir()
    count = site.sizes.units
    for n in range(count):
        (lower / "include" / f"unit{n}.h").write_text("#pragma once\n" + _HEADER.format(n=n))
        near = [(n + step) % count for step in range(10)]
        includes = "\n".join(f'#include "unit{other}.h"' for other in near)
        call = f" + (depth ? work{(n + 1) % count}(depth - 1) : 0)"
        unit = _UNIT.format(n=n, includes=includes, calls=call)
        (lower / "src" / f"unit{n}.c").write_text(unit)
    (lower / "src" / "main.c").write_text(
        '#include "unit0.h"\nint main(void) { return work0(9) < 0; }\n'
    )
    (lower / "Makefile").write_text(_MAKEFILE)
    return [lower]


# -- a library ----------------------------------------------------------------------

#: Packages of the standard library that import nothing outside of it.
LIBRARY: Final = ("asyncio", "email", "http", "json", "logging", "unittest", "urllib", "xml")
_MORE: Final = ("collections", "concurrent", "ctypes", "html", "importlib", "multiprocessing")


def _library(site: Site) -> list[Path]:
    """``lib``: Python's standard library, source only; ``lib2``: the same, compiled."""
    lower = site.top / "l"
    (lower / "lib").mkdir(parents=True)
    source = Path(sysconfig.get_paths()["stdlib"])
    for package in (*LIBRARY, *_MORE):
        ignored = shutil.ignore_patterns("__pycache__", "test", "tests")
        shutil.copytree(source / package, lower / "lib" / package, ignore=ignored)
    for module in sorted(source.glob("*.py")):
        shutil.copy(module, lower / "lib")
    shutil.copytree(lower / "lib", lower / "lib2")
    _run([sys.executable, "-m", "compileall", "-q", "lib2"], lower)
    return [lower]


MAKERS.update(
    {
        "archive": _archive,
        "system": _system,
        "apt": _apt,
        "git": _git,
        "program": _program,
        "library": _library,
    }
)
