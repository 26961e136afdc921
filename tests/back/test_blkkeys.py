"""Keys of a disk: which each backend writes and when, and how it reads what a frontend wrote."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.back.blkprofiles import NAMES, heard, held, names, scene, watcher
from tests.vbd.rawfront import OKAY, READ, RawFront
from xenpv.back.blkkeys import strict_number
from xenpv.back.xenbus import number_of

TOOLSTACK = {"frontend", "frontend-id", "online", "mode", "params", "device-type", "removable"}

# What is there before any connection, beside the toolstack's keys.
EARLY = {
    "linux": {
        "feature-max-indirect-segments": "256", "multi-queue-max-queues": "1",
        "max-ring-page-order": "4", "state": "2", "hotplug-status": "connected",
    },
    "qemu": {
        "hotplug-status": "connected", "state": "2", "feature-discard": "1",
        "discard-granularity": "512", "discard-alignment": "0", "feature-flush-cache": "1",
        "max-ring-page-order": "4", "info": "0", "sector-size": "512", "sectors": "1024",
    },
    "tapdisk": {"max-ring-page-order": "3", "state": "2", "hotplug-status": "connected"},
    "mirage": {
        "hotplug-status": "connected", "sector-size": "512", "sectors": "1024", "info": "0",
        "feature-max-indirect-segments": "256", "state": "2",
    },
}  # fmt: skip
# What a connection adds.
LATE = {
    "linux": {
        "feature-flush-cache": "1", "discard-granularity": "512", "discard-alignment": "0",
        "discard-secure": "0", "feature-discard": "1", "feature-barrier": "1",
        "feature-persistent": "1", "sectors": "1024", "info": "0", "sector-size": "512",
        "physical-sector-size": "512",
    },
    "qemu": {},
    "tapdisk": {"feature-barrier": "1", "sector-size": "512", "sectors": "1024", "info": "0"},
    "mirage": {},
}  # fmt: skip


@pytest.mark.parametrize("profile", NAMES)
def test_what_is_there_before_a_connection_and_what_it_adds(profile: str) -> None:
    with scene(profile) as front:
        before = names(front)
        assert {key: front.key(key) for key in before - TOOLSTACK} == EARLY[profile]
        front.connect()
        assert front.key("state") == "4"
        found = {key: front.key(key) for key in names(front) - before}
        assert found == LATE[profile]


# The order of what is written: in a new directory, and when the frontend is ready.
ORDER = {
    "linux": (
        ["feature-max-indirect-segments", "multi-queue-max-queues", "max-ring-page-order", "state"],
        ["feature-flush-cache", "discard-granularity", "discard-alignment", "discard-secure",
         "feature-discard", "feature-barrier", "feature-persistent", "sectors", "info",
         "sector-size", "physical-sector-size", "state"],
    ),
    "qemu": (
        ["hotplug-status", "online", "state", "feature-discard", "discard-granularity",
         "discard-alignment", "feature-flush-cache", "max-ring-page-order", "info", "mode",
         "sector-size", "sectors"],
        ["state"],
    ),
    "tapdisk": (
        ["max-ring-page-order"],
        ["feature-barrier", "sector-size", "sectors", "info", "state"],
    ),
    "mirage": (
        ["hotplug-status", "sector-size", "sectors", "info", "feature-max-indirect-segments",
         "state"],
        ["state"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("profile", NAMES)
def test_the_order_of_what_is_written(profile: str) -> None:
    with scene(profile) as front:
        store = front.device.store
        keys = {key: front.key(key) for key in TOOLSTACK}
        store.remove(front.back)
        front.world.loop.run()
        for key, text in keys.items():
            front.world.write(f"{front.back}/{key}", text)
        front.world.write(f"{front.back}/state", "1")
        xs = watcher(front)
        front.world.loop.run()
        early, late = ORDER[profile]
        assert heard(xs) == early
        front.hotplug()
        xs = watcher(front)
        front.connect()
        assert heard(xs) == late


# profile, mode, other keys of the toolstack: `info`, and whether discard is offered
INFO = [
    ("linux", "w", {}, "0", True),
    ("linux", "r", {}, "4", False),
    ("linux", "w", {"removable": "1"}, "2", True),
    ("linux", "r", {"device_type": "cdrom", "removable": "1"}, "7", False),
    ("linux", "w", {"discard_enable": "0"}, "0", False),
    ("qemu", "w", {"removable": "1"}, "0", True),  # it knows no removable disk
    ("qemu", "r", {"device_type": "cdrom", "removable": "1"}, "5", False),
    ("qemu", "w", {"discard_enable": "0"}, "0", False),
    ("tapdisk", "w", {"removable": "1"}, "2", False),
    ("tapdisk", "r", {"device_type": "cdrom", "removable": "1"}, "7", False),
    ("mirage", "w", {"removable": "1"}, "0", False),
    ("mirage", "r", {"device_type": "cdrom", "removable": "1"}, "0", False),
]


@pytest.mark.parametrize(("profile", "mode", "keys", "info", "discards"), INFO)
def test_what_is_said_of_the_disk(
    profile: str, mode: str, keys: dict[str, str], info: str, discards: bool
) -> None:
    with scene(profile, mode=mode, **keys) as front:
        front.connect()
        assert front.key("info") == info
        assert ("feature-discard" in names(front)) == discards


# profile, units, size of a logical sector: `sectors` of 512 KiB
UNITS = [
    ("linux", "", 512, 1024),
    ("linux", "", 4096, 1024),
    ("linux", "freebsd", 4096, 128),
    ("linux", "minios", 4096, 128),
    ("linux", "spec2024", 4096, 1024),
    ("qemu", "", 4096, 1024),
    ("qemu", "ss2019", 4096, 128),
    ("qemu", "ss2019", 512, 1024),
    ("tapdisk", "", 4096, 1024),
    ("mirage", "ss2019", 4096, 128),
]


@pytest.mark.parametrize(("profile", "units", "size", "sectors"), UNITS)
def test_sectors_counts_what_the_units_say(
    profile: str, units: str, size: int, sectors: int
) -> None:
    with scene(profile, units=units, sector_size=size) as front:
        front.connect(feature_large_sector_size=1)
        assert (front.key("sectors"), front.key("sector-size")) == (str(sectors), str(size))


# units, logical sector, feature-large-sector-size: whether it is connected
LARGE = [
    ("ss2019", 4096, None, False),
    ("ss2019", 4096, "0", False),
    ("ss2019", 4096, "2", False),
    ("ss2019", 4096, "junk", False),
    ("ss2019", 4096, "1", True),
    ("ss2019", 512, None, True),
    ("ss2019", 512, "1", True),
    ("qemu2024", 4096, None, True),
    ("qemu2024", 4096, "0", True),
    ("qemu2024", 4096, "1", False),
    ("qemu2024", 512, "1", True),
    ("spec2024", 4096, None, True),
    ("spec2024", 4096, "1", True),
    ("linux", 4096, None, True),
    ("linux", 4096, "1", True),
]


@pytest.mark.parametrize(("units", "size", "large", "connects"), LARGE)
def test_who_is_refused_on_a_disk_of_larger_sectors(
    units: str, size: int, large: str | None, connects: bool
) -> None:
    with scene("qemu", units=units, sector_size=size) as front:
        before = held(front)
        front.connect(feature_large_sector_size=large)
        assert front.state == (4 if connects else 2)
        assert bool(front.device.broken) != connects
        if not connects:
            assert held(front) == before


# How the frontend's ABI is read: the text of `protocol`, and the layout: 32, 64, None: refused
PROTOCOLS = [
    ("linux", None, 32),
    ("linux", "", 32),  # a word is scanned, and there is none
    ("linux", "x86_32-abi", 32),
    ("linux", "x86_64-abi", 64),
    ("linux", "arm-abi", 64),
    ("linux", "native", None),
    ("linux", "mips-abi", None),
    ("linux", "X86_64-ABI", None),
    ("linux", "x86_64-abi-2", None),
    ("qemu", None, 32),
    ("qemu", "x86_32-abi", 32),
    ("qemu", "x86_64-abi", 64),
    ("qemu", "native", 64),
    ("qemu", "", 64),
    ("qemu", "mips-abi", 64),
    ("tapdisk", None, 32),
    ("tapdisk", "x86_32-abi", 32),
    ("tapdisk", "x86_64-abi", 64),
    ("tapdisk", "", None),
    ("tapdisk", "native", None),
    ("mirage", None, None),
    ("mirage", "", None),
    ("mirage", "x86_32-abi", 32),
    ("mirage", "x86_64-abi", 64),
    ("mirage", "native", 64),
    ("mirage", "mips-abi", None),
]


@pytest.mark.parametrize(("profile", "text", "layout"), PROTOCOLS)
def test_how_protocol_is_read(profile: str, text: str | None, layout: int | None) -> None:
    with scene(profile) as front:
        front.connect(protocol="x86_32-abi" if layout == 32 else "x86_64-abi", event_channel="")
        assert front.state != 4
        front.write("state", 6)
        front.write("state", 1)
        front.device.broken = ""
        if text is None:
            front.device.store.remove(f"{front.device.frontend}/protocol")
        else:
            front.write("protocol", text)
        front.write("event-channel", front.port)
        front.write("state", 3)
        if layout is None:
            assert front.state in (2, 5)
            assert "protocol" in front.device.broken
            assert front.driver.queues == []
        else:
            assert front.state == 4
            assert reads(front)


def reads(front: RawFront) -> bool:
    ref = front.grant(front.page())
    return front.status(front.request(READ, 5, [(ref, 0, 7)])) == OKAY


# Nodes of one ring: text of ring-page-order, which references are there, pages mapped; None: none.
PLAIN, FIRST, ALL = ("ring-ref",), ("ring-ref0",), tuple(f"ring-ref{n}" for n in range(16))
REFS = [
    ("linux", None, PLAIN, 1),
    ("linux", "0", FIRST, 1),
    ("linux", "0", PLAIN, None),
    ("linux", "1", ALL, 2),
    ("linux", "4", ALL, 16),
    ("linux", "5", ALL, None),
    ("linux", "4294967296", ALL, None),
    ("linux", "18446744073709551616", PLAIN, 1),  # no number: as if it were absent
    ("linux", "many", PLAIN, 1),
    ("linux", "many", ALL, None),
    ("linux", "", PLAIN, 1),
    ("linux", "-1", PLAIN, 1),
    ("linux", "0x2", FIRST, 1),  # 0, and junk
    ("linux", "2x", ALL, 4),
    ("qemu", None, PLAIN, 1),
    ("qemu", "0", FIRST, 1),
    ("qemu", "0", PLAIN, None),
    ("qemu", "4", ALL, 16),
    ("qemu", "5", ALL, None),
    ("qemu", "many", PLAIN, 1),
    ("tapdisk", None, PLAIN, 1),
    ("tapdisk", "0", PLAIN, 1),
    ("tapdisk", "0", FIRST, None),
    ("tapdisk", "3", ALL, 8),
    ("tapdisk", "4", ALL, None),
    ("tapdisk", "many", PLAIN, 1),
    ("mirage", None, PLAIN, 1),
    ("mirage", "0", PLAIN, 1),
    ("mirage", "2", PLAIN, 1),
    ("mirage", "2", ALL, None),
]


@pytest.mark.parametrize(("profile", "order", "refs", "pages"), REFS)
def test_which_references_are_read(
    profile: str, order: str | None, refs: tuple[str, ...], pages: int | None
) -> None:
    with scene(profile) as front:
        before = held(front)
        keys: dict[str, object] = {name: front.grant(front.page()) for name in refs}
        keys["ring-page-order"] = order
        front.connect(**{"ring-ref": None, **keys})  # type: ignore[arg-type]  # from a table
        if pages is None:
            assert front.state != 4
            assert front.device.broken
            assert held(front) == before
        else:
            assert front.state == 4
            assert held(front) == (before[0] + 1, before[1] + pages, before[2] + pages)


# A reference and a port: texts that are numbers, with what they mean; None: none.
NUMBERS = [
    ("64", 64, 64),
    ("0064", 64, 64),
    ("64x", 64, None),
    (" 64", 64, None),
    ("0x40", 0, 64),
    ("0X40", 0, 64),
    ("0xg", 0, None),
    ("4294967295", 4294967295, 4294967295),
    ("18446744073709551616", None, None),
    ("-1", None, None),
    ("+64", None, None),
    ("", None, None),
    ("x", None, None),
    ("\u0664", None, None),
    ("1_0", 1, None),
    ("9" * 100, None, None),
]


@pytest.mark.parametrize(("text", "scanned", "strict"), NUMBERS)
def test_how_a_number_is_read(text: str, scanned: int | None, strict: int | None) -> None:
    assert number_of(text, -1) == (-1 if scanned is None else scanned)
    assert strict_number(text) == (-1 if strict is None else strict)


@given(st.text(max_size=30))
def test_any_text_is_a_number_or_none(text: str) -> None:
    assert -1 <= strict_number(text) < 1 << 64
    if text.isdecimal() and text.isascii() and len(text) <= 16:
        assert strict_number(text) == int(text)


# key of the frontend, text: whether it is refused, by profile
HOSTILE = [
    ("ring-ref", ""), ("ring-ref", "-1"), ("ring-ref", "4711"), ("ring-ref", "4294967296"),
    ("ring-ref", "18446744073709551616"), ("ring-ref", "junk"),
    ("event-channel", ""), ("event-channel", "-1"), ("event-channel", "999"),
    ("event-channel", "4294967295"), ("event-channel", "4294967296"), ("event-channel", "junk"),
]  # fmt: skip
LEFT_AT = {"linux": 5, "qemu": 2, "tapdisk": 2, "mirage": 5}


@pytest.mark.parametrize("profile", NAMES)
@pytest.mark.parametrize(("key", "text"), HOSTILE)
def test_what_cannot_be_is_refused_and_holds_nothing(profile: str, key: str, text: str) -> None:
    with scene(profile) as front:
        before = held(front)
        front.connect(**{key: text})  # type: ignore[arg-type]  # from a table
        assert front.state == LEFT_AT[profile]
        assert front.device.broken
        assert ("error" in names(front)) == (LEFT_AT[profile] == 5)
        assert held(front) == before
        # It can be closed, and connected with what is right.
        front.write("state", 6)
        assert front.state == 6
        front.write("state", 1)
        assert front.state == 2
        front.connect()
        assert front.state == 4
        assert front.device.broken == ""
        assert reads(front)


# profile, text of feature-persistent: grants are kept; None: it is not connected
PERSISTENT = [
    ("linux", None, False), ("linux", "0", False), ("linux", "1", True), ("linux", "2", True),
    ("linux", "junk", False), ("linux", "", False), ("qemu", "1", False), ("qemu", "junk", False),
    ("tapdisk", None, False), ("tapdisk", "0", False), ("tapdisk", "1", False),
    ("tapdisk", "2", None), ("tapdisk", "", None), ("mirage", "1", False), ("mirage", "x", False),
]  # fmt: skip


@pytest.mark.parametrize(("profile", "text", "kept"), PERSISTENT)
def test_who_keeps_grants_mapped(profile: str, text: str | None, kept: bool | None) -> None:
    with scene(profile) as front:
        idle = held(front)
        front.connect(feature_persistent=text)
        if kept is None:
            assert front.state == 2
            assert "feature-persistent" in front.device.broken
            return
        before = held(front)
        assert reads(front)
        assert held(front)[1] == before[1] + kept
        front.write("state", 6)
        assert held(front) == idle


@pytest.mark.parametrize("profile", NAMES[1:])
def test_others_than_linux_have_one_queue_whatever_is_asked_for(profile: str) -> None:
    with scene(profile) as front:
        front.connect(multi_queue_num_queues=4)
        assert front.state == 4
        assert len(front.driver.queues) == 1
