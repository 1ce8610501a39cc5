"""A start that a supervisor is given, and how it gets to one that was forked before."""

from __future__ import annotations

import _socket
import os

from runtime import state
from runtime.channel import Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.plan import Plan


class Attached:
    """The supervisor's ends of what connects it to a caller; ``source`` -1: no standard input."""

    def __init__(self, channel: Channel, source: int, out: int, err: int) -> None:
        self.channel = channel
        self.source = source
        self.out = out
        self.err = err

    def fds(self) -> list[int]:
        """The open descriptors."""
        return [fd for fd in (self.channel.fd, self.source, self.out, self.err) if fd >= 0]

    def close(self) -> None:
        """Close them all."""
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
        first: told how the start went.
        transient: a container that cannot be started is removed.
    """

    def __init__(
        self,
        container: state.Container,
        plan: Plan,
        *,
        program: bytes,
        joins: dict[str, int],
        held: list[int],
        first: Channel,
        attached: Attached | None,
        transient: bool,
    ) -> None:
        self.container = container
        self.plan = plan
        self.program = program
        self.joins = joins
        self.held = held
        self.first = first
        self.attached = attached
        self.transient = transient

    def to_message(self) -> tuple[dict[str, Any], list[int]]:
        """Plain data and descriptors, for a supervisor that was forked before."""
        attached = self.attached
        data = {
            "root": self.container.root,
            "id": self.container.id,
            "plan": self.plan,
            "program": self.program,
            "held": len(self.held),
            "attached": attached is not None,
            "source": attached is not None and attached.source >= 0,
            "joins": tuple(self.joins),
        }
        fds = [self.first.fd, *(attached.fds() if attached is not None else ()), *self.held]
        return data, [*fds, *self.joins.values()]

    @classmethod
    def from_message(cls, data: dict[str, Any], fds: list[int]) -> Task:
        """What ``to_message`` gave."""
        rest = iter(fds)

        def channel() -> Channel:
            return Channel(_socket.socket(fileno=next(rest)))

        first = channel()
        attached = None
        if data["attached"]:
            words = channel()
            source = next(rest) if data["source"] else -1
            attached = Attached(words, source, next(rest), next(rest))
        held = [next(rest) for _ in range(data["held"])]
        return cls(
            state.Container(data["root"], data["id"]),
            data["plan"],
            program=data["program"],
            joins=dict(zip(data["joins"], rest, strict=True)),
            held=held,
            first=first,
            attached=attached,
            transient=True,
        )

    def close(self) -> None:
        """Close what the supervisor has been given, here."""
        for fd in (*self.held, *self.joins.values()):
            os.close(fd)
        self.first.close()
        if self.attached is not None:
            self.attached.close()
