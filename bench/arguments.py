"""The options of ``pyunion bench``; every ``pyunion`` imports this, so it imports little."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options; ``pyunion`` and ``python -m bench`` share them."""
    parser.add_argument("--quick", action="store_true", help="the main rows, under three minutes")
    parser.add_argument(
        "--size",
        choices=("tiny", "quick", "full"),
        help="how much work a row does; tiny is a trial, its figures say nothing",
    )
    parser.add_argument("--only", metavar="ROW,...", help="only these rows or workloads (patterns)")
    parser.add_argument(
        "--kind", metavar="KIND,...", help="only rows of these kinds: filesystem, image, container"
    )
    parser.add_argument("--rounds", metavar="N", type=int, help="how often each is measured")
    parser.add_argument("--peers", metavar="NAME,...", help="only these peers (patterns)")
    parser.add_argument(
        "--peer",
        metavar="NAME=COMMAND",
        action="append",
        default=[],
        help="one more peer; {lower} {upper} {work} {mnt} in COMMAND are filled in",
    )
    parser.add_argument(
        "--user", metavar="NAME", help="as root: who does what an ordinary user is to do"
    )
    parser.add_argument("--userns", action="store_true", help="mount in a user namespace")
    parser.add_argument(
        "--no-drop-caches", action="store_true", help="leave the kernel's caches alone"
    )
    parser.add_argument("--work", metavar="DIR", help="measure on this filesystem (/var/tmp)")
    parser.add_argument(
        "--archive", metavar="FILE", help="tar of a Debian root to work with (made if not given)"
    )
    parser.add_argument("--output", metavar="DIR", help="where the report goes")
    parser.add_argument("--json", action="store_true", help="print JSON lines, not a table")
    parser.add_argument("--list", action="store_true", help="print peers and rows, measure nothing")
    parser.add_argument(
        "--compare",
        metavar=("OLD", "NEW"),
        nargs=2,
        help="compare two earlier runs; exit code 1 if the newer is slower beyond noise",
    )
