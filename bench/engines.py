"""Container engines and what does less than one: how each starts the same root.

Everybody gets no network, and no cgroup where that can be said: on cgroup v1 pyrun
makes none without limits, and what one costs is the kernel's time. Limits of
resources are the caller's own, since some machines forbid the engines' defaults.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Final

from bench import tool
from bench.account import Account
from bench.archives import NAME
from bench.peers import FINDERS, Found, Peer, version_of
from bench.stage import Stage
from bench.tool import Tool
from bench.workload import CONTAINER

_SLEEP: Final = ("sleep", "1000")
_CGROUP: Final = "/pyunion-bench"


class Engine(Tool):
    """One way to start a container.

    Attributes:
        tree: the root filesystem; ``image``: the OCI archive that holds the same.
        detaches: ``start`` returns, and ``exec`` is there.
    """

    detaches = True

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.tree = Path(stage.lowers[0])
        self.image = self.tree.parent / "image.tar"

    def prepare(self) -> None:
        """Once per run: bring the image in."""

    def run(self, name: str, *words: str) -> list[str]:
        """The command that runs ``words`` in a new container and removes it."""
        raise NotImplementedError

    def start(self, name: str) -> list[str]:
        """The command that starts a container that sleeps."""
        raise NotImplementedError

    def exec(self, name: str) -> list[str]:
        """The command that runs ``true`` in it."""
        raise NotImplementedError

    def stop(self, name: str) -> list[str]:
        """The command that ends and removes it."""
        raise NotImplementedError


class Pyrun(Engine):
    """Ours."""

    own = True
    storage = "union"

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.environment["PYRUN_STORAGE"] = self.storage
        self.environment["PYUNION_STORE"] = str(self.home / "store")
        self.python = self.command[0]
        self.command = [*self.command, "--root", str(self.home / "pyrun")]

    def prepare(self) -> None:
        words = ["import", "-q", f"oci-archive:{self.image}", NAME]
        self.stage.call([self.python, "-P", "-m", "cowstore", *words], env=self.environment)

    def run(self, name: str, *words: str) -> list[str]:
        return [*self.command, "run", "--rm", "--network", "none", NAME, *words]

    def start(self, name: str) -> list[str]:
        options = ["--name", name, "--network", "none"]
        return [*self.command, "run", "-d", *options, NAME, *_SLEEP]

    def exec(self, name: str) -> list[str]:
        return [*self.command, "exec", name, "true"]

    def stop(self, name: str) -> list[str]:
        return [*self.command, "rm", "--force", name]


class PyrunKernel(Pyrun):
    """Ours on the kernel's overlayfs, as podman is."""

    storage = "kernel"


class Podman(Engine):
    """podman with one of the runtimes, the last word of the peer's command."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        program, runtime = self.command
        self.command = [
            program,
            *tool.podman_words(self.home / "podman", self.run_time),
            "--cgroup-manager",
            "cgroupfs",
        ]
        self.command += ["--runtime", runtime]
        # For an ordinary user podman takes the caller's by itself.
        self.options = ["--network", "none", *([] if self.rootless else _ulimits())]
        if os.path.basename(runtime) == "crun":
            self.options.append("--cgroups=disabled")
        elif not self.rootless:
            self.options += ["--cgroup-parent", _CGROUP]

    def prepare(self) -> None:
        self.call("load", "-q", "-i", str(self.image))

    def run(self, name: str, *words: str) -> list[str]:
        return [*self.command, "run", "--rm", *self.options, NAME, *words]

    def start(self, name: str) -> list[str]:
        return [*self.command, "run", "-d", "--name", name, *self.options, NAME, *_SLEEP]

    def exec(self, name: str) -> list[str]:
        return [*self.command, "exec", name, "true"]

    def stop(self, name: str) -> list[str]:
        return [*self.command, "rm", "-f", "-t", "0", name]


def _ulimits() -> list[str]:
    words = []
    for name, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        soft, hard = resource.getrlimit(number)
        words += ["--ulimit", f"{name}={soft}:{hard}"]
    return words


class Runtime(Engine):
    """An OCI runtime alone, with a bundle whose configuration is its own default."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.crun = os.path.basename(self.command[0]) == "crun"
        self.command = [*self.command, "--root", str(self.run_time / "state")]
        if self.crun:
            self.command += ["--cgroup-manager", "disabled"]

    def _bundle(self, name: str, words: tuple[str, ...]) -> str:
        """A bundle for each container: on cgroup v1 runc's is named in it."""
        place = Path(self.stage.scratch) / f"bundle-{name}"
        place.mkdir(exist_ok=True)
        spec = [self.command[0], "spec", *(["--rootless"] if self.rootless else [])]
        (place / "config.json").unlink(missing_ok=True)
        self.stage.call(spec, cwd=str(place), env=self.environment)
        config = json.loads((place / "config.json").read_text())
        config["root"] = {"path": str(self.tree), "readonly": True}
        config["process"].update(args=list(words), terminal=False)
        # Limits that are above the caller's cannot be had everywhere.
        config["process"].pop("rlimits", None)
        config["linux"].pop("resources", None)
        if not self.crun and not self.rootless:
            config["linux"]["cgroupsPath"] = f"{_CGROUP}/{name}"
        (place / "config.json").write_text(json.dumps(config))
        return str(place)

    def run(self, name: str, *words: str) -> list[str]:
        return [*self.command, "run", "--bundle", self._bundle(name, words), name]

    def start(self, name: str) -> list[str]:
        bundle = self._bundle(name, _SLEEP)
        return [*self.command, "run", "--detach", "--bundle", bundle, name]

    def exec(self, name: str) -> list[str]:
        return [*self.command, "exec", name, "true"]

    def stop(self, name: str) -> list[str]:
        return [*self.command, "delete", "--force", name]


class Bubblewrap(Engine):
    """bwrap: namespaces and mounts, nothing that lasts."""

    detaches = False

    def run(self, name: str, *words: str) -> list[str]:
        mounts = ["--ro-bind", str(self.tree), "/", "--proc", "/proc", "--dev", "/dev"]
        return [*self.command, "--unshare-all", *mounts, *words]

    def start(self, name: str) -> list[str]:
        return self.run(name, *_SLEEP)


class Chroot(Engine):
    """unshare(1) and chroot(1): what namespaces alone cost."""

    detaches = False

    def run(self, name: str, *words: str) -> list[str]:
        user = ["--user", "--map-root-user"] if self.rootless else []
        spaces = ["--mount", "--pid", "--fork", "--net", "--ipc", "--uts", "--kill-child"]
        return [*self.command, *user, *spaces, "chroot", str(self.tree), *words]

    def start(self, name: str) -> list[str]:
        return self.run(name, *_SLEEP)


ENGINES: Final[dict[str, type[Engine]]] = {
    "pyrun": Pyrun,
    "pyrun-kernel": PyrunKernel,
    "podman-crun": Podman,
    "podman-runc": Podman,
    "crun": Runtime,
    "runc": Runtime,
    "bwrap": Bubblewrap,
    "chroot": Chroot,
}


def engine(stage: Stage) -> Engine:
    """The driver of the stage's peer."""
    return ENGINES[stage.order.peer](stage)


def remove_cgroups() -> None:
    """Take away the groups that podman and runc made below ours; they are empty by now."""
    for place in Path("/sys/fs/cgroup").glob(f"*{_CGROUP}"):
        for top, _dirs, _files in os.walk(place, topdown=False):
            subprocess.run(["rmdir", top], capture_output=True, check=False)


def find(full: bool, account: Account | None) -> Found:
    """The engines of this machine."""
    found = Found([], [])
    unshare = shutil.which("unshare")
    if unshare is None:
        found.missing.append("chroot: unshare not installed")
    else:
        version = version_of(unshare)
        found.peers.append(Peer("chroot", "plain", (unshare,), version, kind=CONTAINER))
    tool.program(found, "bwrap", "sandbox", CONTAINER)
    runtimes = {
        name: path
        for name in ("crun", "runc")
        if (path := tool.program(found, name, "oci", CONTAINER))
    }
    podman = shutil.which("podman")
    if podman is None:
        found.missing.append("podman: not installed")
    else:
        for name, path in runtimes.items():
            version = f"{version_of(podman)}, {version_of(path)}"
            peer = Peer(f"podman-{name}", "podman", (podman, path), version, kind=CONTAINER)
            found.peers.append(peer)
    for name in ("pyrun", "pyrun-kernel"):
        tool.ours(found, name, "runtime.cli.main:main", CONTAINER, account)
    return found


FINDERS[CONTAINER] = find
