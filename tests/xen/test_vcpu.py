"""What a vcpu has in the guest's memory, at literal offsets, and whether it runs."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.xen.conftest import NR_FRAMES, SHARED_INFO_PFN, domain, map_shared_info
from xenpv.abi._kernel import ffi, lib
from xenpv.errors import HypercallError
from xenpv.xen.domain import RAM_FIRST_PFN, Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop

S = 1_000_000_000
MS = 1_000_000
PAGE = RAM_FIRST_PFN + 9
ADDRESS = PAGE << 12
ALL = (1 << 64) - 1
SCANNED = ffi.new("uint32_t[]", 8)
RUNNING, RUNNABLE, BLOCKED, OFFLINE = range(4)


def boot(hypervisor: Hypervisor, *, vcpus: int = 2, is_32bit: bool = False) -> Domain:
    """A guest whose vcpu 0 runs since 10 s + 7 ns of system time."""
    domain(hypervisor, 0)
    hypervisor.loop.advance(10 * S + 7)
    guest = hypervisor.create_domain(vcpus=vcpus, max_pages=512, is_32bit=is_32bit)
    guest.populate(256)
    guest.unpause()
    map_shared_info(guest)
    return guest


def u32(guest: Domain, offset: int, pfn: int = SHARED_INFO_PFN) -> int:
    return guest.load32(pfn, offset)


def time_info(guest: Domain, pfn: int, offset: int) -> tuple[int, ...]:
    """version, pad, tsc_timestamp, system_time, mul, shift, flags."""
    return struct.unpack("<IIQQIbB", guest.read(pfn, offset, 30))


RECORD = (0, 10 * S, 10 * S, 0x80000000, 1, 1)  # pad, tsc, system time, mul, shift, TSC stable


def test_time_lies_at_32_of_a_vcpu_info_of_64_bytes(hypervisor: Hypervisor) -> None:
    guest = boot(hypervisor)
    assert time_info(guest, SHARED_INFO_PFN, 32) == (2, *RECORD)
    assert time_info(guest, SHARED_INFO_PFN, 64 + 32) == (0,) * 7  # vcpu 1 never ran
    guest.start_vcpus()
    assert time_info(guest, SHARED_INFO_PFN, 64 + 32) == (2, *RECORD)


def test_the_clock_of_a_3_ghz_machine_is_scaled_as_xen_does() -> None:
    made = Hypervisor(Loop(), nr_frames=NR_FRAMES, tsc_khz=3_000_000)
    guest = boot(made, is_32bit=True)
    expected = (2, 0, 30 * S, 10 * S, 0xAAAAAAAA, -1, 1)
    assert time_info(guest, SHARED_INFO_PFN, 32) == expected
    made.close()


def test_the_wall_clock_of_a_64_bit_guest_is_at_c00(hypervisor: Hypervisor) -> None:
    guest = boot(hypervisor)
    assert guest.read(SHARED_INFO_PFN, 0xC00, 16) == struct.pack("<IIII", 2, 1_767_225_600, 0, 0)
    hypervisor.settime64((3 << 32) + 9, 123_456_789, 0)
    assert u32(guest, 0xC00) == 4
    assert u32(guest, 0xC04) == 9
    assert u32(guest, 0xC08) == 123_456_789
    assert u32(guest, 0xC0C) == 3


def test_the_wall_clock_of_a_32_bit_guest_is_at_900_its_high_half_at_924(
    hypervisor: Hypervisor,
) -> None:
    guest = boot(hypervisor, is_32bit=True)
    hypervisor.settime64((3 << 32) + 9, 123_456_789, 0)
    assert guest.read(SHARED_INFO_PFN, 0x900, 12) == struct.pack("<III", 4, 9, 123_456_789)
    assert u32(guest, 0x924) == 3
    assert guest.read(SHARED_INFO_PFN, 0xC00, 16) == bytes(16)


@pytest.mark.parametrize("version", [2, 3, 0xFFFFFFFE, 0xFFFFFFFF, 0])
def test_a_version_that_the_guest_wrote_still_ends_even_and_changed(
    hypervisor: Hypervisor, version: int
) -> None:
    guest = boot(hypervisor)
    guest.store32(SHARED_INFO_PFN, 0xC00, version)
    guest.publish_wallclock()
    expected = {2: 4, 3: 6, 0xFFFFFFFE: 0, 0xFFFFFFFF: 2, 0: 2}  # ((v + 1) | 1) + 1
    assert u32(guest, 0xC00) == expected[version]


def test_the_record_is_rewritten_only_when_it_changed_or_by_force(hypervisor: Hypervisor) -> None:
    guest = boot(hypervisor)
    guest.pause()
    hypervisor.loop.advance(100 * MS)  # within the same calibration
    guest.unpause()
    assert u32(guest, 32) == 2
    guest.pause()
    hypervisor.loop.advance(2 * S)
    guest.unpause()
    assert time_info(guest, SHARED_INFO_PFN, 32)[:4] == (4, 0, 12 * S, 12 * S)
    guest.store32(SHARED_INFO_PFN, 32 + 24, 0)  # the guest spoils mul
    guest.pause()
    guest.unpause()
    assert time_info(guest, SHARED_INFO_PFN, 32) == (6, 0, 12 * S, 12 * S, 0x80000000, 1, 1)
    assert guest.vcpu[0].publish_time(force=True)
    assert u32(guest, 32) == 8


# vcpu_info elsewhere


@pytest.mark.parametrize("is_32bit", [False, True])
def test_vcpu_info_moves_with_its_contents_and_all_counts_as_pending(
    hypervisor: Hypervisor, is_32bit: bool
) -> None:
    guest = boot(hypervisor, is_32bit=is_32bit)
    guest.write(SHARED_INFO_PFN, 16, b"guest's own")
    ran: list[int] = []
    guest.set_upcall(0, lambda: ran.append(guest.loop.now))
    guest.vcpu_op.register_vcpu_info(0, PAGE, 128)
    sel = 128 + (4 if is_32bit else 8)
    size = 4 if is_32bit else 8
    assert guest.read(PAGE, 128, 2) == b"\x01\x00"  # upcall_pending, upcall_mask
    assert guest.read(PAGE, sel, size) == b"\xff" * size
    assert guest.read(PAGE, 128 + 16, 11) == b"guest's own"
    assert time_info(guest, PAGE, 128 + 32) == (4, *RECORD)  # forced, and the version goes on
    guest.loop.run()
    assert ran == [10 * S + 7]
    # The old place is left behind: what is raised now lands in the new one.
    guest.write(PAGE, 128, bytes(16))
    before = guest.read(SHARED_INFO_PFN, 0, 64)
    port = guest.evtchn.bind_ipi(0)
    guest.evtchn.send(port)
    assert guest.read(PAGE, 128, 1) == b"\x01"
    assert guest.read(PAGE, sel, size) == (1).to_bytes(size, "little")
    assert guest.read(SHARED_INFO_PFN, 0, 64) == before


def test_a_vcpu_beyond_shared_info_has_a_dummy_until_it_registers(hypervisor: Hypervisor) -> None:
    machine = hypervisor.machine
    domain(hypervisor, 0)
    used = lib.machine_used_frames(machine)
    guest = hypervisor.create_domain(vcpus=34, max_pages=64)
    assert lib.machine_used_frames(machine) == used + 3  # shared_info, grant table, dummy
    guest.populate(32)
    guest.unpause()
    guest.start_vcpus()
    map_shared_info(guest)
    assert guest.read(SHARED_INFO_PFN, 31 * 64 + 32, 4) == b"\x02\0\0\0"
    port = guest.evtchn.bind_ipi(33)
    guest.evtchn.send(port)  # into the dummy, which no guest sees
    guest.vcpu_op.register_vcpu_info(33, PAGE, 0)
    # Nothing moves from a dummy: zero but for the upcall mask (XEN_HAVE_PV_UPCALL_MASK).
    assert guest.read(PAGE, 0, 16) == b"\x01\x01" + bytes(6) + b"\xff" * 8
    assert guest.read(PAGE, 16, 16) == bytes(16)
    assert time_info(guest, PAGE, 32)[0] == 2
    hypervisor.destroy_domain(guest)
    assert lib.machine_used_frames(machine) == used


@pytest.mark.parametrize("what", ["vcpu_info", "runstate", "time"])
def test_a_registered_page_outlives_its_release_by_the_guest(
    hypervisor: Hypervisor, what: str
) -> None:
    guest = boot(hypervisor)
    frame = guest.check(lib.p2m_lookup(guest.kernel, PAGE, 1))
    op = guest.vcpu_op
    register = {
        "vcpu_info": lambda: op.register_vcpu_info(0, PAGE, 0),
        "runstate": lambda: op.register_runstate_phys_area(0, ADDRESS),
        "time": lambda: op.register_vcpu_time_phys_area(0, ADDRESS),
    }[what]
    register()
    assert lib.frame_refs(hypervisor.machine, frame) == 2
    assert guest.memory.decrease_reservation(guest.DOMID_SELF, [PAGE]) == 1
    assert lib.frame_refs(hypervisor.machine, frame) == 1
    guest.pause()
    guest.loop.advance(3 * S)
    guest.unpause()  # Xen writes to a frame that is still that domain's
    assert lib.frame_owner(hypervisor.machine, frame) == guest.domid
    hypervisor.destroy_domain(guest)
    assert lib.frame_refs(hypervisor.machine, frame) == 0
    assert not hypervisor.dead


def test_a_time_area_is_let_go_when_another_is_registered(hypervisor: Hypervisor) -> None:
    guest = boot(hypervisor)
    frames = [guest.check(lib.p2m_lookup(guest.kernel, PAGE + n, 1)) for n in range(2)]
    refs = [2, 1]
    for place, expected in ((ADDRESS, [2, 1]), (ADDRESS + 4096, [1, 2]), (ALL, [1, 1])):
        guest.vcpu_op.register_vcpu_time_phys_area(0, place)
        refs = [lib.frame_refs(hypervisor.machine, frame) for frame in frames]
        assert refs == expected


def test_a_fresh_time_area_ends_at_version_0_and_then_follows_vcpu_info(
    hypervisor: Hypervisor,
) -> None:
    guest = boot(hypervisor)
    guest.vcpu_op.register_vcpu_time_phys_area(0, ADDRESS + 32)
    assert time_info(guest, PAGE, 32) == (0, *RECORD)
    assert u32(guest, 32) == 2  # left alone
    guest.pause()
    hypervisor.loop.advance(S)
    guest.unpause()
    assert time_info(guest, PAGE, 32)[:4] == (4, 0, 11 * S, 11 * S)
    assert guest.read(PAGE, 32, 30) == guest.read(SHARED_INFO_PFN, 32, 30)


def test_a_time_area_by_guest_address_may_cross_pages(hypervisor: Hypervisor) -> None:
    guest = boot(hypervisor)
    guest.vcpu_op.register_vcpu_time_memory_area(0, ADDRESS + 4090)
    assert time_info(guest, PAGE, 4090) == (4, *RECORD)  # forced, and vcpu_info with it
    assert u32(guest, 32) == 4
    guest.vcpu_op.register_vcpu_time_memory_area(0, 0)
    guest.vcpu[0].publish_time(force=True)
    assert time_info(guest, PAGE, 4090)[0] == 4


# runstate


def test_a_runstate_area_has_state_at_0_entry_at_8_times_at_16(hypervisor: Hypervisor) -> None:
    guest = boot(hypervisor)
    guest.vcpu_op.register_runstate_phys_area(0, ADDRESS + 64)
    started = 10 * S + 7
    assert guest.read(PAGE, 64, 48) == struct.pack("<iIQ4Q", RUNNING, 0, started, 0, 0, 0, 0)
    hypervisor.loop.advance(S)
    guest.pause()
    assert guest.read(PAGE, 64, 48) == struct.pack("<iIQ4Q", OFFLINE, 0, started + S, S, 0, 0, 0)


def test_a_32_bit_runstate_area_has_44_bytes(hypervisor: Hypervisor) -> None:
    guest = boot(hypervisor, is_32bit=True)
    guest.write(PAGE, 4, b"\xee" * 48)
    guest.vcpu_op.register_runstate_phys_area(0, ADDRESS + 4)
    hypervisor.loop.advance(S)
    guest.pause()
    now = 11 * S + 7
    expected = struct.pack("<iQ4Q", OFFLINE, now, S, 0, 0, 0)
    assert guest.read(PAGE, 4, 48) == expected + b"\xee" * 4


@pytest.mark.parametrize(("assist", "writes"), [(False, 1), (True, 3)])
def test_a_runstate_by_guest_address_has_the_update_flag_only_if_asked(
    hypervisor: Hypervisor, assist: bool, writes: int
) -> None:
    guest = boot(hypervisor)
    guest.vcpu_op.register_runstate_memory_area(0, ADDRESS)
    if assist:
        guest.vcpu_op.vm_assist(0, 5)
    seen: list[tuple[int, int, int]] = []

    def hook(_actor: int, kind: int, _frame: int, offset: int, size: int) -> None:
        seen.append((kind & ~lib.ACCESS_HYPERVISOR, offset, size))

    hypervisor.set_hook(hook)
    guest.pause()
    hypervisor.set_hook(None)
    whole = (lib.ACCESS_WRITE, 0, 48)
    flag = (lib.ACCESS_WRITE, 15, 1)
    assert seen == ([flag, whole, flag] if assist else [whole])
    assert len(seen) == writes
    assert guest.read(PAGE, 15, 1) == b"\0"


def test_what_is_gone_at_a_write_by_guest_address_is_not_written(hypervisor: Hypervisor) -> None:
    guest = boot(hypervisor)
    guest.vcpu_op.register_runstate_memory_area(0, ADDRESS)
    assert guest.memory.decrease_reservation(guest.DOMID_SELF, [PAGE]) == 1
    guest.pause()
    guest.unpause()
    assert guest.vcpu[0].state == RUNNING


def test_vcpus_run_block_and_stop_as_xen_has_it(hypervisor: Hypervisor) -> None:
    guest = boot(hypervisor)
    one, two = guest.vcpu
    assert (one.state, two.state) == (RUNNING, OFFLINE)
    info = hypervisor.domains[0].domctl.getdomaininfo
    assert info(guest.domid).nr_online_vcpus == 1
    guest.start_vcpus()
    assert info(guest.domid).nr_online_vcpus == 2
    assert two.state == RUNNING
    assert guest.sched.block(1)
    assert two.state == BLOCKED
    guest.pause()
    assert (one.state, two.state) == (OFFLINE, BLOCKED)
    guest.unpause()
    assert (one.state, two.state) == (RUNNING, BLOCKED)
    guest.evtchn.send(guest.evtchn.bind_ipi(1))
    assert two.state == RUNNING
    guest.vcpu_op.down(1)
    assert two.state == OFFLINE
    guest.vcpu_op.down(0)  # the last one
    assert guest.is_shutdown
    assert guest.shutdown_code == 0
    assert not one.down
    assert one.state == OFFLINE


def test_an_event_for_a_blocked_vcpu_of_a_paused_domain_leaves_it_offline(
    hypervisor: Hypervisor,
) -> None:
    guest = boot(hypervisor)
    ran: list[int] = []
    guest.set_upcall(0, lambda: ran.append(0))
    port = guest.evtchn.bind_ipi(0)
    assert guest.sched.block(0)
    guest.pause()
    guest.evtchn.send(port)
    assert guest.vcpu[0].state == OFFLINE
    guest.loop.run()
    assert not ran
    guest.unpause()
    guest.loop.run()
    assert ran == [0]
    assert not guest.upcalls[0].held


def test_block_unmasks_and_goes_on_if_an_upcall_is_deliverable(hypervisor: Hypervisor) -> None:
    guest = boot(hypervisor)
    guest.evtchn.send(guest.evtchn.bind_ipi(0))
    guest.write(SHARED_INFO_PFN, 1, b"\x01")
    assert not guest.sched.block(0)
    assert guest.read(SHARED_INFO_PFN, 0, 2) == b"\x01\x00"
    assert guest.vcpu[0].state == RUNNING


def test_a_down_vcpu_takes_its_events_when_it_comes_up(hypervisor: Hypervisor) -> None:
    guest = boot(hypervisor)
    ran: list[int] = []
    guest.set_upcall(1, lambda: ran.append(1))
    guest.evtchn.send(guest.evtchn.bind_ipi(1))
    guest.loop.run()
    assert not ran
    guest.vcpu_op.initialise(1)
    guest.vcpu_op.up(1)
    guest.loop.run()
    assert ran == [1]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["wait", "block", "event", "pause", "unpause", "down", "up", "register"]),
        st.integers(0, 1),
        st.integers(0, 3 * S),
    ),
    max_size=30,
)


@given(STEPS)
def test_the_times_of_a_vcpu_add_up_to_its_age(steps: list[tuple[str, int, int]]) -> None:
    made = Hypervisor(Loop(), nr_frames=NR_FRAMES)
    guest = boot(made)
    born = guest.loop.now
    ports = [guest.evtchn.bind_ipi(vcpu) for vcpu in range(2)]
    guest.start_vcpus()
    for vcpu in range(2):
        guest.set_upcall(vcpu, lambda vcpu=vcpu: lib.evtchn_scan(guest.kernel, vcpu, SCANNED, 8, 1))
    spent = [[0, 0, 0, 0], [0, 0, 0, 0]]
    for step, vcpu, ns in steps:
        before = [one.state for one in guest.vcpu]
        guest.loop.advance(ns)
        for one in range(2):
            spent[one][before[one]] += ns
        _step(guest, step, vcpu, ports)
        if guest.is_shutdown:
            break
        for one in range(2):
            info = guest.vcpu_op.get_runstate_info(one)
            assert sum(info.time) == guest.loop.now - born
            assert list(info.time) == spent[one]
            assert info.state_entry_time <= guest.loop.now
    made.close()


def _step(guest: Domain, step: str, vcpu: int, ports: list[int]) -> None:
    if step == "block" and guest.vcpu[vcpu].state == RUNNING:
        guest.sched.block(vcpu)
    elif step == "event":
        guest.evtchn.send(ports[vcpu])
    elif step == "pause":
        guest.pause()
    elif step == "unpause" and guest.pause_count:
        guest.unpause()
    elif step == "down":
        guest.vcpu_op.down(vcpu)
    elif step == "up":
        guest.vcpu_op.up(vcpu)
    elif step == "register":
        guest.vcpu_op.register_runstate_phys_area(vcpu, ADDRESS + 64 * vcpu)
    # The loop runs before time passes, so an event's upcall does not shift a later one.
    guest.loop.run()


def test_an_upcall_replaced_while_its_vcpu_is_blocked_is_the_one_that_runs(
    hypervisor: Hypervisor,
) -> None:
    guest = boot(hypervisor)
    ran: list[str] = []
    guest.set_upcall(0, lambda: ran.append("old"))
    port = guest.evtchn.bind_ipi(0)
    guest.sched.block(0)
    guest.set_upcall(0, lambda: ran.append("new"))
    guest.evtchn.send(port)
    guest.loop.run()
    assert ran == ["new"]


def test_a_hook_that_raises_leaves_vcpu_info_where_it_was(hypervisor: Hypervisor) -> None:
    guest = boot(hypervisor)
    frame = guest.check(lib.p2m_lookup(guest.kernel, PAGE, 1))

    def stop(_actor: int, _kind: int, where: int, _offset: int, _size: int) -> None:
        if where == frame:
            raise KeyError("stop")

    hypervisor.set_hook(stop)
    with pytest.raises(KeyError):
        guest.vcpu_op.register_vcpu_info(0, PAGE, 0)
    hypervisor.set_hook(None)
    assert lib.frame_refs(hypervisor.machine, frame) == 1
    assert guest.read(PAGE, 0, 64) == bytes(64)
    guest.vcpu_op.register_vcpu_info(0, PAGE, 0)
    with pytest.raises(HypercallError, match=r"EBUSY: VCPUOP_register_vcpu_info\(vcpu=0"):
        guest.vcpu_op.register_vcpu_info(0, PAGE, 64)
