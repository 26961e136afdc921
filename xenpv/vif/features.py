"""What a backend offers, as its frontend read it when it connected.

XenVif reads flags in base 2 and does not ask for `feature-sg`; a backend without it gets one
slot a packet here, since it would take a second one for another packet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from xenpv.bus.handshake import parse_flag
from xenpv.errors import LocalProtocolError
from xenpv.vif.packet import Offload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpv.vif.parameters import Parameters

KEYS: Final = (
    "multi-queue-max-queues",
    "feature-sg",
    "feature-gso-tcpv4",
    "feature-gso-tcpv6",
    "feature-no-csum-offload",
    "feature-ipv6-csum-offload",
    "feature-split-event-channels",
    "feature-ctrl-ring",
    "feature-dynamic-multicast-control",
)
XDP: Final = "feature-xdp-headroom"  # which netfront reads and XenVif does not
LARGE_PACKET_MAX: Final = 65535 - 18 - 40 - 216 - 60  # bytes; 65,201, the smaller of IPv4's and 6's


def wants_headroom(value: str | None) -> bool:
    """Whether the backend wants to be told of headroom, by the value of XDP."""
    return _is_number(value)


@attrs.frozen(kw_only=True)
class Features:
    """Of one connection. The defaults are those of a backend that wrote nothing.

    `max_queues` None: it has no multi-queue-max-queues. `csum` is the sum of TCP and UDP over
    IPv4, which a backend does unless it refuses to.
    """

    sg: bool = False
    gso_tcpv4: bool = False
    gso_tcpv6: bool = False
    csum: bool = True
    ipv6_csum: bool = False
    split: bool = False
    ctrl_ring: bool = False
    dynamic_multicast: bool = False
    max_queues: int | None = None

    @classmethod
    def parse(cls, values: Sequence[str | None], *, windows: bool) -> Features:
        """From the values of KEYS in a backend's directory, None where one is absent.

        LocalProtocolError (STATUS_INVALID_PARAMETER): the backend offers no queue at all.
        """
        parse = parse_flag if windows else _is_number
        maximum, sg, gso_tcpv4, gso_tcpv6, no_csum, ipv6_csum, split, ctrl_ring, multicast = values
        return cls(
            sg=parse(sg),
            gso_tcpv4=parse(gso_tcpv4),
            gso_tcpv6=parse(gso_tcpv6),
            csum=not parse(no_csum),
            ipv6_csum=parse(ipv6_csum),
            split=parse(split),
            ctrl_ring=windows and parse(ctrl_ring),
            dynamic_multicast=windows and parse(multicast),
            max_queues=None if maximum is None else _queues(maximum),
        )

    def transmit_offload(self, parameters: Parameters) -> Offload:
        """What the driver above may leave to be done below (TransmitterQueryOffloadOptions)."""
        transmitter = parameters.transmitter
        options = Offload.TAG_MANIPULATION | Offload.IPV4_HEADER_CHECKSUM
        # A large packet takes many slots.
        if self.sg and self.gso_tcpv4 and not transmitter.disable_ipv4_gso:
            options |= Offload.IPV4_LARGE_PACKET
        if self.sg and self.gso_tcpv6 and not transmitter.disable_ipv6_gso:
            options |= Offload.IPV6_LARGE_PACKET
        if self.csum:
            options |= Offload.IPV4_TCP_CHECKSUM | Offload.IPV4_UDP_CHECKSUM
        if self.ipv6_csum:
            options |= Offload.IPV6_TCP_CHECKSUM | Offload.IPV6_UDP_CHECKSUM
        return options


def _is_number(text: str | None) -> bool:
    """As Linux reads a feature: a decimal number, and not 0."""
    return text is not None and text.isdecimal() and int(text[:20]) != 0


def _queues(text: str) -> int:
    offered = int(text) if text.isdecimal() and len(text) < 10 else 0
    if not offered:
        raise LocalProtocolError(f"the backend offers {text!r} queues")
    return offered
