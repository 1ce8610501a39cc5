"""The ``pyunion`` command."""
