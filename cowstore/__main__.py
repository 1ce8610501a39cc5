"""``python -m cowstore``."""

from cowstore.cli.main import program

if __name__ == "__main__":
    program()
