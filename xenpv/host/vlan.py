"""VLANs of a bridge's port (Linux br_vlan.c; xl-network-configuration(5), `vlan`).

A frame that comes in without a tag, or with one that names only a priority, belongs to the
port's PVID; one with a tag to that VLAN, if the port is a member. It leaves by ports that are
members too, without a tag where the port says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

import attrs

VID_MAX: Final = 4094  # 0 names a priority alone, 4095 is reserved (802.1Q)
DEFAULT_PVID: Final = 1  # of a port that nothing was said about (vlan_default_pvid)
TPID: Final = b"\x81\x00"
TAG: Final = 4  # bytes
VID_BITS: Final = 0x0FFF
MEMBERS_MAX: Final = VID_MAX

# id[p|u], a-b[u], base+stepxcount[u]
_ENTRY: Final = r"([0-9]{1,4})(?:([pu])|-([0-9]{1,4})(u)?|\+([0-9]{1,4})x([0-9]{1,4})(u)?)?\Z"


@attrs.frozen(kw_only=True)
class PortVlans:
    """`members`: each VLAN of the port, and whether frames of it leave without a tag. `pvid`
    None: frames without a tag are not let in.
    """

    pvid: int | None = DEFAULT_PVID
    members: Mapping[int, bool] = attrs.field(factory=lambda: {DEFAULT_PVID: True})


DEFAULT: Final = PortVlans()


def parse_vlans(text: str) -> PortVlans:
    """`10p/20/30-33u/100+10x3`: entries with slashes between them; ValueError names the wrong one.

    `id` with `p` is the PVID, and leaves untagged; an `id` that stands alone is that as well.
    `u`: leaves untagged. `a-b` is every one from a to b; `base+stepxcount` base and `count` more,
    `step` apart.
    """
    members: dict[int, bool] = {}
    pvid: int | None = None
    entries = text.split("/")
    for entry in entries:
        match = re.match(_ENTRY, entry)
        if match is None:
            raise ValueError(f"{entry!r}: expected a form such as 10, 10p, 20-29u or 100+10x3")
        first, flag, last, last_u, step, count, step_u = match.groups()
        vids = range(int(first), int(first) + 1)
        if last is not None:
            vids = range(int(first), int(last) + 1)
        elif step is not None:
            vids = range(int(first), int(first) + int(step) * int(count) + 1, int(step) or 1)
        if not vids or vids[0] < 1 or vids[-1] > VID_MAX:
            raise ValueError(f"{entry!r}: expected VLANs from 1 to {VID_MAX}, the lower one first")
        is_pvid = flag == "p" or (len(entries) == 1 and entry == first)
        if is_pvid:
            if pvid is not None:
                raise ValueError(f"{entry!r}: {pvid} is the PVID already")
            pvid = vids[0]
        for vid in vids:
            members[vid] = is_pvid or "u" in (flag, last_u, step_u)
    return PortVlans(pvid=pvid, members=members)


class Tagged(NamedTuple):
    """A frame without its tag, and the tag control information that it has on this bridge."""

    data: bytes
    tci: int

    @property
    def vid(self) -> int:
        return self.tci & VID_BITS


def admit(data: bytes, vlans: PortVlans) -> Tagged | None:
    """What a port makes of a frame that comes in; None: it is not let in."""
    tci = 0
    if data[12:14] == TPID:
        if len(data) < 14 + TAG:
            return None
        tci = int.from_bytes(data[14:16], "big")
        data = data[:12] + data[16:]
    if not tci & VID_BITS:
        if vlans.pvid is None:
            return None
        return Tagged(data, tci | vlans.pvid)
    return Tagged(data, tci) if tci & VID_BITS in vlans.members else None


def with_tag(frame: Tagged) -> bytes:
    """The bytes that leave by a port where the frame's VLAN is tagged."""
    return frame.data[:12] + TPID + frame.tci.to_bytes(2, "big") + frame.data[12:]
