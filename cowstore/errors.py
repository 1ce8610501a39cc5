"""What goes wrong in the store, told in one line."""

from __future__ import annotations

from unionfs.errors import UserError


class StoreError(UserError):
    """A mistake of the caller, or of what was handed in; ``hint`` says what may help."""


class NotFound(StoreError):
    """No image, layer or snapshot of that name."""


class Refused(StoreError):
    """An archive that breaks the rules, on purpose or not; nothing of it was kept."""


class Damaged(StoreError):
    """The store itself does not hold what it promised; ``cowstore fsck`` says more."""
