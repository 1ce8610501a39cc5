"""``python -m cowstore``."""

from unionfs import codecache

codecache.use()
from cowstore.cli.main import program  # noqa: E402

if __name__ == "__main__":
    program()
