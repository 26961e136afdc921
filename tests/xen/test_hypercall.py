"""Hypercalls by number: structures in guest memory, results in a register, in both widths."""

from __future__ import annotations

from collections.abc import Callable
from errno import EFAULT, EINVAL, ENOENT, ENOSYS, ESRCH
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.xen.conftest import domain
from xenpv.abi._kernel import ffi, lib
from xenpv.abi.layout import sizeof
from xenpv.errors import LocalProtocolError
from xenpv.xen.domain import Domain
from xenpv.xen.guest_access import GuestMemory
from xenpv.xen.hypercall import HYPERCALLS
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop

MEMORY, TIMER, VERSION, GRANT, ASSIST, VCPU, SCHED, EVENT, HVM = 12, 15, 17, 20, 21, 24, 29, 32, 34
SELF = 0x7FF0
BAD = 0xDEAD_0000_0000
EVTCHN_SIZE = 64


class Guest:
    """A domain, with room for arguments in its first page and lists in its second."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.memory = GuestMemory(domain)
        self.arg = domain.pages.alloc() << 12
        self.list = domain.pages.alloc() << 12

    def put(self, name: str, /, **fields: Any) -> int:
        """A struct at `arg`; its address."""
        ops = ffi.new(f"struct {name}[1]")
        for path, value in fields.items():
            *outer, last = path.split("__")
            at = ops[0]
            for step in outer:
                at = getattr(at, step)
            setattr(at, last, value)
        self.memory.store(name, self.arg, ops)
        return self.arg

    def get(self, name: str) -> Any:
        self.kept = self.memory.load(name, self.arg)
        return self.kept[0]

    def words(self, values: list[int]) -> int:
        self.memory.store_words(self.list, values)
        return self.list

    def call(self, number: int, *arguments: int, **named: Any) -> int:
        return self.domain.hypercall(number, *arguments, **named)


@pytest.fixture(params=[False, True], ids=["64-bit", "32-bit"])
def caller(hypervisor: Hypervisor, request: pytest.FixtureRequest) -> Guest:
    return Guest(domain(hypervisor, is_32bit=request.param, vcpus=2))


def test_the_numbers_are_xens() -> None:
    assert set(HYPERCALLS) == {MEMORY, TIMER, VERSION, GRANT, ASSIST, VCPU, SCHED, EVENT, HVM}


@pytest.mark.parametrize(
    ("number", "arguments", "result"),
    [
        (99, (), -ENOSYS), (36, (0,), -ENOSYS), (0, (), -ENOSYS),
        (EVENT, (14, 0), -ENOSYS), (EVENT, (99, BAD), -ENOSYS), (GRANT, (3, 0, 1), -ENOSYS),
        (GRANT, (12, 0, 1), -ENOSYS), (GRANT, (99, 0, 1), -ENOSYS), (MEMORY, (99, 0), -ENOSYS),
        (SCHED, (99, 0), -ENOSYS), (VCPU, (99, 0, 0), -ENOSYS), (HVM, (99, 0), -ENOSYS),
        (VERSION, (99, 0), -ENOSYS), (GRANT, (0, 0, 1 << 31), -EINVAL), (GRANT, (0, 0, -1), -EINVAL),
        (GRANT, (2, BAD, 2), -EINVAL), (GRANT, (6, BAD, 0), -EINVAL), (GRANT, (9, BAD, 7), -EINVAL),
        (GRANT, (0, BAD, 0), 0), (VCPU, (99, 7, BAD), -ENOENT), (VCPU, (10, 7, BAD), -ENOENT),
        (ASSIST, (0, 77), -EINVAL), (VERSION, (7, 8), -EINVAL),
        *((EVENT, (cmd, BAD), -EFAULT) for cmd in range(14)),
        *((GRANT, (cmd, BAD, 1), -EFAULT) for cmd in (0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11)),
        *((MEMORY, (cmd, BAD), 0) for cmd in (0, 1, 6)),
        *((MEMORY, (cmd, BAD), -EFAULT) for cmd in (3, 4, 7, 14, 15, 23, 24, 28)),
        *((SCHED, (cmd, BAD), -EFAULT) for cmd in (2, 3, 4, 5, 6)),
        *((VCPU, (cmd, 0, BAD), -EFAULT) for cmd in (4, 5, 6, 8, 10, 13, 14, 15)),
        *((HVM, (cmd, BAD), -EFAULT) for cmd in (0, 1, 9, 23)),
        *((VERSION, (cmd, BAD), -EFAULT) for cmd in (1, 2, 3, 4, 5, 6, 8, 9, 11)),
    ],
)  # fmt: skip
def test_what_is_refused_before_it_is_an_operation(
    caller: Guest, number: int, arguments: tuple[int, ...], result: int
) -> None:
    state = _state(caller.domain)
    assert caller.call(number, *arguments) == result
    assert _state(caller.domain) == state


def _state(of: Domain) -> tuple[object, ...]:
    return (
        of.evtchn.bound(), of.gnttab.nr_frames, of.gnttab.version, dict(of.gnttab.maptrack),
        of.tot_pages, of.is_shutdown, of.shutdown_code, [vcpu.period_ns for vcpu in of.vcpu],
    )  # fmt: skip


def test_event_channels(caller: Guest, dom0: Domain) -> None:
    assert caller.call(EVENT, 6, caller.put("evtchn_alloc_unbound", dom=SELF, remote_dom=0)) == 0
    port = caller.get("evtchn_alloc_unbound").port
    assert port == 1
    far = dom0.evtchn.bind_interdomain(caller.domain.domid, port)
    assert caller.call(EVENT, 5, caller.put("evtchn_status", dom=SELF, port=port)) == 0
    status = caller.get("evtchn_status")
    assert (status.status, status.u.interdomain.dom, status.u.interdomain.port) == (2, 0, far)
    assert caller.call(EVENT, 4, caller.put("evtchn_send", port=port)) == 0
    assert lib.evtchn_is_pending(dom0.kernel, far) == 1
    assert caller.call(EVENT, 8, caller.put("evtchn_bind_vcpu", port=port, vcpu=1)) == 0
    assert caller.domain.evtchn.status(port).vcpu == 1
    assert caller.call(EVENT, 3, caller.put("evtchn_close", port=port)) == 0
    assert caller.call(EVENT, 3, caller.put("evtchn_close", port=port)) == -EINVAL
    assert caller.call(EVENT, 1, caller.put("evtchn_bind_virq", virq=1, vcpu=1)) == 0
    assert caller.get("evtchn_bind_virq").port == 1
    assert caller.call(EVENT, 5, caller.put("evtchn_status", dom=99, port=1)) == -ESRCH
    assert caller.call(EVENT, 13, caller.put("evtchn_set_priority", port=1)) == -ENOSYS
    gfn = caller.domain.pages.alloc()
    assert caller.call(EVENT, 11, caller.put("evtchn_init_control", control_gfn=gfn)) == 0
    assert caller.get("evtchn_init_control").link_bits == 17
    assert caller.domain.evtchn.fifo
    assert caller.call(EVENT, 10, caller.put("evtchn_reset", dom=SELF)) == 0
    assert caller.domain.evtchn.bound() == 0


def test_a_result_that_cannot_be_written_back_is_efault(
    hypervisor: Hypervisor, dom0: Domain
) -> None:
    """A struct in a page that the caller has mapped read-only."""
    giver = Guest(domain(hypervisor))
    taker = Guest(domain(hypervisor))
    pfn = giver.arg >> 12
    giver.put("evtchn_alloc_unbound", dom=SELF, remote_dom=0)
    giver.domain.check(lib.grant_entry_set(giver.domain.kernel, 8, taker.domain.domid, pfn, 1))
    here = taker.domain.holes.alloc()
    taker.domain.gnttab.map(giver.domain.domid, 8, here, readonly=True)
    assert taker.call(EVENT, 6, here << 12) == -EFAULT


def test_grants(caller: Guest, dom0: Domain) -> None:
    owner = caller.domain
    pfn = owner.pages.alloc()
    owner.write(pfn, 0, b"granted")
    owner.check(lib.grant_entry_set(owner.kernel, 8, 0, pfn, 1))
    host = Guest(dom0)
    here = dom0.holes.alloc()
    ops = ffi.new("struct gnttab_map_grant_ref[3]")
    for index, ref in enumerate((9, 8, 9999)):
        ops[index].host_addr = (here + index) << 12
        ops[index].flags = lib.GNTMAP_host_map
        ops[index].ref = ref
        ops[index].dom = owner.domid
    host.memory.store("gnttab_map_grant_ref", host.list, ops)
    assert host.call(GRANT, 0, host.list, 3) == 0
    done = host.memory.load("gnttab_map_grant_ref", host.list, 3)
    assert [one.status for one in done] == [-1, 0, -3]
    assert dom0.read(here + 1, 0, 7) == b"granted"
    address = host.put("gnttab_unmap_grant_ref", host_addr=(here + 1) << 12, handle=done[1].handle)
    assert host.call(GRANT, 1, address, 1) == 0
    assert host.get("gnttab_unmap_grant_ref").status == 0
    assert caller.call(GRANT, 6, caller.put("gnttab_query_size", dom=SELF), 1) == 0
    size = caller.get("gnttab_query_size")
    assert (size.nr_frames, size.max_nr_frames, size.status) == (1, 64, 0)
    assert caller.call(GRANT, 8, caller.put("gnttab_set_version", version=3), 1) == -EINVAL
    assert caller.call(GRANT, 8, caller.put("gnttab_set_version", version=2), 5) == 0
    assert caller.get("gnttab_set_version").version == 2
    assert caller.call(GRANT, 10, caller.put("gnttab_get_version", dom=SELF), 0) == 0
    assert caller.get("gnttab_get_version").version == 2


def test_a_copy_in_the_callers_own_layout(caller: Guest, dom0: Domain) -> None:
    """gnttab_copy has 40 bytes in 64 bits and 24 in 32, where a gmfn is a u32."""
    page = dom0.pages.alloc()
    dom0.write(page, 100, b"dom0 says")
    dom0.check(lib.grant_entry_set(dom0.kernel, 8, caller.domain.domid, page, 1))
    mine = caller.domain.pages.alloc()
    address = caller.put(
        "gnttab_copy", source__u__ref=8, source__domid=0, source__offset=100, dest__u__gmfn=mine,
        dest__domid=SELF, dest__offset=5, len=9, flags=lib.GNTCOPY_source_gref, status=77,
    )  # fmt: skip
    assert caller.memory.sizeof("gnttab_copy") == (24 if caller.domain.is_32bit else 40)
    assert caller.call(GRANT, 5, address, 1) == 0
    assert caller.get("gnttab_copy").status == 0
    assert caller.domain.read(mine, 5, 9) == b"dom0 says"


def test_more_operations_than_are_copied_at_once(hypervisor: Hypervisor, dom0: Domain) -> None:
    caller = Guest(domain(hypervisor))
    count = 2500
    ops = ffi.new("struct gnttab_map_grant_ref[]", count)
    pages = caller.domain.pages.alloc(-(-count * sizeof("gnttab_map_grant_ref") // 4096))
    for index in range(count):
        ops[index].flags = lib.GNTMAP_host_map
        ops[index].dom = 0
        ops[index].ref = 8 if index % 2 else 99_999
        ops[index].host_addr = 0x100000 + index << 12
    caller.memory.store("gnttab_map_grant_ref", pages << 12, ops)
    assert caller.call(GRANT, 0, pages << 12, count) == 0
    done = caller.memory.load("gnttab_map_grant_ref", pages << 12, count)
    assert [one.status for one in done] == [-3, -1] * (count // 2)
    # The list runs out of memory in the middle: what was read has its status.
    assert caller.call(GRANT, 0, (caller.domain.pages.end - 1) << 12, count) == -EFAULT


def test_reservations(caller: Guest) -> None:
    before = caller.domain.tot_pages
    pfns = [caller.domain.pages.alloc() for _ in range(5)]
    reserve = {"extent_start": caller.words(pfns), "nr_extents": 5, "domid": SELF}
    assert caller.call(MEMORY, 1, caller.put("xen_memory_reservation", **reserve)) == 5
    assert caller.call(MEMORY, 1, caller.put("xen_memory_reservation", **reserve)) == 0
    assert caller.call(MEMORY, 3, caller.put("xen_memory_domain", domid=SELF)) == before - 5
    assert caller.call(MEMORY, 6, caller.put("xen_memory_reservation", **reserve)) == 5
    assert caller.call(MEMORY, 3, caller.put("xen_memory_domain", domid=SELF)) == before
    reserve["domid"] = 77
    assert caller.call(MEMORY, 1, caller.put("xen_memory_reservation", **reserve)) == 0
    assert caller.call(MEMORY, 3, caller.put("xen_memory_domain", domid=77)) == -ESRCH


def test_a_list_that_ends_in_the_middle_is_a_short_count(caller: Guest) -> None:
    width = 4 if caller.domain.is_32bit else 8
    last = caller.domain.pages.end - 1
    pfns = [caller.domain.pages.alloc() for _ in range(3)]
    address = (last << 12) + 4096 - 3 * width
    caller.memory.store_words(address, pfns)
    reserve = {"extent_start": address, "nr_extents": 10, "domid": SELF}
    assert caller.call(MEMORY, 1, caller.put("xen_memory_reservation", **reserve)) == 3


def test_the_physmap(caller: Guest, dom0: Domain) -> None:
    where = caller.domain.holes.alloc()
    grant = {"domid": SELF, "space": lib.XENMAPSPACE_grant_table, "idx": 2, "gpfn": where}
    assert caller.call(MEMORY, 7, caller.put("xen_add_to_physmap", **grant)) == 0
    assert caller.domain.gnttab.nr_frames == 3
    assert caller.domain.read(where, 0, 4) == bytes(4)
    assert (
        caller.call(MEMORY, 15, caller.put("xen_remove_from_physmap", domid=SELF, gpfn=where)) == 0
    )
    assert (
        caller.call(MEMORY, 15, caller.put("xen_remove_from_physmap", domid=SELF, gpfn=where))
        == -ENOENT
    )
    host = Guest(dom0)
    places = [dom0.holes.alloc() for _ in range(2)]
    dom0.write(host.list >> 12, 0, bytes(100))
    host.memory.store_words(host.list, [0x100, 0xFFFFF])
    host.memory.store_words(host.list + 16, places)
    batch = {
        "domid": SELF, "space": lib.XENMAPSPACE_gmfn_foreign, "size": 2, "u__foreign_domid": caller.domain.domid,
        "idxs": host.list, "gpfns": host.list + 16, "errs": host.list + 32,
    }  # fmt: skip
    assert host.call(MEMORY, 23, host.put("xen_add_to_physmap_batch", **batch)) == 0
    assert dom0.read(host.list >> 12, 32, 8) == bytes(4) + (-EINVAL).to_bytes(
        4, "little", signed=True
    )
    ask = {"domid": caller.domain.domid, "type": 1, "id": 0}
    assert host.call(MEMORY, 28, host.put("xen_mem_acquire_resource", **ask)) == 0
    assert host.get("xen_mem_acquire_resource").nr_frames == 64
    host.memory.store_words(host.list, [dom0.holes.alloc()])
    ask |= {"nr_frames": 1, "frame_list": host.list}
    assert host.call(MEMORY, 28, host.put("xen_mem_acquire_resource", **ask)) == 0
    claim = {"domid": caller.domain.domid, "nr_extents": 1 << 16, "extent_start": 8}
    assert host.call(MEMORY, 24, host.put("xen_memory_reservation", **claim)) == -EINVAL


def test_time_and_vcpus(caller: Guest) -> None:
    loop = caller.domain.loop
    caller.call(EVENT, 1, caller.put("evtchn_bind_virq", virq=0, vcpu=0))
    port = caller.get("evtchn_bind_virq").port

    def fired() -> bool:
        return bool(caller.domain.check(lib.evtchn_take_pending(caller.domain.kernel, port)))

    assert caller.call(TIMER, loop.now + 5_000_000) == 0
    loop.advance(4_999_999)
    assert not fired()
    loop.advance(1)
    assert fired()
    assert caller.call(TIMER, -1) == 0  # 100 ms
    loop.advance(100_000_000)
    assert fired()
    address = caller.put("vcpu_set_singleshot_timer", timeout_abs_ns=loop.now + 7)
    assert caller.call(VCPU, 8, 0, address) == 0
    assert caller.call(VCPU, 8, 1, address) == -EINVAL
    assert caller.call(VCPU, 8, 1, address, vcpu=1) == 0
    loop.advance(7)
    assert fired()
    assert (
        caller.call(VCPU, 6, 0, caller.put("vcpu_set_periodic_timer", period_ns=999_999)) == -EINVAL
    )
    assert caller.call(VCPU, 3, 1, 0) == 1
    assert caller.call(VCPU, 4, 0, caller.arg) == 0
    state = caller.get("vcpu_runstate_info")
    assert state.state == 0
    assert sum(state.time) == loop.now
    gfn = caller.domain.pages.alloc()
    assert caller.call(VCPU, 10, 1, caller.put("vcpu_register_vcpu_info", mfn=gfn, offset=64)) == 0
    assert caller.call(VCPU, 10, 1, caller.arg) == -16
    assert (
        caller.call(
            VCPU, 14, 0, caller.put("vcpu_register_runstate_memory_area", addr__p=gfn << 12)
        )
        == 0
    )
    assert caller.call(ASSIST, 0, lib.VMASST_TYPE_runstate_update_flag) == 0
    assert caller.call(ASSIST, 9, lib.VMASST_TYPE_runstate_update_flag) == -ENOSYS


def test_scheduling(caller: Guest, dom0: Domain) -> None:
    assert caller.call(SCHED, 0) == 0
    assert dom0.domid == 0
    assert caller.call(SCHED, 6, caller.put("sched_watchdog", id=0, timeout=30)) == 1
    assert caller.call(SCHED, 6, caller.put("sched_watchdog", id=3, timeout=30)) == -EINVAL
    assert caller.call(SCHED, 4, caller.put("sched_remote_shutdown", domain_id=0, reason=3)) == -1
    assert caller.call(SCHED, 5, caller.put("sched_shutdown", reason=0x103)) == 0
    assert (caller.domain.shutdown_code, caller.domain.is_shutdown) == (3, False)
    assert caller.call(SCHED, 2, caller.put("sched_shutdown", reason=0)) == 0
    assert (caller.domain.shutdown_code, caller.domain.is_shutdown) == (3, True)


def test_poll(caller: Guest, dom0: Domain) -> None:
    port = caller.domain.evtchn.alloc_unbound(0)
    far = dom0.evtchn.bind_interdomain(caller.domain.domid, port)
    lib.evtchn_mask(caller.domain.kernel, port)
    woken: list[int] = []
    task = caller.domain.task("poller", lambda: woken.append(1))
    caller.domain.write(caller.list >> 12, 0, port.to_bytes(4, "little"))
    address = caller.put("sched_poll", ports=caller.list, nr_ports=1, timeout=0)
    with pytest.raises(LocalProtocolError, match="give hypercall"):
        caller.call(SCHED, 3, address)
    assert caller.call(SCHED, 3, address, wake=task) == 0
    caller.domain.loop.run()
    assert woken == []
    dom0.evtchn.send(far)
    caller.domain.loop.run()
    assert woken == [1]
    assert caller.call(SCHED, 3, caller.put("sched_poll", nr_ports=129), wake=task) == -EINVAL


def test_version_and_parameters(caller: Guest) -> None:
    assert caller.call(VERSION, 0) == 4 << 16 | 22
    assert caller.call(VERSION, 7) == 4096
    assert caller.call(VERSION, 1, caller.arg) == 0
    assert caller.domain.read(caller.arg >> 12, 0, 16) == b".0".ljust(16, b"\0")
    assert caller.call(VERSION, 6, caller.put("xen_feature_info", submap_idx=0)) == 0
    assert caller.get("xen_feature_info").submap == 0x1D2705
    assert caller.call(VERSION, 6, caller.put("xen_feature_info", submap_idx=1)) == -EINVAL
    assert caller.call(VERSION, 12, 0) > 40
    caller.domain.store32(caller.arg >> 12, 0, 200)
    length = caller.call(VERSION, 12, caller.arg)
    assert caller.domain.read(caller.arg >> 12, 4, length).startswith(b"xen-3.0-x86_64 ")
    caller.domain.store32(caller.arg >> 12, 0, 3)
    assert caller.call(VERSION, 12, caller.arg) == -105
    assert caller.call(VERSION, 10, 0) == -1
    assert caller.call(HVM, 0, caller.put("xen_hvm_param", domid=SELF, index=0, value=0x1F)) == 0
    assert caller.call(HVM, 1, caller.put("xen_hvm_param", domid=SELF, index=0)) == 0
    assert caller.get("xen_hvm_param").value == 0x1F
    assert caller.call(HVM, 0, caller.put("xen_hvm_param", domid=SELF, index=1, value=5)) == -1
    assert (
        caller.call(HVM, 23, caller.put("xen_hvm_evtchn_upcall_vector", vcpu=1, vector=0xF))
        == -EINVAL
    )


WORD = st.one_of(
    st.sampled_from((0, 1, 8, SELF, 0xFFFF, 0x7FFFFFFF, U := 0xFFFFFFFF, (U << 32) | U)),
    st.integers(0, (1 << 64) - 1),
)


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(HYPERCALLS)), st.integers(0, 30), st.binary(max_size=64), st.lists(WORD, max_size=2)),
        max_size=12,
    ),
    st.booleans(),
)  # fmt: skip
def test_no_argument_makes_more_than_an_error(
    calls: list[tuple[int, int, bytes, list[int]]], is_32bit: bool
) -> None:
    """Garbage in memory and in registers: a result, never an exception, and a sound platform."""
    hypervisor = Hypervisor(Loop(), nr_frames=1 << 16)
    made = domain(hypervisor, is_32bit=is_32bit, vcpus=2)
    guest = Guest(made)
    task = made.task("poller", lambda: None)
    for number, cmd, garbage, rest in calls:
        made.write(guest.arg >> 12, 0, garbage.ljust(EVTCHN_SIZE, b"\0"))
        arguments = [cmd, guest.arg, *rest] if number != VCPU else [cmd, *rest[:1], guest.arg]
        if number == GRANT and rest:
            arguments[2] = rest[0] & 7
        if number == SCHED and cmd == 3 and 0 in made.evtchn.pollers.asleep:
            continue  # that vcpu sleeps
        result = made.hypercall(number, *arguments, wake=task)
        assert -200 < result < 1 << 40
    hypervisor.close()


def test_every_operation_is_reached(caller: Guest) -> None:
    """No row of the tables answers ENOSYS to a zero argument that can be read."""
    tables: list[tuple[int, list[int], Callable[[int], tuple[int, ...]]]] = [
        (EVENT, list(range(13)), lambda cmd: (cmd, caller.arg)),
        (GRANT, [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11], lambda cmd: (cmd, caller.arg, 1)),
        (MEMORY, [0, 1, 3, 4, 6, 7, 14, 15, 23, 24, 28], lambda cmd: (cmd, caller.arg)),
        (VCPU, list(range(16)), lambda cmd: (cmd, 1, caller.arg)),
        (HVM, [0, 1, 9, 23], lambda cmd: (cmd, caller.arg)),
        (VERSION, list(range(15)), lambda cmd: (cmd, caller.arg if cmd != 7 else 0)),
    ]
    for number, commands, arguments in tables:
        for cmd in commands:
            caller.domain.write(caller.arg >> 12, 0, bytes(2048))
            assert caller.call(number, *arguments(cmd)) != -ENOSYS, (number, cmd)
