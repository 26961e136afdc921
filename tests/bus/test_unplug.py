"""Who asks for emulated devices to go, what is written to the ports, and what a boot remembers."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpv.bus import inf
from xenpv.bus.interface import query_interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.registry import Registry
from xenpv.bus.unplug import (
    Unplug,
    UnplugInterface,
    UnplugType,
    reboot_requests,
    request_reboot,
    take_request,
)
from xenpv.errors import LocalProtocolError

DISKS, NICS = UnplugType.DISKS, UnplugType.NICS
VALUE = {DISKS: "DISKS", NICS: "NICS"}


@attrs.define(eq=False)
class Ports:
    """A domain of which the unplug ports answer as they are told to; `log` is every access."""

    magic: int = 0x49D2
    version: int = 1
    magic_after_build: int | None = None
    log: list[tuple[object, ...]] = attrs.field(factory=list)

    def io_read(self, port: int, size: int) -> int:
        self.log.append(("in", port, size))
        return self.magic if (port, size) == (0x10, 2) else self.version

    def io_write(self, port: int, size: int, value: int) -> None:
        self.log.append(("out", port, size, int(value)))
        if (port, size) == (0x10, 4) and self.magic_after_build is not None:
            self.magic = self.magic_after_build


class Lines:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def dbg_print(self, text: str) -> None:
        self.lines.append(text)

    def printf(self, level: int, text: str) -> None:
        assert level
        self.lines.append(text)


def make(
    ports: Ports | None = None,
    *,
    disks: object = 1,
    nics: object = 1,
    build: inf.Build = inf.BUILD,
    boot_emulated: bool = False,
) -> Unplug:
    registry = Registry({"Enum\\XENBUS\\VEN_XP&DEV_VBD": {}, "Enum\\XENBUS\\VEN_XP&DEV_VIF": {}})
    for name, value in (("DISKS", disks), ("NICS", nics)):
        if value is not None:
            registry.set(inf.UNPLUG, name, value)
    return Unplug(ports or Ports(), registry, Lines(), build=build, boot_emulated=boot_emulated)


# what is asked for at boot

BOTH = ("VEN_XP&DEV_VBD", "VEN_XP&DEV_VIF")
# situation, ForceUnplug, Unplug, keys of Enum\XENBUS (None: it is not there), request, value after
REQUESTS = [
    ("nothing is there", None, None, BOTH, False, None),
    ("nobody asked", None, 0, BOTH, False, None),
    ("one asked", None, 1, BOTH, True, None),
    ("three asked", None, 3, BOTH, True, None),
    ("one asked, no such device ever", None, 1, (), False, None),
    ("one asked, Enum cannot be read", None, 1, None, False, None),
    ("one asked, another class", None, 1, ("VEN_XP&DEV_IFACE",), False, None),
    ("one asked, the class in another case", None, 1, ("ven_xp&dev_vbd", "ven_xp&dev_vif"), False, None),
    ("one asked, the class anywhere in the name", None, 1, ("xVBDx", "xVIFx"), True, None),
    ("forced", 1, None, BOTH, True, None),
    ("forced by any number", 0xFFFF_FFFF, None, BOTH, True, None),
    ("forced without such a device", 1, None, (), True, None),
    ("forced though Enum cannot be read", 1, None, None, True, None),
    ("forced, and nobody asked", 1, 0, (), True, None),
    ("forced, and one asked", 1, 1, BOTH, True, None),
    ("force 0 and nothing", 0, None, BOTH, False, None),
    ("force 0 and one asked", 0, 1, BOTH, True, None),
    ("force 0, one asked, no such device", 0, 1, (), False, None),
    ("force of another type", "1", None, BOTH, False, None),
    ("a request of another type", None, "1", BOTH, False, "1"),
    ("a request of another type, force 0", 0, "1", BOTH, False, None),
    ("a QWORD is no DWORD", None, 1 << 32, BOTH, False, 1 << 32),
    ("a QWORD does not force", 1 << 32, 1, BOTH, True, None),
]  # fmt: skip


@pytest.mark.parametrize("kind", [DISKS, NICS])
@pytest.mark.parametrize(
    ("_case", "force", "asked", "keys", "request_", "left"),
    REQUESTS,
    ids=[row[0] for row in REQUESTS],
)
def test_request(kind: UnplugType, _case, force, asked, keys, request_: bool, left) -> None:
    registry = Registry()
    if force is not None:
        registry.set("Services\\XEN\\ForceUnplug", VALUE[kind], force)
    if asked is not None:
        registry.set("Services\\XEN\\Unplug", VALUE[kind], asked)
    for name in keys or ():
        registry.create(f"Enum\\XENBUS\\{name}\\_")
    if keys == ():
        registry.create("Enum\\XENBUS")
    assert take_request(registry, kind) is request_
    assert registry.get("Services\\XEN\\Unplug", VALUE[kind]) == left
    assert registry.get("Services\\XEN\\ForceUnplug", VALUE[kind]) == force, "it is the user's"


def test_types_do_not_share_requests_or_devices() -> None:
    registry = Registry(
        {"Services\\XEN\\Unplug": {"DISKS": 1, "NICS": 1}, "Enum\\XENBUS\\VEN_XP&DEV_VIF": {}}
    )
    unplug = Unplug(Ports(), registry, Lines())
    assert unplug.requests == {DISKS: False, NICS: True}


# the ports

PREAMBLE = [
    ("in", 0x10, 2),
    ("in", 0x12, 1),
    ("out", 0x12, 2, 0xFFFF),
    ("out", 0x10, 4, 0x00090100),
    ("in", 0x10, 2),
]
MASKS = [("out", 0x10, 2, 0x0009), ("out", 0x10, 2, 0x0002)]
# situation, magic, version, magic after the build, accesses before the masks, blacklisted, supported
PROTOCOL = [
    ("all is well", 0x49D2, 1, None, PREAMBLE, False, True),
    ("a later version", 0x49D2, 255, None, PREAMBLE, False, True),
    ("version 0", 0x49D2, 0, None, PREAMBLE[:2], False, True),
    ("blacklisted before", 0xD249, 1, None, PREAMBLE[:1], True, True),
    ("blacklisted by the build", 0x49D2, 1, 0xD249, PREAMBLE, True, True),
    ("no device", 0xFFFF, 255, None, PREAMBLE[:1], False, False),
    ("another magic", 0x1234, 1, None, PREAMBLE[:1], False, False),
    ("zero", 0x0000, 1, None, PREAMBLE[:1], False, False),
    ("another magic after the build", 0x49D2, 1, 0x1234, PREAMBLE, False, True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("_case", "magic", "version", "after", "accesses", "blacklisted", "supported"),
    PROTOCOL,
    ids=[row[0] for row in PROTOCOL],
)
def test_protocol(
    _case, magic, version, after, accesses, blacklisted: bool, supported: bool
) -> None:
    ports = Ports(magic, version, after)
    unplug = make(ports)
    unplug.devices()
    assert ports.log == accesses + MASKS, "no answer of the ports keeps the masks back"
    assert (unplug.blacklisted, unplug.supported) == (blacklisted, supported)


# DISKS, NICS, BOOT_EMULATED, masks
WRITES = [
    (0, 0, False, []),
    (1, 0, False, [0x0009]),
    (0, 1, False, [0x0002]),
    (1, 1, False, [0x0009, 0x0002]),
    (0, 0, True, []),
    (1, 0, True, [0x0004]),
    (0, 1, True, [0x0002]),
    (1, 1, True, [0x0004, 0x0002]),
]


@pytest.mark.parametrize(("disks", "nics", "emulated", "masks"), WRITES)
def test_masks(disks: int, nics: int, emulated: bool, masks: list[int]) -> None:
    ports = Ports()
    unplug = make(ports, disks=disks, nics=nics, boot_emulated=emulated)
    unplug.devices()
    assert ports.log == PREAMBLE + [("out", 0x10, 2, mask) for mask in masks]
    ports.log.clear()
    unplug.devices()
    assert ports.log == PREAMBLE + [("out", 0x10, 2, mask) for mask in masks], (
        "a resume does it again"
    )


@pytest.mark.parametrize(
    ("version", "number"),
    [((9, 1, 0, 0), 0x90100), ((8, 2, 1, 77), 0x80201), ((255, 255, 255, 1), 0xFFFFFF)],
)
def test_build_number(version: tuple[int, int, int, int], number: int) -> None:
    ports = Ports()
    make(ports, build=inf.Build(version=version)).devices()
    assert ports.log[3] == ("out", 0x10, 4, number)


def test_blacklisted_is_remembered_and_logged() -> None:
    ports = Ports(0xD249)
    unplug = make(ports, nics=0)
    unplug.devices()
    ports.magic = 0x49D2
    unplug.devices()
    assert unplug.blacklisted
    assert unplug.log.lines == [
        "xen|UNPLUG: PRE-AMBLE (DRIVERS BLACKLISTED)\n", "xen|UNPLUG: DISKS\n",
    ] * 2  # fmt: skip


# counters

# operation, value before, status, value after
COUNTS = [
    ("increment", None, None, 1),
    ("increment", 0, None, 1),
    ("increment", 41, None, 42),
    ("increment", 0xFFFF_FFFF, None, 0),
    ("increment", "text", None, 1),
    ("decrement", None, NTSTATUS.OBJECT_NAME_NOT_FOUND, None),
    ("decrement", "text", NTSTATUS.OBJECT_NAME_NOT_FOUND, "text"),
    ("decrement", 0, NTSTATUS.INVALID_PARAMETER, 0),
    ("decrement", 1, None, 0),
    ("decrement", 0x7FFF_FFFF, None, 0x7FFF_FFFE),
    ("decrement", 0x8000_0000, NTSTATUS.INVALID_PARAMETER, 0x8000_0000),
    ("decrement", 0xFFFF_FFFF, NTSTATUS.INVALID_PARAMETER, 0xFFFF_FFFF),
]


@pytest.mark.parametrize("kind", [DISKS, NICS])
@pytest.mark.parametrize(("operation", "before", "status", "after"), COUNTS)
def test_counter(kind: UnplugType, operation: str, before, status, after) -> None:
    unplug = make()
    if before is not None:
        unplug.registry.set(inf.UNPLUG, VALUE[kind], before)
    if status is None:
        assert getattr(unplug, operation)(kind) == after
    else:
        with pytest.raises(NtStatusError) as caught:
            getattr(unplug, operation)(kind)
        assert caught.value.status is status
    assert unplug.registry.get(inf.UNPLUG, VALUE[kind]) == after


@pytest.mark.parametrize(
    ("before", "make_", "after"),
    [(None, True, 1), (1, True, 2), (2, False, 1), (0, False, 0), (None, False, None)],
)
def test_a_request_never_fails_for_its_caller(before, make_: bool, after) -> None:
    unplug = make()
    if before is not None:
        unplug.registry.set(inf.UNPLUG, "NICS", before)
    interface = query_interface([UnplugInterface(unplug)], UnplugInterface.GUID, 1)
    interface.acquire()
    assert interface.request(NICS, make_) is None
    assert unplug.registry.get(inf.UNPLUG, "NICS") == after
    assert len(unplug.log.lines) == 1


# the interface

OPERATIONS = [
    (1, 32 + 8 * 3, ["request"]),
    (2, 32 + 8 * 4, ["request", "is_requested"]),
    (3, 32 + 8 * 6, ["request", "is_requested", "boot_emulated", "reboot"]),
]


@pytest.mark.parametrize(("version", "size", "operations"), OPERATIONS)
def test_versions(version: int, size: int, operations: list[str]) -> None:
    interface = query_interface(
        [UnplugInterface(make())], "73db6517-3d06-4937-989f-199b7501e229", version
    )
    assert (interface.size, list(interface.operations)) == (size, operations)
    with pytest.raises(LocalProtocolError, match="not acquired"):
        interface.request(DISKS, True)


@pytest.mark.parametrize(
    ("version", "size", "status"),
    [
        (0, None, NTSTATUS.NOT_SUPPORTED),
        (4, None, NTSTATUS.NOT_SUPPORTED),
        (3, 79, NTSTATUS.BUFFER_OVERFLOW),
    ],
)
def test_query_that_is_wrong(version: int, size: int | None, status: NTSTATUS) -> None:
    with pytest.raises(NtStatusError) as caught:
        query_interface([UnplugInterface(make())], UnplugInterface.GUID, version, size)
    assert caught.value.status is status


@pytest.mark.parametrize(("disks", "nics"), [(0, 1), (1, 0), (1, 1), (0, 0)])
def test_is_requested_is_this_boots_flag_whatever_happened_since(disks: int, nics: int) -> None:
    unplug = make(Ports(magic=0xFFFF), disks=disks, nics=nics)
    interface = query_interface([UnplugInterface(unplug)], UnplugInterface.GUID, 3)
    interface.acquire()
    interface.request(DISKS, True)
    interface.request(NICS, True)
    assert (interface.is_requested(DISKS), interface.is_requested(NICS)) == (
        bool(disks),
        bool(nics),
    )


@pytest.mark.parametrize("option", [True, False])
def test_boot_emulated_is_the_start_option(option: bool) -> None:
    interface = query_interface(
        [UnplugInterface(make(boot_emulated=option))], UnplugInterface.GUID, 3
    )
    interface.acquire()
    assert interface.boot_emulated() is option


def test_it_only_counts_its_references() -> None:
    implementation = UnplugInterface(make())
    interface = query_interface([implementation], UnplugInterface.GUID, 3)
    interface.acquire()
    interface.acquire()
    interface.request(DISKS, True)
    interface.release()
    interface.release()
    assert implementation.references == 0


# the monitor's requests

REQUEST_KEY = "SYSTEM\\CurrentControlSet\\Services\\xenbus_monitor\\Request"
# RequestKey, module, what the monitor sees
REBOOTS = [
    (REQUEST_KEY, "XENVIF", ["XENVIF"]),
    (REQUEST_KEY.lower(), "XENVIF", ["XENVIF"]),
    ("SYSTEM\\CurrentControlSet\\Elsewhere", "XENVBD", ["XENVBD"]),
    (None, "XENVIF", []),
    ("SOFTWARE\\Elsewhere", "XENVIF", []),
    (REQUEST_KEY, "", []),
    (REQUEST_KEY, "a\\b", []),
]


@pytest.mark.parametrize(("path", "module", "seen"), REBOOTS)
def test_reboot_request(path: str | None, module: str, seen: list[str]) -> None:
    unplug = make()
    if path is not None:
        unplug.registry.set(inf.XENBUS_PARAMETERS, "RequestKey", path)
    interface = query_interface([UnplugInterface(unplug)], UnplugInterface.GUID, 3)
    interface.acquire()
    interface.reboot(module)
    assert reboot_requests(unplug.registry) == seen
    unplug.registry.reboot()
    assert reboot_requests(unplug.registry) == []


def test_reboot_requests_come_in_order_and_once_each() -> None:
    registry = Registry(inf.INF)
    for module in ("XENVIF", "XENVBD", "XENVIF"):
        request_reboot(registry, module)
    registry.set(f"{inf.REQUEST_KEY}\\XENVBD", "Reboot", 0)
    request_reboot(registry, "XENBUS")
    assert reboot_requests(registry) == ["XENVIF", "XENBUS"]
    assert registry.get("Services\\xenbus_monitor\\Request\\XENVIF", "Reboot") == 1


# against a model: what drivers do between boots, and what a boot then unplugs

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("request"), st.sampled_from([DISKS, NICS]), st.booleans()),
        st.tuples(
            st.just("force"), st.sampled_from([DISKS, NICS]), st.sampled_from([None, 0, 1, 7])
        ),
        st.tuples(st.just("device"), st.sampled_from([DISKS, NICS]), st.booleans()),
        st.tuples(st.just("boot")),
    ),
    max_size=50,
)


@given(STEPS)
def test_counters_across_boots(steps: list[tuple[object, ...]]) -> None:
    """The model: a number or nothing for each type, a force, whether such a device was seen."""
    registry = Registry()
    count: dict[UnplugType, int | None] = {DISKS: None, NICS: None}
    force: dict[UnplugType, int | None] = {DISKS: None, NICS: None}
    seen = {DISKS: False, NICS: False}
    unplug = Unplug(Ports(), registry, Lines())
    key = {DISKS: "Enum\\XENBUS\\VEN_XP&DEV_VBD", NICS: "Enum\\XENBUS\\VEN_XP&DEV_VIF"}
    for name, *arguments in steps:
        if name == "boot":
            ports = Ports()
            expected = {}
            for kind in (DISKS, NICS):
                expected[kind] = bool(force[kind]) or bool(count[kind] and seen[kind])
                if force[kind] is not None or count[kind] is not None:
                    count[kind] = None
            registry.reboot()
            unplug = Unplug(ports, registry, Lines())
            unplug.devices()
            masks = [one[3] for one in ports.log if one[:3] == ("out", 0x10, 2)]
            assert masks == [0x0009] * expected[DISKS] + [0x0002] * expected[NICS]
            assert unplug.requests == expected
            continue
        kind, value = arguments
        if name == "request":
            UnplugInterface(unplug).request(kind, value)
            if value:
                count[kind] = (count[kind] or 0) + 1
            elif count[kind]:
                count[kind] -= 1
        elif name == "force":
            force[kind] = value
            registry.delete_value(inf.FORCE_UNPLUG, VALUE[kind])
            if value is not None:
                registry.set(inf.FORCE_UNPLUG, VALUE[kind], value)
        else:
            seen[kind] = value
            registry.delete(key[kind])
            if value:
                registry.create(key[kind])
        for one in (DISKS, NICS):
            assert registry.get(inf.UNPLUG, VALUE[one]) == count[one]
