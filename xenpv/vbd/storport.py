"""What the port driver above XenVbd keeps for it: its limits, and a queue for each disk.

storport.h of the Windows kit; the numbers are those of win-xenvbd fdo.c and target.c.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Final, Protocol

import attrs

from xenpv.errors import LocalProtocolError
from xenpv.vbd.srb import Srb

# SRBs of one LUN that the miniport has at a time; every INQUIRY sets it anew.
QUEUE_DEPTH: Final = 254


class SpReturn(enum.IntEnum):
    """SP_RETURN_*: what HwFindAdapter says of an adapter."""

    NOT_FOUND = 0
    FOUND = 1
    ERROR = 2
    BAD_CONFIG = 3


class StorPnpAction(enum.IntEnum):
    """STOR_PNP_ACTION, of an SRB_FUNCTION_PNP."""

    START_DEVICE = 0x00
    REMOVE_DEVICE = 0x02
    STOP_DEVICE = 0x04
    QUERY_CAPABILITIES = 0x09
    QUERY_RESOURCE_REQUIREMENTS = 0x0B
    FILTER_RESOURCE_REQUIREMENTS = 0x0D
    SURPRISE_REMOVAL = 0x17


@attrs.frozen(kw_only=True)
class PortConfiguration:
    """PORT_CONFIGURATION_INFORMATION, the fields that bind whoever sends SRBs.

    `maximum_transfer_length` is in bytes. A buffer is at most `number_of_physical_breaks` + 1
    pieces, and starts where its address and `alignment_mask` have no bit in common.
    """

    number_of_buses: int = 1
    maximum_number_of_targets: int = 255
    maximum_number_of_logical_units: int = 1
    maximum_transfer_length: int = 4 << 20
    number_of_physical_breaks: int = 1023
    alignment_mask: int = 0
    auto_request_sense: bool = True
    full_duplex: bool = True

    def check(self, srb: Srb) -> None:
        """LocalProtocolError for a buffer that the port driver would have split."""
        if srb.data_transfer_length > self.maximum_transfer_length:
            raise LocalProtocolError(
                f"an SRB of {srb.data_transfer_length} bytes: at most "
                f"{self.maximum_transfer_length} fit"
            )
        if len(srb.data) > self.number_of_physical_breaks + 1:
            raise LocalProtocolError(
                f"an SRB with a buffer of {len(srb.data)} pieces: at most "
                f"{self.number_of_physical_breaks + 1} fit"
            )


CONFIGURATION: Final = PortConfiguration()


@attrs.frozen(kw_only=True)
class Capabilities:
    """STOR_DEVICE_CAPABILITIES: what StorQueryCapabilities answers of a disk."""

    removable: bool
    eject_supported: bool
    surprise_removal_ok: bool = True
    unique_id: bool = True


class Device(Protocol):
    """The miniport's side of one LUN."""

    def start_io(self, srb: Srb) -> None:
        """Run it; it may be complete when this returns."""

    @property
    def takes_srbs(self) -> bool:
        """False: its rings come back soon, and what waits shall wait for that."""


class LunQueue:
    """EXECUTE_SCSI of one LUN: `depth` of them are with the miniport, the others wait here."""

    __slots__ = ("_tag", "depth", "device", "outstanding", "waiting")

    def __init__(self, device: Device) -> None:
        self.device = device
        self.depth: int = QUEUE_DEPTH
        self.outstanding = 0  # SRBs that the miniport did not complete at once
        self.waiting: deque[Srb] = deque()
        self._tag = 0

    def tag(self) -> int:
        """A queue tag for the next SRB: 1 to QUEUE_DEPTH, in turn."""
        self._tag = self._tag % QUEUE_DEPTH + 1
        return self._tag

    def submit(self, srb: Srb) -> None:
        if self.waiting or self.outstanding >= self.depth:
            self.waiting.append(srb)
        else:
            self.device.start_io(srb)

    def hold(self, srb: Srb) -> None:
        """The miniport has it on its rings: it counts until it completes."""
        srb.lun_queue = self
        self.outstanding += 1

    def completed(self) -> None:
        self.outstanding -= 1
        if self.waiting:
            self.start()

    def start(self) -> None:
        """As many as there is room for, the oldest first."""
        waiting = self.waiting
        while waiting and self.outstanding < self.depth and self.device.takes_srbs:
            self.device.start_io(waiting.popleft())
