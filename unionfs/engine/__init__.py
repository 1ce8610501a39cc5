"""Engines carry requests of the kernel to :class:`unionfs.ops.Ops` and back."""
