"""What a command line of ``run`` or ``create`` asks for, before anything is looked up.

Fields are named after their options; sizes, durations and signals are still
words. A request is stored with its container, so that ``start`` plans anew.
"""

from __future__ import annotations

from runtime.errors import RunError
from unionfs.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime import state


class RunRequest(Record):
    """One container as it was asked for."""

    image: str = ""
    command: tuple[str, ...] = ()
    rootfs: str = ""
    name: str = ""
    # how it runs
    interactive: bool = False
    tty: bool = False
    detach: bool = False
    detach_keys: str = "ctrl-p,ctrl-q"
    rm: bool = False
    init: bool = True
    entrypoint: str | None = None
    env: tuple[str, ...] = ()
    env_file: tuple[str, ...] = ()
    unsetenv: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    group_add: tuple[str, ...] = ()
    umask: str = ""
    hostname: str = ""
    domainname: str = ""
    label: tuple[str, ...] = ()
    label_file: tuple[str, ...] = ()
    annotation: tuple[str, ...] = ()
    stop_signal: str = ""
    stop_timeout: str = "10"
    restart: str = "no"
    pid_file: str = ""
    cidfile: str = ""
    pull: str = "missing"
    platform: str = ""
    attach: tuple[str, ...] = ()
    log_driver: str = ""
    log_opt: tuple[str, ...] = ()
    sig_proxy: bool = True
    # root filesystem
    storage: str = "auto"
    storage_opt: tuple[str, ...] = ()
    read_only: bool = False
    tmpfs: tuple[str, ...] = ()
    volume: tuple[str, ...] = ()
    mount: tuple[str, ...] = ()
    volumes_from: tuple[str, ...] = ()
    device: tuple[str, ...] = ()
    shm_size: str = "64m"
    # namespaces and ids
    userns: str = ""
    pid: str = ""
    ipc: str = ""
    uts: str = ""
    cgroupns: str = ""
    network: str = ""
    time_offset: tuple[str, ...] = ()
    # network
    publish: tuple[str, ...] = ()
    publish_all: bool = False
    add_host: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_option: tuple[str, ...] = ()
    no_hosts: bool = False
    net_rate: str = ""
    expose: tuple[str, ...] = ()
    # lock-down
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    privileged: bool = False
    security_opt: tuple[str, ...] = ()
    landlock: tuple[str, ...] = ()
    sysctl: tuple[str, ...] = ()
    ulimit: tuple[str, ...] = ()
    oom_score_adj: str = ""
    # limits
    limits: str = "strict"
    cgroup_parent: str = ""
    cpus: str = ""
    cpu_shares: str = ""
    cpu_period: str = ""
    cpu_quota: str = ""
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    memory: str = ""
    memory_swap: str = ""
    memory_reservation: str = ""
    pids_limit: str = ""
    blkio_weight: str = ""
    device_read_bps: tuple[str, ...] = ()
    device_write_bps: tuple[str, ...] = ()
    device_read_iops: tuple[str, ...] = ()
    device_write_iops: tuple[str, ...] = ()
    hugetlb: tuple[str, ...] = ()
    device_cgroup_rule: tuple[str, ...] = ()
    # health
    health_cmd: str = ""
    health_interval: str | None = None
    health_timeout: str | None = None
    health_retries: str | None = None
    health_start_period: str | None = None
    no_healthcheck: bool = False
    dry_run: bool = False
    json: bool = False


def stored_request(container: state.Container) -> RunRequest:
    """The request that a container was made by.

    Raises:
        RunError: config.json cannot be read.
    """
    try:
        return RunRequest.from_data(container.config.get("request", {}))
    except TypeError as error:
        raise RunError(f"{container.path('config.json')}: {error}") from None
