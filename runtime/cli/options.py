"""The commands and options of pyrun as a table: parser, help, completion and manual come from it.

An option is (names, field, kind, metavar, help); kinds: ``flag`` (may be given
``=false``), ``value``, ``list`` (repeatable), ``optional`` (a value only after =).
"""

from __future__ import annotations

#: (names, field, kind, metavar, help)
Option = tuple[str, str, str, str, str]

_JSON: tuple[Option, ...] = (
    ("--json", "json", "flag", "", "print JSON"),
    ("--format", "format", "value", "TEMPLATE", "json, or a template: {{.Field}}"),
)
_QUIET: Option = ("-q --quiet", "quiet", "flag", "", "print ids only")

RUN: tuple[Option, ...] = (
    ("-i --interactive", "interactive", "flag", "", "pass standard input on"),
    ("-t --tty", "tty", "flag", "", "give it a terminal"),
    ("-d --detach", "detach", "flag", "", "run in the background and print the id"),
    ("--detach-keys", "detach_keys", "value", "KEYS", "leave it running (ctrl-p,ctrl-q)"),
    ("--rm", "rm", "flag", "", "remove the container when it ends"),
    ("--name", "name", "value", "NAME", "a name for the container"),
    ("--init", "init", "flag", "", "an init as process 1 (default; --init=false: the command)"),
    ("--dry-run", "dry_run", "flag", "", "print what would be done"),
    ("--json", "json", "flag", "", "with --dry-run: print JSON"),
    ("--rootfs", "rootfs", "value", "DIR", "a directory as root, / for the host's; no image then"),
    ("--entrypoint", "entrypoint", "value", "COMMAND", "in place of the image's; a word or JSON"),
    ("-e --env", "env", "list", "NAME[=VALUE]", "an environment variable"),
    ("--env-file", "env_file", "list", "FILE", "variables, one a line"),
    ("--unsetenv", "unsetenv", "list", "NAME", "take a variable of the image away"),
    ("-w --workdir", "workdir", "value", "DIR", "working directory"),
    ("-u --user", "user", "value", "USER[:GROUP]", "run as, by the container's names or numbers"),
    ("--group-add", "group_add", "list", "GROUP", "one more group"),
    ("--umask", "umask", "value", "OCTAL", "file mode mask (0022)"),
    ("-h --hostname", "hostname", "value", "NAME", "host name (the short id)"),
    ("--domainname", "domainname", "value", "NAME", "NIS domain name"),
    ("-l --label", "label", "list", "NAME=VALUE", "a label"),
    ("--label-file", "label_file", "list", "FILE", "labels, one a line"),
    ("--annotation", "annotation", "list", "NAME=VALUE", "an OCI annotation"),
    ("--stop-signal", "stop_signal", "value", "SIGNAL", "what stop sends first (TERM)"),
    ("--stop-timeout", "stop_timeout", "value", "SECONDS", "when stop kills (10)"),
    ("--restart", "restart", "value", "POLICY", "no, on-failure[:N], always, unless-stopped"),
    ("--pid-file --pidfile", "pid_file", "value", "FILE", "write the pid of process 1"),
    ("--cidfile", "cidfile", "value", "FILE", "write the container's id"),
    ("--pull", "pull", "value", "WHEN", "always, missing, never, newer (missing)"),
    ("--platform", "platform", "value", "OS/ARCH", "of the image to pull"),
    ("-a --attach", "attach", "list", "STREAM", "stdin, stdout, stderr"),
    ("--sig-proxy", "sig_proxy", "flag", "", "pass signals on (default)"),
    ("--log-driver", "log_driver", "value", "DRIVER", "json-file or none"),
    ("--log-opt", "log_opt", "list", "NAME=VALUE", "max-size=SIZE"),
    ("--storage", "storage", "value", "KIND", "union, kernel (overlayfs), copy; auto tries them"),
    (
        "--storage-opt",
        "storage_opt",
        "list",
        "NAME=VALUE",
        "size=SIZE and backend=tmpfs",
    ),
    ("--read-only", "read_only", "flag", "", "the root filesystem cannot be written"),
    ("--tmpfs", "tmpfs", "list", "DIR[:OPTIONS]", "a filesystem in memory"),
    ("-v --volume", "volume", "list", "SRC:DST[:OPTIONS]", "a directory of the host, or a volume"),
    ("--mount", "mount", "list", "KEY=VALUE,...", "the same in words: type= src= dst= ro"),
    ("--volumes-from", "volumes_from", "list", "CONTAINER", "the volumes of another container"),
    ("--device", "device", "list", "SRC[:DST][:rwm]", "a device of the host"),
    ("--shm-size", "shm_size", "value", "SIZE", "of /dev/shm (64m)"),
    ("--userns", "userns", "value", "MODE", "keep-id, nomap, host, auto[:size=N], single"),
    ("--pid", "pid", "value", "MODE", "private, host, container:NAME"),
    ("--ipc", "ipc", "value", "MODE", "private, host, container:NAME"),
    ("--uts", "uts", "value", "MODE", "private, host, container:NAME"),
    ("--cgroupns", "cgroupns", "value", "MODE", "private, host"),
    ("--network --net", "network", "value", "MODE", "private, none, host, container:NAME"),
    ("--time-offset", "time_offset", "list", "[CLOCK=]SECONDS", "move monotonic, boottime"),
    ("-p --publish", "publish", "list", "[HOST:][PORT:]PORT[/udp]", "publish a port or range"),
    ("-P --publish-all", "publish_all", "flag", "", "publish what the image exposes"),
    ("--expose", "expose", "list", "PORT", "one more port for --publish-all"),
    ("--add-host", "add_host", "list", "NAME:ADDRESS", "a line of /etc/hosts"),
    ("--dns", "dns", "list", "ADDRESS", "a name server"),
    ("--dns-search", "dns_search", "list", "DOMAIN", "a search domain"),
    ("--dns-option", "dns_option", "list", "OPTION", "a resolver option"),
    ("--no-hosts", "no_hosts", "flag", "", "leave the image's /etc/hosts alone"),
    ("--net-rate", "net_rate", "value", "RATE", "bits per second of the private network"),
    ("--cap-add", "cap_add", "list", "CAPABILITY", "one more capability, or ALL"),
    ("--cap-drop", "cap_drop", "list", "CAPABILITY", "one fewer, or ALL"),
    ("--privileged", "privileged", "flag", "", "all capabilities; root's own of the host"),
    ("--security-opt", "security_opt", "list", "OPTION", "seccomp=FILE|unconfined, ..."),
    ("--landlock", "landlock", "list", "RULE", "ro:PATH, rw:PATH, exec:PATH, net, signals"),
    ("--sysctl", "sysctl", "list", "NAME=VALUE", "a parameter of its namespaces"),
    ("--ulimit", "ulimit", "list", "NAME=SOFT[:HARD]", "a resource limit"),
    ("--oom-score-adj", "oom_score_adj", "value", "NUMBER", "-1000 to 1000"),
    ("--limits", "limits", "value", "HOW", "strict, or best-effort: warn only"),
    ("--cgroup-parent", "cgroup_parent", "value", "PATH", "a cgroup that is yours"),
    ("--cpus", "cpus", "value", "NUMBER", "processors, such as 1.5"),
    ("-c --cpu-shares", "cpu_shares", "value", "NUMBER", "relative weight (1024)"),
    ("--cpu-period", "cpu_period", "value", "USEC", "length of a period"),
    ("--cpu-quota", "cpu_quota", "value", "USEC", "time in a period"),
    ("--cpuset-cpus", "cpuset_cpus", "value", "LIST", "processors, such as 0-2,4"),
    ("--cpuset-mems", "cpuset_mems", "value", "LIST", "memory nodes"),
    ("-m --memory", "memory", "value", "SIZE", "most memory"),
    ("--memory-swap", "memory_swap", "value", "SIZE", "memory and swap together; -1: no limit"),
    ("--memory-reservation", "memory_reservation", "value", "SIZE", "what is kept under pressure"),
    ("--pids-limit", "pids_limit", "value", "NUMBER", "most processes; -1: no limit"),
    ("--blkio-weight", "blkio_weight", "value", "NUMBER", "10 to 1000"),
    ("--device-read-bps", "device_read_bps", "list", "DEVICE:SIZE", "bytes a second"),
    ("--device-write-bps", "device_write_bps", "list", "DEVICE:SIZE", "bytes a second"),
    ("--device-read-iops", "device_read_iops", "list", "DEVICE:NUMBER", "requests a second"),
    ("--device-write-iops", "device_write_iops", "list", "DEVICE:NUMBER", "requests a second"),
    ("--hugetlb", "hugetlb", "list", "PAGESIZE:SIZE", "most memory in huge pages"),
    ("--device-cgroup-rule", "device_cgroup_rule", "list", "RULE", "such as c 42:* rwm"),
    ("--health-cmd", "health_cmd", "value", "COMMAND", "tells whether it is well"),
    ("--health-interval", "health_interval", "value", "DURATION", "between checks (30s)"),
    ("--health-timeout", "health_timeout", "value", "DURATION", "for one check (30s)"),
    ("--health-retries", "health_retries", "value", "NUMBER", "failures until unhealthy (3)"),
    ("--health-start-period", "health_start_period", "value", "DURATION", "grace at the start"),
    ("--no-healthcheck", "no_healthcheck", "flag", "", "not the image's check either"),
)

EXEC: tuple[Option, ...] = (
    ("-i --interactive", "interactive", "flag", "", "pass standard input on"),
    ("-t --tty", "tty", "flag", "", "give it a terminal"),
    ("-d --detach", "detach", "flag", "", "leave it running in the background"),
    ("--detach-keys", "detach_keys", "value", "KEYS", "leave it running (ctrl-p,ctrl-q)"),
    ("-e --env", "env", "list", "NAME[=VALUE]", "an environment variable"),
    ("--env-file", "env_file", "list", "FILE", "variables, one a line"),
    ("-w --workdir", "workdir", "value", "DIR", "working directory"),
    ("-u --user", "user", "value", "USER[:GROUP]", "run as"),
    ("--privileged", "privileged", "flag", "", "all capabilities; root's own of the host"),
)

_UPDATE = tuple(
    option
    for option in RUN
    if option[1]
    in (
        "cpus cpu_shares cpu_period cpu_quota cpuset_cpus cpuset_mems memory memory_swap"
        " memory_reservation pids_limit blkio_weight device_read_bps device_write_bps"
        " device_read_iops device_write_iops restart limits"
    ).split()
)

#: command -> (usage of its arguments, help, options)
COMMANDS: dict[str, tuple[str, str, tuple[Option, ...]]] = {
    "run": ("[IMAGE] [COMMAND...]", "run a command in a new container", RUN),
    "create": ("[IMAGE] [COMMAND...]", "make a container without starting it", RUN),
    "start": (
        "CONTAINER...",
        "start a container that is not running",
        (
            ("-a --attach", "attach_", "flag", "", "attach to its output"),
            ("-i --interactive", "interactive", "flag", "", "attach to its input too"),
            ("--detach-keys", "detach_keys", "value", "KEYS", "leave it running"),
        ),
    ),
    "exec": ("CONTAINER COMMAND...", "run a command in a running container", EXEC),
    "attach": (
        "CONTAINER",
        "connect to a running container's streams",
        (
            ("--no-stdin", "no_stdin", "flag", "", "do not pass standard input on"),
            ("--detach-keys", "detach_keys", "value", "KEYS", "leave it running"),
            ("--sig-proxy", "sig_proxy", "flag", "", "pass signals on (default)"),
        ),
    ),
    "logs": (
        "CONTAINER",
        "what a container has said",
        (
            ("-f --follow", "follow", "flag", "", "go on until it ends"),
            ("--since", "since", "value", "TIME", "from a time, or a duration before now"),
            ("--until", "until", "value", "TIME", "up to a time"),
            ("-n --tail", "tail", "value", "LINES", "only the last lines"),
            ("-t --timestamps", "timestamps", "flag", "", "print times"),
        ),
    ),
    "ps": (
        "",
        "the running containers",
        (
            ("-a --all", "all", "flag", "", "the others too"),
            _QUIET,
            ("--no-trunc", "no_trunc", "flag", "", "whole ids and commands"),
            ("-f --filter", "filter", "list", "KEY=VALUE", "name=, id=, status=, label=, exited="),
            *_JSON,
        ),
    ),
    "top": ("CONTAINER", "the processes of a container", _JSON),
    "inspect": ("NAME...", "everything about containers, images or volumes", (
        _JSON[0],
        ("-f --format", *_JSON[1][1:]),
    )),
    "stats": (
        "[CONTAINER...]",
        "what containers use",
        (("--no-stream", "no_stream", "flag", "", "once"), *_JSON),
    ),
    "wait": ("CONTAINER...", "wait until containers have ended; print their exit statuses", ()),
    "stop": (
        "CONTAINER...",
        "stop containers: a signal, then SIGKILL",
        (
            ("-t --time", "time", "value", "SECONDS", "when to kill"),
            ("-a --all", "all", "flag", "", "every running one"),
        ),
    ),
    "kill": (
        "CONTAINER...",
        "send a signal",
        (
            ("-s --signal", "signal", "value", "SIGNAL", "which (KILL)"),
            ("-a --all", "all", "flag", "", "every running one"),
        ),
    ),
    "restart": (
        "CONTAINER...",
        "stop and start again",
        (("-t --time", "time", "value", "SECONDS", "when to kill"),),
    ),
    "pause": ("CONTAINER...", "freeze every process", ()),
    "unpause": ("CONTAINER...", "let them go on", ()),
    "rename": ("CONTAINER NAME", "give a container another name", ()),
    "rm": (
        "CONTAINER...",
        "remove containers",
        (
            ("-f --force", "force", "flag", "", "running ones too; none is no error"),
            ("-v --volumes", "volumes", "flag", "", "and their anonymous volumes"),
            ("-a --all", "all", "flag", "", "every one"),
        ),
    ),
    "update": ("CONTAINER...", "change limits of running containers", _UPDATE),
    "port": ("CONTAINER [PORT[/PROTOCOL]]", "published ports", _JSON),
    "events": (
        "",
        "what happens to containers",
        (
            ("--since", "since", "value", "TIME", "from a time"),
            ("--until", "until", "value", "TIME", "up to a time; without it: go on"),
            *_JSON,
        ),
    ),
    "cp": ("CONTAINER:PATH PATH | PATH CONTAINER:PATH", "copy files; - is a tar archive", ()),
    "diff": ("CONTAINER", "what a container has changed", _JSON),
    "commit": (
        "CONTAINER IMAGE",
        "make an image of a container's changes",
        (
            ("-a --author", "author", "value", "TEXT", "of the image"),
            ("-m --message", "message", "value", "TEXT", "of its history"),
            ("-c --change", "change", "list", "INSTRUCTION", "a Dockerfile instruction"),
            _QUIET,
        ),
    ),
    "export": (
        "CONTAINER",
        "a container's files as a tar archive",
        (("-o --output", "output", "value", "FILE", "in place of standard output"),),
    ),
    "save": (
        "IMAGE",
        "write an image to a file or to standard output",
        (
            ("-o --output", "output", "value", "FILE", "in place of standard output"),
            ("--format", "archive", "value", "KIND", "docker-archive (default) or oci-archive"),
        ),
    ),
    "load": (
        "",
        "bring in images that save has written",
        (("-i --input", "input", "value", "FILE", "in place of standard input"),),
    ),
    "import": ("FILE|- [NAME]", "make an image of a root filesystem's tar archive", ()),
    "volume": ("create|ls|rm|inspect|prune [NAME...]", "named volumes", (
        ("-f --force", "force", "flag", "", "as for other engines: nothing is asked anyway"),
        *_JSON,
    )),
    "network": ("ls", "the kinds of network that work here", _JSON),
    "info": ("", "what works on this host, and why something does not", _JSON),
    "version": ("", "versions", _JSON),
    "system": ("df|prune", "space used; remove what is not needed", (
        ("-f --force", "force", "flag", "", "do not ask"),
        ("--volumes", "volumes", "flag", "", "unused volumes too"),
        *_JSON,
    )),
    "completion": ("bash|zsh|fish", "print a completion script", ()),
    "build": ("[...]", "reserved: images are built by other tools", ()),
}  # fmt: skip

#: Passed to the store as they are, under its own names.
STORE = {
    "pull": "pull", "push": "push", "login": "login", "logout": "logout", "tag": "tag",
    "rmi": "rmi", "history": "history", "images": "images",
}  # fmt: skip

GLOBAL: tuple[Option, ...] = (
    ("--root", "root", "value", "DIR", "where containers are kept"),
    ("--debug", "debug", "flag", "", "print tracebacks"),
    ("-V --version", "version", "flag", "", "print the version"),
    ("--help", "help", "flag", "", "print this"),
)
