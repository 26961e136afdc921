"""Event channels of a guest: callbacks over the bits of either ABI.

win-xenbus evtchn.c: an upcall finds ports, then drains: mask if the channel is auto-masked,
acknowledge, count, call back. The acknowledgement strictly precedes the count, which a
waiter samples.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.abi.hvm import HVM_PARAM
from xenpv.bus import evtchn_abi
from xenpv.bus.channel import Channel, ChannelType, Wait, Waits, reached
from xenpv.bus.evtchn_abi import Abi
from xenpv.bus.evtchn_fifo import EvtchnFifo
from xenpv.bus.interface import Interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.shared_info import SharedInfoInterface
from xenpv.bus.suspend import SuspendCallback, SuspendInterface, SuspendPhase
from xenpv.errors import HypercallError, LocalProtocolError
from xenpv.xen.domain import Domain
from xenpv.xen.loop import Task

FIRST_VECTOR: Final = 0x30  # of the vectors that this guest gives its upcalls, one per vcpu
NS_PER_TICK: Final = 100  # of a Windows time


class Dpc:
    """What one vcpu does soon: the pseudo-events of `trigger`, and ports that are to be closed."""

    __slots__ = ("closed", "pending", "task")

    def __init__(self, task: Task) -> None:
        self.task = task
        self.pending: dict[Channel, int] = {}  # and its count when it was triggered
        self.closed: list[int] = []


class EvtchnChannels(Interface):
    """What our own drivers call of EVTCHN: event channels of one guest.

    It takes the upcalls of all vcpus from its making on, before the first reference.
    `fifo` asks for the FIFO ABI (UseEvtchnFifoAbi); if Xen refuses, the guest resets and
    stays with the 2-level one: `is_fifo` says which it is. `vectors` gives every vcpu an
    upcall vector of its own (UseEvtchnUpcall), `via` is HVM_PARAM_CALLBACK_IRQ: the platform
    device's line, or Linux' vector. Xen raises either as soon as it is set. Without both,
    upcalls come wherever they are taken.
    """

    def __init__(
        self,
        domain: Domain,
        *,
        fifo: bool = False,
        vectors: bool = False,
        via: int = 0,
        suspend: SuspendInterface | None = None,
        shared_info: SharedInfoInterface | None = None,
    ) -> None:
        self.domain = domain
        self.fifo = fifo
        self.vectors = vectors
        self.via = via
        self.suspend = suspend
        self.shared_info = shared_info
        self.vcpus_with_vector: list[int] = []
        self.abi: Abi
        self._channels: dict[int, Channel] = {}  # those that are active
        self._open_channels: dict[Channel, None] = {}
        self._waits = Waits(domain)
        self._dpcs: dict[int, Dpc] = {}
        self._handles: list[SuspendCallback] = []
        self._send = domain.evtchn.send
        self._is_up = False
        self._start()

    @property
    def is_fifo(self) -> bool:
        return isinstance(self.abi, EvtchnFifo)

    # its life

    def _start(self) -> None:
        if self._is_up:
            return
        suspend = self.suspend
        if suspend is not None:
            suspend.acquire()
            early = suspend.register(SuspendPhase.EARLY, self._suspend_early, "XENBUS EVTCHN")
            late = suspend.register(SuspendPhase.LATE, self._suspend_late, "XENBUS EVTCHN")
            self._handles = [early, late]
        if self.shared_info is not None:
            self.shared_info.acquire()
        self._up()
        self._is_up = True

    def _up(self) -> None:
        self.abi = evtchn_abi.acquire(self.domain, self._channels, self._drain, fifo=self.fifo)
        for vcpu in range(self.domain.processors):
            self.domain.set_upcall(vcpu, self.abi.upcall(vcpu))
        self.domain.set_deliver(self._deliver)
        self._interrupts_on()

    def _interrupts_on(self) -> None:
        """Vectors, then the line; each may have been due before, so it is polled once."""
        hvm = self.domain.hvm
        self.vcpus_with_vector = []
        for vcpu in range(self.domain.processors if self.vectors else 0):
            with suppress(HypercallError):  # that CPU goes without
                hvm.set_evtchn_upcall_vector(vcpu, FIRST_VECTOR + vcpu)
                self.vcpus_with_vector.append(vcpu)
                self.abi.upcall(vcpu)()
        if self.via:
            hvm.set_param(self.domain.DOMID_SELF, HVM_PARAM.CALLBACK_IRQ, self.via)
            self.abi.upcall(0)()

    def _interrupts_off(self) -> None:
        """The line only: Xen refuses the vector 0 that the driver gives, and keeps the old."""
        if self.via:
            self.domain.hvm.set_param(self.domain.DOMID_SELF, HVM_PARAM.CALLBACK_IRQ, 0)

    def _stop(self) -> None:
        """Every port closed but the fixed ones, back to the 2-level ABI."""
        for channel in self.channels():
            self.close(channel)
        for dpc in self._dpcs.values():
            self._reap(dpc)
            self.domain.forget(dpc.task)
        self._dpcs.clear()
        self._interrupts_off()
        evtchn_abi.release(self.domain, self.abi)
        for vcpu in range(self.domain.processors):
            self.domain.set_upcall(vcpu, _nobody)
        self.domain.set_deliver(_nothing)
        if self.suspend is not None:
            for handle in self._handles:
                self.suspend.deregister(handle)
            self.suspend.release()
        if self.shared_info is not None:
            self.shared_info.release()
        self._is_up = False

    def leftovers(self) -> list[str]:
        return [f"a {one.type.name} channel of port {one.port}" for one in self._open_channels]

    def forget(self) -> None:
        """The platform is closed: nothing is called back any more, so that it may be freed."""
        for channel in self._open_channels:
            channel.callback = _nobody
        self._channels.clear()
        self._open_channels.clear()
        self._dpcs.clear()
        self._waits = Waits(self.domain)
        vars(self).pop("abi", None)

    def _suspend_early(self) -> None:
        """The ports are lost; what is to be closed is closed already."""
        for dpc in self._dpcs.values():
            dpc.closed.clear()
        for channel in self._channels.values():
            channel.active = False
            self.abi.port_disable(channel.port)
        self._channels.clear()

    def _suspend_late(self) -> None:
        self._interrupts_off()
        evtchn_abi.renew(self.domain, self.abi)
        self._up()

    # channels

    def _open(self, channel: Channel) -> Channel:
        port = channel.port
        if port in self._channels:
            raise LocalProtocolError(f"port {port} has a channel already")
        try:
            self.abi.port_enable(port)
        except HypercallError:
            if channel.type is not ChannelType.FIXED:
                self.domain.evtchn.close(port)
            raise
        # New channels are masked: the owner unmasks when it is ready for the callback.
        self.domain.check(lib.evtchn_mask(self.domain.kernel, port))
        self.abi.port_bind(port, channel.vcpu, channel.auto_mask)
        self._channels[port] = channel
        self._open_channels[channel] = None
        return channel

    def open_fixed(
        self, port: int, callback: Callable[[], object], *, mask: bool = False
    ) -> Channel:
        """A port that the toolstack bound; it is never closed at the hypervisor."""
        return self._open(Channel(port, ChannelType.FIXED, callback, mask))

    def open_unbound(
        self, remote_domid: int, callback: Callable[[], object], *, mask: bool = False
    ) -> Channel:
        """EVTCHNOP_alloc_unbound for `remote_domid`. Raises HypercallError."""
        port = self.domain.evtchn.alloc_unbound(remote_domid)
        remote = remote_domid, 0
        return self._open(Channel(port, ChannelType.UNBOUND, callback, mask, remote=remote))

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
        remote = remote_domid, remote_port
        return self._open(Channel(port, ChannelType.INTER_DOMAIN, callback, mask, remote=remote))

    def open_virq(self, virq: int, callback: Callable[[], object], *, vcpu: int = 0) -> Channel:
        """EVTCHNOP_bind_virq. Raises HypercallError.

        The channel is bound to `vcpu`; in the driver it stays recorded as CPU 0's, and what
        comes on another CPU is lost.
        """
        port = self.domain.evtchn.bind_virq(virq, vcpu)
        return self._open(Channel(port, ChannelType.VIRQ, callback, False, vcpu, virq=virq))

    def has_upcall(self, vcpu: int) -> bool:
        """Whether events reach that vcpu: without a vector of its own only vcpu 0."""
        return not vcpu or vcpu in self.vcpus_with_vector

    def bind(self, channel: Channel, vcpu: int) -> None:
        """EVTCHNOP_bind_vcpu: later events are delivered on `vcpu`.

        Raises HypercallError; NtStatusError NOT_SUPPORTED if no upcall reaches `vcpu`.
        Nothing happens to an inactive channel, or one that is there already.
        """
        if not self.has_upcall(vcpu):
            raise NtStatusError(NTSTATUS.NOT_SUPPORTED, f"vcpu {vcpu} takes no upcalls")
        if not channel.active or channel.vcpu == vcpu:
            return
        self.domain.evtchn.bind_vcpu(channel.port, vcpu)
        channel.vcpu = vcpu
        self.abi.port_bind(channel.port, vcpu, channel.auto_mask)

    def unmask(
        self,
        channel: Channel,
        *,
        in_callback: bool = False,
        force: bool = False,
        cpu: int | None = None,
    ) -> bool:
        """Clear the mask bit. True: an event is pending and the caller has to act now.

        In a callback, forced, or on another `cpu` than the channel's (None: on that one), a
        pending event is delivered again by EVTCHNOP_unmask instead, and the answer is False.
        """
        if not channel.active:
            return False
        domain = self.domain
        if not domain.check(lib.evtchn_guest_unmask(domain.kernel, channel.port)):
            return False
        if in_callback or force or cpu not in (None, channel.vcpu):
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
        """Mask and forget; the port goes back soon, by its vcpu's DPC, unless it is FIXED.

        After a suspend there is no port to give back. A second close does nothing.
        """
        if channel not in self._open_channels:
            return
        del self._open_channels[channel]
        self._waits.close(channel)
        if not channel.active:
            return
        channel.active = False
        port = channel.port
        del self._channels[port]
        self.abi.port_disable(port)
        self.domain.check(lib.evtchn_mask(self.domain.kernel, port))
        if channel.type is not ChannelType.FIXED:
            dpc = self._dpc(channel.vcpu)
            dpc.closed.append(port)
            dpc.task.wake()

    def channels(self) -> list[Channel]:
        """Open channels in the order of their opening; for leak checks and dumps."""
        return list(self._open_channels)

    # waiting

    def wait(
        self, channel: Channel, count: int, timeout: int | None = None, wake: Task | None = None
    ) -> Wait:
        """For deliveries up to `count`. A handler ends then, and `wake` is woken after it.

        `timeout` is a Windows time in 100 ns: None waits for ever, 0 only looks, a negative
        one is relative, a positive one is a FILETIME of the guest's clock. Use: sample the
        count, look at the condition, wait for the sample plus one.
        """
        wait = Wait(channel, count & 0xFFFF_FFFF, wake)
        if reached(channel.count, wait.count):
            wait.status = NTSTATUS.SUCCESS
            return wait
        if timeout is not None and timeout > 0:
            if self.shared_info is None:
                raise LocalProtocolError("an absolute timeout needs SHARED_INFO's clock")
            timeout = min(self.shared_info.get_time()[0] - timeout, 0)
        if timeout == 0:
            wait.status = NTSTATUS.TIMEOUT
            return wait
        self._waits.begin(wait, None if timeout is None else -timeout * NS_PER_TICK)
        return wait

    def end_wait(self, wait: Wait) -> None:
        """Give a wait up: CANCELLED. Nothing happens to one that has ended."""
        if wait.status is NTSTATUS.PENDING:
            self._waits.end(wait, NTSTATUS.CANCELLED)

    # pseudo-events and the end of ports

    def trigger(self, channel: Channel) -> None:
        """A pseudo-event: drained like a real one by its vcpu's DPC.

        One that is due already, or that a real event overtakes, is the same one.
        """
        if channel not in self._open_channels:
            return
        dpc = self._dpc(channel.vcpu)
        dpc.pending.setdefault(channel, channel.count)
        dpc.task.wake()

    def _dpc(self, vcpu: int) -> Dpc:
        dpc = self._dpcs.get(vcpu)
        if dpc is None:
            task = self.domain.task(f"evtchn dpc{vcpu}", partial(self._run_dpc, vcpu))
            dpc = self._dpcs[vcpu] = Dpc(task)
        return dpc

    def _run_dpc(self, vcpu: int) -> None:
        dpc = self._dpcs[vcpu]
        pending, dpc.pending = dpc.pending, {}
        for channel, count in pending.items():
            if channel in self._open_channels and channel.count == count:
                self._drain(channel)
        self._reap(dpc)

    def _reap(self, dpc: Dpc) -> None:
        closed, dpc.closed = dpc.closed, []
        for port in closed:
            self.domain.evtchn.close(port)

    # deliveries

    def _drain(self, channel: Channel) -> None:
        if channel.active:
            kernel = self.domain.kernel
            if channel.auto_mask:
                lib.evtchn_mask(kernel, channel.port)
            done = lib.evtchn_clear_pending(kernel, channel.port)
            if done:
                self.domain.check(done)
        elif channel not in self._open_channels:
            return
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
    """What a channel calls that is left when its platform is closed, or a vcpu without it."""


def _nothing(_port: int) -> bool:
    """Nobody takes that port's events here."""
    return False
