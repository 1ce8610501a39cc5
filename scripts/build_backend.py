"""setuptools, and mypyc beside it where PYUNION_COMPILE=1 asks for a compiled build (PEP 517)."""

import os

from setuptools.build_meta import *  # noqa: F403


def get_requires_for_build_wheel(config_settings=None):
    """What the build needs beside setuptools, which would run setup.py to find that out."""
    return ["mypy>=1.10"] if os.environ.get("PYUNION_COMPILE") == "1" else []


get_requires_for_build_editable = get_requires_for_build_wheel
