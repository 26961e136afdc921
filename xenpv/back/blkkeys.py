"""Keys of a disk in the store: what each backend says of it, and how it reads the frontend's.

What a frontend wrote is worth no trust: each key is read once, and what cannot be raises
PeerProtocolError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.blkif import PROTOCOLS, Abi
from xenpv.back.blkprofile import STATE, Profile, RingRefs
from xenpv.back.blkring import SECTOR_SHIFT, Vbd
from xenpv.back.blkunits import Units
from xenpv.back.xenbus import Device, number_of
from xenpv.errors import PeerProtocolError

VDISK_CDROM: Final[int] = lib.VDISK_CDROM
VDISK_REMOVABLE: Final[int] = lib.VDISK_REMOVABLE
VDISK_READONLY: Final[int] = lib.VDISK_READONLY

U32_MAX: Final = 0xFFFFFFFF
STRICT: Final = re.compile("(0[xX])?([0-9a-fA-F]{1,16})")


@attrs.frozen(kw_only=True)
class Offer:
    """What a backend has to tell. `vbd` None: its image is not open, and keys of it are left out.
    `info` has every bit of VDISK_*, also those that the profile does not tell.
    """

    profile: Profile
    units: Units
    queues_max: int
    vbd: Vbd | None = None
    info: int = 0


def sectors_of(vbd: Vbd, units: Units) -> int:
    """What `sectors` says: 512 bytes each, or logical ones."""
    return vbd.image.size_bytes // (vbd.image.sector_size if units.disk else 1 << SECTOR_SHIFT)


def _discards(value: Callable[[Vbd], int]) -> Callable[[Offer, Vbd], int | None]:
    """Keys of a disk that can be told what is no longer of use."""
    return lambda _offer, vbd: value(vbd) if vbd.discard else None


# What is said of a device, and of the disk behind it. None: the key is not written.
OF_DEVICE: Final[Mapping[str, Callable[[Offer], int | str]]] = {
    STATE: lambda _offer: int(State.INIT_WAIT),
    "online": lambda _offer: 1,
    # Not what scripts write: mirage says that it noticed (Tell xapi), QEMU needs none.
    "hotplug-status": lambda offer: "connected" if offer.profile.watches_itself else "online",
    "max-ring-page-order": lambda offer: offer.profile.ring_page_order_max,
    "multi-queue-max-queues": lambda offer: offer.queues_max,
    "feature-max-indirect-segments": lambda offer: offer.profile.indirect_max,
    "feature-persistent": lambda offer: int(offer.profile.persistent),
    "feature-flush-cache": lambda _offer: 1,
    "feature-barrier": lambda _offer: 1,
}
OF_DISK: Final[Mapping[str, Callable[[Offer, Vbd], int | str | None]]] = {
    "feature-discard": _discards(lambda _vbd: 1),
    "discard-granularity": _discards(lambda vbd: vbd.image.physical_sector_size),
    "discard-alignment": _discards(lambda _vbd: 0),
    "discard-secure": _discards(lambda _vbd: 0),
    "sectors": lambda offer, vbd: sectors_of(vbd, offer.units),
    "info": lambda offer, _vbd: offer.info & offer.profile.info,
    "mode": lambda _offer, vbd: "r" if vbd.readonly else "w",
    "sector-size": lambda _offer, vbd: vbd.image.sector_size,
    "physical-sector-size": lambda _offer, vbd: vbd.image.physical_sector_size,
}


def values(names: tuple[str, ...], offer: Offer) -> dict[str, str]:
    """What these keys say, in their order, without those that are not written."""
    found: dict[str, str] = {}
    for name in names:
        of_device = OF_DEVICE.get(name)
        value: int | str | None = None
        if of_device is not None:
            value = of_device(offer)
        elif offer.vbd is not None:
            value = OF_DISK[name](offer, offer.vbd)
        if value is not None:
            found[name] = str(value)
    return found


# the frontend's


@attrs.frozen
class RingKeys:
    """One ring: references of its pages, and the frontend's port."""

    grefs: tuple[int, ...]
    port: int


@attrs.frozen(kw_only=True)
class FrontKeys:
    """How a frontend wants to be connected.

    `large`: feature-large-sector-size is 1, and this backend looks at it.
    """

    abi: Abi
    persistent: bool
    large: bool
    rings: tuple[RingKeys, ...]


def read_front(device: Device, profile: Profile, units: Units, queues_max: int) -> FrontKeys:
    """connect_ring, xen_block_connect, connect_tap: all that a frontend has to say."""
    abi = read_protocol(device, profile)
    persistent = read_persistent(device, profile)
    count = 1
    if profile.queues_max != 1:
        count = device.frontend_number("multi-queue-num-queues", 1)
        if not 0 < count <= queues_max:
            raise PeerProtocolError(f"guest requested {count} queues, {queues_max} at most")
    names = read_ring_refs(device, profile)
    prefixes = [""] if count == 1 else [f"queue-{index}/" for index in range(count)]
    return FrontKeys(
        abi=abi,
        persistent=persistent,
        large=bool(units.wants_large or units.refuses_large)
        and device.frontend_number("feature-large-sector-size", 0) == 1,
        rings=tuple(_read_ring(device, profile, prefix, names) for prefix in prefixes),
    )


def read_protocol(device: Device, profile: Profile) -> Abi:
    """`protocol`; what Linux scans is a word, so that an empty text is none."""
    text = device.frontend_get("protocol")
    if text is not None and profile.protocol_words:
        text = next(iter(text.split()), None)
    name = profile.protocol_default if text is None else text
    if name not in profile.protocols and text is not None:
        name = profile.protocol_unknown
    abi = PROTOCOLS.get(name)
    if abi is None:
        known = ", ".join(profile.protocols)
        raise PeerProtocolError(f"unknown fe protocol {text!r}: expected one of {known}")
    return abi


def read_persistent(device: Device, profile: Profile) -> bool:
    """`feature-persistent`, where the backend keeps grants or is strict with it."""
    if profile.persistent_strict:
        text = device.frontend_get("feature-persistent")
        if text not in (None, "0", "1"):
            raise PeerProtocolError(f"feature-persistent is {text!r}: expected 0 or 1")
        return False
    return profile.persistent and device.frontend_number("feature-persistent", 0) != 0


def read_ring_refs(device: Device, profile: Profile) -> tuple[str, ...]:
    """The nodes of a ring's pages, by `ring-page-order`; one that is no number is none."""
    order = 0
    if profile.ring_refs is not RingRefs.NEVER:
        text = device.frontend_get("ring-page-order")
        order = number_of(text, -1)
        if order > profile.ring_page_order_max:
            raise PeerProtocolError(
                f"ring-page-order is {text!r}: {profile.ring_page_order_max} at most"
            )
    numbered = order >= 0 if profile.ring_refs is RingRefs.IF_PRESENT else order > 0
    return tuple(f"ring-ref{n}" for n in range(1 << order)) if numbered else ("ring-ref",)


def _read_ring(device: Device, profile: Profile, prefix: str, names: tuple[str, ...]) -> RingKeys:
    grefs = tuple(_number(device, profile, prefix + name) for name in names)
    return RingKeys(grefs, _number(device, profile, f"{prefix}event-channel"))


def _number(device: Device, profile: Profile, key: str) -> int:
    text = device.frontend_get(key)
    # Of what was read once: the guest may write it again.
    value = strict_number(text) if profile.strict else number_of(text, -1)
    if not 0 <= value <= U32_MAX:
        raise PeerProtocolError(f"{key} is {text!r}: expected 0 to {U32_MAX}")
    return value


def strict_number(text: str | None) -> int:
    """As OCaml's int_of_string reads it, decimal or hex; -1 for what is none."""
    match = STRICT.fullmatch(text or "")
    if match is None or (not match[1] and not match[2].isdigit()):
        return -1
    return int(match[2], 16 if match[1] else 10)
