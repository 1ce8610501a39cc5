"""A start that a supervisor is given."""

from __future__ import annotations

import os

from runtime import launch, state
from runtime.channel import Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.console import Invitation
    from runtime.launch import Started
    from runtime.plan import Plan


class Attached:
    """The supervisor's ends of what connects it to a caller; ``source`` -1: no standard input.

    ``invitation``: the caller does not have its own ends yet.
    """

    def __init__(
        self,
        channel: Channel,
        source: int,
        out: int,
        err: int,
        invitation: Invitation | None = None,
    ) -> None:
        self.channel = channel
        self.source = source
        self.out = out
        self.err = err
        self.invitation = invitation

    def fds(self) -> list[int]:
        """The open descriptors."""
        more = self.invitation.fds() if self.invitation is not None else ()
        return [fd for fd in (self.channel.fd, self.source, self.out, self.err, *more) if fd >= 0]

    def close(self) -> None:
        """Close them all."""
        if self.invitation is not None:
            self.invitation.close()
        self.channel.close()
        for fd in (self.source, self.out, self.err):
            if fd >= 0:
                os.close(fd)


class Task:
    """A start that a supervisor is given.

    Attributes:
        program: the seccomp filter of the command.
        joins: descriptors of namespaces to enter, by type; ``outer``: the user namespace above.
        held: descriptors to keep for the container's life: its lock, its part of the store.
        first: told how the start went; None: only ``attached`` is.
        transient: a container that cannot be started is removed.
        begun: what has begun already.
    """

    def __init__(
        self,
        container: state.Container,
        plan: Plan,
        *,
        program: bytes,
        joins: dict[str, int],
        held: list[int],
        transient: bool,
        begun: Started | None,
    ) -> None:
        self.container = container
        self.plan = plan
        self.program = program
        self.joins = joins
        self.held = held
        self.first: Channel | None = None
        self.attached: Attached | None = None
        self.transient = transient
        self.begun = begun

    def close(self) -> None:
        """Close what the supervisor has been given, here."""
        for fd in (*self.held, *self.joins.values()):
            os.close(fd)
        if self.begun is not None:
            launch.abort(self.begun)
        if self.first is not None:
            self.first.close()
        if self.attached is not None:
            self.attached.close()
