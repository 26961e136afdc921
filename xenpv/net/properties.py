"""Advanced properties of an adapter: what its user may switch off in the device manager.

Windows reads them from the registry when the adapter is initialised, below
`Control\\Class\\{4d36e972-e325-11ce-bfc1-08002be10318}\\<number>`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from xenpv.vif.interface import DeviceStack

TX: Final = 1  # bits of a checksum's property
RX: Final = 2
RSS_QUEUES_MAX: Final = 8


def _checksum(name: str) -> int:
    """A property whose bit 0 is for sending and bit 1 for receiving."""
    return attrs.field(default=TX | RX, metadata={"name": name})


def _flag(name: str) -> int:
    return attrs.field(default=1, metadata={"name": name})


def _queues(value: int) -> int:
    return min(max(value, 1), RSS_QUEUES_MAX)


@attrs.frozen(kw_only=True)
class Properties:
    """The values of one adapter; those of checksums are 0 off, 1 tx, 2 rx, 3 both, others 0 or 1.

    `num_rss_queues` is kept within 1 to 8.
    """

    ip_checksum_ipv4: int = _checksum("*IPChecksumOffloadIPv4")
    tcp_checksum_ipv4: int = _checksum("*TCPChecksumOffloadIPv4")
    tcp_checksum_ipv6: int = _checksum("*TCPChecksumOffloadIPv6")
    udp_checksum_ipv4: int = _checksum("*UDPChecksumOffloadIPv4")
    udp_checksum_ipv6: int = _checksum("*UDPChecksumOffloadIPv6")
    lso_v2_ipv4: int = _flag("*LSOv2IPv4")
    lso_v2_ipv6: int = _flag("*LSOv2IPv6")
    lro_ipv4: int = _flag("LROIPv4")
    lro_ipv6: int = _flag("LROIPv6")
    need_checksum_value: int = _flag("NeedChecksumValue")
    rss: int = _flag("*RSS")
    num_rss_queues: int = attrs.field(
        default=RSS_QUEUES_MAX,
        converter=_queues,
        metadata={"name": "*NumRSSQueues"},
    )

    @classmethod
    def read(cls, stack: DeviceStack, number: int) -> Properties:
        """Those of interface `number`; without its key, DEFAULTS itself."""
        if not stack.has_configuration(number):
            return DEFAULTS
        return cls(
            **{
                field.name: stack.read_configuration(number, field.metadata["name"], field.default)
                for field in attrs.fields(cls)
            }
        )


DEFAULTS: Final = Properties()
