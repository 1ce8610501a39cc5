"""The command line of pyrun: parsing, and the one place where errors become exit codes."""
