"""The command line and the words in it."""

from __future__ import annotations

import pytest

from runtime import caps, console, jsonio, network, values, volumes
from runtime.cli import completion, options, parse
from runtime.cli.output import render
from runtime.cli.run import request_from
from runtime.errors import RunError
from runtime.request import RunRequest
from unionfs.record import Record


@pytest.mark.parametrize(
    ("text", "number"),
    [("512", 512), ("64k", 65536), ("1.5g", 3 << 29), ("2GiB", 2 << 30), ("3MB", 3 << 20),
     ("7b", 7), ("0", 0)],
)  # fmt: skip
def test_sizes(text: str, number: int) -> None:
    assert values.size(text) == number


@pytest.mark.parametrize("text", ["", "x", "1q", "-1", "1e400g", "nan", "inf", "k"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(RunError):
        values.size(text)


@pytest.mark.parametrize("text", ["²", "1²", "\u0661", "\u0663", "1_0", "½", "๒"])
def test_only_the_digits_from_0_to_9_make_numbers(text: str) -> None:
    for read in (
        lambda: values.size(f"{text}m"),
        lambda: values.duration(f"{text}s"),
        lambda: values.integer(text, "--x", 0),
        lambda: values.real(text, "--x", 0),
        lambda: values.signal_number(text),
        lambda: values.signal_number(f"RTMIN+{text}"),
        lambda: network.parse_publish(f"{text}:80"),
        lambda: network.parse_publish(f"80:{text}"),
    ):
        with pytest.raises(RunError):
            read()


def test_durations() -> None:
    assert values.duration("10") == 10
    assert values.duration("1m30s") == 90
    assert values.duration("250ms") == 0.25
    for text in ("", "x", "1y", "5 s"):
        with pytest.raises(RunError):
            values.duration(text)


def test_signals() -> None:
    assert values.signal_number("TERM") == values.signal_number("SIGTERM") == 15
    assert values.signal_number("9") == 9 and values.signal_number("rtmin+3") == 37
    assert values.signal_name(9) == "SIGKILL"
    for text in ("", "0", "65", "FOO", "RTMIN+99", "RTMINx"):
        with pytest.raises(RunError):
            values.signal_number(text)


def test_options_before_and_after_the_image() -> None:
    found, rest = parse.command_values(
        "run", ["-it", "--rm", "-e", "A=1", "--env=B", "-v/a:/b", "image", "ls", "-l", "--rm"]
    )
    assert found == {
        "interactive": True, "tty": True, "rm": True, "env": ("A=1", "B"), "volume": ("/a:/b",)
    }  # fmt: skip
    request = request_from(found, rest)
    assert request.image == "image" and request.command == ("ls", "-l", "--rm")


def test_flags_can_be_switched_off() -> None:
    assert parse.command_values("run", ["--init=false", "i"])[0] == {"init": False}
    with pytest.raises(RunError, match="true or false"):
        parse.command_values("run", ["--init=perhaps", "i"])


def test_what_is_not_known_is_named_with_what_is_near() -> None:
    with pytest.raises(RunError, match="--memry") as caught:
        parse.command_values("run", ["--memry", "1g"])
    assert caught.value.hint == "did you mean --memory?"
    with pytest.raises(RunError, match="needs a value"):
        parse.command_values("run", ["--memory"])


def test_every_option_of_run_is_a_field_of_the_request() -> None:
    fields = set(RunRequest._fields)
    assert {option[1] for option in options.RUN} <= fields
    kinds = {option[2] for command in options.COMMANDS.values() for option in command[2]}
    assert kinds <= {"flag", "value", "list"}


def test_help_and_completion_name_every_command() -> None:
    text = parse.help_text()
    for name in options.COMMANDS:
        assert f"  {name} " in text
        assert parse.help_text(name).startswith(f"usage: pyrun {name}")
    for shell in ("bash", "zsh", "fish"):
        assert "checkpoint" not in completion.script(shell)
        assert "--memory" in completion.script(shell) or "-l memory" in completion.script(shell)


def test_volumes() -> None:
    bind = volumes.parse_volume("/a:/b/../c:ro,rslave")
    assert (bind.kind, bind.source, bind.target) == ("bind", "/a", "/c")
    assert bind.options == ("ro", "rslave")
    assert volumes.parse_volume("name:/x").kind == "volume"
    assert volumes.parse_volume("/x").source == ""
    mount = volumes.parse_mount("type=bind,src=/a,dst=/b,ro")
    assert mount.options == ("ro",)
    assert "size=1048576" in volumes.parse_tmpfs("/t:size=1m").options


@pytest.mark.parametrize(
    "text", ["", ":/x", "/a:b", "/a:/", "/a:/b:bogus", "a/b:/c", "/a:/b:ro:x", "../:", "-x:/y"]
)
def test_what_is_no_volume(text: str) -> None:
    with pytest.raises(RunError):
        volumes.parse_volume(text)


@pytest.mark.parametrize(
    "text", ["type=bind,dst=/x", "type=foo,dst=/x", "dst=x", "type=bind,src=/a,dst=/b,k=v", ""]
)
def test_what_is_no_mount(text: str) -> None:
    with pytest.raises(RunError):
        volumes.parse_mount(text)


def test_ports() -> None:
    assert network.parse_publish("8080:80") == [("", "tcp", 8080, 80)]
    assert network.parse_publish("127.0.0.1:53:53/udp") == [("127.0.0.1", "udp", 53, 53)]
    assert network.parse_publish("[::1]:80:80") == [("::1", "tcp", 80, 80)]
    assert network.parse_publish("80") == [("", "tcp", 0, 80)]
    assert len(network.parse_publish("8000-8009:80-89")) == 10
    for text in ("", "0:0", "70000:1", "1:2:3:4", "x:80", "80/sctp", "1-3:1-2", "1.2.3:1:1"):
        with pytest.raises(RunError):
            network.parse_publish(text)


def test_capabilities() -> None:
    assert "CAP_CHOWN" in caps.choose((), (), False)
    assert caps.choose((), ("ALL",), False) == ()
    assert caps.choose(("net_raw",), ("all",), False) == ("CAP_NET_RAW",)
    assert len(caps.choose(("ALL",), ("SYS_ADMIN",), False)) == len(caps.NAMES) - 1
    with pytest.raises(RunError, match="NONSENSE"):
        caps.choose(("NONSENSE",), (), False)


def test_detach_keys() -> None:
    assert console.parse_keys("ctrl-p,ctrl-q") == b"\x10\x11"
    assert console.parse_keys("") == b""
    with pytest.raises(RunError):
        console.parse_keys("ctrl-pp")
    keys = console.KeyFilter(b"\x10\x11")
    assert keys.passed(b"a\x10") == b"a"
    assert keys.passed(b"b\x10\x10") == b"\x10b\x10"
    with pytest.raises(console.Detached):
        keys.passed(b"\x11")


def test_templates() -> None:
    item = {"Id": "x", "State": {"ExitCode": 3}, "exit_code": 4, "List": [1]}
    assert render("{{.Id}}-{{.State.ExitCode}}\\t{{.ExitCode}}{{json .List}}", item) == "x-3\t4[1]"
    for template in ("{{.Nothing}}", "{{Id}}", "{{.Id", "{{range .List}}"):
        with pytest.raises(RunError):
            render(template, item)


@pytest.mark.parametrize("bad", ["", "{", '{"a"', "[1,]", '{"a":1} x', "nul", '"\n"'])
def test_bad_json_is_a_value_error(bad: str) -> None:
    with pytest.raises(ValueError):
        jsonio.loads(bad)


def test_json_survives() -> None:
    value = {"a": [1, 2.5, None, True, "é\n\udc80"], "b": {"c": "d"}}
    assert jsonio.loads(jsonio.dumps(value)) == value


def test_records_are_frozen_and_compare() -> None:
    class Point(Record):
        x: int
        y: tuple[int, ...] = ()

    point = Point(x=1)
    assert point == Point(x=1) and point.replace(y=(2,)) != point
    assert Point.from_data(point.replace(y=(2,)).to_data()).y == (2,)
    with pytest.raises(AttributeError):
        point.x = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Point()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Point(x=1, z=2)  # type: ignore[call-arg]


def test_the_manual_pages_are_those_of_the_table() -> None:
    from runtime.cli import manual
    from tests.runtime.conftest import ROOT

    assert (ROOT / "docs/man/pyrun.1").read_text() == manual.main_page()
    assert (ROOT / "docs/man/pyrun-run.1").read_text() == manual.run_page()


def test_the_value_of_root_is_not_the_command() -> None:
    from runtime.cli.main import _command_of

    assert _command_of(["--root", "run", "exec", "x"]) == "exec"
    assert _command_of(["run", "--rm"]) == "run"
    assert _command_of(["--root"]) == ""


@pytest.mark.parametrize(
    "words",
    [
        {"hostname": "bad name!"}, {"hostname": "-x"}, {"hostname": "x" * 65},
        {"domainname": "a b"}, {"dns": ("foo",)}, {"dns_search": ("a b",)},
        {"dns_option": ("a\nb",)}, {"add_host": ("x",)}, {"add_host": ("x:y",)},
        {"env": ("=x",)}, {"env": ("",)}, {"label": ("=x",)}, {"unsetenv": ("a=b",)},
        {"user": "a b"}, {"user": "a:b:c"}, {"user": "a:"}, {"group_add": ("",)},
        {"platform": "amd64"}, {"pull": "often"}, {"shm_size": "x"}, {"shm_size": "1"},
        {"log_opt": ("max-size=x",)}, {"log_opt": ("x=1",)}, {"cpuset_cpus": "0-"},
        {"cpuset_cpus": "2-1"}, {"cpuset_mems": "a"}, {"landlock": ("ro:relative",)},
        {"landlock": ("all",)}, {"expose": ("x",)}, {"health_interval": "x"},
        {"health_timeout": ""}, {"health_retries": "0"}, {"health_start_period": "-1s"},
        {"storage_opt": ("size",)}, {"storage_opt": ("size=1g", "backend=disk")},
        {"storage_opt": ("backend=tmpfs",)}, {"restart": "sometimes"}, {"stop_signal": "NO"},
        {"stop_timeout": "-1"}, {"detach_keys": "ctrl-"}, {"log_driver": "syslog"},
    ],
)  # fmt: skip
def test_words_that_are_refused_before_anything_is_made(words: dict[str, object]) -> None:
    from runtime import prepare
    from runtime.request import RunRequest

    with pytest.raises(RunError) as caught:
        prepare.check(RunRequest(rootfs="/", rm=True, **words))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value).replace("a\nb", "")
