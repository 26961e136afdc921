"""The dump, section by section, by its text; rings by their indices; pages full of garbage."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.world import World, make
from xenpv.abi._kernel import ffi, lib
from xenpv.abi.xenbus import XenbusState as State
from xenpv.bus import inf
from xenpv.bus.dump import address, handshake_lines, module_of, ring_lines, stream
from xenpv.bus.handshake import Goal, Handshake
from xenpv.bus.registry import Registry
from xenpv.bus.ring import FrontRing
from xenpv.bus.store_transport import RSP
from xenpv.bus.xenbus import XenBus
from xenpv.errors import StoreError
from xenpv.platform import Platform
from xenpv.vif.states import WINDOWS
from xenpv.xen.domain import CONSOLE_PFN, XENSTORE_PFN, Domain
from xenpv.xen.loop import NS_PER_S

XEN = "Services\\XEN\\Parameters"
SECTIONS = [
    "SUSPEND", "RANGE_SET", "EVTCHN", "SHARED_INFO", "CACHE", "GNTTAB", "STORE", "CONSOLE", "FDO",
]  # fmt: skip


class Idle:
    """A class driver that does nothing."""

    stopped = True

    def __init__(self, bus: XenBus) -> None:
        self.bus = bus

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def remove(self) -> None: ...


@pytest.fixture
def world() -> Iterator[World]:
    made = make()
    yield made
    made.hypervisor.close()


@pytest.fixture
def bus(world: World) -> XenBus:
    for path in ("device", "drivers"):
        world.write(f"/local/domain/1/{path}", "")
    world.chmod("/local/domain/1/drivers", "n1")
    bus = XenBus(
        world.guest,
        {"IFACE": Idle},
        registry=Registry({"Control": {"SystemStartOptions": "XEN:WATCHDOG=20"}}),
    )
    bus.start()
    world.loop.run()
    return bus


def section(bus: XenBus, name: str, *, crashing: bool = False) -> list[str]:
    prefix = f"xenbus|{name}: "
    if crashing:
        bus.debug.trigger_crashing()
    else:
        bus.debug.trigger()
    return [line.removeprefix(prefix) for line in bus.debug.last if line.startswith(prefix)]


# Sections by their text


def test_the_sections_come_in_the_drivers_order(bus: XenBus) -> None:
    bus.debug.trigger()
    names = [line.split(":", 1)[0].removeprefix("xenbus|") for line in bus.debug.last]
    assert list(dict.fromkeys(names)) == SECTIONS


def test_evtchn(world: World, bus: XenBus) -> None:
    channel = bus.evtchn.open_unbound(0, world.guest.task("vif0-q0 dpc", list).wake, mask=True)
    far = bus.evtchn.open_inter_domain(0, world.dom0.evtchn.alloc_unbound(1), print)
    assert section(bus, "EVTCHN") == [
        "EVENT CHANNELS (FIFO):",
        "- (0002) BY bus.store_transport + StoreTransport._event ACTIVE",
        "  FIXED: RemoteDomain = 0 RemotePort = 2, CPU = 0, Count = 0",
        "- (0001) BY bus.console + ConsoleInterface._event ACTIVE",
        "  FIXED: RemoteDomain = 0, nobody bound it, CPU = 0, Count = 0",
        "- (0003) BY bus.virq + DebugVirq._event ACTIVE",
        "  VIRQ: Index = 1, CPU = 0, Count = 0",
        "- (0004) BY bus.watchdog + Watchdog._tick ACTIVE",
        "  VIRQ: Index = 0, CPU = 0, Count = 0",
        "- (0005) BY builtins + list (vif0-q0 dpc) AUTO-MASK ACTIVE MASKED",
        "  UNBOUND: RemoteDomain = 0, nobody bound it, CPU = 0, Count = 0",
        "- (0006) BY builtins + print ACTIVE PENDING MASKED",
        "  INTER_DOMAIN: RemoteDomain = 0 RemotePort = 3, CPU = 0, Count = 0",
    ]
    peer = world.dom0.evtchn.bind_interdomain(1, channel.port)
    bus.evtchn.unmask(channel)
    world.dom0.evtchn.send(peer)
    assert section(bus, "EVTCHN")[9:11] == [
        "- (0005) BY builtins + list (vif0-q0 dpc) AUTO-MASK ACTIVE PENDING",
        f"  UNBOUND: RemoteDomain = 0 RemotePort = {peer}, CPU = 0, Count = 0",
    ]
    bus.evtchn.close(far)
    world.guest.evtchn.close(channel.port)  # behind the driver's back
    after = section(bus, "EVTCHN")
    assert len(after) == 11
    assert after[10] == "  UNBOUND: closed at Xen, CPU = 0, Count = 0"


def test_evtchn_says_which_abi_it_is(world: World) -> None:
    for path in ("device", "drivers"):
        world.write(f"/local/domain/1/{path}", "")
    bus = XenBus(world.guest, {}, fifo=False)
    bus.start()
    assert section(bus, "EVTCHN")[0] == "EVENT CHANNELS (2-level):"


def test_evtchn_of_a_crash_reads_no_bits(bus: XenBus) -> None:
    bus.evtchn.open_unbound(0, print)
    assert "- (0005) BY builtins + print ACTIVE" in section(bus, "EVTCHN", crashing=True)
    assert "- (0005) BY builtins + print ACTIVE MASKED" in section(bus, "EVTCHN")


def test_gnttab(world: World, bus: XenBus) -> None:
    assert section(bus, "GNTTAB") == ["FRAME[0]: Address = 00000000.00102000", "REFERENCES: 0 out"]
    bus.gnttab.reserve(600)
    assert section(bus, "GNTTAB") == [
        "FRAME[0]: Address = 00000000.00102000",
        "FRAME[1]: Address = 00000000.00104000",
        "REFERENCES: 600 out",
    ]


def test_store(world: World, bus: XenBus) -> None:
    bus.store.watch_add("data", world.guest.task("mine", list)).task.wake()
    guest = world.guest
    index = {at: guest.load32(XENSTORE_PFN, at) for at in (2048, 2052, 2056, 2060)}
    whose = next(module_of(one.task.run) for one in bus.store.watches() if one.path == "device")
    assert section(bus, "STORE") == [
        "Address = 00000000.feffc000",
        f"req_cons = {index[2048]:08x} req_prod = {index[2052]:08x} (0 not taken)",
        f"rsp_cons = {index[2056]:08x} rsp_prod = {index[2060]:08x} (0 not taken)",
        f"Events = {bus.store.channel.count} Requests = {bus.store.requests} Dropped = 0",
        "WATCHES:",
        f"- (0001) ON device BY {whose} ACTIVE",
        "- (0002) ON control/shutdown BY bus.power + Power._shutdown_requested ACTIVE",
        "- (0003) ON memory/target BY bus.balloon_thread + BalloonThread._run ACTIVE",
        "- (0004) ON data BY builtins + list ACTIVE DUE",
    ]
    guest.store32(XENSTORE_PFN, 2052, index[2048] + 100)
    guest.store32(XENSTORE_PFN, 2060, index[2056] + 1025)
    assert section(bus, "STORE")[1:3] == [
        f"req_cons = {index[2048]:08x} req_prod = {index[2048] + 100:08x} (100 not taken)",
        f"rsp_cons = {index[2056]:08x} rsp_prod = {index[2056] + 1025:08x} (WRONG: more than the ring holds)",
    ]
    assert section(bus, "STORE", crashing=True)[:2] == [
        "Address = 00000000.feffc000",
        f"Events = {bus.store.channel.count} Requests = {bus.store.requests} Dropped = 0",
    ]


def test_store_with_buffers_and_what_a_suspend_ends(world: World, bus: XenBus) -> None:
    view = bus.query_interface(bus.store.GUID, 2)
    view.acquire()
    world.write("/local/domain/1/data", "value")
    world.chmod("/local/domain/1/data", "n1")
    view.read(None, None, "data")
    transaction = bus.store.transaction_start()
    bus.store._suspend_early()
    lines = section(bus, "STORE")
    assert lines[lines.index("BUFFERS:") + 1] == "- 6 bytes"
    whose = "bus.power + Power._shutdown_requested"
    assert f"- (0002) ON control/shutdown BY {whose} EXPIRED" in lines
    assert f"- ({transaction.id:08X}) EXPIRED" in lines
    assert not [line for line in lines if line.endswith(" ACTIVE")]


def test_store_that_is_broken_says_why(world: World, bus: XenBus) -> None:
    world.guest.store32(XENSTORE_PFN, 2060, world.guest.load32(XENSTORE_PFN, 2056) + 1025)
    bus.store._event()
    assert f"BROKEN: {bus.store.broken}" in section(bus, "STORE")


def test_store_with_a_transaction(bus: XenBus) -> None:
    one, two = bus.store.transaction_start(), bus.store.transaction_start()
    lines = section(bus, "STORE")
    assert lines[lines.index("TRANSACTIONS:") :] == [
        "TRANSACTIONS:",
        f"- ({one.id:08X}) ACTIVE",
        f"- ({two.id:08X}) ACTIVE",
    ]
    bus.store.transaction_end(one, commit=False)
    bus.store.transaction_end(two, commit=True)
    assert "TRANSACTIONS:" not in section(bus, "STORE")


def test_console(world: World, bus: XenBus) -> None:
    for at, value in ((3072, 1), (3076, 5), (3080, 0xFFFFFFF0), (3084, 0x10)):
        world.guest.store32(CONSOLE_PFN, at, value)
    bus.console.wakeup_add(world.guest.task("xencons", list))
    assert section(bus, "CONSOLE") == [
        "Address = 00000000.fefff000",
        "out_cons = fffffff0 out_prod = 00000010 (32 not taken)",
        "in_cons = 00000001 in_prod = 00000005 (4 not taken)",
        "Events = 0 Dropped = 0",
        "WAKEUPS:",
        "- builtins + list",
    ]
    assert section(bus, "CONSOLE", crashing=True) == [
        "Address = 00000000.fefff000",
        "Events = 0 Dropped = 0",
        "WAKEUPS:",
        "- builtins + list",
    ]
    world.guest.store32(CONSOLE_PFN, 3084, 0x7FFFFFFF)
    bus.console.write(b"x")
    assert section(bus, "CONSOLE")[4] == "BROKEN: console ring: the peer's index runs past the ring"


def test_a_guest_without_a_console_says_so(world: World) -> None:
    for path in ("device", "drivers"):
        world.write(f"/local/domain/1/{path}", "")
    world.dom0.hvm.set_param(1, 18, 0)
    bus = XenBus(world.guest, {})
    bus.start()
    assert section(bus, "CONSOLE") == ["NONE"]


def test_fdo(world: World, bus: XenBus) -> None:
    found = section(bus, "FDO")
    assert found[:3] == [
        "VIRQ DEBUG: CPU = 0 Count = 0",
        "VIRQ TIMER: CPU = 0 Count = 0",
        "WATCHDOG: 20 s, Pats = 0",
    ]
    assert "PDO IFACE: STARTED" in found[3:]
    world.dom0.domctl.debug_keys("q")
    world.loop.advance(25 * 1_000_000_000)
    assert section(bus, "FDO")[:3] == [
        "VIRQ DEBUG: CPU = 0 Count = 1",
        "VIRQ TIMER: CPU = 0 Count = 2",
        "WATCHDOG: 20 s, Pats = 2",
    ]


def test_fdo_with_a_balloon_and_who_keeps_it_from_a_suspend(world: World, bus: XenBus) -> None:
    balloon, thread = bus.balloon, bus.balloon_thread
    assert balloon is not None
    assert thread is not None
    assert section(bus, "FDO")[3:5] == [
        "BALLOON: IDLE Size = 0 Target = 0",
        "BALLOON/SUSPEND: held by NOBODY",
    ]
    balloon.adjust(64)
    assert bus.suspend.mutex.try_acquire("suspend", thread.task)
    assert section(bus, "FDO")[3:5] == [
        "BALLOON: IDLE Size = 64 Target = 64",
        "BALLOON/SUSPEND: held by suspend",
    ]
    bus.suspend.mutex.release("suspend")
    bus.balloon = bus.balloon_thread = None  # XEN:BALLOON=OFF
    assert section(bus, "FDO")[3] == "BALLOON/SUSPEND: held by NOBODY"


def test_suspend(world: World, bus: XenBus) -> None:
    bus.suspend.register(1, print, "XENVIF")
    bus.suspend.register(2, partial(bus.power_off), "CLIENT")
    assert section(bus, "SUSPEND") == [
        "Count = 0",
        "EARLY: bus.evtchn_channels + EvtchnChannels._suspend_early (XENBUS EVTCHN)",
        "EARLY: bus.shared_info + SharedInfoInterface._map (XENBUS SHARED_INFO)",
        "EARLY: bus.gnttab + GnttabInterface.resume (XENBUS GNTTAB)",
        "EARLY: bus.store_client + StoreClient._suspend_early (XENBUS STORE)",
        "EARLY: builtins + print (XENVIF)",
        "LATE: bus.evtchn_channels + EvtchnChannels._suspend_late (XENBUS EVTCHN)",
        "LATE: bus.store_client + StoreClient._suspend_late (XENBUS STORE)",
        "LATE: bus.console + ConsoleInterface.suspend_late (XENBUS CONSOLE)",
        "LATE: bus.power + Power.resume (XENBUS)",
        "LATE: bus.pdo + Pdo._resumed (XENBUS)",
        "LATE: bus.xenbus + XenBus.power_off (CLIENT)",
    ]
    bus.suspend.count = 3
    assert section(bus, "SUSPEND", crashing=True)[0] == "Count = 3"


def test_range_set(bus: XenBus) -> None:
    sets = bus.range_set
    many = sets.create("many")
    for at in range(12):
        sets.put(many, 16 * at, 4)
    sets.get(many, 16, 1)
    sets.create("empty")
    sets.put(sets.create("signed"), -2, 2)
    assert section(bus, "RANGE_SET") == [
        "- balloon: EMPTY",
        "- many: 12",
        "  {0000000000000000 - 0000000000000003}",
        "  {0000000000000011 - 0000000000000013}*",
        *(f"  {{{16 * at:016x} - {16 * at + 3:016x}}}" for at in range(2, 9)),
        "- empty: EMPTY",
        "- signed: 1",
        "  {fffffffffffffffe - ffffffffffffffff}*",
    ]


def test_cache(bus: XenBus) -> None:
    bus.cache.acquire()
    cache = bus.cache.create("mine", 16, 10)
    objects = [bus.cache.get(cache, False) for _ in range(300)]
    for one in objects[20:]:
        assert one is not None
        bus.cache.put(cache, one, False)
    # 20 are out, 6 in the magazine of their processor; two slabs of 253 were needed.
    assert section(bus, "CACHE")[-1] == (
        "- mine: Total = 506 Reservation = 10 Objects = 26/300 Slabs = 2/2"
    )


def test_shared_info(world: World, bus: XenBus) -> None:
    guest, page = world.guest, bus.shared_info.page
    assert page is not None
    pfn = page.pfn
    guest.store32(pfn, 0, 0)
    guest.store32(pfn, 8, 0)
    guest.store32(pfn, 12, 0)
    guest.write(pfn, 0x800, bytes(512))
    assert section(bus, "SHARED_INFO") == [
        f"Address = {address(pfn)}",
        "CPU 0: PENDING = 00 SELECTOR = 0000000000000000",
    ]
    guest.store32(pfn, 0, 0xFF01)  # pending, and the mask beside it
    guest.store32(pfn, 12, 0x80000000)
    guest.store32(pfn, 0x800 + 8, 5)
    guest.store32(pfn, 0xA00 + 12, 0xFFFFFFFE)
    guest.store32(pfn, 0xA00 + 504, 0)
    assert section(bus, "SHARED_INFO") == [
        f"Address = {address(pfn)}",
        "CPU 0: PENDING = 01 SELECTOR = 8000000000000000",
        "WORD[01]: PENDING = 0000000000000005 UNMASKED = 0000000100000000",
        "WORD[3f]: PENDING = 0000000000000000 UNMASKED = 00000000ffffffff",
    ]
    assert section(bus, "SHARED_INFO", crashing=True) == [f"Address = {address(pfn)}"]


def test_a_page_that_nobody_acquired_has_no_words(world: World, bus: XenBus) -> None:
    page, bus.shared_info.page = bus.shared_info.page, None
    assert section(bus, "SHARED_INFO") == ["NONE"]
    bus.shared_info.page = page


@pytest.mark.parametrize(
    ("registers", "text"), [(0, "CPU 32: no vcpu_info"), (1, "CPU 32: PENDING = 00 SELECTOR = ")]
)
def test_vcpus_beyond_the_page_have_words_once_they_registered_some(
    registers: int, text: str
) -> None:
    registry = inf.installed()
    registry.set("Services\\XEN\\Parameters", "RegisterVcpuInfo", registers)
    with Platform(seed=1) as xen:
        bus = xen.create(name="wide", vcpus=33, registry=registry).start().bus
        assert bus is not None
        assert section(bus, "SHARED_INFO")[33].startswith(text)


def test_gnttab_with_caches(bus: XenBus) -> None:
    bus.gnttab.acquire()
    cache = bus.gnttab.create_cache("mine", 0, 506)
    bus.gnttab.permit_entry(cache, False, 0, 5, True)
    assert section(bus, "GNTTAB")[-1] == "- mine_gnttab: 1 out or kept"


# The watchdog of the store


def test_the_watchdog_of_the_store_dumps_its_section_before_it_reads(
    world: World, bus: XenBus
) -> None:
    bus.logs.dispositions.clear()
    ring = world.daemon.rings[1]
    world.loop.advance(16 * NS_PER_S)
    data = b"\x02\0\0\0\x63\0\0\0\0\0\0\0\x01\0\0\0z"
    lib.stream_put(world.dom0.kernel, ring.pfn, *RSP, ffi.from_buffer(data), len(data))
    triggers = bus.debug.triggers
    world.loop.advance(15 * NS_PER_S)
    assert bus.store.barks == 1
    assert bus.debug.triggers == triggers + 1
    assert {line.split(":", 1)[0] for line in bus.debug.last} == {"xenbus|STORE"}
    (said,) = [line for line in bus.debug.last if "rsp_cons" in line]
    assert said.endswith("(17 not taken)")
    assert bus.store.dropped == 1


def test_in_d3_the_watchdog_of_the_store_dumps_nothing(bus: XenBus) -> None:
    bus.dump.stop()
    triggers = bus.debug.triggers
    bus.dump.print_store()
    assert bus.debug.triggers == triggers


# Small things


@pytest.mark.parametrize(
    ("pfn", "text"),
    [(0, "00000000.00000000"), (0xFEFFC, "00000000.feffc000"), (0x123456, "00000001.23456000")],
)
def test_an_address_is_printed_in_halves(pfn: int, text: str) -> None:
    assert address(pfn) == text


STREAMS = [
    (0, 0, "0 not taken"), (5, 2, "3 not taken"), (1024, 0, "1024 not taken"), (2, 0xFFFFFFFF, "3 not taken"),
    (1025, 0, "WRONG: more than the ring holds"), (0, 1, "WRONG: more than the ring holds"),
]  # fmt: skip


@pytest.mark.parametrize(("prod", "cons", "text"), STREAMS)
def test_bytes_that_nobody_took(prod: int, cons: int, text: str) -> None:
    assert stream(prod, cons, 1024) == text


def test_where_a_callback_is_from(world: World, bus: XenBus) -> None:
    off = "bus.xenbus + XenBus.power_off"
    task = world.guest.task("the end", partial(bus.power_off, 0))
    assert module_of(bus.power_off) == off
    assert module_of(partial(bus.power_off, 1)) == off
    assert module_of(task.wake) == f"{off} (the end)"
    assert module_of(Idle(bus)) == f"{__name__} + Idle"


# Rings: shared req_prod, req_event, rsp_prod, rsp_event; what is said. 3 requests are published,
# of which 0 responses were taken.

RINGS = [
    (
        "nothing taken",
        (3, 1, 0, 1),
        "3 not taken by the backend, 0 taken and not answered; 0 responses not taken by us",
    ),
    (
        "one taken, then asleep",
        (3, 2, 0, 1),
        "2 not taken by the backend, 1 taken and not answered; 0 responses not taken by us",
    ),
    (
        "all taken, none answered",
        (3, 4, 0, 1),
        "0 not taken by the backend, 3 taken and not answered; 0 responses not taken by us",
    ),
    (
        "all answered, none seen",
        (3, 4, 3, 1),
        "0 not taken by the backend, 0 taken and not answered; 3 responses not taken by us",
    ),
    (
        "two answered",
        (3, 4, 2, 1),
        "0 not taken by the backend, 1 taken and not answered; 2 responses not taken by us",
    ),
    (
        "at work: it asks for no event",
        (3, 1, 2, 1),
        "1 unanswered, the backend is at work; 2 responses not taken by us",
    ),
    (
        "req_event of the far future",
        (3, 0x80000000, 0, 1),
        "3 unanswered, the backend is at work; 0 responses not taken by us",
    ),
    ("rsp_prod runs ahead", (3, 4, 4, 1), "WRONG: rsp_prod is ahead of the 3 in flight"),
    ("rsp_prod runs back", (3, 4, 0xFFFFFFFF, 1), "WRONG: rsp_prod is ahead of the 3 in flight"),
    (
        "req_prod was overwritten",
        (7, 1, 0, 1),
        "WRONG: req_prod is not the 00000003 that was published",
    ),
]


def ring_of(domain: Domain, requests: int, *, start: int = 0) -> FrontRing:
    pfn = domain.pages.alloc()
    domain.write(pfn, 0, bytes(4096))
    ring = FrontRing(domain, [pfn], req_size=112, rsp_size=16)
    if start:
        ring.seek(start)
    ring.push(bytes(112 * requests), requests)
    return ring


@pytest.mark.parametrize("start", [0, 0xFFFFFFFE], ids=["from 0", "over the wrap"])
@pytest.mark.parametrize(
    ("shared", "said"), [row[1:] for row in RINGS], ids=[row[0] for row in RINGS]
)
def test_a_ring_says_who_keeps_whom_waiting(
    world: World, shared: tuple[int, ...], said: str, start: int
) -> None:
    ring = ring_of(world.guest, 3, start=start)
    for at, value in zip(range(0, 16, 4), shared, strict=True):
        world.guest.store32(ring.pfns[0], at, (value + start) & 0xFFFFFFFF)
    if start and "published" in said:
        said = "WRONG: req_prod is not the 00000001 that was published"
    lines = list(ring_lines("tx", ring, crashing=False))
    assert lines[-1] == f"tx: {said}"
    words = [(value + start) & 0xFFFFFFFF for value in shared]
    assert lines[:3] == [
        f"tx: req_prod = {words[0]:08x} req_event = {words[1]:08x}",
        f"tx: rsp_prod = {words[2]:08x} rsp_event = {words[3]:08x}",
        f"tx: rsp_cons = {start:08x}, 3 of 32 in flight",
    ]


def test_posted_slots_are_room_and_not_work(world: World) -> None:
    ring = ring_of(world.guest, 3)
    lines = list(ring_lines("rx", ring, crashing=False, posted=True))
    assert lines[-1] == "rx: 3 posted and not used; 0 responses not taken by us"


def test_in_a_crash_the_ring_page_is_not_read(world: World) -> None:
    ring = ring_of(world.guest, 3)
    touched: list[int] = []
    world.hypervisor.set_hook(lambda *access: touched.append(access[2]))
    lines = list(ring_lines("tx", ring, crashing=True))
    world.hypervisor.set_hook(None)
    assert lines == [f"tx: 3 in flight, 29 free; {address(ring.pfns[0])}"]
    assert touched == []


def test_a_ring_without_its_page_says_so(world: World) -> None:
    ring = ring_of(world.guest, 3)
    world.guest.memory.remove_from_physmap(world.guest.DOMID_SELF, ring.pfns[0])
    (line,) = ring_lines("tx", ring, crashing=False)
    assert line.startswith("tx: its page is gone: EFAULT")
    assert list(ring_lines("tx", None, crashing=False)) == ["tx: NONE"]


# A handshake


class Walker:
    """A frontend whose goals do nothing."""

    def before(self, goal: Goal) -> None: ...
    def reached(self, goal: Goal) -> None: ...
    def failed(self, goal: Goal, state: State) -> None: ...
    def offline(self) -> None: ...


HANDSHAKES = [
    (
        "backend initialises",
        "1",
        "UNKNOWN(0)",
        "INITIALISING(1)",
        [
            "goals = prepare, connect",
            "waits for the backend to be one of ABSENT, UNKNOWN, INIT_WAIT, CONNECTED, CLOSING, CLOSED",
        ],
    ),
    (
        "backend waits",
        "2",
        "CONNECTED(4)",
        "INIT_WAIT(2)",
        [
            "goals = connect",
            "waits for the backend to be one of ABSENT, UNKNOWN, INITIALISED, CONNECTED, CLOSING",
        ],
    ),
    (
        "backend connected",
        "4",
        "CLOSING(5)",
        "CONNECTED(4)",
        [
            "goals = prepare, connect",
            "waits for the backend to be one of ABSENT, UNKNOWN, INIT_WAIT, CLOSING, CLOSED",
        ],
    ),
    (
        "garbage",
        "x",
        "UNKNOWN(0)",
        "UNKNOWN(0)",
        [
            "goals = prepare, connect",
            "waits for the backend to be one of ABSENT, INIT_WAIT, CONNECTED, CLOSING, CLOSED",
        ],
    ),
]


@pytest.mark.parametrize(
    ("backend", "ours", "seen", "rest"),
    [row[1:] for row in HANDSHAKES],
    ids=[row[0] for row in HANDSHAKES],
)
def test_a_handshake_says_where_both_are_and_what_it_waits_for(
    world: World, backend: str, ours: str, seen: str, rest: list[str]
) -> None:
    _evtchn, store = world.bus_store()
    back = "/local/domain/0/backend/vif/1/0"
    for path, value in (
        (f"{back}/state", backend),
        (f"{back}/online", "1"),
        ("/local/domain/1/data/vif/0/backend", back),
    ):
        world.write(path, value)
    for path in (back, f"{back}/state", f"{back}/online"):
        world.chmod(path, "n0", "r1")
    world.chmod("/local/domain/1/data/vif/0", "n1")
    world.chmod("/local/domain/1/data/vif/0/backend", "n1")
    handshake = Handshake(
        domain=world.guest, store=store, path="data/vif/0", table=WINDOWS, driver=Walker()
    )
    assert list(handshake_lines(handshake)) == [
        "state = UNKNOWN(0); no backend",
        "no goal: it waits for nothing",
    ]
    handshake.start([Goal.PREPARE, Goal.CONNECT])
    world.loop.run()
    assert list(handshake_lines(handshake)) == [
        f"state = {ours}; backend {back} last seen {seen}",
        *rest,
    ]


# Hostile: a dump of pages that are anything, and a crash on top of it

WORDS = st.integers(0, 0xFFFFFFFF)


@given(
    st.lists(WORDS, min_size=4, max_size=4),
    st.lists(WORDS, min_size=4, max_size=4),
    st.lists(WORDS, min_size=4, max_size=4),
    st.booleans(),
)
def test_whatever_is_in_the_pages_a_dump_is_made_and_the_crash_reaches_xen(
    ring_words: list[int], store_words: list[int], console_words: list[int], crash: bool
) -> None:
    world = make()
    for path in ("device", "drivers"):
        world.write(f"/local/domain/1/{path}", "")
    bus = XenBus(world.guest, {}, registry=Registry({XEN: {"XenLogLevel": ("INFO", "CRITICAL")}}))
    bus.start()
    ring, info = ring_of(world.guest, 5), bus.shared_info.page
    assert info is not None
    bus.debug.register(
        "ring",
        lambda crashing: [bus.debug.printf(line) for line in ring_lines("r", ring, crashing)],
    )
    for pfn, first, words in (
        (ring.pfns[0], 0, ring_words),
        (XENSTORE_PFN, 2048, store_words),
        (CONSOLE_PFN, 3072, console_words),
        (info.pfn, 0x800, ring_words),
        (info.pfn, 0xA00, store_words),
    ):
        for at, word in enumerate(words):
            world.guest.store32(pfn, first + 4 * at, word)
    if crash:
        bus.crash.bugcheck(0xE2)
        assert world.guest.shutdown_code == 3
    else:
        bus.debug.trigger()
    text = world.hypervisor.console.of(1)
    assert "dump ends here" not in text
    for name in SECTIONS:
        assert f"xenbus|{name}: " in text
    assert ("MANUALLY_INITIATED_CRASH" in text) == crash
    world.hypervisor.close()


def test_a_dump_stores_nothing_in_memory_that_others_see(world: World, bus: XenBus) -> None:
    """Reading is all it does; the log is held back until the last section has read."""
    kinds: list[int] = []
    bus.logs.dispositions.clear()
    world.hypervisor.set_hook(lambda _actor, kind, *_rest: kinds.append(kind))
    bus.debug.trigger()
    world.hypervisor.set_hook(None)
    assert kinds
    assert set(kinds) == {0}


def test_the_bus_leaves_no_callback_behind(bus: XenBus) -> None:
    bus.dump.stop()
    bus.debug.release()
    assert bus.debug.callbacks == []
    with pytest.raises(StoreError):
        bus.store.read("no such node")
