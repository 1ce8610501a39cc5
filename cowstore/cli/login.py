"""login, logout."""

from __future__ import annotations

import argparse
import sys

from cowstore.cli.commands import is_quiet
from cowstore.errors import StoreError


def _host(text: str) -> str:
    from cowstore.reference import check_registry

    return check_registry(text)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("host", metavar="REGISTRY", type=_host)
    parser.add_argument(
        "--authfile", metavar="FILE", help="where they are kept; default: where podman keeps them"
    )


def _login_parser(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "The password is asked for on a terminal, or read with --password-stdin."
    _options(parser)
    parser.add_argument("-u", "--username", metavar="USER", help="default: asked for")
    parser.add_argument(
        "--password-stdin", action="store_true", help="read the password from standard input"
    )
    parser.add_argument(
        "--insecure", action="store_true", help="plain HTTP, or HTTPS without a known certificate"
    )


def _login(arguments: argparse.Namespace) -> int:
    from cowstore.registry.login import login

    user, password = arguments.username, ""
    if arguments.password_stdin:
        if not user:
            raise StoreError("--password-stdin needs --username")
        password = sys.stdin.readline().rstrip("\r\n")
    elif not sys.stdin.isatty():
        raise StoreError("a password is not asked for without a terminal", "--password-stdin")
    else:
        from getpass import getpass

        if not user:
            sys.stderr.write("Username: ")
            sys.stderr.flush()
            user = sys.stdin.readline().strip()
        password = getpass("Password: ")
    path = login(
        arguments.host, user, password, authfile=arguments.authfile, insecure=arguments.insecure
    )
    if not is_quiet(arguments):
        sys.stdout.write(f"kept in {path}\n")
    return 0


def _logout(arguments: argparse.Namespace) -> int:
    from cowstore.registry.login import logout

    path = logout(arguments.host, authfile=arguments.authfile)
    if not is_quiet(arguments):
        sys.stdout.write(f"removed from {path}\n")
    return 0


PARSERS = {"login": _login_parser, "logout": _options}
RUN = {"login": _login, "logout": _logout}
