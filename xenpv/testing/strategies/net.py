"""Packets of netif as their slots, extras, and features of both ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from xenpv.abi._kernel import lib
from xenpv.abi.layout import packer
from xenpv.xen.domain import PAGE_SIZE

TX: Final = packer("netif_tx_request")
EXTRA: Final = packer("netif_extra_info")
MORE_DATA: Final[int] = lib.NETTXF_more_data
EXTRA_INFO: Final[int] = lib.NETTXF_extra_info
EXTRA_MORE: Final[int] = lib.XEN_NETIF_EXTRA_FLAG_MORE
SLOTS_MAX: Final[int] = lib.XEN_NETIF_NR_SLOTS_MIN

Fragment = tuple[int, int, int]  # reference, offset, size in bytes


@attrs.frozen
class Extra:
    """`type` 1 GSO, 2 and 3 MCAST_ADD and _DEL, 4 HASH; `body` are 6 bytes."""

    type: int
    body: bytes = bytes(6)


@attrs.frozen(kw_only=True)
class NetPacket:
    """A packet to transmit: its fragments, extras behind the first one's slot, and the flags of
    that besides more_data and extra_info.
    """

    fragments: tuple[Fragment, ...]
    extras: tuple[Extra, ...] = ()
    flags: int = 0
    first_id: int = 0

    @property
    def size(self) -> int:
        """Bytes, as the first slot says it."""
        return sum(size for _, _, size in self.fragments)

    def emit(self) -> list[bytes]:
        """Its slots, 12 bytes each; ids count up from `first_id`."""
        slots, last = [], len(self.fragments) - 1
        for at, (ref, offset, size) in enumerate(self.fragments):
            flags = MORE_DATA if at < last else 0
            if not at:
                flags |= self.flags | (EXTRA_INFO if self.extras else 0)
                size = self.size & 0xFFFF  # noqa: PLW2901 - the first slot has the whole packet's
            slots.append(TX.pack(ref, offset, flags, self.first_id + at & 0xFFFF, size))
        chain = [
            EXTRA.pack(one.type, EXTRA_MORE if at < len(self.extras) - 1 else 0, one.body)
            for at, one in enumerate(self.extras)
        ]
        return slots[:1] + [one.ljust(TX.size, b"\0") for one in chain] + slots[1:]


def extras(*, hostile: bool = False) -> SearchStrategy[Extra]:
    """Extras of every type with a body that fits it; `hostile`: any type and any body."""
    if hostile:
        return st.builds(Extra, st.integers(0, 255), st.binary(min_size=6, max_size=6))
    sizes = st.integers(1, 0xFFFF).map(lambda size: size.to_bytes(2, "little"))
    kinds = st.sampled_from([b"\1", b"\2"])
    gso = st.tuples(sizes, kinds).map(lambda one: Extra(1, one[0] + one[1] + bytes(3)))
    group = st.binary(min_size=6, max_size=6)
    hashes = st.tuples(st.integers(0, 3), st.binary(min_size=4, max_size=4))
    hashed = hashes.map(lambda one: Extra(4, bytes((one[0], 1)) + one[1]))
    return gso | st.builds(Extra, st.sampled_from([2, 3]), group) | hashed


def net_packets(refs: Sequence[int], *, hostile: bool = False) -> SearchStrategy[NetPacket]:
    """Packets whose bytes lie in the pages of `refs`; `hostile`: any size, offset and flag."""
    size, offset = st.integers(14, 1024), st.integers(0, PAGE_SIZE - 1024)
    flags = st.sampled_from([0, 2])
    most = SLOTS_MAX
    if hostile:
        size, offset, flags = st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 3)
        most += 4
    pieces = st.tuples(st.sampled_from(list(refs)), offset, size)
    return st.builds(
        NetPacket,
        fragments=st.lists(pieces, min_size=1, max_size=most).map(tuple),
        extras=st.lists(extras(hostile=hostile), max_size=3).map(tuple) if hostile else st.just(()),
        flags=flags,
        first_id=st.integers(0, 0xFFFF),
    )


def net_features() -> SearchStrategy[dict[str, str]]:
    """Either end's keys: the raw backend's `features`, a raw frontend's overrides."""
    flag = st.sampled_from(["0", "1"])
    names = (
        "feature-sg", "feature-gso-tcpv4", "feature-gso-tcpv6", "feature-ipv6-csum-offload",
        "feature-no-csum-offload", "feature-rx-notify", "feature-split-event-channels",
        "feature-multicast-control", "feature-ctrl-ring", "feature-rx-copy",
    )  # fmt: skip
    queues = st.sampled_from(["0", "1", "2", "8"])
    optional = {**dict.fromkeys(names, flag), "multi-queue-max-queues": queues}
    return st.fixed_dictionaries({}, optional=optional)
