"""Words of ``run`` and ``create`` that would otherwise be found wrong late, or never."""

from __future__ import annotations

from runtime.errors import RunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.request import RunRequest

_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")
_HOST_MAX = 64


def check(request: RunRequest) -> None:
    """Every word whose form alone can be told.

    Raises:
        RunError: the first that is not understood.
    """
    for option, host in (("hostname", request.hostname), ("domainname", request.domainname)):
        if host and not is_host_name(host):
            raise RunError(f"--{option} {host}: not a host name", "letters, digits, - _ and .")
    _check_names(request)
    _check_network(request)
    _check_health(request)
    if request.shm_size:
        from runtime.values import size

        if size(request.shm_size, "--shm-size") < 4096:
            raise RunError(f"--shm-size {request.shm_size}: less than a page", "for example 64m")
    if ".." in request.cgroup_parent.split("/"):
        raise RunError(f"--cgroup-parent {request.cgroup_parent}: leads out of its place")
    for word in request.log_opt:
        from runtime.values import size

        key, _, value = word.partition("=")
        if key != "max-size":
            raise RunError(f"--log-opt {word}: unknown", "max-size=SIZE")
        size(value, "--log-opt max-size")
    for option, text in (
        ("cpuset-cpus", request.cpuset_cpus),
        ("cpuset-mems", request.cpuset_mems),
    ):
        if text and not is_number_list(text):
            raise RunError(f"--{option} {text}: not a list", "for example 0-2,4")
    for word in request.landlock:
        kind, _, path = word.partition(":")
        known = kind in ("ro", "rw", "exec") and path.startswith("/")
        if not known and word not in ("net", "signals", "abstract"):
            raise RunError(
                f"--landlock {word}: not understood",
                "ro:PATH, rw:PATH, exec:PATH, net, signals, abstract",
            )


def is_host_name(text: str) -> bool:
    """Up to 64 letters, digits, ``-``, ``_`` and ``.``, the first and last a letter or digit."""
    return (
        0 < len(text) <= _HOST_MAX
        and set(text) <= _NAME
        and text[0].isalnum()
        and text[-1].isalnum()
        and ".." not in text
    )


def is_number_list(text: str) -> bool:
    """``0-2,4`` (cpuset(7), "List format")."""
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            return False
        if dash and int(last) < int(first):
            return False
    return True


def _check_names(request: RunRequest) -> None:
    for option, words in (("env", request.env), ("label", request.label)):
        for word in words:
            if word[:1] in ("", "="):
                raise RunError(f"--{option} {word or repr(word)}: no name", "NAME=VALUE")
    for word in request.unsetenv:
        if not word or "=" in word:
            raise RunError(f"--unsetenv {word or repr(word)}: not a name")
    if request.user:
        _, colon, group = request.user.partition(":")
        if (colon and not group) or ":" in group or any(c.isspace() for c in request.user):
            raise RunError(f"--user {request.user}: not understood", "USER[:GROUP]")
    for word in request.group_add:
        if not word or ":" in word or any(c.isspace() for c in word):
            raise RunError(f"--group-add {word or repr(word)}: not a group", "a name or a number")
    if request.platform and request.platform.count("/") not in (1, 2):
        raise RunError(f"--platform {request.platform}: not understood", "for example linux/arm64")
    if request.pull not in ("missing", "always", "never", "newer"):
        raise RunError(f"--pull {request.pull}: unknown", "always, missing, never or newer")


def _check_network(request: RunRequest) -> None:
    from runtime.network import is_address, parse_publish

    for word in request.dns:
        if not is_address(word):
            raise RunError(f"--dns {word}: not an address", "for example 9.9.9.9")
    for word in request.dns_search:
        if word != "." and not is_host_name(word):
            raise RunError(f"--dns-search {word}: not a domain")
    for word in request.dns_option:
        if not word or any(c.isspace() for c in word):
            raise RunError(
                f"--dns-option {word or repr(word)}: not one word", "for example ndots:2"
            )
    for word in request.add_host:
        name, colon, address = word.partition(":")
        if not colon or not is_host_name(name) or not is_address(address.strip("[]")):
            raise RunError(f"--add-host {word}: not NAME:ADDRESS", "for example db:10.0.0.5")
    for word in request.expose:
        parse_publish(word)
    mode = request.network.partition(":")[0]
    if request.net_rate and mode in ("none", "host", "container", "ns"):
        raise RunError(f"--net-rate does nothing with --network {mode}", "leave one of them out")


def _check_health(request: RunRequest) -> None:
    from runtime.values import duration, integer

    for option in ("interval", "timeout", "start_period"):
        text = getattr(request, f"health_{option}")
        if text is not None:
            duration(text, f"--health-{option.replace('_', '-')}")
    if request.health_retries is not None:
        integer(request.health_retries, "--health-retries", 1, 1000)
