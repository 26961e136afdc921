"""XenBus' EVTCHN interface: channels with callbacks over the bits of either ABI.

win-xenbus evtchn.c: an upcall finds ports, then drains: mask if the channel is auto-masked,
acknowledge, count, call back. The acknowledgement strictly precedes the count, which a
waiter samples.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.evtchn import EVTCHNSTAT
from xenpv.abi.hvm import HVM_PARAM
from xenpv.bus.evtchn_2l import Evtchn2L
from xenpv.bus.evtchn_fifo import EvtchnFifo
from xenpv.errors import HypercallError, LocalProtocolError
from xenpv.xen.domain import Domain

# The ports that the toolstack bound: a reset must not lose them.
FIXED_PORTS: Final = (HVM_PARAM.STORE_EVTCHN, HVM_PARAM.CONSOLE_EVTCHN)
FIRST_VECTOR: Final = 0x30  # of the vectors that this guest gives its upcalls, one per vcpu


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
    vcpu: int = 0
    active: bool = True
    count: int = 0


class EvtchnInterface:
    """Event channels of one guest. Takes the upcalls of all its vcpus.

    `fifo` asks for the FIFO ABI (UseEvtchnFifoAbi); if Xen refuses, the guest resets and
    stays with the 2-level one: `is_fifo` says which it is. `vectors` gives every vcpu an
    upcall vector of its own (UseEvtchnUpcall); Xen raises each as soon as it is set.
    """

    def __init__(self, domain: Domain, *, fifo: bool = False, vectors: bool = False) -> None:
        self.domain = domain
        self._channels: dict[int, Channel] = {}
        self._send = domain.evtchn.send
        self.abi: Evtchn2L | EvtchnFifo = self._acquire(fifo)
        for vcpu in range(domain.vcpus):
            domain.set_upcall(vcpu, self.abi.upcall(vcpu))
        domain.set_deliver(self._deliver)
        for vcpu in range(domain.vcpus if vectors else 0):
            domain.hvm.set_evtchn_upcall_vector(vcpu, FIRST_VECTOR + vcpu)

    @property
    def is_fifo(self) -> bool:
        return isinstance(self.abi, EvtchnFifo)

    def _acquire(self, fifo: bool) -> Evtchn2L | EvtchnFifo:
        if fifo:
            abi = EvtchnFifo(self.domain, self._channels, self._drain)
            try:
                abi.acquire()
            except HypercallError:
                self._reset()
                abi.release()
            else:
                return abi
        return Evtchn2L(self.domain, self._channels, self._drain)

    def _reset(self) -> None:
        """EVTCHNOP_reset, with the store's and the console's channel bound again after it.

        Their local ports change, and so do the HVM parameters that say which they are.
        """
        domain = self.domain
        kept = []
        for param in FIXED_PORTS:
            port = domain.hvm_param(param)
            if port:
                status = domain.evtchn.status(port)
                if status.status is EVTCHNSTAT.interdomain:
                    kept.append((param, status.remote_domid, status.remote_port))
        domain.evtchn.reset()
        for param, domid, port in kept:
            local = domain.evtchn.bind_interdomain(domid, port)
            domain.hvm.set_param(domain.DOMID_SELF, param, local)

    def release(self) -> None:
        """Back to the 2-level ABI with every channel gone (EvtchnRelease): before a new
        interface takes over. The fixed ports have new numbers in the HVM parameters."""
        for channel in self.channels():
            self.close(channel)
        if isinstance(self.abi, EvtchnFifo):
            self._reset()
            self.abi.release()

    def forget(self) -> None:
        """The platform is closed: nothing is called back any more, so that it may be freed."""
        for channel in self._channels.values():
            channel.callback = _nobody
        self._channels.clear()
        vars(self).pop("abi", None)

    def _open(
        self,
        port: int,
        kind: ChannelType,
        callback: Callable[[], object],
        auto_mask: bool,
        vcpu: int = 0,
    ) -> Channel:
        if port in self._channels:
            raise LocalProtocolError(f"port {port} has a channel already")
        try:
            self.abi.port_enable(port)
        except HypercallError:
            if kind is not ChannelType.FIXED:
                self.domain.evtchn.close(port)
            raise
        channel = Channel(port=port, type=kind, callback=callback, auto_mask=auto_mask, vcpu=vcpu)
        # New channels are masked: the owner unmasks when it is ready for the callback.
        self.domain.check(lib.evtchn_mask(self.domain.kernel, port))
        self.abi.port_bind(port, vcpu, auto_mask)
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
        return self._open(port, ChannelType.VIRQ, callback, False, vcpu)

    def bind(self, channel: Channel, vcpu: int) -> None:
        """EVTCHNOP_bind_vcpu: later events are delivered on `vcpu`. Raises HypercallError.

        Nothing happens to an inactive channel, or one that is there already.
        """
        if not channel.active or channel.vcpu == vcpu:
            return
        self.domain.evtchn.bind_vcpu(channel.port, vcpu)
        channel.vcpu = vcpu
        self.abi.port_bind(channel.port, vcpu, channel.auto_mask)

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
            self._send(channel.port)
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
        self.abi.port_disable(channel.port)
        self.domain.check(lib.evtchn_mask(self.domain.kernel, channel.port))
        if channel.type is not ChannelType.FIXED:
            self.domain.evtchn.close(channel.port)

    def channels(self) -> list[Channel]:
        """Open channels in the order of their opening; for leak checks and dumps."""
        return list(self._channels.values())

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


def _nobody() -> None:
    """What a channel calls that is left when its platform is closed."""
