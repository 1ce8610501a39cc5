"""``python -m cowstore``."""

import sys

from cowstore.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
