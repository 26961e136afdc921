"""XenBus' EVTCHN interface, versions 5 to 9 (win-xenbus evtchn.c, evtchn_interface.h).

The implementation is in evtchn_channels.py; here is what a driver sees that asks for the
interface. Callbacks take no argument. CPUs are a group and a number in it, as Windows counts
them. A handle that was closed is refused: the driver would use freed memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Final

from xenpv.bus.channel import Channel, ChannelType
from xenpv.bus.evtchn_channels import EvtchnChannels
from xenpv.bus.ntstatus import NTSTATUS
from xenpv.errors import HypercallError, LocalProtocolError

__all__ = ["Channel", "ChannelType", "EvtchnInterface"]

CPUS_PER_GROUP: Final = 64

_V5: Final = ("open", "bind", "unmask", "send", "trigger", "wait", "get_port", "close")
_V7: Final = (*_V5[:5], "get_count", *_V5[5:])


class EvtchnInterface(EvtchnChannels):
    """EVTCHN of one guest: what its own drivers call, and the operations of every version."""

    NAME = "EVTCHN"
    GUID = "BE2440AC-1098-4150-AF4D-452FADCEF923"
    OPERATIONS: ClassVar[Mapping[int, Sequence[str]]] = {5: _V5, 6: _V5, 7: _V7, 8: _V7, 9: _V7}
    ADAPTED: ClassVar[Mapping[tuple[int, str], str]] = {
        **{(version, name): f"evtchn_{name}" for version in range(5, 10) for name in _V7},
        **{(version, "open"): "evtchn_open_v5" for version in range(5, 9)},
        **{(version, "unmask"): "evtchn_unmask_v5" for version in range(5, 8)},
        **{(version, "wait"): "evtchn_wait_v5" for version in (5, 6)},
    }

    def _check(self, channel: Channel) -> None:
        if channel not in self._open_channels:
            raise LocalProtocolError(f"the channel of port {channel.port} is closed")

    def evtchn_open(
        self, kind: int, callback: Callable[[], object], *parameters: int
    ) -> Channel | None:
        """A masked channel, None on any failure.

        FIXED: port, mask. UNBOUND: remote domid, mask. INTER_DOMAIN: remote domid, remote
        port, mask. VIRQ: index, group, number. `mask` is whether the channel is masked before
        each callback.
        """
        try:
            if kind == ChannelType.FIXED:
                port, mask = parameters
                return self.open_fixed(port, callback, mask=bool(mask))
            if kind == ChannelType.UNBOUND:
                domid, mask = parameters
                return self.open_unbound(domid, callback, mask=bool(mask))
            if kind == ChannelType.INTER_DOMAIN:
                domid, port, mask = parameters
                return self.open_inter_domain(domid, port, callback, mask=bool(mask))
            if kind == ChannelType.VIRQ:
                index, group, number = parameters
                vcpu = group * CPUS_PER_GROUP + number
                return self.open_virq(index, callback, vcpu=vcpu) if self.has_upcall(vcpu) else None
        except (HypercallError, LocalProtocolError):
            return None
        return None

    def evtchn_open_v5(
        self, kind: int, callback: Callable[[], object], *parameters: int
    ) -> Channel | None:
        """Until version 8 a VIRQ has an index only, and is CPU 0's."""
        if kind == ChannelType.VIRQ:
            (index,) = parameters
            parameters = index, 0, 0
        return self.evtchn_open(kind, callback, *parameters)

    def evtchn_bind(self, channel: Channel, group: int, number: int) -> None:
        """NOT_SUPPORTED if that CPU takes no upcalls."""
        self._check(channel)
        self.bind(channel, group * CPUS_PER_GROUP + number)

    def evtchn_unmask(
        self, channel: Channel, in_callback: bool, force: bool, *, cpu: int | None = None
    ) -> bool:
        """True: pending, and the caller acts now. `cpu` is the caller's, None the channel's."""
        self._check(channel)
        return self.unmask(channel, in_callback=in_callback, force=force, cpu=cpu)

    def evtchn_unmask_v5(self, channel: Channel, in_callback: bool) -> None:
        """Until version 7 it tells nothing: what is pending is delivered again."""
        self.evtchn_unmask(channel, in_callback, force=True)

    def evtchn_send(self, channel: Channel) -> None:
        self._check(channel)
        self.send(channel)

    def evtchn_trigger(self, channel: Channel) -> None:
        self._check(channel)
        self.trigger(channel)

    def evtchn_get_count(self, channel: Channel) -> int:
        self._check(channel)
        return channel.count

    def evtchn_wait(self, channel: Channel, count: int, timeout: int | None = None) -> NTSTATUS:
        """SUCCESS or TIMEOUT, after the loop ran: from outside the loop only.

        In a handler it raises LocalProtocolError, as it does where nothing is left to run
        that could deliver. A handler takes `wait`, which wakes a task.
        """
        self._check(channel)
        wait = self.wait(channel, count, timeout)
        if wait.status is NTSTATUS.PENDING:
            try:
                self.domain.loop.run()
            finally:
                left = wait.status is NTSTATUS.PENDING
                self.end_wait(wait)
            if left:
                raise LocalProtocolError(
                    f"nothing is left to run, and the channel of port {channel.port} is at "
                    f"{channel.count} of {count}"
                )
        return wait.status

    def evtchn_wait_v5(self, channel: Channel, timeout: int | None = None) -> NTSTATUS:
        """Until version 6: for the next one. What came before the call is missed."""
        self._check(channel)
        return self.evtchn_wait(channel, channel.count + 1, timeout)

    def evtchn_get_port(self, channel: Channel) -> int:
        self._check(channel)
        if not channel.active:
            raise LocalProtocolError(f"the channel of port {channel.port} is not active")
        return channel.port

    def evtchn_close(self, channel: Channel) -> None:
        self._check(channel)
        self.close(channel)
