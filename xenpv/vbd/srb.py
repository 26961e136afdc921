"""SCSI request blocks: how the class driver talks to the port (srb.h of the Windows kit)."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, Protocol

import attrs

from xenpv.vbd.sense import SENSE_SIZE, Sense
from xenpv.xen.domain import PAGE_SIZE, Domain

if TYPE_CHECKING:
    from xenpv.vbd.storport import Capabilities

AUTOSENSE_VALID: Final = 0x80  # of an SRB's status byte: SRB_STATUS_AUTOSENSE_VALID


class SrbFunction(enum.IntEnum):
    """SRB_FUNCTION_*."""

    EXECUTE_SCSI = 0x00
    IO_CONTROL = 0x02
    SHUTDOWN = 0x07
    FLUSH = 0x08
    ABORT_COMMAND = 0x10
    RESET_BUS = 0x12
    RESET_DEVICE = 0x13
    TERMINATE_IO = 0x14
    WMI = 0x17
    LOCK_QUEUE = 0x18
    UNLOCK_QUEUE = 0x19
    RESET_LOGICAL_UNIT = 0x20
    POWER = 0x24
    PNP = 0x25
    DUMP_POINTERS = 0x26


class SrbStatus(enum.IntEnum):
    """SRB_STATUS_*, without the flag bits."""

    PENDING = 0x00
    SUCCESS = 0x01
    ABORTED = 0x02
    ABORT_FAILED = 0x03
    ERROR = 0x04
    BUSY = 0x05
    INVALID_REQUEST = 0x06
    INVALID_PATH_ID = 0x07
    NO_DEVICE = 0x08
    TIMEOUT = 0x09
    BUS_RESET = 0x0E
    DATA_OVERRUN = 0x12
    REQUEST_FLUSHED = 0x16
    INVALID_LUN = 0x20
    INVALID_TARGET_ID = 0x21


class ScsiStatus(enum.IntEnum):
    """SCSISTAT_*."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    BUSY = 0x08
    TASK_SET_FULL = 0x28
    TASK_ABORTED = 0x40


class Wakeup(Protocol):
    """Whoever is told that a request is complete: a task."""

    def wake(self) -> None: ...


class Completed(Protocol):
    """The port driver's queue that a request is out of."""

    def completed(self) -> None: ...


@attrs.define(eq=False)
class Srb:
    """One request. `data` is its buffer as a scatter list: (pfn, offset, length) in bytes of
    guest memory, an element running on into the pages that follow its first.

    `data_transfer_length` is the buffer's length going in and the bytes moved coming out.
    The port sets `srb_status` and `scsi_status` once, then wakes `on_complete`. Where the disk
    gives sense data, the first `sense_info_length` bytes of them come in `sense_info`, and
    AUTOSENSE_VALID is in `srb_flags`; `on_error` is what to say if the backend answers ERROR.
    `pnp_action` is of a PNP request only, and `capabilities` its answer.
    """

    function: int = SrbFunction.EXECUTE_SCSI
    cdb: bytes = b""
    data: list[tuple[int, int, int]] = attrs.Factory(list)
    path_id: int = 0
    target_id: int = 0
    lun: int = 0
    queue_tag: int = 0
    processor: int = 0  # that it was sent from
    on_complete: Wakeup | None = None
    sense_info_length: int = SENSE_SIZE
    sense_info: bytes = b""
    srb_flags: int = 0
    on_error: Sense | None = None
    pnp_action: int = 0
    capabilities: Capabilities | None = None
    lun_queue: Completed | None = None
    srb_status: SrbStatus = SrbStatus.PENDING
    scsi_status: ScsiStatus = ScsiStatus.GOOD
    data_transfer_length: int = attrs.field(init=False)
    outstanding: int = 0  # parts that its rings have not finished
    # Of the parts so far; once it is ERROR, or ABORTED, it stays so.
    outcome: SrbStatus = SrbStatus.SUCCESS
    success_status: ScsiStatus = ScsiStatus.GOOD  # that goes with it, if it is that

    def __attrs_post_init__(self) -> None:
        self.data_transfer_length = sum([length for _pfn, _offset, length in self.data])

    @property
    def is_complete(self) -> bool:
        return self.srb_status is not SrbStatus.PENDING

    def ring_index(self, nr_rings: int) -> int:
        """The ring that it goes to."""
        return (self.queue_tag or self.processor) % nr_rings

    @property
    def raw_status(self) -> int:
        """The status byte as it lies in the SRB, with its flag bits."""
        return self.srb_status | self.srb_flags

    def check_condition(self, sense: Sense) -> None:
        """Complete as ERROR with sense data; a buffer of no length gets none."""
        self.sense_info = sense.data[: max(0, self.sense_info_length)]
        self.srb_flags |= AUTOSENSE_VALID if self.sense_info else 0
        self.complete(SrbStatus.ERROR, ScsiStatus.CHECK_CONDITION)

    def complete(self, status: SrbStatus, scsi_status: ScsiStatus | None = None) -> None:
        """To the class driver; only once."""
        assert self.srb_status is SrbStatus.PENDING, "an SRB is completed once"
        assert status is not SrbStatus.PENDING
        self.srb_status = status
        if scsi_status is not None:
            self.scsi_status = scsi_status
        if self.on_complete is not None:
            self.on_complete.wake()
        if self.lun_queue is not None:
            self.lun_queue.completed()

    def part_done(self, status: SrbStatus) -> None:
        """One of `outstanding` parts ended; the last completes the request.

        ERROR: the backend said so. ABORTED: a reset, suspend or close gave it up, which the
        class driver sees as ERROR too, but never as the medium's fault.
        """
        if status is not SrbStatus.SUCCESS and self.outcome not in _FINAL:
            self.outcome = status
        self.outstanding -= 1
        if not self.outstanding:
            self._end(self.outcome)

    def _end(self, outcome: SrbStatus) -> None:
        if outcome is SrbStatus.SUCCESS:
            self.complete(outcome, self.success_status)
        elif outcome is SrbStatus.ERROR and self.on_error is not None:
            self.check_condition(self.on_error)
        else:
            status = SrbStatus.ERROR if outcome is SrbStatus.ABORTED else outcome
            self.complete(status, ScsiStatus.TASK_ABORTED)

    def read_data(self, domain: Domain) -> bytes:
        """The buffer's bytes."""
        return domain.gather(self._pieces(), self.data_transfer_length)

    def write_data(self, domain: Domain, reply: bytes) -> None:
        """Zero the buffer, put `reply` at its start, and say how long that is."""
        domain.scatter(self._pieces(), reply.ljust(self.data_transfer_length, b"\0"))
        self.data_transfer_length = len(reply)

    def _pieces(self) -> list[int]:
        pieces: list[int] = []
        for pfn, offset, length in self.data:
            pieces += (pfn + offset // PAGE_SIZE, offset % PAGE_SIZE, length)
        return pieces


_FINAL: Final = (SrbStatus.ERROR, SrbStatus.ABORTED)
