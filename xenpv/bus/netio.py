"""netio.sys: the table of network interfaces that Windows keeps, GetIfTable2, of its cards.

A card's GUID and LUID are Windows' own: it made them up when it installed the card. Here they
follow from its place on the bus, so that the same card has the same ones after a reboot.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid5

import attrs

from xenpv.abi.pci import CLASS_ETHERNET, PciFunction

if TYPE_CHECKING:
    from xenpv.bus.xenbus import XenBus

IF_TYPE_ETHERNET: Final = 6  # IANA ifType, in the upper 16 bits of a LUID
NAME_SPACE: Final = UUID("4d36e972-e325-11ce-bfc1-08002be10318")  # of the class Net
MAC_SIZE: Final = 6


@attrs.frozen(kw_only=True)
class InterfaceRow:
    """MIB_IF_ROW2, as much of it as is asked for. `luid` is a u64."""

    alias: str
    description: str
    guid: str
    luid: int
    permanent_address: bytes
    is_up: bool


def luid(index: int) -> int:
    """NET_LUID of an Ethernet interface: its type, then 24 bits that Windows counts up."""
    return IF_TYPE_ETHERNET << 48 | (index & 0xFFFFFF) << 24


def guid(text: str) -> str:
    """The NetCfgInstanceId of a device, by its path in the tree."""
    return f"{{{str(uuid5(NAME_SPACE, text)).upper()}}}"


def cards(bus: XenBus) -> list[PciFunction]:
    """Network cards on the PCI bus, emulated or passed through."""
    functions = bus.domain.ioport.functions()
    return [one for one in functions if one.class_code == CLASS_ETHERNET]


def interfaces(bus: XenBus) -> Iterator[InterfaceRow]:
    """Emulated and passed-through cards in the order of the bus, as far as they have a driver."""
    found = cards(bus)
    if not found or bus.stack is None:
        return
    started = {node.instance_id for node in bus.stack.tree.walk() if node.started}
    for card in found:
        if len(card.mac) != MAC_SIZE:
            continue
        place = f"{card.devfn:02X}"
        yield InterfaceRow(
            alias=f"Local Area Connection {card.devfn >> 3}",
            description=f"PCI\\VEN_{card.vendor_id:04X}&DEV_{card.device_id:04X}",
            guid=guid(place),
            luid=luid(card.devfn),
            permanent_address=card.mac,
            is_up=place in started,
        )
