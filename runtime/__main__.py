"""``python -m runtime``."""

import sys

from unionfs import codecache

codecache.use()
from runtime.cli.main import main  # noqa: E402

sys.exit(main())
