"""The build: pure Python, or its hot modules compiled by mypyc where PYUNION_COMPILE=1 asks."""

import os

from setuptools import setup

#: What a request passes through. The rest runs once a mount, or relies on what mypyc cannot do.
HOT = [
    *("unionfs/sys/calls.py", "unionfs/engine/direct.py", "unionfs/engine/passthrough.py"),
    *("unionfs/engine/waiting.py", "unionfs/engine/wire.py", "unionfs/attributes.py"),
    *("unionfs/copyup.py", "unionfs/create.py", "unionfs/data.py", "unionfs/fds.py"),
    *("unionfs/formats.py", "unionfs/hardlinks.py", "unionfs/inode.py", "unionfs/layer.py"),
    *("unionfs/listing.py", "unionfs/listings.py", "unionfs/monitor.py"),
    *("unionfs/numbers.py", "unionfs/ops.py", "unionfs/prepared.py"),
    *("unionfs/remove.py", "unionfs/rename.py", "unionfs/resolve.py", "unionfs/steps.py"),
    *("unionfs/union.py", "unionfs/upper.py", "cowstore/view.py", "cowstore/viewformat.py"),
    *("cowstore/viewhash.py", "cowstore/viewlayer.py"),
]

extensions = []
if os.environ.get("PYUNION_COMPILE") == "1":
    from mypyc.build import mypycify

    # Types are checked by the project's own run of mypy; here they are only read.
    lenient = ["--config-file", os.devnull, "--ignore-missing-imports"]
    extensions = mypycify([*lenient, *HOT], opt_level="2", debug_level="0")

setup(ext_modules=extensions)
