"""CPUID as a domain sees it: the processor's vendor and Xen's own leaves (arch-x86/cpuid.h)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.abi.hvm import HVM_PARAM

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain

LEAF_MAX: Final = 0x16

XEN_LEAF: Final = 0x4000_0000  # XEN_CPUID_FIRST_LEAF
VIRIDIAN_OFFSET: Final = 0x100  # Xen's leaves make room for Hyper-V's
XEN_LEAVES: Final = 5  # after the first: XEN_CPUID_MAX_NUM_LEAVES
SIGNATURE: Final = b"XenVMMXenVMM"
HYPERV_SIGNATURE: Final = b"Microsoft Hv"
HYPERV_LEAF_MAX: Final = 0x4000_0006
HYPERCALL_MSR: Final = 0x4000_0000

Registers = tuple[int, int, int, int]  # EAX, EBX, ECX, EDX


def _word(text: bytes, index: int) -> int:
    return int.from_bytes(text[4 * index : 4 * index + 4], "little")


def cpuid(domain: Domain, leaf: int) -> Registers:
    """The instruction, subleaf 0; zeros for leaves that are not modelled."""
    if leaf == 0:
        vendor = domain.cpu_vendor.encode()
        return LEAF_MAX, _word(vendor, 0), _word(vendor, 2), _word(vendor, 1)
    base = XEN_LEAF
    if domain.is_hvm and domain.hvm.params[HVM_PARAM.VIRIDIAN]:
        if leaf == base:
            return HYPERV_LEAF_MAX, *_signature(HYPERV_SIGNATURE)
        base += VIRIDIAN_OFFSET
    if leaf == base:
        return base + XEN_LEAVES, *_signature(SIGNATURE)
    if leaf == base + 1:
        version = domain.xen
        return version.major << 16 | version.minor, 0, 0, 0
    if leaf == base + 2:
        return 1, HYPERCALL_MSR, 0, 0  # one hypercall page
    return 0, 0, 0, 0


def _signature(text: bytes) -> tuple[int, int, int]:
    return _word(text, 0), _word(text, 1), _word(text, 2)
