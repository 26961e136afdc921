"""How long a guest may leave a watch event unread before xenstored drops it.

A guest that does not read holds memory, and requests of whoever caused the events. So events
that wait longer than `--timeout watch-event=` go, but for one that is partly in the ring;
replies stay (xenstored's check_event_timeout). Nothing is noted of a message that is sent at
once: the transport says what is left after each service.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import lib

if TYPE_CHECKING:
    from xenpv.store.connection import Connection
    from xenpv.store.outbox import Message

XS_WATCH_EVENT: Final[int] = lib.XS_WATCH_EVENT
NEVER: Final = 0  # the deadline of replies that outlived the events around them


class Backlog:
    """Since when the messages at the front of one output wait: cohorts [deadline_ns, count].

    The output's first `noted` messages are those of the cohorts, in order; the cohorts are
    never more than these.
    """

    __slots__ = ("cohorts", "noted")

    def __init__(self) -> None:
        self.cohorts: list[list[int]] = []
        self.noted = 0

    def note(self, waiting: int, deadline_ns: int) -> None:
        """`waiting` messages are unsent; those not noted yet have until `deadline_ns`."""
        if waiting > self.noted:
            self.cohorts.append([deadline_ns, waiting - self.noted])
            self.noted = waiting

    def left(self, count: int) -> None:
        """`count` messages at the front are sent."""
        self.noted = max(0, self.noted - count)
        cohorts = self.cohorts
        gone = 0
        for cohort in cohorts:
            taken = min(count, cohort[1])
            cohort[1] -= taken
            count -= taken
            if cohort[1]:
                break
            gone += 1
        del cohorts[:gone]

    def next_ns(self) -> int | None:
        """The first deadline, None if nothing waits for one."""
        return next((deadline for deadline, _ in self.cohorts if deadline != NEVER), None)

    def due(self, now_ns: int) -> int:
        """How many messages at the front have waited as long as they may."""
        count = 0
        for deadline, size in self.cohorts:
            if deadline > now_ns:
                break
            count += size
        return count

    def settle(self, due: int, kept: int) -> None:
        """Of the `due` messages `kept` are still there; they have no deadline any more."""
        self.left(due)
        self.noted += kept
        if kept:
            self.cohorts.insert(0, [NEVER, kept])


def expire(conn: Connection, now_ns: int) -> int | None:
    """Drops the events whose time is over, with what they hold; the next deadline, if any."""
    backlog = conn.waiting
    due = backlog.due(now_ns)
    if not due:
        return backlog.next_ns()
    old = [conn.output.popleft() for _ in range(due)]
    kept: list[Message] = []
    dropped: list[Message] = []
    for message in old:
        partly = message is old[0] and conn.is_partly_sent
        is_event = message[0][0] == XS_WATCH_EVENT
        (dropped if is_event and not partly else kept).append(message)
    conn.output.extendleft(reversed(kept))
    backlog.settle(due, len(kept))
    conn.dropped(dropped)
    return backlog.next_ns()
