"""Completion scripts, made from the table of commands."""

from __future__ import annotations

from runtime.cli.options import COMMANDS, GLOBAL, STORE, Option

_NAMED = (
    "start exec attach logs top inspect stats wait stop kill restart pause unpause rename rm"
    " update port cp diff commit export"
).split()


def _words(options: tuple[Option, ...]) -> list[str]:
    return [name for option in options for name in option[0].split() if name.startswith("--")]


def _bash() -> str:
    cases = "".join(
        f"    {name}) words='{' '.join(_words(entry[2]))}' ;;\n"
        for name, entry in COMMANDS.items()
        if entry[2]
    )
    commands = " ".join([*COMMANDS, *STORE])
    return f"""\
_pyrun() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} command= word words=
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $word in -*) ;; *) command=$word; break ;; esac
    done
    if [ -z "$command" ]; then
        COMPREPLY=($(compgen -W '{commands} {" ".join(_words(GLOBAL))}' -- "$current"))
        return
    fi
    case $command in
{cases}    esac
    if [[ $current != -* ]]; then
        case $command in
        {"|".join(_NAMED)}) words="$(pyrun ps -a --format '{{{{.Name}}}}' 2>/dev/null)" ;;
        *) COMPREPLY=($(compgen -f -- "$current")); return ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -F _pyrun pyrun
"""


def _fish() -> str:
    lines = ["complete -c pyrun -f"]
    for name, (_, text, options) in COMMANDS.items():
        lines.append(f"complete -c pyrun -n __fish_use_subcommand -a {name} -d '{_quoted(text)}'")
        for names, _, kind, _, about in options:
            for word in names.split():
                flag = f"-l {word[2:]}" if word.startswith("--") else f"-s {word[1:]}"
                needs = " -r" if kind != "flag" else ""
                lines.append(
                    f"complete -c pyrun -n '__fish_seen_subcommand_from {name}' {flag}{needs}"
                    f" -d '{_quoted(about)}'"
                )
    seen = " ".join(_NAMED)
    lines.append(
        f"complete -c pyrun -n '__fish_seen_subcommand_from {seen}'"
        " -a \"(pyrun ps -a --format '{{.Name}}' 2>/dev/null)\""
    )
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


def script(shell: str) -> str:
    """The script for bash, zsh or fish."""
    if shell == "fish":
        return _fish()
    if shell == "zsh":
        return "#compdef pyrun\nautoload -U +X bashcompinit && bashcompinit\n" + _bash()
    return _bash()
