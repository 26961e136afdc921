"""The crash driver's start: what it takes over, which disk it finds, what it writes and says."""

from __future__ import annotations

import pytest

from tests.vbd.crash.rawscene import crash_scene
from tests.vbd.rawback import KEYS as RAW_KEYS
from xenpv.abi._kernel import lib
from xenpv.abi.hvm import HVM_PARAM
from xenpv.abi.xenbus import XenbusState as State
from xenpv.vbd.crash.driver import CrashImage, Mode, Step
from xenpv.vbd.crash.failure import CrashError
from xenpv.vbd.crash.gnttab import References
from xenpv.vbd.crash.heap import Heap
from xenpv.vbd.units import SS2019
from xenpv.xen.domain import XENSTORE_PFN, Domain


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("\\SystemRoot\\System32\\Drivers\\dump_xenvbd.sys", Mode.DUMP),
        ("\\Driver\\DUMP_xenvbd", Mode.DUMP),
        ("hiber_xenvbd.sys", Mode.HIBER),
        ("\\Services\\HiBeR_x", Mode.HIBER),
        ("\\Services\\xenvbd", None),
        ("\\dump_\\xenvbd", None),
        ("", None),
    ],
)
def test_the_name_of_its_image_says_what_it_is_loaded_for(path: str, mode: Mode | None) -> None:
    assert Mode.of_image(path) is mode


class Port:
    """A device model with port 0xED."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, int, int]] = []

    def io_read(self, port: int, size: int) -> int:
        del port, size
        return 0

    def io_write(self, port: int, size: int, value: int) -> None:
        self.writes.append((port, size, value))

    def io_write_string(self, port: int, data: bytes) -> None: ...

    def functions(self) -> list[object]:
        return []

    def drives(self) -> list[object]:
        return []


@pytest.mark.parametrize(("mode", "writes"), [(Mode.DUMP, [(0xED, 4, 0x504C4548)]), (Mode.HIBER, [])])  # fmt: skip
def test_a_dump_begins_with_a_write_to_port_ed(
    mode: Mode, writes: list[tuple[int, int, int]]
) -> None:
    with crash_scene(mode) as scene:
        port = Port()
        scene.domain.ioport.claim(port, 0xED, 4)  # type: ignore[arg-type]
        scene.connect()
        assert port.writes == writes


def bound(domain: Domain) -> list[int]:
    """Ports that are the guest's own."""
    ports = domain.evtchn.ports
    return [port.number for port in ports if port.handle is not None and port.consumer is None]


def test_it_takes_over_ports_grants_and_the_stores_ring() -> None:
    with crash_scene() as scene:
        domain, image = scene.domain, scene.driver.image
        entries = {ref: lib.grant_entry_flags(domain.kernel, ref) for ref in range(32, 200)}
        assert any(entries.values())
        assert domain.evtchn.fifo
        assert scene.walk(Step.CLOSE_ALL) is Step.CLOSE_ALL
        # Every port is closed but the one to xenstored, and the ABI is that of a new domain.
        assert bound(domain) == [scene.driver.store.port]
        assert not domain.evtchn.fifo
        assert domain.hvm_param(HVM_PARAM.STORE_EVTCHN) == scene.driver.store.port
        # The ring's page and grant frame 0 are where the image has room for them.
        assert scene.driver.store.pfn == image.pfn
        assert lib.p2m_type(domain.kernel, XENSTORE_PFN) == lib.P2M_NONE
        assert lib.p2m_type(domain.kernel, image.pfn + 1) == lib.P2M_XEN
        # What the dead driver granted is granted.
        assert entries == {ref: lib.grant_entry_flags(domain.kernel, ref) for ref in entries}
        scene.connect()
        assert len(bound(domain)) == 2
        scene.driver.store.detach()
        assert lib.p2m_type(domain.kernel, XENSTORE_PFN) == lib.P2M_RAM
        scene.driver.store.detach()


def test_a_ring_that_cannot_be_moved_is_used_where_it_is() -> None:
    with crash_scene() as scene:
        domain, image = scene.domain, scene.driver.image
        # A page of another domain is mapped there: nothing can be put in its place.
        other = scene.xen.hypervisor.domains[0]
        page = other.pages.alloc()
        ref = 600
        other.add_to_physmap_grant(1, other.holes.alloc())
        lib.grant_entry_set(other.kernel, ref, domain.domid, page, 1)
        domain.gnttab.map(0, ref, image.pfn)
        scene.connect()
        assert scene.driver.store.pfn == XENSTORE_PFN


KEYS = {
    "protocol": "x86_64-abi", "feature-surprise-remove": "1", "feature-online-resize": "1",
    "multi-queue-num-queues": "1", "state": "4", "ring-ref": "8",
}  # fmt: skip


@pytest.mark.parametrize("large", [False, True])
def test_the_keys_that_it_writes_and_those_that_it_removes(large: bool) -> None:
    named = {"units": SS2019} if large else {}
    with crash_scene(**named) as scene:  # type: ignore[arg-type]
        home = f"{scene.home}/device/vbd/51712"
        for key in ("ring-page-order", "feature-persistent"):
            scene.write(f"{home}/{key}", "4")
        scene.write(f"{home}/target-id", "stale")
        scene.connect()
        found = {key: scene.read(f"{home}/{key}") for key in KEYS}
        assert found == KEYS
        assert scene.read(f"{home}/event-channel") == str(scene.driver.target.ring.port)  # type: ignore[union-attr]
        assert scene.read(f"{home}/feature-large-sector-size") == ("1" if large else None)
        for key in ("ring-page-order", "feature-persistent"):
            assert scene.read(f"{home}/{key}") is None
        assert scene.read(f"{home}/target-id") == "stale"
        target = f"{scene.home}/data/scsi/target/0"
        values = [scene.read(f"{target}/{key}") for key in ("frontend", "device", "filter")]
        assert values == ["device/vbd/51712", "51712", "absent"]


# nodes below data/scsi/target (None: without `device`), and the disk that is found
TARGETS = [
    ({}, None), ({"0": "1"}, 0), ({"1": "1"}, 1), ({"1": "1", "0": "1"}, 0),
    ({"0": "0", "1": "7"}, 1), ({"0": "junk", "1": "01"}, 1), ({"0": "", "1": "-1"}, None),
    ({"127": "1"}, 127), ({"128": "1"}, None), ({"x": "1", "00": "1"}, None),
    ({"9": "1", "10": "1"}, 9), ({"0": "99999999999999999999999", "1": "1"}, 0),
]  # fmt: skip


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize(("nodes", "found"), TARGETS)
def test_the_first_target_that_is_used_so_has_it(
    mode: Mode, nodes: dict[str, str], found: int | None
) -> None:
    with crash_scene(mode, usage=None) as scene:
        base = f"{scene.home}/data/scsi/target"
        scene.xen.toolstack.ctx.xs.rm(base)
        for number, value in nodes.items():
            scene.write(f"{base}/{number}/device", "51712")
            scene.write(f"{base}/{number}/{mode.value}", value)
            scene.write(f"{base}/{number}/paging", "1")
        step = scene.walk()
        if found is None:
            assert step is Step.FAILED
            assert scene.driver.failure == "device/vbd/768: there is no such device"
        else:
            assert step is Step.READY
            assert scene.driver.frontend is not None
            assert scene.driver.frontend.target_id == found


def test_a_target_without_a_device_is_passed_over() -> None:
    with crash_scene(disks=2) as scene:
        base = f"{scene.home}/data/scsi/target"
        scene.xen.toolstack.ctx.xs.rm(f"{base}/0/device")
        scene.write(f"{base}/1/dump", "1")
        scene.connect()
        assert scene.driver.frontend is not None
        assert scene.driver.frontend.path == "device/vbd/51728"


def test_every_disk_is_closed_also_that_which_is_not_written_to() -> None:
    with crash_scene(disks=3) as scene:
        for back in scene.backs:
            back.states.clear()
        scene.connect()
        assert [back.device.state for back in scene.backs] == [
            State.CONNECTED,
            State.CLOSED,
            State.CLOSED,
        ]
        assert scene.backs[1].states == [State.CLOSING, State.CLOSED]
        assert not scene.backs[1].maps


DISKS = [
    ({"sectors": "0"}, 0, 512), ({"sectors": "junk"}, 0, 512), ({"sector-size": "4096", "sectors": "9"}, 1, 4096),
    ({"sectors": "36028797018963967"}, 36028797018963967, 512),
    ({"sectors": "36028797018963968"}, "sectors is 36028797018963968: no disk is that large", 0),
    ({"sectors": "9" * 4000}, "no disk is that large", 0),
    ({"sector-size": "0"}, "sector-size is 0: expected 512 to 4096", 0),
    ({"sector-size": "513"}, "sector-size is 513", 0), ({"sector-size": "8192"}, "sector-size is 8192", 0),
    ({"sector-size": "junk"}, "sector-size is 0", 0), ({"info": "-1"}, 1024, 512),
    ({"info": "9" * 30}, 1024, 512),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "capacity", "size"), DISKS)
def test_what_the_backend_says_of_the_disk(
    keys: dict[str, str], capacity: int | str, size: int
) -> None:
    with crash_scene() as scene:
        scene.back.keys = {**RAW_KEYS, **keys}
        step = scene.walk()
        if isinstance(capacity, str):
            assert step is Step.FAILED
            assert capacity in scene.driver.failure
            assert scene.driver.sp_return == 1  # SP_RETURN_FOUND
            assert scene.back.device.state is State.CLOSED
        else:
            assert step is Step.READY
            assert (scene.driver.backend.capacity, scene.driver.backend.sector_size) == (
                capacity,
                size,
            )


BACKENDS = [
    ("backend", ""), ("backend", "/nowhere"), ("backend", "relative"), ("backend", "x" * 4090),
    ("backend", "\u00e9"), ("backend-id", "99999"), ("backend-id", "9" * 4000),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), BACKENDS)
def test_a_backend_that_cannot_be(key: str, value: str) -> None:
    with crash_scene() as scene:
        try:
            scene.write(f"{scene.home}/device/vbd/51712/{key}", value)
        except Exception:
            return
        assert scene.walk() is Step.FAILED
        assert scene.driver.failure
        assert len(scene.driver.skipped) == 1


def test_without_disks_there_is_nothing_to_write_to() -> None:
    with crash_scene() as scene:
        scene.xen.toolstack.ctx.xs.rm(f"{scene.home}/device/vbd")
        assert scene.walk() is Step.FAILED
        assert scene.driver.failure.startswith("device/vbd: ENOENT")
        assert scene.driver.sp_return == 3  # SP_RETURN_BAD_CONFIG


def test_a_version_2_grant_table_is_not_the_crash_drivers() -> None:
    with crash_scene() as scene:
        scene.back.disconnect()
        assert lib.grant_table_set_version(scene.domain.kernel, 2) == 0
        assert scene.walk() is Step.FAILED
        assert scene.driver.failure == "the grant table is of version 2"


def test_each_wait_is_100_ms() -> None:
    with crash_scene() as scene:
        waits = []
        while (wait := scene.driver.poll()) is not None:
            waits.append(wait)
            scene.xen.loop.advance(wait)
        assert waits == [100_000_000] * 4


# memory


def test_the_heap_has_23_pages_or_22_and_gives_eight_at_most() -> None:
    with crash_scene() as scene:
        domain = scene.domain
        assert len(scene.driver.image.pages) == 25
        assert scene.driver.heap.pages == 23
        assert CrashImage(scene.driver.image.pfn, is_aligned=False).heap(domain).pages == 22
        heap = Heap(domain, scene.page(pages=23), 23)
        with pytest.raises(CrashError, match="1 to 8 pages at once, not 9"):
            heap.allocate(9)
        with pytest.raises(CrashError, match="not 0"):
            heap.allocate(0)
        first, second = heap.allocate(8), heap.allocate(8)
        assert (first, second, heap.free_pages) == (heap.pfn, heap.pfn + 8, 7)
        with pytest.raises(CrashError, match="has no 8 left in one piece"):
            heap.allocate(8)
        third = heap.allocate(7)
        heap.free(first)
        domain.write(first, 0, b"used")
        assert heap.allocate(3) == first
        assert domain.read(first, 0, 4) == bytes(4)
        assert heap.allocate(5) == first + 3
        heap.free(second)
        heap.free(third)
        assert heap.free_pages == 15


@pytest.mark.parametrize("is_aligned", [True, False])
def test_eight_bounce_pages_a_zero_page_and_the_ring_are_of_the_heap(is_aligned: bool) -> None:
    with crash_scene(is_aligned=is_aligned) as scene:
        scene.connect()
        assert scene.driver.heap.free_pages == (13 if is_aligned else 12)


def test_references_are_8_to_31() -> None:
    with crash_scene() as scene:
        references = References(scene.domain)
        given = [references.permit(0, 0x100, readonly=True) for _ in range(24)]
        assert given == list(range(8, 32))
        with pytest.raises(CrashError, match="all 24 grant references are out"):
            references.permit(0, 0x100, readonly=True)
        assert references.revoke(17)
        assert references.permit(0, 0x100, readonly=False) == 17
