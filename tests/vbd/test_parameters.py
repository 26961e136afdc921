"""What a user chooses of the frontend, and where it shows: keys, rings, and what is read."""

from __future__ import annotations

import pytest

from tests.vbd.rawback import SYNC10, Scene, scene
from tests.vbd.test_frontend import front_keys
from xenpv import Disk, MemoryImage, Platform
from xenpv.bus.registry import Registry
from xenpv.vbd.frontend import FrontendState
from xenpv.vbd.parameters import DEFAULTS, PATH, Parameters
from xenpv.vbd.units import FREEBSD, LINUX, MINIOS, SPEC2024, SS2019, UNITS, SectorUnits

PLENTY = {"max-ring-page-order": "4", "multi-queue-max-queues": "8"}
# personality, vcpus, what is asked for, what the backend offers; pages of a ring, queues
SHAPES = [
    ("windows", 4, Parameters(), PLENTY, 2, 2),
    ("windows", 4, Parameters(ring_page_order=4, queues=4), PLENTY, 16, 4),
    ("windows", 8, Parameters(ring_page_order=4, queues=3), PLENTY, 16, 3),
    ("windows", 2, Parameters(ring_page_order=3, queues=4), PLENTY, 8, 2),
    ("windows", 4, Parameters(ring_page_order=9, queues=99), PLENTY, 16, 4),
    ("windows", 4, Parameters(ring_page_order=9, queues=99), {"max-ring-page-order": "9", "multi-queue-max-queues": "99"}, 16, 4),
    ("windows", 4, Parameters(ring_page_order=0, queues=1), PLENTY, 1, 1),
    ("windows", 4, Parameters(ring_page_order=4, queues=0), PLENTY, 16, 1),
    ("windows", 4, Parameters(ring_page_order=4, queues=4), {}, 1, 1),
    ("windows", 4, Parameters(ring_page_order=4, queues=4), {"max-ring-page-order": "2", "multi-queue-max-queues": "3"}, 4, 3),
    ("windows", 4, Parameters(ring_page_order=4, queues=4), {"max-ring-page-order": "0", "multi-queue-max-queues": "0"}, 1, 1),
    ("linux", 4, Parameters(), PLENTY, 1, 4),
    ("linux", 4, Parameters(ring_page_order=4, queues=2), PLENTY, 16, 2),
    ("linux", 2, Parameters(ring_page_order=2), PLENTY, 4, 2),
]  # fmt: skip


@pytest.mark.parametrize(("personality", "vcpus", "wanted", "early", "pages", "queues"), SHAPES)
def test_rings_are_what_all_sides_allow(
    personality: str,
    vcpus: int,
    wanted: Parameters,
    early: dict[str, str],
    pages: int,
    queues: int,
) -> None:
    with scene(personality, early=early, vcpus=vcpus, vbd=wanted) as on:
        rings = on.frontend.rings
        assert [len(ring.grefs) for ring in rings] == [pages] * queues
        assert [ring.size for ring in on.back.rings] == [32 * pages] * queues
        keys = front_keys(on)
        assert keys.get("ring-page-order") == {1: None, 2: "1", 4: "2", 8: "3", 16: "4"}[pages]
        assert keys.get("multi-queue-num-queues", "1") == str(queues)


@pytest.mark.parametrize("personality", ["windows", "linux"])
@pytest.mark.parametrize("queues", [1, 2, 3, 4])
@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_a_real_backend_takes_every_shape(personality: str, order: int, queues: int) -> None:
    with Platform(seed=order, dom0_vcpus=4) as xen:
        guest = xen.create(
            name="shape",
            vcpus=4,
            disks=[Disk(MemoryImage(bytearray(1 << 20)))],
            personality=personality,
            vbd=Parameters(ring_page_order=order, queues=queues),
        ).start()
        rings = guest.disks[0].target.frontend.rings
        assert [len(ring.grefs) for ring in rings] == [1 << order] * queues
        guest.disks[0].write(5, b"\x5a" * 65536)
        assert guest.disks[0].read(5, 128) == b"\x5a" * 65536


@pytest.mark.parametrize("personality", ["windows", "linux"])
@pytest.mark.parametrize(
    ("units", "written"), [(one, one is SS2019) for one in UNITS.values()], ids=lambda one: str(one)
)
def test_large_sectors_are_announced_where_they_are_meant(
    personality: str, units: SectorUnits, written: bool
) -> None:
    with scene(personality, vbd=Parameters(units=units)) as on:
        assert front_keys(on).get("feature-large-sector-size") == ("1" if written else None)


@pytest.mark.parametrize(
    ("units", "sectors", "sector_size", "capacity"),
    [
        (SPEC2024, 8192, 4096, 1024),
        (LINUX, 8192, 4096, 1024),
        (SS2019, 8192, 4096, 8192),
        (FREEBSD, 8192, 4096, 8192),
        (MINIOS, 8192, 4096, 8192),
        (SPEC2024, 8191, 4096, 1023),
        (SS2019, 777, 512, 777),
        (SPEC2024, 777, 512, 777),
        (SPEC2024, 7, 4096, 0),
    ],
)
def test_a_capacity_is_counted_in_the_units_of_the_frontend(
    units: SectorUnits, sectors: int, sector_size: int, capacity: int
) -> None:
    keys = {"sectors": str(sectors), "sector-size": str(sector_size)}
    with scene(keys=keys, vbd=Parameters(units=units)) as on:
        assert (on.target.sectors, on.target.sector_size) == (capacity, sector_size)


@pytest.mark.parametrize(
    ("units", "sectors", "state"),
    [
        (SPEC2024, 2**55 - 1, FrontendState.ENABLED),
        (SPEC2024, 2**55, FrontendState.CLOSED),
        (SS2019, 2**52 - 1, FrontendState.ENABLED),
        (SS2019, 2**52, FrontendState.CLOSED),
    ],
)
def test_a_disk_of_more_than_64_bits_of_bytes_is_none(
    units: SectorUnits, sectors: int, state: FrontendState
) -> None:
    keys = {"sectors": str(sectors), "sector-size": "4096"}
    with scene(keys=keys, vbd=Parameters(units=units), start=False) as on:
        on.xen.toolstack.unpause(on.guest.created)
        on.xen.run()
        assert on.target.state is state


@pytest.mark.parametrize("personality", ["windows", "linux"])
@pytest.mark.parametrize(
    ("wanted", "offered", "key", "kept"),
    [
        (False, "1", {"windows": None, "linux": "0"}, False),
        (True, "1", {"windows": "1", "linux": "1"}, True),
        (True, "0", {"windows": "1", "linux": "1"}, False),
        (True, None, {"windows": "1", "linux": "1"}, False),
    ],
)
def test_grants_are_persistent_where_both_ends_say_so(
    personality: str, wanted: bool, offered: str | None, key: dict[str, str | None], kept: bool
) -> None:
    keys = {} if offered is None else {"feature-persistent": offered}
    with scene(personality, keys=keys, vbd=Parameters(persistent=wanted)) as on:
        assert front_keys(on).get("feature-persistent") == key[personality]
        assert on.frontend.backend.persistent is kept


# key and what the backend says, the registry's value, attribute and its value
OVERRIDES = [
    ("removable", "1", 0, "removable", False),
    ("removable", "0", 1, "removable", True),
    ("feature-max-indirect-segments", "256", 0, "indirect_segments", 0),
    ("feature-max-indirect-segments", "0", 64, "indirect_segments", 64),
    ("feature-max-indirect-segments", "0", 1 << 31, "indirect_segments", 4096),
    ("feature-barrier", "1", 0, "barrier", False),
    ("feature-barrier", "0", 7, "barrier", True),
    ("feature-flush-cache", "1", 0, "flush_cache", False),
    ("feature-flush-cache", "0", 1, "flush_cache", True),
    ("feature-discard", "1", 0, "discard", False),
    ("feature-discard", "0", 1, "discard", True),
    ("discard-enable", "1", 0, "discard", False),
    ("discard-enable", "0", 1, "discard", True),
    ("discard-secure", "0", 1, "discard_secure", True),
    ("discard-alignment", "4096", 512, "discard_alignment", 512),
    ("discard-granularity", "4096", 1 << 20, "discard_granularity", 1 << 20),
]
BASE = {"feature-discard": "1"}


@pytest.mark.parametrize(("key", "offered", "value", "name", "expected"), OVERRIDES)
def test_the_registry_stands_in_for_a_key(
    key: str, offered: str, value: int, name: str, expected: int
) -> None:
    early = {key: offered} if key in ("removable", "feature-max-indirect-segments") else {}
    keys = BASE | ({} if early else {key: offered})
    with scene(early=early, keys=keys, vbd=Parameters(overrides=((key, value),))) as on:
        assert getattr(on.frontend.backend, name) == expected
    with scene(early=early, keys=keys) as on:
        assert getattr(on.frontend.backend, name) != expected, "without, the backend's word counts"


@pytest.mark.parametrize(
    ("keys", "discard"),
    [
        ({"feature-discard": "1"}, True),
        ({"feature-discard": "1", "discard-enable": "1"}, True),
        ({"feature-discard": "1", "discard-enable": "0"}, False),
        ({"feature-discard": "0", "discard-enable": "1"}, False),
        ({"discard-enable": "1"}, False),
    ],
)
def test_the_toolstack_may_forbid_discards(keys: dict[str, str], discard: bool) -> None:
    with scene(keys=keys, start=False) as on:
        (device,) = on.guest.created.devices
        if "discard-enable" not in keys:
            on.xen.toolstack.xs.rm(f"{device.backend_path}/discard-enable")
        on.guest.start()
        assert on.frontend.backend.discard is discard
        assert on.frontend.backend.discard_granularity == (512 if discard else 0)


def test_parameters_come_out_of_the_registry_as_they_went_in() -> None:
    wanted = Parameters(
        ring_page_order=3,
        queues=4,
        overrides=(("removable", 1), ("discard-granularity", 4096)),
        units=SS2019,
        persistent=True,
        sense_data=True,
        quirks=("b0-bytes",),
    )
    registry = Registry()
    assert Parameters.read(registry) is DEFAULTS
    wanted.write(registry)
    assert Parameters.read(registry) == wanted


def test_values_of_another_type_are_no_parameters() -> None:
    registry = Registry()
    registry.set(PATH, "max-ring-page-order", "4")
    registry.set(PATH, "removable", ("1",))
    registry.set(PATH, "XenpvSectorUnits", "cubits")
    assert Parameters.read(registry) == DEFAULTS


@pytest.mark.parametrize("personality", ["windows", "linux"])
@pytest.mark.parametrize(
    ("text", "trusted"), [("1", True), ("0", False), (None, True), ("junk", False), ("", False)]
)
def test_whether_the_backend_is_trusted_is_the_toolstacks_word(
    personality: str, text: str | None, trusted: bool
) -> None:
    with scene(personality, start=False) as on:
        path = f"/local/domain/{on.guest.domid}/device/vbd/51712/trusted"
        if text is None:
            on.xen.toolstack.xs.rm(path)
        else:
            on.xen.toolstack.xs.write(path, text)
        on.guest.start()
        assert on.frontend.trusted is trusted


def features(on: Scene) -> tuple[bool, bool, bool, int, bool]:
    backend = on.frontend.backend
    return (
        backend.barrier,
        backend.flush_cache,
        backend.discard,
        backend.indirect_segments,
        backend.removable,
    )


def test_what_a_backend_stops_to_offer_is_gone_with_the_next_connection() -> None:
    early = {"feature-max-indirect-segments": "64", "removable": "1"}
    late = {"feature-barrier": "1", "feature-flush-cache": "1", "feature-discard": "1"}
    with scene(early=early, keys=late) as on:
        assert features(on) == (True, True, True, 64, True)
        on.target.stop()
        on.xen.run()
        assert features(on) == (False, False, False, 64, True), "sizes and what is early stay"
        for key in (*early, *late):
            on.xen.toolstack.xs.rm(f"{on.back.device.path}/{key}")
        on.back.early = {key: text for key, text in on.back.early.items() if key not in early}
        on.back.keys = {key: text for key, text in on.back.keys.items() if key not in late}
        on.target.start()
        on.xen.run()
        assert on.target.state is FrontendState.ENABLED
        assert features(on) == (False, False, False, 0, False)
        assert on.submit(SYNC10).is_complete
