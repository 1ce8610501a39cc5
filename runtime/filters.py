"""The seccomp program of a process: which one, and where it is kept once it has been compiled.

Compiling is rare: what it takes is imported when no program is kept.
"""

from __future__ import annotations

import os

from runtime.errors import RunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.plan import ProcessPlan

#: Part of the key of kept programs: changes with compiler and default profile.
_VERSION = "3"
#: Bytes of a struct sock_filter.
_INSTRUCTION = 8


def filter_for(process: ProcessPlan, machine: str, single: bool, root: str) -> bytes:
    """The seccomp program of a process; empty for none. ``single``: chown(2) is faked.

    Raises:
        RunError: the profile cannot be read or understood.
    """
    word = process.seccomp
    if word == "unconfined":
        return b""
    directory = f"{root}/seccomp"
    if word == "default":
        key = f"{_VERSION}-{machine}-{process.capabilities:x}-{single:d}"

        def build() -> bytes:
            from runtime import seccomp
            from runtime.seccomp_default import default_profile

            profile = default_profile(_capabilities(process), machine, fake_chown=single)
            return seccomp.compile_profile(profile, machine)

        return kept(key, directory, build)
    from hashlib import sha256

    from runtime import jsonio

    try:
        with open(word, "rb") as file:
            text = file.read()
    except OSError as error:
        raise RunError(f"seccomp profile {word}: {error.strerror}") from None

    release = os.uname().release

    def compile_text() -> bytes:
        from runtime import seccomp
        from runtime.seccomp_file import Situation, section

        try:
            profile = jsonio.loads(text)
        except ValueError as error:
            raise RunError(f"seccomp profile {word}: {error}") from None
        here = Situation(_capabilities(process), machine, release)
        return seccomp.compile_profile(section(profile, here), machine)

    # What entries may depend on is part of the key.
    depends = f"{process.capabilities:x}-{release.replace('/', '_')}"
    key = f"{_VERSION}-{machine}-{depends}-{sha256(text).hexdigest()}"
    return kept(key, directory, compile_text)


def _capabilities(process: ProcessPlan) -> tuple[str, ...]:
    from runtime import caps

    held = process.capabilities
    return tuple(f"CAP_{name}" for number, name in enumerate(caps.NAMES) if held >> number & 1)


def kept(key: str, directory: str, build: Callable[[], bytes]) -> bytes:
    """The program kept under ``key`` in ``directory``, or made by ``build()`` and kept."""
    path = f"{directory}/{key}"
    try:
        with open(path, "rb") as file:
            program = file.read()
        if program and len(program) % _INSTRUCTION == 0:
            return program
    except OSError:
        pass
    program = build()
    from runtime import drafts

    temporary = drafts.name(path)
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(program)
        os.rename(temporary, path)
    except OSError:
        pass  # a cache that cannot be written costs time only
    return program
