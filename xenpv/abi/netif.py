"""Operations and flags of network rings (io/netif.h)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from xenpv.abi._kernel import lib


class NETIF_RSP(IntEnum):  # noqa: N801 - the prefix of Xen's names
    """Status of a response; in rx a value of 0 or more is a length in bytes."""

    DROPPED = lib.NETIF_RSP_DROPPED
    ERROR = lib.NETIF_RSP_ERROR
    OKAY = lib.NETIF_RSP_OKAY
    NULL = lib.NETIF_RSP_NULL


class NETTXF(IntFlag):
    """Flags of `netif_tx_request`."""

    csum_blank = lib.NETTXF_csum_blank
    data_validated = lib.NETTXF_data_validated
    more_data = lib.NETTXF_more_data
    extra_info = lib.NETTXF_extra_info


class NETRXF(IntFlag):
    """Flags of `netif_rx_response`; the first two are not those of tx."""

    data_validated = lib.NETRXF_data_validated
    csum_blank = lib.NETRXF_csum_blank
    more_data = lib.NETRXF_more_data
    extra_info = lib.NETRXF_extra_info
    gso_prefix = lib.NETRXF_gso_prefix


class XEN_NETIF_EXTRA_TYPE(IntEnum):  # noqa: N801 - the prefix of Xen's names
    """`netif_extra_info.type`; 5 is XDP only where negotiated."""

    NONE = lib.XEN_NETIF_EXTRA_TYPE_NONE
    GSO = lib.XEN_NETIF_EXTRA_TYPE_GSO
    MCAST_ADD = lib.XEN_NETIF_EXTRA_TYPE_MCAST_ADD
    MCAST_DEL = lib.XEN_NETIF_EXTRA_TYPE_MCAST_DEL
    HASH = lib.XEN_NETIF_EXTRA_TYPE_HASH
    XDP = lib.XEN_NETIF_EXTRA_TYPE_XDP


class XEN_NETIF_GSO_TYPE(IntEnum):  # noqa: N801 - the prefix of Xen's names
    """`netif_extra_info.u.gso.type`."""

    NONE = lib.XEN_NETIF_GSO_TYPE_NONE
    TCPV4 = lib.XEN_NETIF_GSO_TYPE_TCPV4
    TCPV6 = lib.XEN_NETIF_GSO_TYPE_TCPV6


class XEN_NETIF_CTRL_TYPE(IntEnum):  # noqa: N801 - the prefix of Xen's names
    """`xen_netif_ctrl_request.type`."""

    INVALID = lib.XEN_NETIF_CTRL_TYPE_INVALID
    GET_HASH_FLAGS = lib.XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS
    SET_HASH_FLAGS = lib.XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS
    SET_HASH_KEY = lib.XEN_NETIF_CTRL_TYPE_SET_HASH_KEY
    GET_HASH_MAPPING_SIZE = lib.XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE
    SET_HASH_MAPPING_SIZE = lib.XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE
    SET_HASH_MAPPING = lib.XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING
    SET_HASH_ALGORITHM = lib.XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM
    GET_GREF_MAPPING_SIZE = lib.XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE
    ADD_GREF_MAPPING = lib.XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING
    DEL_GREF_MAPPING = lib.XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING


class XEN_NETIF_CTRL_STATUS(IntEnum):  # noqa: N801 - the prefix of Xen's names
    """`xen_netif_ctrl_response.status`."""

    SUCCESS = lib.XEN_NETIF_CTRL_STATUS_SUCCESS
    NOT_SUPPORTED = lib.XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED
    INVALID_PARAMETER = lib.XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER
    BUFFER_OVERFLOW = lib.XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW


class XEN_NETIF_CTRL_HASH_TYPE(IntFlag):  # noqa: N801 - the prefix of Xen's names
    """Mask of the hashes in use; a HASH extra carries the number of one bit."""

    IPV4 = lib.XEN_NETIF_CTRL_HASH_TYPE_IPV4
    IPV4_TCP = lib.XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP
    IPV6 = lib.XEN_NETIF_CTRL_HASH_TYPE_IPV6
    IPV6_TCP = lib.XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP
