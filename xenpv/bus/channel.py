"""An open event channel of XenBus, and the waits for its count (win-xenbus evtchn.c)."""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.bus.ntstatus import NTSTATUS

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain
    from xenpv.xen.loop import Task

COUNT_MASK: Final = 0xFFFF_FFFF
COUNT_SIGN: Final = 0x8000_0000


class ChannelType(enum.IntEnum):
    """XENBUS_EVTCHN_TYPE."""

    FIXED = 1
    UNBOUND = 2
    INTER_DOMAIN = 3
    VIRQ = 4


@attrs.define(eq=False)
class Channel:
    """An open channel; `count` is its deliveries since it was opened (u32).

    `remote` is (domid, port) where it is known, `virq` a VIRQ's number: for dumps. One that a
    suspend made inactive has no port any more; its owner closes it.
    """

    port: int
    type: ChannelType
    callback: Callable[[], object]
    auto_mask: bool
    vcpu: int = 0
    active: bool = True
    count: int = 0
    remote: tuple[int, int] = (-1, 0)
    virq: int = -1


def reached(count: int, wanted: int) -> bool:
    """Whether a count is at or past another; they wrap. The driver's comparison does not."""
    return not (count - wanted) & COUNT_SIGN


@attrs.define(eq=False)
class Wait:
    """A wait for a channel's count: PENDING until it ends as SUCCESS or TIMEOUT.

    CANCELLED if its channel is closed meanwhile. `wake` is woken at the end.
    """

    channel: Channel
    count: int
    wake: Task | None = None
    status: NTSTATUS = NTSTATUS.PENDING
    alarm: Task | None = None


class Waits:
    """The waits that are under way in one guest.

    Nobody asks at a delivery whether there are any: a channel that is waited for has another
    callback, which looks.
    """

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._callbacks: dict[Channel, Callable[[], object]] = {}  # what the channels had
        self._waits: list[Wait] = []

    def __len__(self) -> int:
        return len(self._waits)

    def begin(self, wait: Wait, timeout_ns: int | None) -> None:
        channel = wait.channel
        if channel not in self._callbacks:
            self._callbacks[channel] = channel.callback
            channel.callback = partial(self._delivered, channel)
        self._waits.append(wait)
        if timeout_ns is not None:
            task = wait.alarm = self.domain.task("evtchn wait", partial(self._timeout, wait))
            task.alarm = self.domain.timer(task)
            task.alarm.arm(timeout_ns)

    def _delivered(self, channel: Channel) -> None:
        self._callbacks[channel]()
        for wait in [one for one in self._waits if one.channel is channel]:
            if reached(channel.count, wait.count):
                self.end(wait, NTSTATUS.SUCCESS)

    def _timeout(self, wait: Wait) -> None:
        if wait in self._waits:
            self.end(wait, NTSTATUS.TIMEOUT)

    def end(self, wait: Wait, status: NTSTATUS) -> None:
        wait.status = status
        self._waits.remove(wait)
        channel = wait.channel
        if all(one.channel is not channel for one in self._waits):
            channel.callback = self._callbacks.pop(channel)
        if wait.alarm is not None:
            self.domain.forget(wait.alarm)
            wait.alarm = None
        if wait.wake is not None:
            wait.wake.wake()

    def close(self, channel: Channel) -> None:
        """The channel is gone."""
        if channel in self._callbacks:
            for wait in [one for one in self._waits if one.channel is channel]:
                self.end(wait, NTSTATUS.CANCELLED)
