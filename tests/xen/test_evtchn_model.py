"""Random operations on three domains against a small model of its own, written from the spec.

`a` is a guest of the 2-level ABI and `b` one of the FIFO ABI; every operation is done to
both, with dom0 at the far end. Numbers may differ (a closed port that is still linked is
not given out again in FIFO), what is delivered may not.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.xen.conftest import NR_FRAMES, domain
from tests.xen.evtchn_world import ARRAY_PFN, enable_fifo
from xenpv.abi._kernel import ffi, lib
from xenpv.bus.evtchn_fifo import ProcessorFifo
from xenpv.errors import HypercallError
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop

MAX_PORT = 70
VCPUS = 2
CLOSED, UNBOUND, INTERDOMAIN, VIRQ, IPI = 0, 1, 2, 4, 5


@attrs.define(eq=False)
class MPort:
    kind: int
    remote: int = 0  # domid
    peer: int = 0  # its port
    virq: int = 0
    vcpu: int = 0


@attrs.define(eq=False)
class MDomain:
    """One domain as the spec describes it: sets of port numbers and nothing of the bits."""

    domid: int
    fifo: bool
    vcpus: int
    ports: dict[int, MPort] = attrs.Factory(dict)
    valid: int = 64
    pending: set[int] = attrs.Factory(set)
    masked: set[int] = attrs.Factory(set)
    linked: set[int] = attrs.Factory(set)

    def lowest(self) -> int | str:
        number = 1
        while number in self.ports or (self.fifo and number in self.linked):
            number += 1
        return number if number <= MAX_PORT else "ENOSPC"

    def bind(self, number: int, port: MPort) -> int:
        self.ports[number] = port
        if number >= self.valid:
            self.valid += 64
        return number

    def drop(self, number: int) -> None:
        del self.ports[number]
        self.pending.discard(number)

    def raise_(self, number: int) -> None:
        self.pending.add(number)
        if number not in self.masked:
            self.linked.add(number)

    def unmask(self, number: int) -> None:
        self.masked.discard(number)
        if number in self.pending:
            self.linked.add(number)

    def consume(self) -> set[int]:
        due = self.pending - self.masked
        assert not self.fifo or due <= self.linked
        self.pending -= due
        self.linked.clear()
        return due


class Model:
    """EVTCHNOP_* on MDomains: a value, or the name of an errno."""

    def __init__(self) -> None:
        self.domains = {
            0: MDomain(0, False, 1),
            1: MDomain(1, False, VCPUS),
            2: MDomain(2, True, VCPUS),
        }

    def alloc_unbound(self, me: int, remote: int) -> int | str:
        number = self.domains[me].lowest()
        if isinstance(number, str):
            return number
        return self.domains[me].bind(number, MPort(UNBOUND, me if remote == 0x7FF0 else remote))

    def bind_interdomain(self, me: int, remote: int, port: int) -> int | str:
        here = self.domains[me]
        if remote not in self.domains:
            return "ESRCH"
        number = here.lowest()
        if isinstance(number, str):
            return number
        far = self.domains[remote].ports.get(port)
        if far is None or far.kind != UNBOUND or far.remote != me:
            return "EINVAL"
        here.bind(number, MPort(INTERDOMAIN, remote, port))
        far.kind, far.peer = INTERDOMAIN, number
        here.raise_(number)
        return number

    def bind_virq(self, me: int, virq: int, vcpu: int) -> int | str:
        here = self.domains[me]
        per_vcpu = virq in (0, 1, 7, 13)
        if not 0 <= virq < 24 or (vcpu and not per_vcpu):
            return "EINVAL"
        if vcpu >= here.vcpus:
            return "ENOENT"
        if virq != 11 and not per_vcpu and me != 0:
            return "EBUSY"
        for port in here.ports.values():
            if port.kind == VIRQ and port.virq == virq and (not per_vcpu or port.vcpu == vcpu):
                return "EEXIST"
        number = here.lowest()
        return (
            number
            if isinstance(number, str)
            else here.bind(number, MPort(VIRQ, virq=virq, vcpu=vcpu))
        )

    def bind_ipi(self, me: int, vcpu: int) -> int | str:
        here = self.domains[me]
        if vcpu >= here.vcpus:
            return "ENOENT"
        number = here.lowest()
        return number if isinstance(number, str) else here.bind(number, MPort(IPI, vcpu=vcpu))

    def close(self, me: int, number: int) -> str | None:
        port = self.domains[me].ports.get(number)
        if port is None:
            return "EINVAL"
        self.domains[me].drop(number)
        if port.kind == INTERDOMAIN:
            far = self.domains[port.remote].ports[port.peer]
            far.kind, far.remote, far.peer = UNBOUND, me, 0
        return None

    def send(self, me: int, number: int) -> str | None:
        port = self.domains[me].ports.get(number)
        if port is None or port.kind == VIRQ:
            return "EINVAL"
        if port.kind == INTERDOMAIN:
            self.domains[port.remote].raise_(port.peer)
        elif port.kind == IPI:
            self.domains[me].raise_(number)
        return None

    def bind_vcpu(self, me: int, number: int, vcpu: int) -> str | None:
        here = self.domains[me]
        if vcpu >= here.vcpus:
            return "ENOENT"
        port = here.ports.get(number)
        if port is None or port.kind == IPI or (port.kind == VIRQ and port.virq in (0, 1, 7, 13)):
            return "EINVAL"
        port.vcpu = vcpu
        return None

    def unmask(self, me: int, number: int) -> str | None:
        here = self.domains[me]
        if number >= here.valid:
            return "EINVAL"
        if number in here.ports:
            here.unmask(number)
        return None

    def set_priority(self, me: int, number: int, priority: int) -> str | None:
        here = self.domains[me]
        if number >= here.valid:
            return "EINVAL"
        if not here.fifo:
            return "ENOSYS"
        if number not in here.ports:
            return "EACCES"
        return "EINVAL" if priority > 15 else None

    def reset(self, me: int) -> None:
        for number in sorted(self.domains[me].ports):
            self.close(me, number)
        # Xen forgets the FIFO's links; the guest starts again with empty pages.
        self.domains[me].linked.clear()


numbers = st.one_of(st.integers(0, 8), st.sampled_from([40, 63, 64, 70, 128, 1 << 20]))
virqs = st.sampled_from([0, 1, 3, 5, 11, 13, 14, 23, 24])
vcpus = st.integers(0, 2)
slots = st.integers(0, 3)


class EventChannelMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.hypervisor = Hypervisor(Loop(seed=1), nr_frames=NR_FRAMES)
        make = self.hypervisor
        self.real: dict[int, Domain] = {
            0: domain(make, 0, max_event_channels=MAX_PORT),
            1: domain(make, 1, vcpus=VCPUS, max_event_channels=MAX_PORT),
            2: domain(make, 2, vcpus=VCPUS, max_event_channels=MAX_PORT),
        }
        self.model = Model()
        self.delivered: list[int] = []
        self.enable_fifo()
        # What the operations talk about: for both guests the port, and dom0's port or 0.
        self.channels: list[dict[int, tuple[int, int]]] = []
        self.ports = ffi.new("uint32_t[]", 4096)

    def teardown(self) -> None:
        self.hypervisor.close()

    def enable_fifo(self) -> None:
        guest = self.real[2]
        guest.write(0x110, 0, bytes(4096))
        guest.write(ARRAY_PFN, 0, bytes(4096))
        enable_fifo(guest)
        self.processors = [
            ProcessorFifo(guest, vcpu, self.delivered.append) for vcpu in range(VCPUS)
        ]
        self.model.domains[2].masked.clear()
        self.model.domains[2].pending.clear()

    def do(self, me: int, operation: str, *arguments: int) -> int | str | None:
        """The operation in both worlds, which have to agree."""
        expected = getattr(self.model, operation)(me, *arguments)
        try:
            result = getattr(self.real[me].evtchn, operation)(*arguments)
        except HypercallError as error:
            result = error.name
        assert result == expected, (operation, me, arguments)
        return result  # type: ignore[no-any-return]

    def both(self, operation: Callable[[int], int | str | None]) -> None:
        results = [operation(guest) for guest in (1, 2)]
        if all(isinstance(result, int) for result in results):
            self.channels.append({1: (int(results[0]), 0), 2: (int(results[1]), 0)})  # type: ignore[arg-type]

    def channel(self, slot: int) -> dict[int, tuple[int, int]] | None:
        return self.channels[slot % len(self.channels)] if self.channels else None

    @rule(remote=st.sampled_from([0, 0, 0, 1, 9, 0x7FF0]))
    def alloc_unbound(self, remote: int) -> None:
        self.both(lambda me: self.do(me, "alloc_unbound", remote))

    @initialize()
    def start_connected(self) -> None:
        for _ in range(3):
            self.connect()

    @rule()
    def connect(self) -> None:
        pair = {}
        for me in (1, 2):
            port = self.do(me, "alloc_unbound", 0)
            far = self.do(0, "bind_interdomain", me, port) if isinstance(port, int) else 0
            pair[me] = (port, far)
        if all(isinstance(port, int) and isinstance(far, int) for port, far in pair.values()):
            self.channels.append(pair)  # type: ignore[arg-type]

    @rule(slot=slots)
    @precondition(lambda self: self.channels)
    def dom0_binds(self, slot: int) -> None:
        pair = self.channel(slot)
        assert pair
        for me, (port, far) in pair.items():
            made = self.do(0, "bind_interdomain", me, port)
            pair[me] = (port, made if isinstance(made, int) else far)

    @rule(port=numbers, remote=st.sampled_from([0, 1, 2, 5]))
    def guest_binds(self, port: int, remote: int) -> None:
        self.both(lambda me: self.do(me, "bind_interdomain", remote, port))

    @rule(virq=virqs, vcpu=vcpus)
    def bind_virq(self, virq: int, vcpu: int) -> None:
        self.both(lambda me: self.do(me, "bind_virq", virq, vcpu))

    @rule(vcpu=vcpus)
    def bind_ipi(self, vcpu: int) -> None:
        self.both(lambda me: self.do(me, "bind_ipi", vcpu))

    @rule(slot=slots, far=st.booleans())
    @precondition(lambda self: self.channels)
    def close(self, slot: int, far: bool) -> None:
        pair = self.channel(slot)
        assert pair
        for me, ports in pair.items():
            self.do(0 if far else me, "close", ports[far])

    @rule(slot=slots)
    @precondition(lambda self: self.channels)
    def notify_the_guests(self, slot: int) -> None:
        self.send(slot, True)

    @rule(slot=slots, far=st.booleans())
    @precondition(lambda self: self.channels)
    def send(self, slot: int, far: bool) -> None:
        pair = self.channel(slot)
        assert pair
        for me, ports in pair.items():
            self.do(0 if far else me, "send", ports[far])

    @rule(virq=st.sampled_from([0, 1, 11]), vcpu=st.integers(0, 1))
    def raise_virq(self, virq: int, vcpu: int) -> None:
        for me in (1, 2):
            here = self.model.domains[me]
            where = [
                number
                for number, port in here.ports.items()
                if port.kind == VIRQ and port.virq == virq and (virq == 11 or port.vcpu == vcpu)
            ]
            vcpu = 0 if virq == 11 else vcpu
            assert self.real[me].evtchn.raise_virq(virq, vcpu) == bool(where)
            for number in where:
                here.raise_(number)

    @rule(slot=slots)
    @precondition(lambda self: self.channels)
    def mask(self, slot: int) -> None:
        pair = self.channel(slot)
        assert pair
        for me, (port, _) in pair.items():
            assert lib.evtchn_mask(self.real[me].kernel, port) == 0
            self.model.domains[me].masked.add(port)

    @rule(slot=slots)
    @precondition(lambda self: self.channels)
    def guest_unmask(self, slot: int) -> None:
        """The guest clears the bit itself; if the port is pending it asks Xen to look."""
        pair = self.channel(slot)
        assert pair
        for me, (port, _) in pair.items():
            here = self.model.domains[me]
            here.masked.discard(port)
            pending = lib.evtchn_guest_unmask(self.real[me].kernel, port)
            assert pending == (port in here.pending)
            if pending:
                assert lib.evtchn_mask(self.real[me].kernel, port) == 0
                self.do(me, "unmask", port)

    @rule(slot=slots, vcpu=vcpus)
    @precondition(lambda self: self.channels)
    def bind_vcpu(self, slot: int, vcpu: int) -> None:
        pair = self.channel(slot)
        assert pair
        for me, (port, _) in pair.items():
            self.do(me, "bind_vcpu", port, vcpu)

    @rule(slot=slots, priority=st.integers(0, 16))
    @precondition(lambda self: self.channels)
    def set_priority(self, slot: int, priority: int) -> None:
        pair = self.channel(slot)
        assert pair
        for me, (port, _) in pair.items():
            self.do(me, "set_priority", port, priority)

    @rule(
        operation=st.sampled_from(["close", "send", "unmask", "bind_vcpu", "set_priority"]),
        port=numbers,
        value=st.integers(0, 17),
    )
    def any_port(self, operation: str, port: int, value: int) -> None:
        more = (value,) if operation in ("bind_vcpu", "set_priority") else ()
        for me in (1, 2):
            self.do(me, operation, port, *more)

    @rule()
    def consume(self) -> None:
        """Every vcpu takes its upcalls: both guests get the same, by channel."""
        wide = self.model.domains[1].consume()
        got: set[int] = set()
        guest = self.real[1]
        for vcpu in range(VCPUS):
            while lib.evtchn_upcall_pending(guest.kernel, vcpu):
                count = lib.evtchn_scan(guest.kernel, vcpu, self.ports, 4096, 1)
                got |= set(self.ports[0:count])
        assert got == wide
        narrow = self.model.domains[2].consume()
        self.delivered.clear()
        for processor in self.processors:
            processor.upcall()
        assert set(self.delivered) == narrow
        for port in self.delivered:
            lib.evtchn_clear_pending(self.real[2].kernel, port)
        for pair in self.channels:
            one, two = self.model.domains[1], self.model.domains[2]
            if pair[1][0] in one.ports and pair[2][0] in two.ports and self.same(pair):
                assert (pair[1][0] in wide) == (pair[2][0] in narrow)

    def same(self, pair: dict[int, tuple[int, int]]) -> bool:
        """Whether the two ports had one history: no number of it was used for another since,
        and no guest is the other end, since "domain 1" is another to each of them."""
        ports = [self.model.domains[me].ports[pair[me][0]] for me in (1, 2)]
        if any(port.kind == INTERDOMAIN and port.remote for port in ports):
            return False
        return (
            sum(pair[1][0] == other[1][0] or pair[2][0] == other[2][0] for other in self.channels)
            == 1
        )

    @rule()
    def consume_dom0(self) -> None:
        count = lib.evtchn_scan(self.real[0].kernel, 0, self.ports, 4096, 1)
        assert set(self.ports[0:count]) == self.model.domains[0].consume()

    @rule()
    def reset(self) -> None:
        for me in (1, 2):
            self.do(me, "reset")
        assert not self.real[2].evtchn.fifo
        self.enable_fifo()
        # The words of the FIFO guest are fresh, so the other opens its masks, which a reset keeps.
        wide = self.model.domains[1]
        for port in sorted(wide.masked):
            assert lib.evtchn_guest_unmask(self.real[1].kernel, port) == 0
        wide.masked.clear()
        self.channels.clear()

    @invariant()
    def every_port_is_what_the_model_says(self) -> None:
        for me, here in self.model.domains.items():
            real = self.real[me]
            assert len(real.evtchn.ports) == here.valid
            assert real.evtchn.bound() == len(here.ports)
            for number in range(1, max(here.ports, default=0) + 3):
                port = here.ports.get(number)
                if number >= here.valid:
                    continue
                status = real.evtchn.status(number)
                assert status.status == (port.kind if port else CLOSED)
                if port:
                    assert status.vcpu == port.vcpu
                    if port.kind in (UNBOUND, INTERDOMAIN):
                        assert (status.remote_domid, status.remote_port) == (port.remote, port.peer)
                assert lib.evtchn_is_pending(real.kernel, number) == (number in here.pending)
                assert lib.evtchn_is_masked(real.kernel, number) == (number in here.masked)
                if here.fifo:
                    word = lib.fifo_read_word(real.kernel, number)
                    assert word >> 29 & 1 == (number in here.linked)


TestEventChannels = EventChannelMachine.TestCase
TestEventChannels.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
