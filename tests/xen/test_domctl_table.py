"""domctl: operation x situation -> what Xen answers (spec xen-core 7.4). A refusal changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from tests.xen.conftest import domain as make_domain
from xenpv.abi._kernel import lib
from xenpv.errors import GrantError, HypercallError
from xenpv.xen.createdomain import CreateDomain
from xenpv.xen.domain import Domain
from xenpv.xen.domctl import DomainInfo, DomainState
from xenpv.xen.evtchn import VIRQ_DOM_EXC
from xenpv.xen.hypervisor import Hypervisor

HOLE = 0x100000
EPERM, ENOENT, ESRCH, ENOMEM, EACCES, EEXIST, EINVAL, EOVERFLOW, EOPNOTSUPP = (
    1, 2, 3, 12, 13, 17, 22, 75, 95,
)  # fmt: skip
BAD_PAGE = -9
SELF, INVALID, ANY = 0x7FF0, 0x7FF4, 0x7FF5


@attrs.define(eq=False)
class Machine:
    """dom0 (0), two running guests (1, 2); 3 is the next number."""

    hypervisor: Hypervisor
    dom0: Domain
    guest: Domain
    other: Domain

    @property
    def ctl(self) -> Any:
        return self.dom0.domctl

    def hold(self) -> int:
        """dom0 maps a page of the guest; the handle."""
        self.guest.write(0x100, 0, b"held")
        for ref, pfn in ((8, 0x100), (9, 0x101)):
            self.guest.check(lib.grant_entry_set(self.guest.kernel, ref, 0, pfn, 1))
        return self.dom0.gnttab.map(1, 8, HOLE)

    def dead(self) -> int:
        """The guest is dead, and dom0 holds a page of it; the handle."""
        handle = self.hold()
        self.ctl.destroydomain(1)
        return handle

    def release(self, handle: int) -> None:
        self.dom0.gnttab.unmap(handle, HOLE)

    def snapshot(self) -> object:
        return (
            lib.machine_free_pages(self.hypervisor.machine),
            [
                (
                    one.domid,
                    one.unique_id,
                    self.ctl.getdomaininfo(one.domid),
                    one.pause_count,
                    one.creation_finished,
                    one.target,
                    one.device_models,
                    one.suspend_evtchn,
                    one.suspend_result,
                    one.evtchn.bound(),
                    len(one.gnttab.maptrack),
                    one.gnttab.pinned(),
                    len(one.tasks),
                    [task.held for task in one.tasks],
                    list(one.hvm.params),
                )
                for one in self.hypervisor.domains.values()
            ],
        )


@pytest.fixture
def machine(hypervisor: Hypervisor, dom0: Domain, guest: Domain) -> Machine:
    return Machine(hypervisor, dom0, guest, make_domain(hypervisor))


Step = Callable[[Machine], Any]


def row(name: str, call: Step, expected: object, before: Step = lambda m: None) -> Any:
    return pytest.param(before, call, expected, id=name)


def created(machine: Machine, **config: Any) -> Domain:
    return machine.ctl.createdomain(**{"max_vcpus": 1, **config})


REFUSED = [
    # createdomain
    row("create, in use", lambda m: created(m, domid=1), EEXIST),
    row("create, dom0's", lambda m: created(m, domid=0), EEXIST),
    row("create, of a dead one that is held", lambda m: created(m, domid=1), EEXIST, Machine.dead),
    row("create, no vcpus", lambda m: created(m, max_vcpus=0), EINVAL),
    row("create, 129 vcpus", lambda m: created(m, max_vcpus=129), EINVAL),
    row("create, unknown flag", lambda m: created(m, flags=1 << 9 | 1), EINVAL),
    row("create, HAP without HVM", lambda m: created(m, flags=2), EINVAL),
    row("create, grant version 0", lambda m: created(m, max_grant_version=0), EINVAL),
    row("create, grant version 3", lambda m: created(m, max_grant_version=3), EINVAL),
    row("create, no grant frames", lambda m: created(m, max_grant_frames=0), EINVAL),
    row("create, taken and no vcpus", lambda m: created(m, domid=1, max_vcpus=0), EEXIST),
    row("create, no memory", created, ENOMEM, lambda m: eat_memory(m)),
    row("create, by a guest", lambda m: m.guest.domctl.createdomain(max_vcpus=1), EPERM),
    row("create_domain, by a guest", lambda m: m.guest.domctl.create_domain(max_pages=1), EPERM),
    # max_vcpus
    row("max_vcpus, another number", lambda m: m.ctl.max_vcpus(1, 2), EINVAL),
    row("max_vcpus, 0", lambda m: m.ctl.max_vcpus(1, 0), EINVAL),
    row("max_vcpus, of itself", lambda m: m.ctl.max_vcpus(0, 1), EINVAL),
    row("max_vcpus, nobody", lambda m: m.ctl.max_vcpus(9, 1), ESRCH),
    row("max_vcpus, by a guest", lambda m: m.guest.domctl.max_vcpus(2, 1), EPERM),
    # max_mem
    row("max_mem, nobody", lambda m: m.ctl.max_mem(9, 4), ESRCH),
    row("max_mem, SELF is no domain", lambda m: m.ctl.max_mem(SELF, 4), ESRCH),
    row("max_mem, by a guest", lambda m: m.guest.domctl.max_mem(1, 4), EPERM),
    # pausedomain
    row("pause, itself", lambda m: m.ctl.pausedomain(0), EINVAL),
    row("pause, nobody", lambda m: m.ctl.pausedomain(9), ESRCH),
    row("pause, by a guest", lambda m: m.guest.domctl.pausedomain(2), EPERM),
    row("pause, by a guest, nobody", lambda m: m.guest.domctl.pausedomain(9), ESRCH),
    row("pause, the 256th", lambda m: m.ctl.pausedomain(1), EOVERFLOW, lambda m: pause(m, 255)),
    # unpausedomain
    row("unpause, not paused", lambda m: m.ctl.unpausedomain(1), EINVAL),
    row("unpause, itself", lambda m: m.ctl.unpausedomain(0), EINVAL),
    row("unpause, nobody", lambda m: m.ctl.unpausedomain(9), ESRCH),
    row("unpause, by a guest", lambda m: m.guest.domctl.unpausedomain(1), EPERM, lambda m: pause(m, 1)),
    # destroydomain
    row("destroy, itself", lambda m: m.ctl.destroydomain(0), EINVAL),
    row("destroy, nobody", lambda m: m.ctl.destroydomain(9), ESRCH),
    row("destroy, SELF", lambda m: m.ctl.destroydomain(SELF), ESRCH),
    row("destroy, vanished", lambda m: m.ctl.destroydomain(1), ESRCH, lambda m: m.ctl.destroydomain(1)),
    row("destroy, by a guest", lambda m: m.guest.domctl.destroydomain(2), EPERM),
    row("destroy_domain, by a guest", lambda m: m.guest.domctl.destroy_domain(m.other), EPERM),
    # resumedomain
    row("resume, itself", lambda m: m.ctl.resumedomain(0), EINVAL),
    row("resume, nobody", lambda m: m.ctl.resumedomain(9), ESRCH),
    row("resume, by a guest", lambda m: m.guest.domctl.resumedomain(2), EPERM),
    # setvcpucontext, subscribe
    row("setvcpucontext, itself", lambda m: m.ctl.setvcpucontext(0, 0, rax=1), EINVAL),
    row("setvcpucontext, no vcpu", lambda m: m.ctl.setvcpucontext(1, 1, rax=1), EINVAL),
    row("setvcpucontext, nobody", lambda m: m.ctl.setvcpucontext(9, 0, rax=1), ESRCH),
    row("setvcpucontext, by a guest", lambda m: m.guest.domctl.setvcpucontext(2, 0, rax=1), EPERM),
    row("subscribe, nobody", lambda m: m.ctl.subscribe(9, 1), ESRCH),
    row("subscribe, by a guest", lambda m: m.guest.domctl.subscribe(2, 1), EPERM),
    # set_target
    row("set_target, nobody", lambda m: m.ctl.set_target(9, 1), ESRCH),
    row("set_target, no target", lambda m: m.ctl.set_target(2, 9), ESRCH),
    row("set_target, itself", lambda m: m.ctl.set_target(2, 2), EINVAL),
    row("set_target, a second time", lambda m: m.ctl.set_target(2, 1), EINVAL, lambda m: m.ctl.set_target(2, 1)),
    row("set_target, not HVM", lambda m: m.ctl.set_target(2, 3), EOPNOTSUPP, lambda m: created(m, flags=0)),
    row("set_target, by a guest", lambda m: m.guest.domctl.set_target(1, 2), EPERM),
    # getdomaininfo and the list
    row("getdomaininfo, nobody", lambda m: m.ctl.getdomaininfo(9), ESRCH),
    row("getdomaininfo, vanished", lambda m: m.ctl.getdomaininfo(1), ESRCH, lambda m: m.ctl.destroydomain(1)),
    row("getdomaininfo, by a guest", lambda m: m.guest.domctl.getdomaininfo(1), EPERM),
    row("debug_keys, by a guest", lambda m: m.guest.domctl.debug_keys("q"), EPERM),
    row("getdomaininfolist, by a guest", lambda m: m.guest.domctl.getdomaininfolist(), EPERM),
    # get_domain_state
    row("get_domain_state, nobody", lambda m: m.ctl.get_domain_state(9), ESRCH),
    row("get_domain_state, by a guest", lambda m: m.guest.domctl.get_domain_state(1), EPERM),
    row("get_domain_state, next, by a guest", lambda m: m.guest.domctl.get_domain_state(), EPERM),
    row("get_domain_state, next, not the handler", lambda m: m.ctl.get_domain_state(), EACCES),
    row("get_domain_state, next, none", lambda m: m.ctl.get_domain_state(), ENOENT, lambda m: told(m)),
    # in a dead domain that is held
    row("dead: a new port of it", lambda m: m.guest.evtchn.alloc_unbound(0), EINVAL, Machine.dead),
    row("dead: binding to it", lambda m: m.dom0.evtchn.bind_interdomain(1, 1), EINVAL, Machine.dead),
    row("dead: a new map of it", lambda m: m.dom0.gnttab.map(1, 9, HOLE + 1), BAD_PAGE, Machine.dead),
]  # fmt: skip


def pause(machine: Machine, count: int) -> None:
    for _ in range(count):
        machine.ctl.pausedomain(1)


def eat_memory(machine: Machine) -> None:
    free = lib.machine_free_pages(machine.hypervisor.machine)
    machine.ctl.max_mem(1, 1 << 30)
    assert lib.domain_populate(machine.guest.kernel, 0x10000, free) == free


def told(machine: Machine) -> list[DomainState]:
    """dom0 binds DOM_EXC and hears of everybody."""
    machine.dom0.evtchn.bind_virq(VIRQ_DOM_EXC)
    return [machine.ctl.get_domain_state() for _ in range(3)]


@pytest.mark.parametrize(("before", "call", "expected"), REFUSED)
def test_refused(machine: Machine, before: Step, call: Step, expected: int) -> None:
    before(machine)
    snapshot = machine.snapshot()
    with pytest.raises((HypercallError, GrantError)) as caught:
        call(machine)
    error = caught.value
    assert (error.errno if isinstance(error, HypercallError) else error.status) == expected
    assert machine.snapshot() == snapshot


NAMED = [one for one in REFUSED if not str(one.id).startswith("dead")]


@pytest.mark.parametrize(("before", "call", "expected"), NAMED)
def test_refusals_name_the_operation(
    machine: Machine, before: Step, call: Step, expected: int
) -> None:
    before(machine)
    with pytest.raises(HypercallError) as caught:
        call(machine)
    assert caught.value.operation.startswith("XEN_DOMCTL_")
    assert caught.value.arguments
    assert caught.value.reason
    assert caught.value.errno == expected


def then(call: Step, look: Step) -> Step:
    def both(machine: Machine) -> Any:
        call(machine)
        return look(machine)

    return both


def flags(domid: int) -> Step:
    return lambda m: hex(m.ctl.getdomaininfo(domid).flags)


def two_vcpus(machine: Machine) -> Domain:
    return make_domain(machine.hypervisor, vcpus=2)


def all_block(domain: Domain) -> None:
    for vcpu in range(domain.vcpus):
        domain.sched.block(vcpu)


GRANTED = [
    row("create, ANY: the next number", lambda m: created(m).domid, 3),
    row("create, SELF asks for any", lambda m: created(m, domid=SELF).domid, 3),
    row("create, INVALID asks for any", lambda m: created(m, domid=INVALID).domid, 3),
    row("create, a number", lambda m: created(m, domid=7).domid, 7),
    row("create, the last number", lambda m: created(m, domid=0x7FEF).domid, 0x7FEF),
    row("create, of one that vanished", lambda m: created(m, domid=1).domid, 1, lambda m: m.ctl.destroydomain(1)),
    row("create, ANY goes on above the last", lambda m: created(m).domid, 3, lambda m: m.ctl.destroydomain(2)),
    row("create, 128 vcpus", lambda m: created(m, max_vcpus=128).max_vcpus, 128),
    row("create: paused once", lambda m: created(m).pause_count, 1),
    row("create: no vcpus", lambda m: created(m).vcpus, 0),
    row("create: no memory", lambda m: lib.domain_populate(created(m).kernel, 0x100, 4), 0),
    row("create, grant version 1", lambda m: created(m, max_grant_version=1).max_grant_version, 1),
    row("create, PV", lambda m: created(m, flags=0).is_hvm, False),
    row("create, default grant frames", lambda m: created(m, max_grant_frames=-1).gnttab.max_frames, 64),
    row("create, 1 grant frame", lambda m: created(m, max_grant_frames=1).gnttab.max_frames, 1),
    row("create, unique ids", lambda m: created(m).unique_id > m.other.unique_id, True),
    row("max_vcpus makes them", then(lambda m: m.ctl.max_vcpus(3, 2), lambda m: m.hypervisor.domains[3].vcpus), 2, lambda m: created(m, max_vcpus=2)),
    row("max_vcpus, again", lambda m: m.ctl.max_vcpus(1, 1), None),
    row("max_mem, in KiB", then(lambda m: m.ctl.max_mem(1, 4099), lambda m: m.guest.max_pages), 1024),
    row("max_mem, below what it has", then(lambda m: m.ctl.max_mem(1, 4), lambda m: m.guest.tot_pages), 256),
    row("max_mem, of itself", then(lambda m: m.ctl.max_mem(0, 4096), lambda m: m.dom0.max_pages), 1024),
    row("pause nests", then(lambda m: pause(m, 3), lambda m: m.guest.pause_count), 3),
    row("unpause, once of two", then(lambda m: m.ctl.unpausedomain(1), lambda m: m.guest.pause_count), 1, lambda m: pause(m, 2)),
    row("unpause ends creation", then(lambda m: m.ctl.unpausedomain(3), lambda m: m.hypervisor.domains[3].creation_finished), True, created),
    row("creation goes on while paused", lambda m: created(m).creation_finished, False),
    row("destroy, a held one twice", lambda m: m.ctl.destroydomain(1), None, Machine.dead),
    row("destroy, held: still found", lambda m: m.dom0.find(1) is m.guest, True, Machine.dead),
    row("destroy, held: counts what is held", lambda m: m.ctl.getdomaininfo(1).tot_pages, 1, Machine.dead),
    row("destroy, not held: gone", then(lambda m: m.ctl.destroydomain(1), lambda m: m.dom0.find(1)), None),
    row("resume, one that runs", lambda m: m.ctl.resumedomain(1), None),
    row("resume forgets a latched code", then(lambda m: m.ctl.resumedomain(1), lambda m: m.guest.shutdown_code), None, lambda m: m.guest.latch_shutdown_code(1)),
    row("shutdown: the first code latches", then(lambda m: m.guest.shutdown(4), lambda m: m.guest.shutdown_code), 1, lambda m: m.guest.latch_shutdown_code(0x101)),
    row("shutdown: the low 8 bits", then(lambda m: m.guest.shutdown(0x305), lambda m: m.guest.shutdown_code), 5),
    row("crash", then(lambda m: m.guest.crash("test"), lambda m: m.guest.shutdown_code), 3),
    row("set_target", then(lambda m: m.ctl.set_target(2, 1), lambda m: m.other.controls(m.guest)), True),
    row("set_target, a dead one", lambda m: m.ctl.set_target(2, 1), None, Machine.dead),
    row("flags: as created", flags(3), "0xff010a", created),
    row("flags: PV as created", flags(3), "0xff0008", lambda m: created(m, flags=0)),
    row("flags: xenstore's", flags(3), "0xff018a", lambda m: created(m, flags=0x13)),
    row("flags: runs", flags(1), "0xff0122"),
    row("flags: blocked", flags(1), "0xff0112", lambda m: m.guest.sched.block()),
    row("flags: polling is blocked", flags(1), "0xff0112", lambda m: m.guest.evtchn.sched_poll([], wake=m.guest.upcalls[0])),
    row("flags: an event unblocks", flags(1), "0xff0122", lambda m: (m.guest.sched.block(), m.guest.upcalls[0].wake())),
    row("flags: one of two blocked, one running", flags(3), "0xff0122", lambda m: two_vcpus(m).sched.block(1)),
    row("flags: both blocked", flags(3), "0xff0112", lambda m: all_block(two_vcpus(m))),
    row("flags: one blocked, the other down", flags(3), "0xff0112", lambda m: (two_vcpus(m).vcpu_op.down(1), m.hypervisor.domains[3].sched.block(0))),
    row("flags: the caller runs", flags(0), "0xff0122"),
    row("flags: paused", flags(1), "0xff010a", lambda m: pause(m, 1)),
    row("flags: paused, blocked", flags(1), "0xff011a", lambda m: (m.guest.sched.block(), pause(m, 1))),
    row("flags: power off", flags(1), "0x106", lambda m: m.guest.shutdown(0)),
    row("flags: suspended", flags(1), "0x20106", lambda m: m.guest.shutdown(2)),
    row("flags: crashed", flags(1), "0x30106", lambda m: m.guest.crash("test")),
    row("flags: code 255 again after resume", flags(1), "0xff0122", lambda m: (m.guest.shutdown(2), m.ctl.resumedomain(1))),
    row("flags: a code without a shutdown", flags(1), "0x10122", lambda m: m.guest.latch_shutdown_code(1)),
    row("flags: going down", flags(1), "0x10102", lambda m: (m.guest.start_shutdown_deferral(0), m.guest.shutdown(1))),
    row("flags: dead", flags(1), "0xff0103", Machine.dead),
    row("info: time of all vcpus", lambda m: m.ctl.getdomaininfo(3).cpu_time, 7_000_000, lambda m: (two_vcpus(m), m.dom0.loop.advance(3_000_000), m.hypervisor.domains[3].sched.block(1), m.dom0.loop.advance(1_000_000))),
    row("info: vcpus", lambda m: (m.ctl.getdomaininfo(1).nr_online_vcpus, m.ctl.getdomaininfo(1).max_vcpu_id), (1, 0)),
    row("info: no vcpus", lambda m: (m.ctl.getdomaininfo(3).nr_online_vcpus, m.ctl.getdomaininfo(3).max_vcpu_id), (0, 0xFFFFFFFF), created),
    row("info: pages", lambda m: (m.ctl.getdomaininfo(1).tot_pages, m.ctl.getdomaininfo(1).max_pages), (256, 512)),
    row("info: shutdown code", lambda m: m.ctl.getdomaininfo(1).shutdown_code, 255),
    row("list, ascending", lambda m: ids(m.ctl.getdomaininfolist()), [0, 1, 2, 3, 7], lambda m: (created(m, domid=7), created(m))),
    row("list, from 2", lambda m: ids(m.ctl.getdomaininfolist(2)), [2]),
    row("list, at most 2", lambda m: ids(m.ctl.getdomaininfolist(0, 2)), [0, 1]),
    row("list: dead ones too", lambda m: ids(m.ctl.getdomaininfolist()), [0, 1, 2], Machine.dead),
    row("state: exists", lambda m: m.ctl.get_domain_state(1), DomainState(domid=1, state=1, unique_id=2)),
    row("state: dom0", lambda m: m.ctl.get_domain_state(0), DomainState(domid=0, state=1, caps=3, unique_id=1)),
    row("state: xenstore's", lambda m: m.ctl.get_domain_state(3).caps, 4, lambda m: created(m, flags=0x13)),
    row("state: shut down", lambda m: m.ctl.get_domain_state(1).state, 3, lambda m: m.guest.shutdown(1)),
    row("state: going down is not down", lambda m: m.ctl.get_domain_state(1).state, 1, lambda m: (m.guest.start_shutdown_deferral(0), m.guest.shutdown(1))),
    row("state: dead", lambda m: m.ctl.get_domain_state(1).state, 9, Machine.dead),
    row("state: shut down, then dead", lambda m: m.ctl.get_domain_state(1).state, 11, lambda m: (m.guest.shutdown(1), m.dead())),
    row("next: a new handler hears of all", lambda m: [one.domid for one in told(m)], [0, 1, 2]),
    row("next: a shutdown", lambda m: m.ctl.get_domain_state().domid, 2, lambda m: (told(m), m.other.shutdown(1))),
    row("next: a creation", lambda m: m.ctl.get_domain_state().domid, 3, lambda m: (told(m), created(m))),
    row("next: the lowest first", lambda m: m.ctl.get_domain_state().domid, 1, lambda m: (told(m), m.other.shutdown(1), m.guest.shutdown(1))),
    row("next: a death", lambda m: m.ctl.get_domain_state(), DomainState(domid=1, state=9, unique_id=2), lambda m: (told(m), m.dead())),
    row("next: a vanished one reads zero", lambda m: m.ctl.get_domain_state(), DomainState(domid=1), lambda m: (told(m), m.ctl.destroydomain(1))),
    row("next: a number used again is another domain", lambda m: m.ctl.get_domain_state(), DomainState(domid=1, state=1, unique_id=4), lambda m: (told(m), m.ctl.destroydomain(1), created(m, domid=1))),
    row("next: nobody hears of who vanished before", lambda m: [one.domid for one in told(m)], [0, 2, 3], lambda m: (m.ctl.destroydomain(1), created(m))),
]  # fmt: skip


def ids(infos: list[DomainInfo]) -> list[int]:
    return [info.domain for info in infos]


@pytest.mark.parametrize(("before", "call", "expected"), GRANTED)
def test_granted(machine: Machine, before: Step, call: Step, expected: object) -> None:
    before(machine)
    assert call(machine) == expected


def test_the_tables_are_long_enough() -> None:
    assert len(REFUSED) + len(GRANTED) >= 60


def test_a_handle_is_what_the_toolstack_gave(machine: Machine) -> None:
    handle = bytes(range(16))
    assert machine.ctl.getdomaininfo(created(machine, handle=handle).domid).handle == handle


def test_createdomain_defaults_are_those_of_xl() -> None:
    config = CreateDomain(max_vcpus=1)
    assert (config.flags, config.max_evtchn_port, config.max_grant_version) == (3, 1023, 2)


def test_max_vcpus_without_memory_for_vcpu_info_can_be_tried_again(machine: Machine) -> None:
    guest = created(machine, max_vcpus=33)  # the 33rd has its vcpu_info in a page of its own
    machine.ctl.max_mem(2, 1 << 30)
    free = lib.machine_free_pages(machine.hypervisor.machine)
    assert machine.other.memory.increase_reservation(SELF, free) == free
    before = machine.snapshot()
    with pytest.raises(HypercallError) as caught:
        machine.ctl.max_vcpus(guest.domid, 33)
    assert (caught.value.name, caught.value.operation) == ("ENOMEM", "XEN_DOMCTL_max_vcpus")
    assert machine.snapshot() == before
    assert (guest.vcpus, guest.vcpu, guest.upcalls) == (0, [], [])
    machine.ctl.destroydomain(2)
    machine.ctl.max_vcpus(guest.domid, 33)
    assert guest.vcpus == len(guest.vcpu) == 33
