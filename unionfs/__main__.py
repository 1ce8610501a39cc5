"""``python -m unionfs`` is ``pyunion``."""

import sys

from unionfs import codecache

codecache.use()
from unionfs.cli.main import main  # noqa: E402

sys.exit(main())
