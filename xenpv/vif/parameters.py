r"""What XenVif reads of the registry when it starts: values of its service's key Parameters.

Names there are those of the driver (ReceiverCalculateChecksums, FrontendMaxQueues, ...), each a
REG_DWORD; one that is missing or of another type has its default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from xenpv.abi._kernel import lib

if TYPE_CHECKING:
    from xenpv.bus.registry import Registry

PATH: Final = "Services\\XENVIF\\Parameters"
MAX_QUEUES: Final = 8  # of the INF
GSO_TCPV4: Final[int] = lib.XEN_NETIF_GSO_TYPE_TCPV4
GSO_TCPV6: Final[int] = lib.XEN_NETIF_GSO_TYPE_TCPV6
MAC_SPEED: Final = 100  # Gbit/s


@attrs.frozen(kw_only=True)
class ReceiverParameters:
    """`align_offset`: bytes in front of a packet's Ethernet header, so that IP is aligned."""

    calculate_checksums: bool = True
    allow_gso_packets: bool = True  # False: no large packet is handed up whole
    disable_ipv4_gso: bool = False
    disable_ipv6_gso: bool = False
    ip_align_offset: int = 0
    always_pullup: bool = False

    @property
    def gso_types(self) -> tuple[int, ...]:
        """XEN_NETIF_GSO_TYPE_* that the backend is offered to send."""
        offered = ((GSO_TCPV4, self.disable_ipv4_gso), (GSO_TCPV6, self.disable_ipv6_gso))
        return tuple(kind for kind, is_disabled in offered if not is_disabled)


@attrs.frozen(kw_only=True)
class TransmitterParameters:
    """`always_copy`: payload goes through pages of the driver."""

    disable_ipv4_gso: bool = False
    disable_ipv6_gso: bool = False
    always_copy: bool = False
    validate_checksums: bool = False
    disable_multicast_control: bool = False


@attrs.frozen(kw_only=True)
class Parameters:
    """Of one guest's driver; a guest without a registry has the defaults."""

    receiver: ReceiverParameters = ReceiverParameters()
    transmitter: TransmitterParameters = TransmitterParameters()
    frontend_max_queues: int = MAX_QUEUES
    frontend_disable_toeplitz: bool = False
    mac_speed: int = MAC_SPEED  # Gbit/s, where the toolstack names no speed

    @classmethod
    def read(cls, registry: Registry) -> Parameters:
        """Those of a machine; without the key, DEFAULTS itself."""
        if registry.find(PATH) is None:
            return DEFAULTS

        def flag(name: str, default: int = 0) -> bool:
            return registry.dword(PATH, name, default) != 0

        return cls(
            receiver=ReceiverParameters(
                calculate_checksums=flag("ReceiverCalculateChecksums", 1),
                allow_gso_packets=flag("ReceiverAllowGsoPackets", 1),
                disable_ipv4_gso=flag("ReceiverDisableIpVersion4Gso"),
                disable_ipv6_gso=flag("ReceiverDisableIpVersion6Gso"),
                ip_align_offset=registry.dword(PATH, "ReceiverIpAlignOffset", 0),
                always_pullup=flag("ReceiverAlwaysPullup"),
            ),
            transmitter=TransmitterParameters(
                disable_ipv4_gso=flag("TransmitterDisableIpVersion4Gso"),
                disable_ipv6_gso=flag("TransmitterDisableIpVersion6Gso"),
                always_copy=flag("TransmitterAlwaysCopy"),
                validate_checksums=flag("TransmitterValidateChecksums"),
                disable_multicast_control=flag("TransmitterDisableMulticastControl"),
            ),
            frontend_max_queues=registry.dword(PATH, "FrontendMaxQueues", MAX_QUEUES),
            frontend_disable_toeplitz=flag("FrontendDisableToeplitz"),
            mac_speed=registry.dword(PATH, "MacSpeed", MAC_SPEED),
        )


DEFAULTS: Final = Parameters()
