"""fsck."""

from __future__ import annotations

import argparse
import sys

from cowstore.cli.commands import is_quiet, open_store, wants_json
from cowstore.cli.output import dump, progress
from cowstore.errors import StoreError
from cowstore.fsck import check
from cowstore.repair import repair
from unionfs.errors import printable


def _parser(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Exit code 0: nothing wrong, or all repaired; 1: problems remain."
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--full", action="store_true", help="read every byte")
    how.add_argument(
        "--sample", action="store_true", help="read the part that was not read for longest"
    )
    parser.add_argument(
        "--repair", action="store_true", help="mend from kept blobs or the registry"
    )
    parser.add_argument(
        "--insecure", action="store_true", help="repairs may use plain HTTP (see cowstore-import)"
    )


def _fsck(arguments: argparse.Namespace) -> int:
    with open_store(arguments) as store:
        if arguments.repair and store.layout.read_only:
            raise StoreError("a store that is only read cannot be repaired")
        findings = check(
            store,
            full=arguments.full,
            sample=arguments.sample,
            progress=progress(quiet=is_quiet(arguments)),
        )
        done = repair(store, findings, insecure=arguments.insecure) if arguments.repair else {}
    if wants_json(arguments):
        dump(
            [
                {"code": f.code, "subject": f.subject, "text": f.text, "repaired": done.get(f)}
                for f in findings
            ]
        )
    else:
        for finding in findings:
            said = f" [{done[finding]}]" if finding in done else ""
            line = f"{finding.code} {finding.subject}: {finding.text}{said}"
            sys.stdout.write(f"{printable(line)}\n")
        if not findings and not is_quiet(arguments):
            sys.stdout.write("nothing wrong\n")
    return 1 if any(finding not in done for finding in findings) else 0


PARSERS = {"fsck": _parser}
RUN = {"fsck": _fsck}
