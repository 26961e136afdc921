"""Frames of a host's network as lists of a guest's adapter, and back.

Where the kernel behind a TAP or a bridge in a guest is what is bound to the adapter.
"""

from __future__ import annotations

from typing import Final

from xenpv.host.network import GSO_NONE, GSO_TCPV4, GSO_TCPV6, Frame
from xenpv.host.packet import TCP, parse_headers
from xenpv.net.nbl import ChecksumRequest, ChecksumResult, NetBufferList

# Plain numbers: enum's cost much for each frame.
_IS: Final = {4: int(ChecksumRequest.IS_IPV4), 6: int(ChecksumRequest.IS_IPV6)}
_TCP, _UDP = int(ChecksumRequest.TCP), int(ChecksumRequest.UDP)
_VALIDATED: Final = int(ChecksumResult.TCP_SUCCEEDED | ChecksumResult.UDP_SUCCEEDED)
_FAILED: Final = int(ChecksumResult.TCP_FAILED | ChecksumResult.UDP_FAILED)


def list_of(frame: Frame) -> NetBufferList:
    """What NDIS is told of a frame whose checksum or cutting is left to the adapter."""
    if not frame.csum_blank:
        return NetBufferList(buffers=(frame.data,))
    headers = parse_headers(frame.data)
    if headers is None:
        return NetBufferList(buffers=(frame.data,))
    ipv6 = headers.version == 6
    request = _IS[headers.version] | (_TCP if headers.protocol == TCP else _UDP)
    return NetBufferList(buffers=(frame.data,), checksum=request, mss=frame.gso_size, is_ipv6=ipv6)


def frame_of(one: NetBufferList) -> Frame:
    """Its sums are written: XenVif is asked for their values."""
    good = bool(one.checksum & _VALIDATED) and not one.checksum & _FAILED
    kind = GSO_NONE if not one.mss else GSO_TCPV6 if one.is_ipv6 else GSO_TCPV4
    return Frame(one.buffers[0], data_validated=good, gso_type=kind, gso_size=one.mss)
