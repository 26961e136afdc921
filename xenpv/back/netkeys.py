"""What a frontend says of itself in the store, as each profile of netback reads it.

Everything here was written by a guest. A key that cannot be read has its default; a key that
must be there raises PeerProtocolError.
"""

from __future__ import annotations

from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.back.netprofile import Profile
from xenpv.back.xenbus import Device, number_of
from xenpv.errors import PeerProtocolError
from xenpv.host.network import GSO_TCPV4, GSO_TCPV6
from xenpv.xen.domain import PAGE_SIZE

HEADROOM_MAX: Final[int] = lib.XEN_NETIF_MAX_XDP_HEADROOM
PORT_LIMIT: Final = 1 << 32
GSO_KEYS: Final = (("feature-gso-tcpv4", GSO_TCPV4), ("feature-gso-tcpv6", GSO_TCPV6))


@attrs.frozen(kw_only=True)
class Offer:
    """What the frontend said that it takes. The defaults are Linux' without request-rx-copy.

    `csum`, `ipv6_csum`: blank sums of packets of that IP. `headroom`: bytes left free in each
    page that it receives, 0 without XDP.
    """

    sg: bool = True
    gso_types: tuple[int, ...] = ()
    csum: bool = True
    ipv6_csum: bool = False
    rx_notify: bool = False
    headroom: int = 0


@attrs.frozen(kw_only=True)
class QueueKeys:
    """Rings and ports of one queue, as the frontend wrote them; ports are equal if combined."""

    tx_ring_ref: int
    rx_ring_ref: int
    tx_port: int
    rx_port: int


def read_count(device: Device, profile: Profile, offered: int) -> int:
    """How many queues it has. Linux takes 0 as well, and then serves none."""
    if not profile.multi_queue:
        return 1
    count = device.frontend_number("multi-queue-num-queues", 1)
    if not 1 <= count <= offered:
        raise PeerProtocolError(f"{count} queues, 1 to {offered} are offered")
    return count


def read_offer(device: Device, profile: Profile) -> Offer:
    """The flags (read_xenbus_vif_flags)."""

    def flag(key: str) -> bool:
        return profile.flag(device.frontend_get(key))

    if profile.rx_copy and not flag("request-rx-copy"):
        raise PeerProtocolError("the frontend does not support rx-copy")
    if not profile.rx_sums:
        # What these backends get from their host has its sums, so nothing is ever blank.
        gso = (GSO_TCPV4,) if profile.rx_chains and flag("feature-gso-tcpv4") else ()
        return Offer(sg=profile.rx_chains, gso_types=gso, csum=False)
    if not flag("request-rx-copy"):
        return Offer()  # Linux reads no flag after it
    sg = flag("feature-sg")
    csum = not flag("feature-no-csum-offload")
    ipv6_csum = flag("feature-ipv6-csum-offload")
    # A device that cannot do the sums of large packets, or scatter them, is sent none
    # (netdev_fix_features).
    sums = {GSO_TCPV4: sg and csum, GSO_TCPV6: sg and ipv6_csum}
    return Offer(
        rx_notify=flag("feature-rx-notify"),
        sg=sg,
        gso_types=tuple(kind for key, kind in GSO_KEYS if sums[kind] and flag(key)),
        csum=csum,
        ipv6_csum=ipv6_csum,
        headroom=read_headroom(device),
    )


def read_headroom(device: Device) -> int:
    """`xdp-headroom` (read_xenbus_frontend_xdp). Linux takes what leaves no room in a page."""
    headroom = min(device.frontend_number("xdp-headroom", 0), HEADROOM_MAX)
    if headroom >= PAGE_SIZE:
        raise PeerProtocolError(f"xdp-headroom {headroom}, a page has {PAGE_SIZE}")
    return headroom


def queue_home(index: int) -> str:
    """What the keys of a queue begin with, where there are several."""
    return f"queue-{index}/"


def read_queue(device: Device, profile: Profile, prefix: str) -> QueueKeys:
    """The keys of one queue, which begin with `prefix`."""
    tx_port = rx_port = None
    if profile.multi_queue:
        tx_port = _key(device, prefix + "event-channel-tx")
        rx_port = _key(device, prefix + "event-channel-rx")
    if tx_port is None or rx_port is None:
        tx_port = rx_port = _wanted(device, prefix + "event-channel")
    return QueueKeys(
        tx_ring_ref=_wanted(device, prefix + "tx-ring-ref"),
        rx_ring_ref=_wanted(device, prefix + "rx-ring-ref"),
        tx_port=tx_port,
        rx_port=rx_port,
    )


def read_control(device: Device) -> tuple[int, int] | None:
    """Reference and port of the control ring; None if the frontend has none."""
    ref = _key(device, "ctrl-ring-ref")
    return None if ref is None else (ref, _wanted(device, "event-channel-ctrl"))


def _key(device: Device, key: str) -> int | None:
    value = number_of(device.frontend_get(key), -1)
    return value if 0 <= value < PORT_LIMIT else None


def _wanted(device: Device, key: str) -> int:
    value = _key(device, key)
    if value is None:
        raise PeerProtocolError(f"reading {device.frontend}/{key}")
    return value
