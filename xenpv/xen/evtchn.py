"""Event channels, 2-level ABI: the ports of one domain and what EVTCHNOP_* does to them.

Port states live here; pending, mask and selector bits live in the guest's shared_info and
are touched by the kernel only (xen/common/event_channel.c, event_2l.c).
"""

from __future__ import annotations

import enum
from errno import EEXIST, EINVAL, ENOENT, ENOSPC, ESRCH
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.errors import HypercallError
from xenpv.xen.trace import Event, mark

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain

BUCKET: Final = 64  # ports become valid in buckets (EVTCHNS_PER_BUCKET of an x86-64 Xen)
MAX_PORTS: Final = {False: 4096, True: 1024}  # by is_32bit: words x bits
NR_VIRQS: Final = 24

VIRQ_TIMER: Final = 0
VIRQ_DEBUG: Final = 1
VIRQ_DOM_EXC: Final = 3
PER_VCPU_VIRQS: Final = (0, 1, 7, 13)  # TIMER, DEBUG, XENOPROF, XENPMU


class PortState(enum.IntEnum):
    """ECS_* of Xen; the values are the EVTCHNSTAT_* that EVTCHNOP_status reports."""

    FREE = 0
    UNBOUND = 1
    INTERDOMAIN = 2
    PIRQ = 3
    VIRQ = 4
    IPI = 5


INTERDOMAIN: Final = PortState.INTERDOMAIN
set_pending: Final = lib.evtchn_set_pending


@attrs.define(eq=False)
class Port:
    """One end of a channel."""

    state: PortState = PortState.FREE
    remote_domid: int = 0
    remote: Domain | None = None
    remote_port: int = 0
    virq: int = 0
    vcpu: int = 0


_FREE: Final = Port()  # every free port: nobody writes to a port before it is bound


@attrs.frozen
class PortStatus:
    """What EVTCHNOP_status gives: `remote_*` for unbound and interdomain ports."""

    status: PortState
    vcpu: int
    remote_domid: int = 0
    remote_port: int = 0
    virq: int = 0


class EventChannels:
    """The event channels of `domain`; every method is a hypercall of that domain.

    Raises HypercallError with Xen's errno.
    """

    def __init__(self, domain: Domain, max_port: int = 1023) -> None:
        self.domain = domain
        self.limit = min(max_port + 1, MAX_PORTS[domain.is_32bit])
        self.ports: list[Port] = [_FREE] * BUCKET
        self._virqs: dict[tuple[int, int], int] = {}
        self._words = domain.trace.words
        self._sends = mark(Event.SEND, domain.domid)

    def _port(self, port: int) -> Port:
        if 0 < port < len(self.ports):
            return self.ports[port]
        raise HypercallError(EINVAL, f"event channel port {port} of domain {self.domain.domid}")

    def _allocate(self) -> int:
        if self.domain.dying:
            raise HypercallError(EINVAL, "the domain is dying")
        for number in range(1, min(len(self.ports), self.limit)):
            if self.ports[number].state is PortState.FREE:
                return number
        number = len(self.ports)
        if number >= self.limit:
            raise HypercallError(ENOSPC, f"all {self.limit - 1} event channel ports are in use")
        self.ports.extend([_FREE] * BUCKET)
        return number

    def alloc_unbound(self, remote_domid: int) -> int:
        """EVTCHNOP_alloc_unbound for this domain: a port that `remote_domid` may bind."""
        number = self._allocate()
        domid = self.domain.domid if remote_domid == self.domain.DOMID_SELF else remote_domid
        self.ports[number] = Port(state=PortState.UNBOUND, remote_domid=domid)
        return number

    def bind_interdomain(self, remote_domid: int, remote_port: int) -> int:
        """EVTCHNOP_bind_interdomain. The new local port becomes pending."""
        remote = self.domain.find(remote_domid)
        if remote is None:
            raise HypercallError(ESRCH, f"no domain {remote_domid}")
        number = self._allocate()
        ports = remote.evtchn.ports
        far = ports[remote_port] if 0 < remote_port < len(ports) else _FREE
        if far.state is not PortState.UNBOUND or far.remote_domid != self.domain.domid:
            raise HypercallError(
                EINVAL,
                f"port {remote_port} of domain {remote_domid} is not unbound for "
                f"domain {self.domain.domid}",
            )
        self.ports[number] = Port(
            state=PortState.INTERDOMAIN,
            remote_domid=remote.domid,
            remote=remote,
            remote_port=remote_port,
        )
        far.state = PortState.INTERDOMAIN
        far.remote = self.domain
        far.remote_port = number
        self.raise_port(number)
        return number

    def bind_virq(self, virq: int, vcpu: int = 0) -> int:
        """EVTCHNOP_bind_virq; global VIRQs belong to the control domain's handler."""
        per_vcpu = virq in PER_VCPU_VIRQS
        if not 0 <= virq < NR_VIRQS or (vcpu and not per_vcpu):
            raise HypercallError(EINVAL, f"VIRQ {virq} on vcpu {vcpu}")
        if vcpu >= self.domain.vcpus:
            raise HypercallError(ENOENT, f"no vcpu {vcpu}")
        if (virq, vcpu) in self._virqs:
            raise HypercallError(EEXIST, f"VIRQ {virq} is bound")
        number = self._allocate()
        self.ports[number] = Port(state=PortState.VIRQ, virq=virq, vcpu=vcpu)
        self._virqs[virq, vcpu] = number
        return number

    def bind_ipi(self, vcpu: int) -> int:
        """EVTCHNOP_bind_ipi."""
        if vcpu >= self.domain.vcpus:
            raise HypercallError(ENOENT, f"no vcpu {vcpu}")
        number = self._allocate()
        self.ports[number] = Port(state=PortState.IPI, vcpu=vcpu)
        return number

    def close(self, port: int) -> None:
        """EVTCHNOP_close: the peer's end turns unbound for this domain, without an event."""
        channel = self._port(port)
        if channel.state is PortState.FREE:
            raise HypercallError(EINVAL, f"port {port} is not open")
        if channel.state is PortState.INTERDOMAIN and channel.remote is not None:
            far = channel.remote.evtchn.ports[channel.remote_port]
            far.state = PortState.UNBOUND
            far.remote = None
            far.remote_port = 0
            far.remote_domid = self.domain.domid
        elif channel.state is PortState.VIRQ:
            del self._virqs[channel.virq, channel.vcpu]
        self.ports[port] = _FREE
        self.domain.check(lib.evtchn_clear_pending(self.domain.kernel, port))

    def send(self, port: int) -> None:
        """EVTCHNOP_send: an unbound port succeeds silently."""
        ports = self.ports
        channel = ports[port] if 0 < port < len(ports) else ports[0]
        state = channel.state
        if state is INTERDOMAIN:
            self._words.append(self._sends | port)
            remote = channel.remote
            assert remote is not None
            # raise_port of the peer, spelt out: a call less on the hottest path there is.
            far_port = channel.remote_port
            vcpu = remote.evtchn.ports[far_port].vcpu
            raised = set_pending(remote.kernel, far_port, vcpu)
            if raised == 3:
                remote.upcalls[vcpu].wake()
            elif raised < 0:
                remote.check(raised)
        elif state is PortState.IPI:
            self._words.append(self._sends | port)
            self.raise_port(port)
        elif state is not PortState.UNBOUND:
            raise HypercallError(EINVAL, f"port {port} is {state.name.lower()}: nothing to send to")

    def raise_port(self, port: int) -> None:
        """Set a port of this domain pending; its vcpu is kicked if the bits say so."""
        domain = self.domain
        vcpu = self.ports[port].vcpu
        raised = set_pending(domain.kernel, port, vcpu)
        if raised == 3:
            domain.upcalls[vcpu].wake()
        elif raised < 0:
            domain.check(raised)

    def raise_virq(self, virq: int, vcpu: int = 0) -> bool:
        """Xen raises a VIRQ; False if nobody bound it."""
        port = self._virqs.get((virq, vcpu))
        if port is None:
            return False
        self.raise_port(port)
        return True

    def virq_port(self, virq: int, vcpu: int = 0) -> int:
        """The port that a VIRQ is bound to; 0 if it is not."""
        return self._virqs.get((virq, vcpu), 0)

    def status(self, port: int) -> PortStatus:
        """EVTCHNOP_status."""
        channel = self._port(port)
        return PortStatus(
            status=channel.state,
            vcpu=channel.vcpu,
            remote_domid=channel.remote_domid,
            remote_port=channel.remote_port,
            virq=channel.virq,
        )

    def bind_vcpu(self, port: int, vcpu: int) -> None:
        """EVTCHNOP_bind_vcpu: where later events go; a pending one is not raised again."""
        if vcpu >= self.domain.vcpus:
            raise HypercallError(ENOENT, f"no vcpu {vcpu}")
        channel = self._port(port)
        fixed = channel.state is PortState.VIRQ and channel.virq in PER_VCPU_VIRQS
        if channel.state in (PortState.FREE, PortState.IPI) or fixed:
            raise HypercallError(EINVAL, f"port {port} cannot be moved")
        channel.vcpu = vcpu

    def unmask(self, port: int) -> None:
        """EVTCHNOP_unmask: clears the mask bit and delivers what waited behind it."""
        channel = self._port(port)
        kick = self.domain.check(lib.evtchn_unmask(self.domain.kernel, port, channel.vcpu))
        if kick:
            self.domain.upcalls[channel.vcpu].wake()

    def poll(self, port: int) -> bool:
        """Wait for a port by letting its peer's consumer, and nothing else, run.

        True when the port was pending; it is acknowledged. False if the peer has nothing
        to do for it. This is how a guest spins for xenstored: inside a handler, without
        running anything else.
        """
        channel = self._port(port)
        kernel = self.domain.kernel
        while True:
            pending = lib.evtchn_take_pending(kernel, port)
            if pending:
                return self.domain.check(pending) == 1
            remote = channel.remote
            if remote is None or not remote.deliver(channel.remote_port):
                return self.domain.check(lib.evtchn_take_pending(kernel, port)) == 1

    def close_all(self) -> None:
        """At the domain's death: every peer's end turns unbound."""
        for number, port in enumerate(self.ports):
            if port.state is not PortState.FREE:
                self.close(number)

    def bound(self) -> int:
        """Ports in use."""
        return sum(port.state is not PortState.FREE for port in self.ports)
