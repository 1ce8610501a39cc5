"""``python -m bench``, the same as ``pyunion bench``."""

import sys

from bench.main import main

sys.exit(main())
