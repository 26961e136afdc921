"""xen.sys: is this Xen, what it logs, in which order it comes up, who may use it."""

from __future__ import annotations

import pytest

from tests.world import World
from xenpv.abi.hvm import HVM_PARAM
from xenpv.bus import inf
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.registry import Registry
from xenpv.bus.system import XenSystem, hypercall_instruction

XEN_TEXT = (0x566E6558, 0x65584D4D, 0x4D4D566E)  # XenVMMXenVMM
HYPERV_TEXT = (0x7263694D, 0x666F736F, 0x76482074)  # Microsoft Hv


def vendor(text: bytes) -> tuple[int, int, int]:
    b, d, c = (int.from_bytes(text[at : at + 4], "little") for at in (0, 4, 8))
    return b, c, d


class Processor:
    """CPUID as a table: leaf to registers; zeros elsewhere."""

    def __init__(self, leaves: dict[int, tuple[int, int, int, int]]) -> None:
        self.leaves = leaves

    def cpuid(self, leaf: int) -> tuple[int, int, int, int]:
        return self.leaves.get(leaf, (0, 0, 0, 0))


NEW = 0x40000000
# situation, vendor, hypervisor's leaves, instruction or refusal
PROCESSORS = [
    ("Intel", b"GenuineIntel", {NEW: (NEW + 2, *XEN_TEXT)}, "VMCALL"),
    ("Centaur", b"CentaurHauls", {NEW: (NEW + 5, *XEN_TEXT)}, "VMCALL"),
    ("Shanghai", b"  Shanghai  ", {NEW: (NEW + 5, *XEN_TEXT)}, "VMCALL"),
    ("AMD", b"AuthenticAMD", {NEW: (NEW + 5, *XEN_TEXT)}, "VMMCALL"),
    ("Hygon", b"HygonGenuine", {NEW: (NEW + 5, *XEN_TEXT)}, "VMMCALL"),
    ("behind Hyper-V's leaves", b"GenuineIntel", {NEW: (NEW + 6, *HYPERV_TEXT), NEW + 0x100: (NEW + 0x105, *XEN_TEXT)}, "VMCALL"),
    ("further behind", b"GenuineIntel", {NEW: (NEW + 6, *HYPERV_TEXT), NEW + 0x200: (NEW + 0x205, *XEN_TEXT)}, None),
    ("one leaf too few", b"GenuineIntel", {NEW: (NEW + 1, *XEN_TEXT)}, None),
    ("too few behind", b"GenuineIntel", {NEW + 0x100: (NEW + 0x101, *XEN_TEXT)}, None),
    ("Hyper-V", b"GenuineIntel", {NEW: (NEW + 6, *HYPERV_TEXT)}, None),
    ("no hypervisor", b"GenuineIntel", {}, None),
    ("another vendor", b"CyrixInstead", {NEW: (NEW + 5, *XEN_TEXT)}, None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("_case", "name", "leaves", "instruction"), PROCESSORS, ids=[row[0] for row in PROCESSORS]
)
def test_hypercall_instruction(_case, name: bytes, leaves, instruction: str | None) -> None:
    processor = Processor({0: (0x16, *vendor(name)), **leaves})
    if instruction is not None:
        assert hypercall_instruction(processor) == instruction
        return
    with pytest.raises(NtStatusError) as caught:
        hypercall_instruction(processor)
    assert caught.value.status is NTSTATUS.NOT_SUPPORTED


# leaf, viridian, registers
LEAVES = [
    (0, 0, (0x16, 0x756E6547, 0x6C65746E, 0x49656E69)),
    (NEW, 0, (NEW + 5, *XEN_TEXT)),
    (NEW + 1, 0, (4 << 16 | 22, 0, 0, 0)),
    (NEW + 2, 0, (1, 0x40000000, 0, 0)),
    (NEW + 0x100, 0, (0, 0, 0, 0)),
    (NEW, 1, (NEW + 6, *HYPERV_TEXT)),
    (NEW + 0x100, 1, (NEW + 0x105, *XEN_TEXT)),
    (NEW + 0x101, 1, (4 << 16 | 22, 0, 0, 0)),
    (NEW + 1, 1, (0, 0, 0, 0)),
]


@pytest.mark.parametrize(("leaf", "viridian", "registers"), LEAVES)
def test_cpuid(world: World, leaf: int, viridian: int, registers) -> None:
    world.guest.hvm.params[HVM_PARAM.VIRIDIAN] = viridian
    assert world.guest.cpuid(leaf) == registers


def test_amd(world: World) -> None:
    world.hypervisor.cpu_vendor = "AuthenticAMD"
    assert XenSystem(world.guest, Registry()).instruction == "VMMCALL"


class Qemu:
    def __init__(self) -> None:
        self.log: list[object] = []

    def io_read(self, port: int, size: int) -> int:
        self.log.append((port, size))
        return 0x49D2 if port == 0x10 else 1

    def io_write(self, port: int, size: int, value: int) -> None:
        self.log.append((port, size, value))

    def io_write_string(self, port: int, data: bytes) -> None:
        self.log.append((port, data))


def test_requests_are_taken_at_load_and_ports_are_left_alone(world: World) -> None:
    qemu = Qemu()
    world.guest.ioport.claim(qemu, 0x10, 16)
    registry = Registry(inf.INF)
    registry.set(inf.UNPLUG, "DISKS", 1)
    system = XenSystem(world.guest, registry)
    assert registry.values(inf.UNPLUG) == {}
    assert qemu.log == []
    system.announce()
    assert qemu.log == [(0x12, b"xen|XEN: 4.22.0 (__XEN_INTERFACE_VERSION__ = 00040800)\n")]


def test_a_start_option_that_means_nothing_is_logged(world: World) -> None:
    qemu = Qemu()
    world.guest.ioport.claim(qemu, 0x10, 16)
    system = XenSystem(
        world.guest, Registry({"Control": {"SystemStartOptions": "XEN:BOOT_EMULATED=yes"}})
    )
    assert qemu.log == [(0x12, b"xen|UNRECOGNIZED VALUE OF XEN:BOOT_EMULATED=: yes\n")]
    assert not system.unplug.boot_emulated


def test_requests_survive_a_load_that_fails(world: World) -> None:
    world.hypervisor.cpu_vendor = "CyrixInstead"
    registry = Registry(inf.INF)
    with pytest.raises(NtStatusError):
        XenSystem(world.guest, registry)
    assert registry.values(inf.UNPLUG) == {"DISKS": 0, "NICS": 0}


# our version, client's version, may it use xen.sys
TOUCHES = [
    ((9, 1, 0, 0), (9, 1, 0, 0), True),
    ((9, 1, 0, 0), (9, 1, 0, 1), False),
    ((9, 1, 0, 0), (9, 1, 1, 0), False),
    ((9, 1, 0, 0), (9, 0, 0, 0), False),
    ((9, 1, 0, 0), (8, 1, 0, 0), False),
]


@pytest.mark.parametrize(("ours", "theirs", "allowed"), TOUCHES)
def test_touch_wants_the_same_version(world: World, ours, theirs, allowed: bool) -> None:
    build = inf.Build(version=ours, clients={"XENBUS": theirs})
    system = XenSystem(world.guest, Registry(), build)
    system.touch("XENFILT")
    if allowed:
        system.touch("XENBUS")
        return
    with pytest.raises(NtStatusError) as caught:
        system.touch("XENBUS")
    assert caught.value.status is NTSTATUS.INCOMPATIBLE_DRIVER_BLOCKED
