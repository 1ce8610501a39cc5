"""The manual pages pyrun(1) and pyrun-run(1), made from the table of commands.

``python -m runtime.cli.manual DIR`` writes them; a test holds docs/man against it.
"""

from __future__ import annotations

import sys

from runtime.cli.options import COMMANDS, GLOBAL, RUN, STORE, Option
from unionfs import __version__

_TEXT = """\
.SH DESCRIPTION
pyrun runs commands in containers, without a daemon, as any user. A container's root is an image of
the store (see cowstore(1)), a directory, or the host's own root; what it changes is kept apart by a
union filesystem (see pyunion(1)).
.PP
By default a container has namespaces of its own, eleven capabilities within them, a seccomp filter,
no way to new privileges, and a private network where pasta(1) or slirp4netns(1) is installed.
"""

_STATUS = """\
.SH EXIT STATUS
run, start \\-a, attach and exec give the command's own status, 128 + N if signal N ended it, or
.TP
125
pyrun itself failed, also create, start and restart
.TP
126
the command cannot be executed
.TP
127
the command was not found
.PP
Other commands: 0 done, 1 the caller's or the host's error, 2 a bug.
"""

_FILES = """\
.SH FILES
.TP
$XDG_DATA_HOME/pyrun, ~/.local/share/pyrun; for root outside of user namespaces /var/lib/pyrun
containers and volumes; PYRUN_ROOT or \\-\\-root name another place
.TP
/etc/subuid, /etc/subgid
the ids that a user may give to containers
.SH ENVIRONMENT
.TP
PYRUN_ROOT
where containers are kept
.TP
PYRUN_STORAGE
what \\-\\-storage auto stands for: union, kernel or copy
.TP
PYUNION_STORE
where images are kept
"""


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text


def _option(option: Option) -> str:
    names, _, kind, metavar, text = option
    shown = ", ".join(f"\\fB{_escaped(name)}\\fR" for name in names.split())
    value = f" \\fI{_escaped(metavar)}\\fR" if kind != "flag" else ""
    return f".TP\n{shown}{value}\n{_escaped(text)}\n"


def _head(name: str, about: str, usage: str) -> str:
    return (
        f'.TH {name.upper()} 1 "" "pyunion {__version__}"\n.SH NAME\n'
        f"{_escaped(name)} \\- {_escaped(about)}\n.SH SYNOPSIS\n\\fB{usage}\n"
    )


def main_page() -> str:
    """pyrun(1)."""
    parts = [
        _head("pyrun", "run commands in containers, rootless", "pyrun\\fR [\\fIOPTION\\fR...] "
              "\\fICOMMAND\\fR ..."),
        _TEXT,
        ".SH OPTIONS\n",
        *(_option(option) for option in GLOBAL),
        ".SH COMMANDS\n",
    ]  # fmt: skip
    for name, (usage, text, options) in COMMANDS.items():
        parts.append(f".SS {_escaped(name)} {_escaped(usage)}\n{_escaped(text)}\n")
        if name in ("run", "create"):
            parts.append(".PP\nSee \\fBpyrun\\-run\\fR(1) for the options.\n")
        else:
            parts += [_option(option) for option in options]
    others = ", ".join(_escaped(name) for name in sorted(STORE))
    parts.append(f".SS Images\n{others}: passed to cowstore(1).\n")
    parts += [_STATUS, _FILES, ".SH SEE ALSO\npyrun\\-run(1), pyunion(1), cowstore(1)\n"]
    return "".join(parts)


def run_page() -> str:
    """pyrun-run(1)."""
    usage = "pyrun run\\fR [\\fIOPTION\\fR...] \\fIIMAGE\\fR|\\fB\\-\\-rootfs\\fR \\fIDIR\\fR "
    return "".join(
        [
            _head("pyrun-run", "run a command in a new container", f"{usage}[\\fICOMMAND\\fR...]"),
            _TEXT,
            ".SH OPTIONS\nA flag is switched off by \\fB=false\\fR.\n",
            *(_option(option) for option in RUN),
            _STATUS,
            _FILES,
            ".SH SEE ALSO\npyrun(1)\n",
        ]
    )


def main() -> int:
    """Write both pages into the directory named."""
    for name, text in (("pyrun.1", main_page()), ("pyrun-run.1", run_page())):
        with open(f"{sys.argv[1]}/{name}", "w", encoding="utf-8") as file:
            file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
