"""Shell completion, made from an argument parser: options are written down once, there.

``describe`` turns a parser into plain data; one function a shell prints it.
What an argument takes (directories, mounted unions, mount options) is told by
its metavar, so commands need no further word to be completed well.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

#: The mount options of options.py; those that take a value end in "=".
MOUNT_WORDS: Final = {
    "lowerdir=": "lower directories, topmost first",
    "upperdir=": "directory that takes the changes",
    "workdir=": "work directory beside it",
    "ro": "refuse every change",
    "volatile": "no fsync; guarded against reuse",
    "fsync=": "0 is volatile",
    "redirect_dir=": "copy or on: how directories are renamed",
    "index=": "on: of several names, only those that change go up",
    "copyup=": "write or open: when a file opened for writing is copied up",
    "timeout=": "seconds until names are checked again",
    "writeback=": "1: let the kernel gather writes",
    "busy_poll=": "microseconds to look for a request before sleeping",
    "passthrough": "the kernel reads and writes copied-up files itself; root only",
    "noacl": "no POSIX ACLs",
    "noxattrs": "no extended attributes",
    "static_nlink": "do not count subdirectories",
    "squash_to_root": "show everything as root's",
    "squash_to_uid=": "show everything as this user's",
    "squash_to_gid=": "show everything as this group's",
    "uidmapping=": "container:host:count triples",
    "gidmapping=": "container:host:count triples",
    "xattr_permissions=": "2: keep owners and modes in attributes",
    "engine=": "auto, direct or pyfuse3",
    "suid": "honour set-user-id bits",
    "nosuid": "ignore set-user-id bits",
    "dev": "honour device files",
    "nodev": "ignore device files",
    "exec": "allow programs",
    "noexec": "run no programs",
    "atime": "record access times",
    "noatime": "do not record access times",
    "allow_other": "let other users in",
    "allow_root": "let root in",
    "fsname=": "source shown by mount(8)",
    "subtype=": "type shown by mount(8), after fuse.",
    "debug": "foreground, print requests",
}

#: What a metavar takes.
_KINDS: Final = {
    "DIR": "dir",
    "PATH": "dirs",
    "UPPER": "dir",
    "LOWER[:LOWER...]": "dirs",
    "MNT": "mount",
    "MNT|UPPER": "place",
    "FILE": "file",
    "OPTIONS": "words",
}


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its names, what its value is (None: it takes none), help."""

    names: tuple[str, ...]
    kind: str | None
    choices: tuple[str, ...]
    help: str


@dataclass(frozen=True, slots=True)
class Command:
    """One (sub)command: ``path`` is empty for the program itself."""

    path: str
    options: tuple[Option, ...]
    places: tuple[Option, ...]
    subcommands: tuple[tuple[str, str], ...]

    @property
    def function(self) -> str:
        """Its path, fit to be part of a function's name."""
        return "".join(f"_{word}" for word in self.path.replace("-", "_").split())


def describe(parser: argparse.ArgumentParser, path: str = "") -> list[Command]:
    """A parser and, after it, those of its subcommands, as data."""
    options: list[Option] = []
    places: list[Option] = []
    deeper: list[Command] = []
    subcommands: list[tuple[str, str]] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, sub in action.choices.items():
                subcommands.append((name, helps.get(name, "")))
                deeper += describe(sub, f"{path} {name}".strip())
            continue
        choices = tuple(action.choices or ())
        kind = None
        if action.nargs != 0:
            metavar = action.metavar if isinstance(action.metavar, str) else ""
            kind = "choice" if choices else _KINDS.get(metavar, "any")
        option = Option(tuple(action.option_strings), kind, choices, action.help or "")
        (options if option.names else places).append(option)
    command = Command(path, tuple(options), tuple(places), tuple(subcommands))
    return [command, *deeper]


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script of ``shell`` (bash, zsh, fish) for the program of ``parser``."""
    printers = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    return "\n".join(printers[shell](parser.prog, describe(parser))) + "\n"


# -- bash ---------------------------------------------------------------------------

_BASH_START = """\
# bash completion for {prog}

_{prog}_options() {{
    # Complete the last of the mount options in $1.
    local done=${{1%"${{1##*,}}"}} last=${{1##*,}} word
    case $last in
        lowerdir=* | upperdir=* | workdir=*)
            _{prog}_dirs "$done${{last%%=*}}=" "${{last#*=}}" ;;
        *)
            for word in {words}; do
                [[ $word == "$last"* ]] && COMPREPLY+=("$done$word")
            done
            compopt -o nospace ;;
    esac
}}

_{prog}_dirs() {{
    # Complete the last of the directories in $2, which are separated by colons and follow $1.
    local before=$1${{2%"${{2##*:}}"}} path
    while IFS= read -r path; do
        COMPREPLY+=("$before$path")
    done < <(compgen -d -- "${{2##*:}}")
    compopt -o nospace
    [[ -n $before ]] || compopt -o filenames
}}

_{prog}_mounts() {{
    local source place type rest
    while read -r source place type rest; do
        place=$(printf '%b' "$place")
        [[ $type == fuse.* && $place == "$1"* ]] && COMPREPLY+=("$place")
    done </proc/self/mounts
    compopt -o filenames
}}

_{prog}() {{
    # The shell also splits words at "=" and ":", which are part of ours.
    local line=${{COMP_LINE:0:COMP_POINT}} cur prev="" path="" word value=0
    local -a words
    read -ra words <<<"$line"
    cur=""
    [[ $line == *[[:space:]] ]] || {{ cur=${{words[-1]}}; unset "words[-1]"; }}
    COMPREPLY=()
    for word in "${{words[@]:1}}"; do
        prev=$word
        if ((value)); then value=0; continue; fi
        case "$path $word" in"""

_BASH_END = """\
    esac
    local head=${{cur%"${{cur##*[=:]}}"}}
    [[ $COMP_WORDBREAKS == *[=:]* && -n $head ]] && COMPREPLY=("${{COMPREPLY[@]#"$head"}}")
    return 0
}}

complete -F _{prog} {prog}"""


def _bash(prog: str, commands: list[Command]) -> Iterator[str]:
    yield _BASH_START.format(prog=prog, words=" ".join(MOUNT_WORDS))
    for command in commands[1:]:
        parent, _, name = command.path.rpartition(" ")
        before = shlex.quote(f"{parent} {name}")
        yield f"            {before}) path={shlex.quote(command.path)} ;;"
    for command in commands:
        names = [name for option in command.options if option.kind for name in option.names]
        if names:
            patterns = " | ".join(shlex.quote(f"{command.path} {name}") for name in names)
            yield f"            {patterns}) value=1 ;;"
    yield "        esac"
    yield "    done"
    yield '    case "$path" in'
    for command in commands:
        yield f"        {shlex.quote(command.path)})"
        yield from _bash_command(prog, command)
        yield "            ;;"
    yield _BASH_END.format(prog=prog)


def _bash_command(prog: str, command: Command) -> Iterator[str]:
    takes = [option for option in command.options if option.kind]
    indent = " " * 12
    if takes:
        yield f'{indent}if ((value)); then case "$prev" in'
        for option in takes:
            yield f"{indent}    {' | '.join(option.names)}) {_bash_value(prog, option)} ;;"
        yield f"{indent}esac"
        opening = "elif"
    else:
        opening = "if"
    names = " ".join(name for option in command.options for name in option.names)
    yield f"{indent}{opening} [[ $cur == -* ]]; then"
    yield f'{indent}    COMPREPLY=($(compgen -W {shlex.quote(names)} -- "$cur"))'
    if command.subcommands:
        words = shlex.quote(" ".join(name for name, _ in command.subcommands))
        yield f"{indent}else"
        yield f'{indent}    COMPREPLY=($(compgen -W {words} -- "$cur"))'
    elif command.places:
        yield f"{indent}else"
        yield f"{indent}    {_bash_value(prog, command.places[0])}"
    yield f"{indent}fi"


def _bash_value(prog: str, option: Option) -> str:
    match option.kind:
        case "choice":
            return f'COMPREPLY=($(compgen -W {shlex.quote(" ".join(option.choices))} -- "$cur"))'
        case "dir" | "dirs":
            return f'_{prog}_dirs "" "$cur"'
        case "mount":
            return f'_{prog}_mounts "$cur"'
        case "place":
            return f'_{prog}_mounts "$cur"; _{prog}_dirs "" "$cur"'
        case "words":
            return f'_{prog}_options "$cur"'
        case "file":
            return 'COMPREPLY=($(compgen -f -- "$cur")); compopt -o filenames'
    return ":"


# -- zsh ----------------------------------------------------------------------------


def _zsh_text(text: str) -> str:
    """Fit for the brackets of an _arguments or _values specification."""
    for char in "\\[]:":
        text = text.replace(char, f"\\{char}")
    return text


def _zsh_value(prog: str, option: Option) -> str:
    match option.kind:
        case "choice":
            return f":value:({' '.join(option.choices)})"
        case "dir":
            return ":directory:_directories"
        case "dirs":
            return ":directory:_sequence -s \\: _directories"
        case "mount":
            return f":mount point:_{prog}_mounts"
        case "place":
            return f":directory:_{prog}_places"
        case "words":
            return f":mount option:_{prog}_options"
        case "file":
            return ":file:_files"
    return ":value: "


def _zsh(prog: str, commands: list[Command]) -> Iterator[str]:
    yield f"#compdef {prog}"
    yield ""
    yield f"_{prog}_options() {{"
    yield "    _values -s , 'mount option' \\"
    for word, text in MOUNT_WORDS.items():
        name, takes, _ = word.partition("=")
        value = ":value:" if takes else ""
        if name in ("lowerdir", "upperdir", "workdir"):
            value = ":directory:_directories"
        yield f"        {shlex.quote(f'{name}[{_zsh_text(text)}]{value}')} \\"
    yield "        && return 0"
    yield "}"
    yield ""
    yield f"_{prog}_mounts() {{"
    yield "    local -a places"
    yield "    places=(${(f)\"$(awk '$3 ~ /^fuse[.]/ { print $2 }' /proc/self/mounts)\"})"
    yield "    _wanted mounts expl 'mount point' compadd -a places"
    yield "}"
    yield ""
    yield f"_{prog}_places() {{"
    yield f"    _alternative 'mounts:mount point:_{prog}_mounts' 'dirs:directory:_directories'"
    yield "}"
    for command in reversed(commands):
        yield ""
        yield from _zsh_command(prog, command)
    yield ""
    yield f'_{prog} "$@"'


def _zsh_command(prog: str, command: Command) -> Iterator[str]:
    yield f"_{prog}{command.function}() {{"
    specs = []
    for option in command.options:
        value = _zsh_value(prog, option) if option.kind else ""
        # -o may be repeated, the others exclude themselves.
        many = "*" if option.kind == "words" else ""
        alone = "" if many or len(option.names) < 2 else f"({' '.join(option.names)})"
        for name in option.names:
            specs.append(f"{alone}{many}{name}[{_zsh_text(option.help)}]{value}")
    if command.subcommands:
        yield "    local context state state_descr line"
        yield "    typeset -A opt_args"
        specs += ["1: :->command", "*:: :->arguments"]
    for place in command.places:
        specs.append(("*" if place.kind == "dirs" else "") + ":" + _zsh_value(prog, place)[1:])
    yield f"    _arguments{' -C' if command.subcommands else ''} \\"
    for spec in specs:
        yield f"        {shlex.quote(spec)} \\"
    yield "        && return 0"
    if command.subcommands:
        yield "    case $state in"
        yield "        command)"
        yield "            local -a commands"
        yield "            commands=("
        for name, text in command.subcommands:
            yield f"                {shlex.quote(f'{name}:{text}')}"
        yield "            )"
        yield "            _describe -t commands command commands ;;"
        yield "        arguments)"
        yield "            case $words[1] in"
        for name, _ in command.subcommands:
            yield f"                {name}) _{prog}{command.function}_{name.replace('-', '_')} ;;"
        yield "            esac ;;"
        yield "    esac"
    yield "}"


# -- fish ---------------------------------------------------------------------------

_FISH_START = """\
# fish completion for {prog}

function __{prog}_at
    # Whether the words before the cursor lead to the command $argv.
    set -l path ""
    set -l words (commandline -opc)
    for word in $words[2..]
        string match -q -- '-*' $word; and continue
        contains -- (string trim -- "$path $word") {paths}; or break
        set path (string trim -- "$path $word")
    end
    test "$path" = "$argv[1]"
end

function __{prog}_options
    # The last of the mount options in the current word, completed.
    set -l word (commandline -ct)
    set -l done (string replace -r '[^,]*$' '' -- $word)
    set -l last (string replace -r '^.*,' '' -- $word)
    switch $last
        case 'lowerdir=*' 'upperdir=*' 'workdir=*'
            set -l name (string replace -r '=.*' '=' -- $last)
            set -l value (string replace -r '^[^=]*=' '' -- $last)
            set -l before (string replace -r '[^:]*$' '' -- $value)
            set -l path (string replace -r '^.*:' '' -- $value)
            printf '%s\\n' $done$name$before(__fish_complete_directories $path '')
        case '*'
            for word in {words}
                echo $done$word
            end
    end
end

function __{prog}_dirs
    # The last of the directories in the current word, which are separated by colons.
    set -l before (string replace -r '[^:]*$' '' -- (commandline -ct))
    set -l path (string replace -r '^.*:' '' -- (commandline -ct))
    printf '%s\\n' $before(__fish_complete_directories $path '')
end

function __{prog}_mounts
    string replace -rf '^\\S+ (\\S+) fuse\\..*' '$1' </proc/self/mounts
end

complete -c {prog} -f"""


def _fish_value(prog: str, option: Option) -> str:
    match option.kind:
        case "choice":
            return shlex.quote(" ".join(option.choices))
        case "dir":
            return "'(__fish_complete_directories (commandline -ct))'"
        case "dirs":
            return f"'(__{prog}_dirs)'"
        case "mount":
            return f"'(__{prog}_mounts)'"
        case "place":
            return f"'(__{prog}_mounts; __fish_complete_directories (commandline -ct))'"
        case "words":
            return f"'(__{prog}_options)'"
    return ""


def _fish(prog: str, commands: list[Command]) -> Iterator[str]:
    paths = " ".join(f"'{command.path}'" for command in commands[1:])
    words = " \\\n                ".join(
        _fish_quote(f"{word}\t{text}") for word, text in MOUNT_WORDS.items()
    )
    yield _FISH_START.format(prog=prog, paths=paths, words=words)
    for command in commands:
        at = f"complete -c {prog} -n '__{prog}_at \"{command.path}\"'"
        for name, text in command.subcommands:
            yield f"{at} -a {name} -d {_fish_quote(text)}"
        for place in command.places[:1]:
            value = _fish_value(prog, place)
            if value:
                yield f"{at} -a {value}"
        for option in command.options:
            names = [
                f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
                for name in option.names
            ]
            value = ""
            if option.kind == "file":
                value = " -r -F"
            elif option.kind:
                value = f" -x -a {_fish_value(prog, option)}"
            text = f" -d {_fish_quote(option.help)}" if option.help else ""
            yield f"{at} {' '.join(names)}{value}{text}"


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
