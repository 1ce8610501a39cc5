"""pyrun: containers without a daemon, rootless, on the union filesystem.

``plan`` is the table of contents: a command line becomes a ``RunRequest``, that
an OCI configuration (``spec``), that and the host's abilities (``facts``) a
``Plan``; ``child`` carries a plan out. See docs/runtime.md.
"""
