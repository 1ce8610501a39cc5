"""Containers on disk.

```
ROOT/                         0700; --root, PYRUN_ROOT, else the user's data directory
  names/NAME -> ID            a symlink: making it is what takes the name
  containers/ID/
    config.json               the request, the image's part, the specification; written once
    state.json                what became of it; replaced by rename, by who holds the lock
    name                      its name, if it has been renamed
    lock                      flock'd by the supervisor for its life: who holds it is alive;
                              its text: the process that only looks into the files, if it is one,
                              and when that began
    socket                    the supervisor's
    log                       one JSON object a line: log, stream, time
    upper/ work/ root/        changes, the union's work directory, its mount point
    hosts hostname resolv.conf
  volumes/NAME/_data          named volumes
  seccomp/KEY                 compiled filters
  events                      one JSON object a line
```

A container is what its files say, corrected by the lock: a state that says
``running`` whose lock is free is one whose supervisor has died.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from runtime import drafts, jsonio
from runtime.errors import RunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ID_BYTES = 32
#: The end of the name of a directory whose container is no more.
GONE = ".gone"
SHORT = 12
_TRIES = 40


def default_root() -> str:
    """Where containers are kept for this caller.

    Raises:
        RunError: there is no home directory.
    """
    told = os.environ.get("PYRUN_ROOT")
    if told:
        return os.path.abspath(told)
    if _is_root():
        return "/var/lib/pyrun"
    data = os.environ.get("XDG_DATA_HOME", "")
    if data.startswith("/"):
        return f"{data}/pyrun"
    home = os.environ.get("HOME", "")
    if not home.startswith("/"):
        raise RunError("no place for containers: HOME is not set", "give --root DIR")
    return f"{home}/.local/share/pyrun"


def _is_root() -> bool:
    """Whether we are root, in no user namespace: root of one is a user, as for the store."""
    from unionfs.sys.userns import in_initial_user_namespace

    podmans = os.environ.get("_CONTAINERS_USERNS_CONFIGURED")
    return os.geteuid() == 0 and not podmans and in_initial_user_namespace()


def now() -> str:
    """This moment as RFC 3339 with nanoseconds, UTC."""
    return stamp(time.time_ns())


def stamp(nanoseconds: int) -> str:
    """A time as RFC 3339, UTC."""
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    fields = time.gmtime(seconds)
    return (
        f"{fields[0]:04}-{fields[1]:02}-{fields[2]:02}T"
        f"{fields[3]:02}:{fields[4]:02}:{fields[5]:02}.{fraction:09}Z"
    )


def parse_stamp(text: str) -> float:
    """Seconds since 1970 of ``stamp``'s form (or an RFC 3339 prefix of it); 0 if it is not one."""
    import calendar

    head, _, fraction = text.rstrip("Z").partition(".")
    for form in ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d"):
        try:
            seconds = calendar.timegm(time.strptime(head, form))
        except ValueError:
            continue
        digits = fraction.isascii() and fraction.isdigit()
        return seconds + (float(f"0.{fraction}") if digits else 0.0)
    return 0.0


def boot_id() -> str:
    """Changes with every boot: pids of another boot mean nothing."""
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read().strip().decode()


def start_time(pid: int) -> int:
    """When a process began, in clock ticks since boot; 0 if it is not there (proc_pid_stat(5))."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def is_exiting(pid: int) -> bool:
    """Whether a process has begun to exit: PF_EXITING among its flags (proc_pid_stat(5))."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return bool(int(file.read().rpartition(b")")[2].split()[6]) & 4)
    except (OSError, ValueError, IndexError):
        return True


def write_file(path: str, text: str, mode: int = 0o600) -> None:
    """Replace a file by rename: readers see the old or the new."""
    temporary = drafts.name(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        try:
            data = text.encode(errors="surrogateescape")
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError as error:
        os.unlink(temporary)
        raise OSError(error.errno, error.strerror, path) from None


class Container:
    """One container's directory.

    Attributes:
        config: config.json as it is; ``request`` in it is a RunRequest's fields.
    """

    def __init__(self, root: str, container: str) -> None:
        self.root = root
        self.id = container
        self.directory = f"{root}/containers/{container}"
        self._config: dict[str, Any] | None = None

    def path(self, name: str) -> str:
        """A file of its directory."""
        return f"{self.directory}/{name}"

    @property
    def config(self) -> dict[str, Any]:
        if self._config is None:
            try:
                with open(self.path("config.json"), "rb") as file:
                    self._config = jsonio.loads(file.read())
            except (OSError, ValueError):
                self._config = {"id": self.id, "name": "", "request": {}, "broken": True}
        config: dict[str, Any] = self._config
        return config

    @property
    def name(self) -> str:
        """The name by which it is called now (rename changes the symlink's name)."""
        return str(self.state().get("name") or self.config.get("name") or self.id[:SHORT])

    def save_config(self, config: dict[str, Any]) -> None:
        """Write config.json."""
        self._config = config
        write_file(self.path("config.json"), jsonio.dumps(config))

    def state(self) -> dict[str, Any]:
        """state.json, corrected: nothing runs whose supervisor is gone."""
        try:
            with open(self.path("state.json"), "rb") as file:
                state: dict[str, Any] = jsonio.loads(file.read())
        except (OSError, ValueError):
            state = {"status": "created"}
        try:
            with open(self.path("name"), encoding="utf-8") as file:
                state["name"] = file.read()
        except OSError:
            pass  # it has its first one
        if state.get("status") in ("running", "paused", "starting", "stopping"):
            if not self.supervised():
                state.update(status="exited", exit_code=state.get("exit_code", 137), pid=0)
                state.setdefault("error", "its supervisor has died")
        return state

    def save_name(self, name: str) -> None:
        """Write down a new name; apart from state.json, which is the supervisor's to write."""
        write_file(self.path("name"), name)

    def save_state(self, **changes: Any) -> dict[str, Any]:
        """Change fields of state.json; for who holds the lock, or nobody else can."""
        try:
            with open(self.path("state.json"), "rb") as file:
                state: dict[str, Any] = jsonio.loads(file.read())
        except (OSError, ValueError):
            state = {}
        state.update(changes)
        write_file(self.path("state.json"), jsonio.dumps(state))
        return state

    def lock(self, *, patient: bool = False, looking: bool = False) -> int:
        """Take the supervisor's lock; the descriptor that holds it.

        ``patient``: who only asks whether somebody has it, has it for a moment: wait for those.
        ``looking``: for a look into the files; nothing will run.

        Raises:
            BlockingIOError: somebody has it.
            FileNotFoundError: the container has been removed.
        """
        path = self.path("lock")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            for left in range(_TRIES if patient else 1, 0, -1):
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if left == 1:
                        raise
                    time.sleep(0.005)
            # Who removes a container holds its lock too: what was opened may be of no name now.
            if not os.path.samestat(os.fstat(fd), os.stat(path)):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            os.ftruncate(fd, 0)
            if looking:
                os.write(fd, b"%d %d" % (os.getpid(), start_time(os.getpid())))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def wait_unlocked(self) -> None:
        """Until nobody has the lock: no supervisor, and nobody who removes it."""
        try:
            fd = os.open(self.path("lock"), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        fcntl.flock(fd, fcntl.LOCK_SH)
        os.close(fd)

    def _holder(self) -> int | None:
        """Who has the lock: a process that looks into the files, 0 for others, None for nobody."""
        try:
            fd = os.open(self.path("lock"), os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, _, began = os.read(fd, 64).partition(b" ")
            # What it has started may have the lock a moment longer than it is there itself.
            return int(pid) if pid and start_time(int(pid)) == int(began) else 0
        finally:
            os.close(fd)
        return None

    def supervised(self) -> bool:
        """Whether a supervisor lives, or somebody is just removing or starting it."""
        return self._holder() == 0

    def looked_into(self) -> int:
        """The process that looks into the files while nothing runs; 0: there is none."""
        return self._holder() or 0


def is_id(text: str) -> bool:
    """Whether that is what ``new_id`` gives."""
    return len(text) == 2 * _ID_BYTES and not set(text) - set("0123456789abcdef")


def new_id() -> str:
    """64 hex digits."""
    return os.urandom(_ID_BYTES).hex()


_LEFT = (
    "amber brisk calm deft eager fair glad hale keen lively mellow neat plain quick ready sound"
    " tidy vivid warm young"
).split()
_RIGHT = (
    "alder beech cedar dogwood elder fir ginkgo hazel iris juniper larch maple oak pine rowan"
    " spruce tamarack walnut willow yew"
).split()


def random_name() -> str:
    """A name for those who gave none."""
    first, second, third = os.urandom(3)
    return f"{_LEFT[first % len(_LEFT)]}_{_RIGHT[second % len(_RIGHT)]}{third}"


class Containers:
    """All containers beneath a root."""

    def __init__(self, root: str) -> None:
        self.root = root

    def prepare(self) -> None:
        """Make the directories.

        Raises:
            RunError: they cannot be made.
        """
        try:
            for name in ("containers", "names", "volumes"):
                os.makedirs(f"{self.root}/{name}", 0o700, exist_ok=True)
            from cowstore.spread import spread

            # What a container writes is not held up by what another's removal has freed.
            spread(f"{self.root}/containers")
        except OSError as error:
            raise RunError(
                f"{self.root}: {error.strerror}", "give a directory of yours with --root"
            ) from None

    def create(self, name: str) -> Container:
        """A directory for a new container, and its name taken.

        Raises:
            RunError: the name is not one, or is in use.
        """
        from runtime.volumes import is_name

        if name and not is_name(name):
            raise RunError(
                f"container name {name}: not a name", "letters, digits, and _ . - after the first"
            )
        container = Container(self.root, new_id())
        try:
            os.mkdir(container.directory, 0o700)
        except FileNotFoundError:
            self.prepare()
            os.mkdir(container.directory, 0o700)
        except OSError as error:
            raise RunError(f"{container.directory}: {error.strerror}") from None
        try:
            taken = self.take_name(name, container) if name else ""
            while not taken:
                try:
                    taken = self.take_name(random_name(), container)
                except RunError:
                    continue
        except BaseException:
            os.rmdir(container.directory)
            raise
        container._config = {"id": container.id, "name": taken}
        return container

    def take_name(self, name: str, container: Container) -> str:
        """Take a name for a container.

        Raises:
            RunError: another has it.
        """
        holder = self._take(name, container)
        if holder:
            raise RunError(
                f"container name {name} is in use by {holder[:SHORT]}",
                f"choose another, or remove that one: pyrun rm {name}",
            )
        return name

    def reclaim(self, name: str) -> None:
        """If a name is taken, put in order what a supervisor that died was to remove."""
        if name and os.path.lexists(f"{self.root}/names/{name}"):
            from runtime.removal import sweep

            sweep(self.root)

    def _take(self, name: str, container: Container) -> str:
        """Take a name; whose it is, if it is another's."""
        try:
            lock = self._lock_names()
            try:
                holder = self._holder(name)
                if not holder:
                    os.symlink(container.id, f"{self.root}/names/{name}")
            finally:
                os.close(lock)
        except OSError as error:
            raise RunError(f"container name {name}: {error.strerror}") from None
        return holder

    def drop_name(self, name: str, container: Container) -> None:
        """Give a name back."""
        path = f"{self.root}/names/{name}"
        try:
            if os.readlink(path) == container.id:
                os.unlink(path)
        except OSError:
            pass

    def drop_stale_names(self) -> None:
        """Give back the names whose containers went without doing so."""
        try:
            lock = self._lock_names()
        except OSError:
            return
        try:
            for name in os.listdir(f"{self.root}/names"):
                self._holder(name)
        finally:
            os.close(lock)

    def _lock_names(self) -> int:
        """While the descriptor is open nobody else takes a name, or takes one for stale."""
        fd = os.open(f"{self.root}/names", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX)
        return fd

    def _holder(self, name: str) -> str:
        """Whose a name is; "" if it is free, after taking it from a container that is gone."""
        path = f"{self.root}/names/{name}"
        try:
            holder = os.readlink(path)
        except FileNotFoundError:
            return ""
        if os.path.isdir(f"{self.root}/containers/{holder}"):
            return holder
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass  # given back meanwhile
        return ""

    def all(self) -> list[Container]:
        """Every container, the oldest first."""
        try:
            names = os.listdir(f"{self.root}/containers")
        except OSError:
            return []
        found = [Container(self.root, name) for name in names if len(name) == 2 * _ID_BYTES]
        return sorted(found, key=lambda one: str(one.config.get("created", "")))

    def find(self, word: str) -> Container:
        """By name, id, or the start of an id.

        Raises:
            RunError: none, or several.
        """
        if word and "/" not in word:
            try:
                holder = os.readlink(f"{self.root}/names/{word}")
                if os.path.isdir(f"{self.root}/containers/{holder}"):
                    return Container(self.root, holder)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENAMETOOLONG):
                    raise
            try:
                names = os.listdir(f"{self.root}/containers")
            except OSError:
                names = []
            matches = [name for name in names if name.startswith(word) and name.isalnum()]
            if len(matches) > 1:
                raise RunError(f"{word}: {len(matches)} containers begin so", "give more digits")
            if matches:
                return Container(self.root, matches[0])
        raise RunError(f"no container {word or '(no name)'}", "pyrun ps -a shows them all")


def record_event(root: str, kind: str, what: str, container: Container, **more: Any) -> None:
    """Append to the events file; an event that cannot be written is lost."""
    event = {"time": now(), "type": kind, "action": what, "id": container.id, **more}
    try:
        fd = os.open(f"{root}/events", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, (jsonio.dumps(event) + "\n").encode())
        finally:
            os.close(fd)
    except OSError:
        pass
