"""setuptools, and mypyc beside it where PYUNION_COMPILE=1 asks for a compiled build (PEP 517)."""

import os

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403


def get_requires_for_build_wheel(config_settings=None):
    """What the build needs beside setuptools, which would run setup.py to find that out."""
    return ["mypy>=1.10"] if os.environ.get("PYUNION_COMPILE") == "1" else []


get_requires_for_build_editable = get_requires_for_build_wheel


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """An editable install by a line of a .pth file.

    The finder that is the default imports pathlib and re whenever Python starts: 15 ms of each
    command, and of everything else in that environment.
    """
    settings = {"editable-mode": "compat", **(config_settings or {})}
    return build_meta.build_editable(wheel_directory, settings, metadata_directory)
