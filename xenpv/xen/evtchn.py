"""Event channels of one domain: what EVTCHNOP_* does to its ports, in both ABIs.

Port states are in xen.evtchn_port; pending, mask and queue bits lie in the guest's memory
and are touched by the kernel only (xen/common/event_channel.c, event_2l.c, event_fifo.c).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import (
    EACCES,
    EAGAIN,
    EBUSY,
    EEXIST,
    EINVAL,
    ENOENT,
    ENOSPC,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    ESRCH,
)  # fmt: skip
from typing import TYPE_CHECKING, Any, Final

from xenpv.abi._kernel import lib
from xenpv.errors import HypercallError
from xenpv.xen.callback import Callbacks
from xenpv.xen.evtchn_port import (
    FREE,
    MAX_PORTS,
    MAX_PORTS_FIFO,
    STATUS,
    Port,
    PortState,
    PortStatus,
    PortTable,
)  # fmt: skip
from xenpv.xen.poll import Pollers
from xenpv.xen.trace import Event
from xenpv.xen.virq import CLASS_OF, VirqClass

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain
    from xenpv.xen.loop import Task

VIRQ_TIMER: Final = 0
VIRQ_DEBUG: Final = 1
VIRQ_DOM_EXC: Final = 3

NR_PIRQS: Final = 256
WORDS_PER_PAGE: Final = 1024
PRIORITY_LOWEST: Final = 15
CONTROL_OFFSET_MAX: Final = 4096 - 72  # a control block does not cross its page
GFN_END: Final = 1 << 28  # what the p2m can hold
LINK_BITS: Final = 17

raise_port_now: Final = lib.evtchn_raise
RAISED_NEW: Final[int] = lib.RAISED_NEW
RAISED_KICK: Final[int] = lib.RAISED_KICK
NEW_AND_KICK: Final[int] = RAISED_NEW | RAISED_KICK


def _refused(operation: str, errno: int, reason: str, **arguments: object) -> HypercallError:
    return HypercallError(errno, reason, operation=f"EVTCHNOP_{operation}", arguments=arguments)


class EventChannels:
    """The event channels of `domain`; every public method named after an EVTCHNOP is a
    hypercall of that domain and raises HypercallError with Xen's errno, the checks in Xen's
    order. One that fails changes nothing.

    `nr_pirqs` physical interrupts can be bound, but none is ever delivered; `permitted_pirqs`
    are those of a domain that is no HVM guest (None: all).
    """

    def __init__(self, domain: Domain, max_port: int = 1023) -> None:
        self.domain = domain
        self.max_port = max_port
        self.nr_pirqs = NR_PIRQS
        self.permitted_pirqs: frozenset[int] | None = None
        self.callbacks = Callbacks(domain)
        self.pollers = Pollers(domain)
        self._table = PortTable(domain)
        self.ports = self._table.list
        # A send's only look-up: the far end's handle, the trace's record, the far end.
        self._routes: dict[int, tuple[Any, int, Port]] = {}
        self._virqs: dict[tuple[int, int], int] = {}
        self._pirqs: dict[int, int] = {}
        self._resetting = False
        # Of the FIFO ABI, for whoever looks on: machine frames of the event array in their order,
        # and by vcpu the frame and offset of its control block.
        self.fifo_frames: list[int] = []
        self.control_blocks: dict[int, tuple[int, int]] = {}
        self._record = domain.trace.words.append
        self._sends = domain.trace.mark(Event.SEND, domain.domid)

    @property
    def fifo(self) -> bool:
        """Whether the FIFO ABI is in force; otherwise it is the 2-level one."""
        return bool(lib.evtchn_is_fifo(self.domain.kernel))

    @property
    def limit(self) -> int:
        """Ports below this number can be bound (max_evtchns and max_evtchn_port)."""
        most = MAX_PORTS_FIFO if self.fifo else MAX_PORTS[self.domain.is_32bit]
        return min(self.max_port + 1, most)

    # ports

    def _find(self, port: int) -> Port | None:
        """A valid port, whatever its state."""
        return self.ports[port] if 0 <= port < len(self.ports) else None

    def _allocate(self, operation: str, **arguments: object) -> int:
        if self.domain.dying:
            raise _refused(operation, EINVAL, "the domain is dying", **arguments)
        number = self._table.lowest_free()
        if number >= self.limit:
            raise _refused(operation, ENOSPC, f"all {self.limit - 1} ports are in use", **arguments)
        return number

    def _bind(self, number: int, state: PortState, **fields: Any) -> Port:
        port = Port(number, state, **fields)
        port.kick = self.callbacks.kick(port.vcpu)
        self._table.bind(port)
        return port

    def _route(self, near: Port, far: Port) -> None:
        self._routes[near.number] = (far.handle, self._sends | near.number, far)

    def _has_vcpu(self, vcpu: int) -> bool:
        return 0 <= vcpu < self.domain.vcpus

    def usable(self, port: int) -> Any:
        """The kernel's handle of a port that a guest may poll, unmask or prioritise, or None.

        evtchn_usable: bound, and not Xen's own.
        """
        channel = self._find(port)
        if channel is None or channel.consumer is not None:
            return None
        return channel.handle

    def callbacks_changed(self) -> None:
        """The domain chose another way to be interrupted."""
        for port in self._table.once_bound():
            if port.handle is not None:
                port.kick = self.callbacks.kick(port.vcpu)

    # EVTCHNOP: binding

    def alloc_unbound(self, remote_domid: int, *, dom: int = 0x7FF0) -> int:
        """EVTCHNOP_alloc_unbound: a port of domain `dom` that `remote_domid` may bind.

        ESRCH; ENOSPC, or EINVAL for a dying one; EPERM for another's domain, checked last.
        Nobody looks whether `remote_domid` exists; DOMID_SELF there is the caller.
        """
        arguments = {"remote_dom": remote_domid, "dom": dom}
        domain = self.domain.find(dom)
        if domain is None:
            raise _refused("alloc_unbound", ESRCH, f"no domain {dom}", **arguments)
        number = domain.evtchn._allocate("alloc_unbound", **arguments)
        if domain is not self.domain and not self.domain.controls(domain):
            raise _refused(
                "alloc_unbound", EPERM, f"domain {self.domain.domid} does not control {dom}",
                **arguments,
            )  # fmt: skip
        own = remote_domid == self.domain.DOMID_SELF
        domain.evtchn._bind(
            number, PortState.UNBOUND, remote_domid=self.domain.domid if own else remote_domid
        )
        return number

    def bind_interdomain(self, remote_domid: int, remote_port: int) -> int:
        """EVTCHNOP_bind_interdomain. The new local port becomes pending.

        ESRCH; ENOSPC; EINVAL unless the remote port is unbound for this domain. Both ends may
        be this domain's.
        """
        arguments = {"remote_dom": remote_domid, "remote_port": remote_port}
        remote = self.domain.find(remote_domid)
        if remote is None:
            raise _refused("bind_interdomain", ESRCH, f"no domain {remote_domid}", **arguments)
        number = self._allocate("bind_interdomain", **arguments)
        far = remote.evtchn._find(remote_port) or FREE
        if far.state is not PortState.UNBOUND or far.remote_domid != self.domain.domid:
            raise _refused(
                "bind_interdomain", EINVAL,
                f"port {remote_port} is not unbound for domain {self.domain.domid}", **arguments,
            )  # fmt: skip
        near = self._bind(
            number,
            PortState.INTERDOMAIN,
            remote_domid=remote.domid,
            remote=remote,
            remote_port=remote_port,
        )
        far.state = PortState.INTERDOMAIN
        far.remote = self.domain
        far.remote_port = number
        if far.consumer is None:
            self._route(near, far)
            remote.evtchn._route(far, near)
        self._raise(near)
        return number

    def bind_virq(self, virq: int, vcpu: int = 0) -> int:
        """EVTCHNOP_bind_virq. EINVAL: no such VIRQ, or a vcpu other than 0 for one that is not
        per vcpu; ENOENT: no such vcpu; EBUSY: a global one that another domain handles; EEXIST;
        ENOSPC.
        """
        arguments = {"virq": virq, "vcpu": vcpu}
        kind = CLASS_OF.get(virq)
        if kind is None or (vcpu and kind is not VirqClass.VCPU):
            raise _refused("bind_virq", EINVAL, "no such VIRQ on that vcpu", **arguments)
        if not self._has_vcpu(vcpu):
            raise _refused("bind_virq", ENOENT, "no such vcpu", **arguments)
        if kind is VirqClass.GLOBAL and self.domain.global_virqs.handler(virq) is not self.domain:
            raise _refused("bind_virq", EBUSY, "another domain handles it", **arguments)
        if (virq, vcpu) in self._virqs:
            raise _refused("bind_virq", EEXIST, "it is bound", **arguments)
        number = self._allocate("bind_virq", **arguments)
        self._bind(number, PortState.VIRQ, irq=virq, vcpu=vcpu)
        self._virqs[virq, vcpu] = number
        return number

    def bind_pirq(self, pirq: int, flags: int = 0) -> int:
        """EVTCHNOP_bind_pirq. EINVAL out of range, EPERM not the domain's, EEXIST, ENOSPC."""
        arguments = {"pirq": pirq, "flags": flags}
        if not 0 <= pirq < self.nr_pirqs:
            raise _refused("bind_pirq", EINVAL, f"of {self.nr_pirqs} pirqs", **arguments)
        if self.permitted_pirqs is not None and pirq not in self.permitted_pirqs:
            raise _refused("bind_pirq", EPERM, "not this domain's", **arguments)
        if pirq in self._pirqs:
            raise _refused("bind_pirq", EEXIST, "it is bound", **arguments)
        number = self._allocate("bind_pirq", **arguments)
        self._bind(number, PortState.PIRQ, irq=pirq)
        self._pirqs[pirq] = number
        return number

    def bind_ipi(self, vcpu: int) -> int:
        """EVTCHNOP_bind_ipi: ENOENT; ENOSPC."""
        if not self._has_vcpu(vcpu):
            raise _refused("bind_ipi", ENOENT, "no such vcpu", vcpu=vcpu)
        number = self._allocate("bind_ipi", vcpu=vcpu)
        ipi = self._bind(number, PortState.IPI, vcpu=vcpu)
        self._route(ipi, ipi)
        return number

    def close(self, port: int) -> None:
        """EVTCHNOP_close: the peer's end turns unbound for this domain, without an event.

        EINVAL for a port that is not open, or is Xen's own.
        """
        channel = self._find(port)
        if channel is None or channel.handle is None:
            raise _refused("close", EINVAL, "the port is not open", port=port)
        if channel.consumer is not None:
            raise _refused("close", EINVAL, "the port is Xen's", port=port)
        self._close(channel)

    def _close(self, channel: Port) -> None:
        state = channel.state
        number = channel.number
        if state is PortState.INTERDOMAIN and channel.remote is not None:
            peer = channel.remote.evtchn
            far = peer.ports[channel.remote_port]
            peer._routes.pop(far.number, None)
            far.state = PortState.UNBOUND
            far.remote = None
            far.remote_port = 0
            far.remote_domid = self.domain.domid
        elif state is PortState.VIRQ:
            per_vcpu = CLASS_OF[channel.irq] is VirqClass.VCPU
            del self._virqs[channel.irq, channel.vcpu if per_vcpu else 0]
        elif state is PortState.PIRQ:
            del self._pirqs[channel.irq]
        self._routes.pop(number, None)
        self._table.free(channel)

    # EVTCHNOP: events

    def send(self, port: int) -> None:
        """EVTCHNOP_send: an unbound port succeeds silently.

        EINVAL for what is free, reserved, Xen's own, a VIRQ or a PIRQ.
        """
        try:
            handle, record, far = self._routes[port]
        except KeyError:
            self._send_elsewhere(port)
            return
        self._record(record)
        # _raise of the peer, spelt out: a call less on the hottest path there is.
        raised = raise_port_now(handle)
        if raised == NEW_AND_KICK:
            far.kick()
        elif raised > RAISED_NEW or raised < 0:
            domain = self.ports[port].remote or self.domain
            domain.evtchn._raised(far, raised)

    def _send_elsewhere(self, port: int) -> None:
        """To nobody, or to a port that Xen itself listens on."""
        channel = self._find(port) or FREE
        if channel.consumer is None and channel.state is PortState.UNBOUND:
            return
        if channel.consumer is None and channel.state is PortState.INTERDOMAIN:
            assert channel.remote is not None
            far = channel.remote.evtchn.ports[channel.remote_port]
            assert far.consumer is not None
            self._record(self._sends | port)
            far.consumer(far.number)
            return
        owner = "Xen's" if channel.consumer is not None else channel.state.name.lower()
        raise _refused("send", EINVAL, f"the port is {owner}: nothing to send to", port=port)

    def _raise(self, channel: Port) -> None:
        raised = raise_port_now(channel.handle)
        if raised:
            self._raised(channel, raised)

    def _raised(self, channel: Port, raised: int) -> None:
        """Act on what the kernel says of a port that it set pending or unmasked."""
        if raised < 0:
            self.domain.check(raised)
        if raised & RAISED_KICK:
            channel.kick()
        if self.pollers.asleep:
            if raised & RAISED_NEW:
                self.pollers.check(channel.number)
            if raised & RAISED_KICK:
                self.pollers.wake(channel.vcpu)

    def raise_port(self, port: int) -> None:
        """Xen sets a bound port of this domain pending; its vcpu is kicked if the bits say so."""
        self._raise(self.ports[port])

    def raise_virq(self, virq: int, vcpu: int = 0) -> bool:
        """Xen raises a VIRQ of this domain; False if it did not bind it.

        Per vcpu: to the vcpu it was bound on. Others, `vcpu` 0: to where bind_vcpu put it.
        """
        port = self._virqs.get((virq, vcpu))
        if port is None:
            return False
        self._raise(self.ports[port])
        return True

    def virq_port(self, virq: int, vcpu: int = 0) -> int:
        """The port that the VIRQ is bound to, 0 if it is not."""
        return self._virqs.get((virq, vcpu), 0)

    def unmask(self, port: int) -> None:
        """EVTCHNOP_unmask: clears the mask bit and delivers what waited behind it.

        EINVAL beyond the valid ports; nothing happens to one that is not in use.
        """
        channel = self._find(port)
        if channel is None:
            raise _refused("unmask", EINVAL, "no such port", port=port)
        if channel.handle is None or channel.consumer is not None:
            return
        raised = lib.evtchn_unmask(channel.handle)
        if raised:
            self._raised(channel, raised)

    def sched_poll(
        self, ports: Sequence[int], timeout: int = 0, *, wake: Task, vcpu: int = 0
    ) -> bool:
        """SCHEDOP_poll of `vcpu` until one of `ports` is pending, masked or not.

        True: the call came back at once. False: the vcpu sleeps, and `wake` is woken by a port
        (with one, by that port alone; with more, by any newly pending port of the domain), by
        an upcall of the vcpu, or at `timeout` (virtual nanoseconds, absolute; 0: never). Which
        it was is not said: read the bits again.

        ENOENT: no such vcpu calls. EINVAL: more than 128 ports, or one that cannot be polled and
        comes before a pending one.
        """
        return self.pollers.poll(ports, timeout, wake, vcpu)

    def poll(self, port: int) -> bool:
        """Wait for a port by letting its peer's consumer, and nothing else, run.

        True when the port was pending; it is acknowledged. False if the peer has nothing
        to do for it. This is how a guest spins for xenstored: inside a handler, without
        running anything else.
        """
        channel = self._find(port)
        if channel is None:
            raise HypercallError(
                EINVAL, "no such port", operation="SCHEDOP_poll", arguments={"ports": [port]}
            )
        kernel = self.domain.kernel
        while True:
            pending = lib.evtchn_take_pending(kernel, port)
            if pending:
                return self.domain.check(pending) == 1
            remote = channel.remote
            if remote is None or not remote.deliver(channel.remote_port):
                return self.domain.check(lib.evtchn_take_pending(kernel, port)) == 1

    # EVTCHNOP: the rest

    def status(self, port: int, dom: int = 0x7FF0) -> PortStatus:
        """EVTCHNOP_status: ESRCH, EINVAL, EPERM in that order."""
        domain = self.domain.find(dom)
        if domain is None:
            raise _refused("status", ESRCH, f"no domain {dom}", dom=dom, port=port)
        channel = domain.evtchn._find(port)
        if channel is None:
            raise _refused("status", EINVAL, "no such port", dom=dom, port=port)
        if domain is not self.domain and not self.domain.controls(domain):
            raise _refused("status", EPERM, "not this domain's", dom=dom, port=port)
        state = channel.state
        interdomain = state is PortState.INTERDOMAIN
        return PortStatus(
            status=STATUS[state],
            vcpu=channel.vcpu,
            remote_domid=channel.remote_domid if interdomain or state is PortState.UNBOUND else 0,
            remote_port=channel.remote_port,
            virq=channel.irq if state is PortState.VIRQ else 0,
            pirq=channel.irq if state is PortState.PIRQ else 0,
        )

    def bind_vcpu(self, port: int, vcpu: int) -> None:
        """EVTCHNOP_bind_vcpu: where later events go; a pending one is not raised again.

        ENOENT; EINVAL for an IPI, a per-vcpu VIRQ, Xen's own or a port that is not open.
        """
        if not self._has_vcpu(vcpu):
            raise _refused("bind_vcpu", ENOENT, "no such vcpu", port=port, vcpu=vcpu)
        channel = self._find(port) or FREE
        fixed = channel.state is PortState.IPI or (
            channel.state is PortState.VIRQ and CLASS_OF[channel.irq] is VirqClass.VCPU
        )
        if fixed or channel.handle is None or channel.consumer is not None:
            raise _refused("bind_vcpu", EINVAL, "the port cannot be moved", port=port, vcpu=vcpu)
        channel.vcpu = vcpu
        channel.kick = self.callbacks.kick(vcpu)
        lib.evtchn_set_vcpu(channel.handle, vcpu)

    def reset(self, dom: int = 0x7FF0) -> None:
        """EVTCHNOP_reset: closes every port of domain `dom` but Xen's own, back to 2-level.

        ESRCH; EPERM; EINVAL for another's domain that no toolstack paused; EBUSY while one is
        at it; EAGAIN if ports of the guest are left (bound meanwhile, XSA-344).
        """
        domain = self.domain.find(dom)
        if domain is None:
            raise _refused("reset", ESRCH, f"no domain {dom}", dom=dom)
        if domain is not self.domain:
            if not self.domain.controls(domain):
                raise _refused("reset", EPERM, "not this domain's", dom=dom)
            if not domain.pause_count:
                raise _refused("reset", EINVAL, f"domain {dom} is not paused", dom=dom)
        domain.evtchn._reset(dom)

    def _reset(self, dom: int) -> None:
        if self._resetting:
            raise _refused("reset", EBUSY, "a reset is in progress", dom=dom)
        self._resetting = True
        try:
            number = 1
            while number < len(self.ports):
                channel = self.ports[number]
                if channel.handle is not None and channel.consumer is None:
                    self._close(channel)
                number += 1
        finally:
            self._resetting = False
        if any(port.handle is not None and port.consumer is None for port in self.ports):
            raise _refused("reset", EAGAIN, "ports were bound meanwhile", dom=dom)
        self._forget_fifo()

    # EVTCHNOP: the FIFO ABI

    def init_control(self, gfn: int, offset: int, vcpu: int) -> int:
        """EVTCHNOP_init_control: 17, the bits of a link. The first switches the domain to FIFO.

        ENOENT; EINVAL: the block crosses its page or is not 8-aligned, the vcpu has one, or
        `gfn` is no RAM. A first call that fails leaves the 2-level ABI in force.
        """
        arguments = {"gfn": gfn, "offset": offset, "vcpu": vcpu}
        if not self._has_vcpu(vcpu):
            raise _refused("init_control", ENOENT, "no such vcpu", **arguments)
        if not 0 <= offset <= CONTROL_OFFSET_MAX or offset % 8:
            raise _refused("init_control", EINVAL, "no place for a control block", **arguments)
        kernel = self.domain.kernel
        first = not self.fifo
        done = lib.fifo_init_control(kernel, gfn, offset, vcpu) if 0 <= gfn < GFN_END else -EINVAL
        if done == -EINVAL:
            raise _refused(
                "init_control", EINVAL, "the vcpu has a control block, or no RAM is there",
                **arguments,
            )  # fmt: skip
        self.domain.check(done)
        self.control_blocks[vcpu] = int(lib.p2m_lookup(kernel, gfn, 0)), offset
        if first:
            self.domain.check(lib.evtchn_save_pending(kernel))
        return LINK_BITS

    def expand_array(self, gfn: int) -> None:
        """EVTCHNOP_expand_array: 1,024 more event words, in RAM of the guest.

        EOPNOTSUPP in the 2-level ABI; ENOSPC after 128 pages; EINVAL if `gfn` is no RAM. What
        was raised while the words were missing is raised now.
        """
        kernel = self.domain.kernel
        first = lib.fifo_expand_array(kernel, gfn if 0 <= gfn < GFN_END else GFN_END)
        if first == -EOPNOTSUPP:
            raise _refused("expand_array", EOPNOTSUPP, "the ABI is 2-level", gfn=gfn)
        if first == -ENOSPC:
            raise _refused("expand_array", ENOSPC, "it has its 128 pages", gfn=gfn)
        if first == -EINVAL:
            raise _refused("expand_array", EINVAL, "no RAM is there", gfn=gfn)
        self.domain.check(first)
        self.fifo_frames.append(int(lib.p2m_lookup(kernel, gfn, 0)))
        end = first + WORDS_PER_PAGE
        port = lib.evtchn_next_saved(kernel, first, end)
        while port >= 0:
            if self.ports[port].handle is not None:
                self._raise(self.ports[port])
            port = lib.evtchn_next_saved(kernel, port + 1, end)

    def _forget_fifo(self) -> None:
        lib.fifo_destroy(self.domain.kernel)
        self.fifo_frames.clear()
        self.control_blocks.clear()

    def set_priority(self, port: int, priority: int) -> None:
        """EVTCHNOP_set_priority: of later linking. 0 is the highest, 15 the lowest, 7 a new port's.

        EINVAL beyond the valid ports; ENOSYS in the 2-level ABI; EACCES for a port that is not
        in use, or Xen's; EINVAL beyond 15.
        """
        arguments = {"port": port, "priority": priority}
        channel = self._find(port)
        if channel is None:
            raise _refused("set_priority", EINVAL, "no such port", **arguments)
        if not self.fifo:
            raise _refused("set_priority", ENOSYS, "the ABI is 2-level", **arguments)
        if channel.handle is None or channel.consumer is not None:
            raise _refused("set_priority", EACCES, "the port is not in use", **arguments)
        if not 0 <= priority <= PRIORITY_LOWEST:
            raise _refused("set_priority", EINVAL, "no such priority", **arguments)
        lib.evtchn_set_priority(channel.handle, priority)

    # Xen's own ports

    def alloc_xen_port(
        self, remote_domid: int, consumer: Callable[[int], object], *, vcpu: int = 0
    ) -> int:
        """A port of this domain that Xen itself listens on, for `remote_domid` to bind.

        alloc_unbound_xen_event_channel: how a device model hears of ioreqs. `consumer` is called
        with the port at each send of the peer. This domain cannot close, move or use it.
        """
        number = self._allocate("alloc_unbound")
        self._bind(
            number, PortState.UNBOUND, remote_domid=remote_domid, vcpu=vcpu, consumer=consumer
        )
        return number

    def free_xen_port(self, port: int) -> None:
        """free_xen_event_channel."""
        channel = self.ports[port]
        assert channel.consumer is not None
        self._close(channel)

    def notify_from_xen(self, port: int) -> None:
        """notify_via_xen_event_channel: Xen sends on its port, to the peer if one is bound."""
        channel = self.ports[port]
        if channel.state is PortState.INTERDOMAIN and channel.remote is not None:
            channel.remote.evtchn.raise_port(channel.remote_port)

    # the end

    def close_all(self) -> None:
        """At the domain's death: every peer's end turns unbound, FIFO pages are let go."""
        for port in self._table.once_bound():
            if port.handle is not None:
                self._close(port)
        self.domain.global_virqs.forget(self.domain)
        self.pollers.asleep.clear()
        self._forget_fifo()

    def bound(self) -> int:
        """Ports in use."""
        return sum(port.handle is not None for port in self.ports)
