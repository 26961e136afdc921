"""XenBus' EVTCHN interface: channels with callbacks over the guest's 2-level bits.

win-xenbus evtchn.c, evtchn_2l.c: an upcall scans, then drains: mask if the channel is
auto-masked, acknowledge, count, call back. The acknowledgement strictly precedes the count,
which a waiter samples.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

import attrs

from xenpv.abi._kernel import ffi, lib
from xenpv.errors import HypercallError, LocalProtocolError
from xenpv.xen.domain import Domain

SCAN_PORTS: Final = 64


class ChannelType(enum.IntEnum):
    """XENBUS_EVTCHN_TYPE."""

    FIXED = 1
    UNBOUND = 2
    INTER_DOMAIN = 3
    VIRQ = 4


@attrs.define(eq=False)
class Channel:
    """An open channel; `count` is its deliveries since it was opened (u32)."""

    port: int
    type: ChannelType
    callback: Callable[[], object]
    auto_mask: bool
    active: bool = True
    count: int = 0


class EvtchnInterface:
    """Event channels of one guest. Takes the guest's upcall on vcpu 0."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._channels: dict[int, Channel] = {}
        self._ports = ffi.new("uint32_t[]", SCAN_PORTS)
        domain.set_upcall(0, self.upcall)
        domain.set_deliver(self._deliver)

    def _open(
        self, port: int, kind: ChannelType, callback: Callable[[], object], auto_mask: bool
    ) -> Channel:
        if port in self._channels:
            raise LocalProtocolError(f"port {port} has a channel already")
        channel = Channel(port=port, type=kind, callback=callback, auto_mask=auto_mask)
        # New channels are masked: the owner unmasks when it is ready for the callback.
        self.domain.check(lib.evtchn_mask(self.domain.kernel, port))
        self._channels[port] = channel
        return channel

    def open_fixed(
        self, port: int, callback: Callable[[], object], *, mask: bool = False
    ) -> Channel:
        """A port that the toolstack bound; it is never closed at the hypervisor."""
        return self._open(port, ChannelType.FIXED, callback, mask)

    def open_unbound(
        self, remote_domid: int, callback: Callable[[], object], *, mask: bool = False
    ) -> Channel:
        """EVTCHNOP_alloc_unbound for `remote_domid`. Raises HypercallError."""
        port = self.domain.evtchn.alloc_unbound(remote_domid)
        return self._open(port, ChannelType.UNBOUND, callback, mask)

    def open_inter_domain(
        self,
        remote_domid: int,
        remote_port: int,
        callback: Callable[[], object],
        *,
        mask: bool = False,
    ) -> Channel:
        """EVTCHNOP_bind_interdomain. Raises HypercallError."""
        port = self.domain.evtchn.bind_interdomain(remote_domid, remote_port)
        return self._open(port, ChannelType.INTER_DOMAIN, callback, mask)

    def open_virq(self, virq: int, callback: Callable[[], object], *, vcpu: int = 0) -> Channel:
        """EVTCHNOP_bind_virq. Raises HypercallError."""
        port = self.domain.evtchn.bind_virq(virq, vcpu)
        return self._open(port, ChannelType.VIRQ, callback, False)

    def unmask(self, channel: Channel, *, in_callback: bool = False, force: bool = False) -> bool:
        """Clear the mask bit. True: an event is pending and the caller has to act now.

        In a callback, or forced, a pending event is delivered again by EVTCHNOP_unmask
        instead, and the answer is False.
        """
        if not channel.active:
            return False
        domain = self.domain
        if not domain.check(lib.evtchn_guest_unmask(domain.kernel, channel.port)):
            return False
        if in_callback or force:
            domain.check(lib.evtchn_mask(domain.kernel, channel.port))
            domain.evtchn.unmask(channel.port)
            return False
        if channel.auto_mask:
            domain.check(lib.evtchn_mask(domain.kernel, channel.port))
        domain.check(lib.evtchn_clear_pending(domain.kernel, channel.port))
        return True

    def send(self, channel: Channel) -> None:
        """EVTCHNOP_send; a failure is ignored, as in the driver."""
        if not channel.active:
            return
        try:
            self.domain.evtchn.send(channel.port)
        except HypercallError:
            return  # the peer's end may be gone: its watch says so, not the channel

    def poll(self, channel: Channel) -> bool:
        """Spin for an event while the peer answers, and acknowledge it.

        False if the peer has nothing to say.
        """
        return self.domain.evtchn.poll(channel.port)

    def close(self, channel: Channel) -> None:
        """Mask, forget, EVTCHNOP_close unless FIXED. A second close does nothing."""
        if not channel.active:
            return
        channel.active = False
        del self._channels[channel.port]
        self.domain.check(lib.evtchn_mask(self.domain.kernel, channel.port))
        if channel.type is not ChannelType.FIXED:
            self.domain.evtchn.close(channel.port)

    def channels(self) -> list[Channel]:
        """Open channels in the order of their opening; for leak checks and dumps."""
        return list(self._channels.values())

    def upcall(self) -> None:
        domain = self.domain
        ports = self._ports
        while True:
            count = lib.evtchn_scan(domain.kernel, 0, ports, SCAN_PORTS, 0)
            if count <= 0:
                if count < 0:
                    domain.check(count)
                return
            due = []
            for port in ffi.unpack(ports, count):
                channel = self._channels.get(port)
                if channel is not None:
                    due.append(channel)
                else:
                    # Nobody owns it: acknowledged, or the scan would find it for ever.
                    domain.check(lib.evtchn_clear_pending(domain.kernel, port))
            for channel in due:
                self._drain(channel)
            if count < SCAN_PORTS:
                return

    def _drain(self, channel: Channel) -> None:
        if not channel.active:
            return
        kernel = self.domain.kernel
        if channel.auto_mask:
            lib.evtchn_mask(kernel, channel.port)
        done = lib.evtchn_clear_pending(kernel, channel.port)
        if done:
            self.domain.check(done)
        channel.count = (channel.count + 1) & 0xFFFFFFFF
        channel.callback()

    def _deliver(self, port: int) -> bool:
        channel = self._channels.get(port)
        if channel is None or not self.domain.check(
            lib.evtchn_take_pending(self.domain.kernel, port)
        ):
            return False
        self._drain(channel)
        return True
