"""Networks without root: a private namespace joined to the host by pasta or slirp4netns."""

from __future__ import annotations

import errno
import os

from runtime.errors import RunError
from runtime.facts import find_program
from runtime.plan import NetworkPlan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.request import RunRequest

#: Python ignores SIGPIPE; programs expect to begin with the default.
_SIGNALS = (13,)
_INSTALL = "apt-get install passt (or slirp4netns); or choose --network host or none"
_TUN = "modprobe tun; the device must be readable and writable for you"
#: (host address, protocol, host port, container port)
Port = tuple[str, str, int, int]


def parse_publish(text: str) -> list[Port]:
    """``-p [[ADDRESS:]HOSTPORT[-HOSTPORT]:]PORT[-PORT][/tcp|udp]``; host port 0: any free one.

    Raises:
        RunError: not understood.
    """
    what = f"--publish {text}"
    body, _, protocol = text.partition("/")
    protocol = protocol or "tcp"
    if protocol not in ("tcp", "udp"):
        raise RunError(f"{what}: protocol {protocol}", "expected tcp or udp")
    address = ""
    if body.startswith("["):
        address, _, body = body[1:].partition("]:")
        parts = body.split(":")
    else:
        parts = body.split(":")
        if len(parts) == 3:
            address = parts.pop(0)
    if len(parts) > 2 or (address and not is_address(address)):
        raise RunError(f"{what}: not understood", "-p [ADDRESS:][HOSTPORT:]PORT[/udp]")
    inside = _port_range(parts[-1], what)
    outside = _port_range(parts[0], what) if len(parts) == 2 and parts[0] else [0] * len(inside)
    if len(inside) != len(outside):
        raise RunError(f"{what}: the ranges differ in length")
    return [(address, protocol, o, i) for o, i in zip(outside, inside, strict=True)]


def is_address(text: str) -> bool:
    """Whether it is an IPv4 or IPv6 address."""
    import _socket

    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            _socket.inet_pton(family, text)
            return True
        except OSError:
            continue
    return False


class PortTaken(RunError):
    """A port of the host that cannot be had, for somebody has it."""


def _port_range(text: str, what: str) -> list[int]:
    from runtime.values import integer

    first, dash, last = text.partition("-")
    low = integer(first, what, 1, 65535)
    high = integer(last, what, low, 65535) if dash else low
    return list(range(low, high + 1))


def _free_port(address: str, protocol: str, port: int) -> int:
    """The port itself if it can be had (0: any); tried, because helpers complain unclearly.

    Raises:
        RunError: it is in use, or not allowed.
    """
    import _socket

    family = _socket.AF_INET6 if ":" in address else _socket.AF_INET
    kind = _socket.SOCK_STREAM if protocol == "tcp" else _socket.SOCK_DGRAM
    sock = _socket.socket(family, kind, 0)
    try:
        if protocol == "tcp":
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        sock.bind((address or ("::" if family == _socket.AF_INET6 else "0.0.0.0"), port))
        return int(sock.getsockname()[1])
    except OSError as error:
        shown = f"{address}:{port}" if address else str(port)
        text = f"port {shown}/{protocol}: {(error.strerror or '').lower()}"
        if isinstance(error, PermissionError):
            hint = "ports below sysctl net.ipv4.ip_unprivileged_port_start need root"
            raise RunError(text, hint) from None
        if error.errno != errno.EADDRINUSE:
            raise RunError(text, "expected [ADDRESS:]PORT of this host") from None
        raise PortTaken(text, "choose another, or see who has it: pyrun ps; ss -lnp") from None
    finally:
        sock.close()


def find_helper() -> tuple[str, str]:
    """(kind, path) of the first helper found; empty if there is none."""
    for kind in ("pasta", "slirp4netns"):
        path = find_program(kind)
        if path:
            return kind, path
    return "", ""


def usable() -> str:
    """For people: which network containers get by default, and why not a private one."""
    kind, path = find_helper()
    if not kind:
        return "none: install passt or slirp4netns"
    tun = "" if os.access("/dev/net/tun", os.R_OK | os.W_OK) else _why_no_tun()
    return f"none: /dev/net/tun: {tun}" if tun else f"private ({kind}: {path})"


def choose(request: RunRequest, exposed: tuple[str, ...] = ()) -> NetworkPlan:
    """The network that was asked for, or the default: private if a helper is there, else none.

    Raises:
        RunError: an unknown mode, no helper, a port that cannot be had.
    """
    mode = request.network.partition(":")[0]
    ports = [port for text in request.publish for port in parse_publish(text)]
    if request.publish_all:
        ports += [port for text in (*request.expose, *exposed) for port in parse_publish(text)]
    if mode not in ("", "private", "none", "host", "container", "ns", "pasta", "slirp4netns"):
        raise RunError(
            f"--network {request.network}: unknown network",
            "expected private, none, host or container:NAME",
        )
    if ":" in request.network and mode not in ("container", "ns"):
        raise RunError(f"--network {request.network}: {mode} takes no options", f"--network {mode}")
    if ports and mode in ("none", "host", "container", "ns"):
        raise RunError(f"--publish does nothing with --network {mode}", "leave one of them out")
    if mode in ("none", "host", "container", "ns"):
        return NetworkPlan(mode={"ns": "path"}.get(mode, mode), dns=request.dns)
    kind, path = find_helper()
    if mode in ("pasta", "slirp4netns"):
        kind, path = mode, find_program(mode)
    if not path:
        if mode or ports or request.net_rate:
            raise RunError("a private network needs pasta or slirp4netns: none is here", _INSTALL)
        note = "no network: neither pasta nor slirp4netns is installed"
        return NetworkPlan(mode="none", note=note)
    tun = "" if os.access("/dev/net/tun", os.R_OK | os.W_OK) else _why_no_tun()
    if tun:
        if mode or ports or request.net_rate:
            raise RunError(f"a private network needs /dev/net/tun: {tun}", _TUN)
        return NetworkPlan(mode="none", note=f"no network: /dev/net/tun: {tun}")
    rate = _rate(request.net_rate) if request.net_rate else 0
    checked = tuple((a, p, _free_port(a, p, outside), i) for a, p, outside, i in ports)
    return NetworkPlan(
        mode="private", helper=path, helper_kind=kind, ports=checked, dns=request.dns, rate=rate
    )


def _rate(text: str) -> int:
    """Bits a second from ``10mbit``, ``500k``, ``1g`` (powers of 1000, as tc has them).

    Raises:
        RunError: not a rate.
    """
    word = text.lower().removesuffix("bit")
    factors = {"k": 1000, "m": 1_000_000, "g": 1_000_000_000}
    factor = factors.get(word[-1:], 1)
    from runtime.values import real

    number = real(word[:-1] if factor > 1 else word, "--net-rate", 0.001)
    if number * factor < 8000:
        raise RunError(f"--net-rate {text}: below 8kbit")
    return int(number * factor)


def _why_no_tun() -> str:
    return "not permitted" if os.path.exists("/dev/net/tun") else "not there"


def resolv_conf(request: RunRequest, network: NetworkPlan) -> str:
    """The container's /etc/resolv.conf: the host's servers as they can be reached from inside."""
    servers = list(request.dns)
    others = []
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                words = line.split()
                if len(words) >= 2 and words[0] == "nameserver":
                    local = words[1].startswith("127.") or words[1] == "::1"
                    if not request.dns and (network.mode in ("host", "container") or not local):
                        servers.append(words[1])
                elif words and words[0] in ("search", "options", "domain"):
                    others.append(line.strip())
    except OSError:
        pass
    if network.helper_kind == "slirp4netns" and not request.dns:
        servers.insert(0, "10.0.2.3")
    if not servers and network.helper_kind == "pasta":
        servers = [_DNS_FORWARD]
    if request.dns_search:
        others = [line for line in others if not line.startswith(("search", "domain"))]
        others.append(f"search {' '.join(request.dns_search)}")
    if request.dns_option:
        others.append(f"options {' '.join(request.dns_option)}")
    return "".join(f"nameserver {server}\n" for server in servers) + "".join(
        f"{line}\n" for line in others
    )


_DNS_FORWARD = "169.254.1.1"


def hosts(request: RunRequest, hostname: str, network: NetworkPlan) -> str:
    """The container's /etc/hosts.

    Raises:
        RunError: an --add-host that is not understood.
    """
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    for word in request.add_host:
        name, colon, address = word.partition(":")
        if not colon or not name or not is_address(address.strip("[]")):
            raise RunError(f"--add-host {word}: not NAME:ADDRESS")
        lines.append(f"{address.strip('[]')} {name}")
    own = {"slirp4netns": "10.0.2.100"}.get(network.helper_kind, "127.0.1.1")
    lines.append(f"{own} {hostname}")
    return "\n".join(lines) + "\n"


class Helper:
    """A running helper; it ends when ``stop`` is called.

    After a supervisor that was killed slirp4netns ends by itself, pasta by ``removal.kill_left``.
    """

    def __init__(self, pid: int, exit_fd: int = -1) -> None:
        self.pid = pid
        self.exit_fd = exit_fd

    def stop(self) -> None:
        """End it and wait for it."""
        import signal

        if self.exit_fd >= 0:
            os.close(self.exit_fd)
            self.exit_fd = -1
        try:
            os.kill(self.pid, signal.SIGTERM)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def start(network: NetworkPlan, namespaces: dict[str, int], directory: str) -> Helper | None:
    """Join a network namespace to the host; ready when this returns.

    ``namespaces`` holds descriptors of ``user`` and ``net``: the container's first process
    cannot be looked into.

    Raises:
        RunError: the helper fails.
    """
    if network.mode != "private":
        return None
    anchor, places = _anchor(namespaces)
    try:
        if network.helper_kind == "pasta":
            helper = _start_pasta(network, places, directory)
        else:
            helper = _start_slirp(network, places, directory)
        if network.rate:
            try:
                _limit_rate(network.rate, namespaces)
            except BaseException:
                helper.stop()
                raise
        return helper
    finally:
        os.kill(anchor, 9)
        os.waitpid(anchor, 0)


def _limit_rate(rate: int, namespaces: dict[str, int]) -> None:
    """``--net-rate``: what leaves is shaped, what arrives beyond it is dropped (tc(8)).

    Raises:
        RunError: tc is not installed, or the kernel lacks what it needs.
    """
    from runtime.sys import calls

    program = find_program("tc")
    if not program:
        raise RunError("--net-rate needs tc", "apt-get install iproute2")
    burst = str(max(rate // 8 // 50, 16 << 10))
    read, write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            import _socket

            if "user" in namespaces:
                calls.setns(namespaces["user"], calls.CLONE_NEWUSER)
            calls.setns(namespaces["net"], calls.CLONE_NEWNET)
            for _, device in _socket.if_nameindex():
                if device == "lo":
                    continue
                for words in _rate_commands(device, rate, burst):
                    actions = [(os.POSIX_SPAWN_DUP2, write, 2)]
                    tc = os.posix_spawn(
                        program, ["tc", *words], os.environ, file_actions=actions,
                        setsigdef=_SIGNALS,
                    )  # fmt: skip
                    if os.waitpid(tc, 0)[1]:
                        os._exit(1)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    with open(read, encoding="utf-8", errors="replace") as told:
        said = told.read().strip()
    if os.waitpid(pid, 0)[1]:
        raise RunError(f"--net-rate: tc: {said.partition(chr(10))[0] or 'failed'}")


def _rate_commands(device: str, rate: int, burst: str) -> list[list[str]]:
    speed = f"{rate}bit"
    return [
        ["qdisc", "add", "dev", device, "root", "tbf", "rate", speed, "burst", burst, "latency",
         "50ms"],
        ["qdisc", "add", "dev", device, "handle", "ffff:", "ingress"],
        ["filter", "add", "dev", device, "parent", "ffff:", "protocol", "all", "u32", "match",
         "u32", "0", "0", "police", "rate", speed, "burst", burst, "drop", "flowid", ":1"],
    ]  # fmt: skip


def _anchor(namespaces: dict[str, int]) -> tuple[int, dict[str, str]]:
    """A process in the container's namespaces whose /proc a helper may use, and the paths there.

    It lives until the helper has joined, before the container's command is executed: nobody in
    the container can get at it. Helpers join the user namespace first, and cannot look at a
    process outside of it any more.
    """
    from runtime.sys import calls

    read, write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            if "user" in namespaces:
                calls.setns(namespaces["user"], calls.CLONE_NEWUSER)
            calls.setns(namespaces["net"], calls.CLONE_NEWNET)
            calls.set_dumpable(True)
            os.write(write, b"1")
            os.close(write)
            import signal

            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(write)
    ready = os.read(read, 1)
    os.close(read)
    if not ready:
        os.waitpid(pid, 0)
        raise RunError("the container's network namespace cannot be entered")
    return pid, {name: f"/proc/{pid}/ns/{name}" for name in ("user", "net")}


def _start_pasta(network: NetworkPlan, places: dict[str, str], directory: str) -> Helper:
    pid_file = f"{directory}/pasta.pid"
    words = ["pasta", "--config-net", "--quiet", "-P", pid_file, "-T", "none", "-U", "none"]
    if network.dns == () and _only_local_dns():
        words += ["--dns-forward", _DNS_FORWARD]
    for flag, protocol in (("-t", "tcp"), ("-u", "udp")):
        chosen = [port for port in network.ports if port[1] == protocol]
        for address, _, outside, inside in chosen:
            words += [flag, (f"{address}/" if address else "") + f"{outside}:{inside}"]
        if not chosen:
            words += [flag, "none"]
    if os.geteuid() == 0:
        words += ["--runas", "0"]
    words += ["--userns", places["user"], "--netns", places["net"]]
    code, said = _run(network.helper, words)
    if code:
        raise RunError(f"pasta: {said or f'exit status {code}'}", "see: man pasta")
    with open(pid_file, encoding="ascii") as file:
        return Helper(int(file.read()))


def _only_local_dns() -> bool:
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as lines:
            servers = [line.split()[1] for line in lines if line.startswith("nameserver ")]
    except (OSError, IndexError):
        return True
    return all(server.startswith("127.") or server == "::1" for server in servers)


def _run(program: str, words: list[str]) -> tuple[int, str]:
    """Run a helper that goes to the background when it is ready; its status and last words."""
    read, write = os.pipe2(os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    actions = [
        (os.POSIX_SPAWN_DUP2, null, 0),
        (os.POSIX_SPAWN_DUP2, null, 1),
        (os.POSIX_SPAWN_DUP2, write, 2),
    ]
    pid = os.posix_spawn(program, words, os.environ, file_actions=actions, setsigdef=_SIGNALS)
    os.close(write)
    os.close(null)
    status = os.waitpid(pid, 0)[1]
    os.set_blocking(read, False)
    try:
        said = os.read(read, 1 << 16).decode(errors="replace").strip()
    except BlockingIOError:
        said = ""
    os.close(read)
    return os.waitstatus_to_exitcode(status), said.rpartition("\n")[2]


def _start_slirp(network: NetworkPlan, places: dict[str, str], directory: str) -> Helper:
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    exit_read, exit_write = os.pipe2(os.O_CLOEXEC)
    err_read, err_write = os.pipe2(os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    # By descriptor: the name of a socket has 108 bytes at most (unix(7)).
    place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    words = [
        "slirp4netns", "--configure", "--mtu=65520", "--disable-host-loopback", "--enable-ipv6",
        "--ready-fd=3", "--exit-fd=4", f"--userns-path={places['user']}",
        "--api-socket=/proc/self/fd/5/slirp.sock", "--netns-type=path", places["net"], "tap0",
    ]  # fmt: skip
    # Sources are numbered above their targets, or duplicating one would overwrite another.
    high = [_above(fd) for fd in (ready_write, exit_read, err_write, null, place)]
    actions = [
        (os.POSIX_SPAWN_DUP2, high[3], 0),
        (os.POSIX_SPAWN_DUP2, high[3], 1),
        (os.POSIX_SPAWN_DUP2, high[2], 2),
        (os.POSIX_SPAWN_DUP2, high[0], 3),
        (os.POSIX_SPAWN_DUP2, high[1], 4),
        (os.POSIX_SPAWN_DUP2, high[4], 5),
    ]
    helper = os.posix_spawn(
        network.helper, words, os.environ, file_actions=actions, setsigdef=_SIGNALS
    )
    for fd in (ready_write, exit_read, err_write, null, *high):
        os.close(fd)
    told = os.read(ready_read, 1)
    os.close(ready_read)
    if not told:
        said = os.read(err_read, 1 << 16).decode(errors="replace").strip()
        os.close(err_read)
        os.close(exit_write)
        os.close(place)
        os.waitpid(helper, 0)
        raise RunError(f"slirp4netns: {said.rpartition(chr(10))[2]}")
    os.close(err_read)
    started = Helper(helper, exit_write)
    try:
        for port in network.ports:
            _forward(f"/proc/self/fd/{place}/slirp.sock", port)
    except BaseException:
        started.stop()
        raise
    finally:
        os.close(place)
    return started


def _above(fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)


def _forward(api: str, port: Port) -> None:
    import _socket

    from runtime import jsonio

    address, protocol, outside, inside = port
    command = {
        "execute": "add_hostfwd",
        "arguments": {
            "proto": protocol,
            "host_addr": address or "0.0.0.0",
            "host_port": outside,
            "guest_port": inside,
        },
    }
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0)
    try:
        sock.connect(api)
        sock.sendall(jsonio.dumps(command).encode())
        sock.shutdown(_socket.SHUT_WR)
        answer = jsonio.loads(sock.recv(1 << 16))
    finally:
        sock.close()
    if "error" in answer:
        said = answer["error"].get("desc", "failed")
        raise RunError(f"port {outside}/{protocol}: slirp4netns: {said}")
