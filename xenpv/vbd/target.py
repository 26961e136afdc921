"""A XenVbd target: the SCSI device over one frontend (win-xenvbd target.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.errors import LocalProtocolError
from xenpv.vbd import cdb
from xenpv.vbd.backend import Backend
from xenpv.vbd.frontend import After, Frontend, FrontendState
from xenpv.vbd.personality import Personality
from xenpv.vbd.request import DISCARD, FLUSH_DISKCACHE, READ, Part
from xenpv.vbd.srb import Srb, SrbFunction, SrbStatus
from xenpv.xen.domain import Domain

if TYPE_CHECKING:
    from xenpv.bus.xenbus import XenBus
    from xenpv.vbd.adapter import Vbd

TRANSFER_MAX: Final = 4 << 20  # bytes an SRB may carry: MaximumTransferLength
WIRE_SECTOR: Final = 512
UNMAP_HEADER: Final = 8
UNMAP_DESCRIPTOR: Final = 16


class Target:
    """One disk of the adapter. `missing`: its device went; every SRB ends as NO_DEVICE.

    `handles`: how many hold it open; while any does, the system does not let it go.
    """

    __slots__ = (
        "_draining",
        "_resetting",
        "adapter",
        "bus",
        "devid",
        "frontend",
        "handles",
        "missing",
        "personality",
        "target_id",
    )
    frontend: Frontend

    def __init__(
        self,
        adapter: Vbd,
        bus: XenBus,
        personality: Personality,
        devid: int,
        target_id: int,
    ) -> None:
        self.adapter = adapter
        self.bus = bus
        self.personality = personality
        self.devid = devid
        self.target_id = target_id
        self.missing = False
        self.handles = 0
        self._draining: list[Srb] = []  # SHUTDOWN, FLUSH
        self._resetting: list[Srb] = []
        self.frontend = Frontend(
            bus=self.bus, personality=self.personality, devid=self.devid, target=self
        )

    @property
    def domain(self) -> Domain:
        return self.bus.domain

    @property
    def state(self) -> FrontendState:
        return self.frontend.state

    @property
    def broken(self) -> str:
        return self.frontend.broken

    @property
    def backend(self) -> Backend:
        return self.frontend.backend

    @property
    def info(self) -> int:
        """VDISK_* bits."""
        return self.backend.info

    @property
    def sector_size(self) -> int:
        """Logical, in bytes."""
        return self.backend.sector_size

    @property
    def sectors(self) -> int:
        """Capacity in logical sectors."""
        return self.backend.capacity

    # SRBs

    def submit(self, srb: Srb) -> None:
        """BuildIo and StartIo. LocalProtocolError: more than TRANSFER_MAX bytes, which the
        adapter told the class driver not to send.
        """
        if srb.data_transfer_length > TRANSFER_MAX:
            raise LocalProtocolError(
                f"an SRB of {srb.data_transfer_length} bytes: at most {TRANSFER_MAX} fit"
            )
        if srb.function == SrbFunction.EXECUTE_SCSI:
            self._execute(srb)
        elif self.missing and srb.function in _NEEDS_DEVICE:
            srb.complete(SrbStatus.NO_DEVICE)
        elif srb.function in (SrbFunction.SHUTDOWN, SrbFunction.FLUSH):
            self._drain(srb)
        elif srb.function == SrbFunction.RESET_DEVICE:
            self.reset(srb)
        elif srb.function == SrbFunction.ABORT_COMMAND:
            srb.complete(SrbStatus.ABORT_FAILED)
        elif srb.function == SrbFunction.PNP:
            srb.complete(SrbStatus.SUCCESS)
        else:
            srb.complete(SrbStatus.INVALID_REQUEST)

    def _execute(self, srb: Srb) -> None:
        if srb.path_id:
            srb.complete(SrbStatus.INVALID_PATH_ID)
        elif srb.lun:
            srb.complete(SrbStatus.INVALID_LUN)
        elif self.missing:
            srb.complete(SrbStatus.NO_DEVICE)
        else:
            cdb.execute(self, srb)

    def transfer(self, srb: Srb, operation: int, lba: int, count: int) -> None:
        """READ or WRITE of `count` logical sectors."""
        backend = self.backend
        nr_bytes = count * backend.sector_size
        if (
            not self.frontend.is_enabled
            or (operation != READ and backend.is_readonly)
            or lba >= backend.capacity
            or lba + count > backend.capacity
            or nr_bytes > srb.data_transfer_length
        ):
            srb.complete(SrbStatus.ERROR)
        elif not count:
            # The driver queues it and never completes it.
            srb.complete(SrbStatus.SUCCESS)
        else:
            srb.data_transfer_length = nr_bytes
            unit = backend.sector_size // WIRE_SECTOR
            self._queue(srb, [Part(srb, operation, lba * unit, count * unit)])

    def flush(self, srb: Srb) -> None:
        """SYNCHRONIZE CACHE: whatever it names, all of the disk."""
        if self.frontend.is_enabled:
            self._queue(srb, [Part(srb, FLUSH_DISKCACHE)])
        else:
            srb.complete(SrbStatus.ERROR)

    def unmap(self, srb: Srb, length: int) -> None:
        """UNMAP with a parameter list of `length` bytes; what the buffer lacks is not read."""
        backend = self.backend
        data = srb.read_data(self.domain)[:length]
        described = int.from_bytes(data[2:4], "big")
        end = min(UNMAP_HEADER + described, len(data))
        parts = []
        valid = self.frontend.is_enabled and len(data) >= UNMAP_HEADER and not backend.is_readonly
        unit = backend.sector_size // WIRE_SECTOR
        for at in range(UNMAP_HEADER, end - UNMAP_DESCRIPTOR + 1, UNMAP_DESCRIPTOR):
            lba = int.from_bytes(data[at : at + 8], "big")
            count = int.from_bytes(data[at + 8 : at + 12], "big")
            valid = valid and lba + count <= backend.capacity
            if count:
                parts.append(Part(srb, DISCARD, lba * unit, count * unit))
        if not valid:
            srb.complete(SrbStatus.ERROR)
        elif not (parts and backend.discard):
            srb.complete(SrbStatus.SUCCESS)  # a hint that nobody takes
        else:
            self._queue(srb, parts)

    def _queue(self, srb: Srb, parts: list[Part]) -> None:
        srb.outstanding = len(parts)
        rings = self.frontend.rings
        ring = rings[srb.queue_tag % len(rings)]
        for part in parts:
            ring.submit(part)

    def _drain(self, srb: Srb) -> None:
        """SHUTDOWN and FLUSH: done when the rings are empty; BUSY while they are disabled."""
        if not self.frontend.is_enabled:
            srb.complete(SrbStatus.BUSY)
        elif self.frontend.is_idle:
            srb.complete(SrbStatus.SUCCESS)
        else:
            self._draining.append(srb)

    def ring_idle(self) -> None:
        if self._draining and self.frontend.is_idle:
            draining, self._draining = self._draining, []
            for srb in draining:
                srb.complete(SrbStatus.SUCCESS)

    def reset(self, srb: Srb) -> None:
        """RESET_DEVICE: SUCCESS in the end, at once where there is nothing to reset."""
        if self.state is FrontendState.ENABLED:
            self._resetting.append(srb)
            self.frontend.disable(After.ENABLE)
        elif self._resetting:
            self._resetting.append(srb)
        else:
            srb.complete(SrbStatus.SUCCESS)

    def reset_done(self) -> None:
        resetting, self._resetting = self._resetting, []
        for srb in resetting:
            srb.complete(SrbStatus.SUCCESS)

    # life

    def capacity_changed(self) -> None:
        """The size of a disk that was there before is another."""

    def start(self) -> None:
        """Power up: to ENABLED, asynchronously."""
        self.frontend.start()

    def stop(self) -> None:
        """Power down: to CLOSED, asynchronously."""
        self.frontend.close()

    def request_eject(self) -> None:
        """IoRequestDeviceEject: the system is asked, in a task of its own."""
        self.adapter.request_eject(self)

    def query_eject(self) -> None:
        """QUERY_REMOVE, then EJECT, or CANCEL_REMOVE where somebody has it open."""
        if self.missing:
            return
        if self.handles:
            self.frontend.eject_failed()
        else:
            self.eject()

    def eject(self) -> None:
        """The host takes the disk away, and the system agrees: Missing, then closed."""
        self.bus.log(f"xenvbd: target {self.target_id}: ejected\n")
        self.vanish()

    def vanish(self) -> None:
        """The device is gone or going: no more SRBs."""
        if not self.missing:
            self.missing = True
            self.frontend.close()

    def frontend_closed(self) -> None:
        """The frontend came to rest in CLOSED or INVALID."""
        self.reset_done()
        self.ring_idle()
        self.adapter.target_closed(self)

    @property
    def has_failed(self) -> bool:
        """It did not connect: tried again when its directory changes or its backend comes."""
        return not self.missing and self.is_closed and self.state is not FrontendState.INITIALIZED

    @property
    def has_no_backend(self) -> bool:
        """It waits, and its directory does not say for whom."""
        return bool(self.frontend.handshake.goals) and not self.frontend.handshake.backend

    @property
    def is_closed(self) -> bool:
        """At rest: nothing is on its way, neither up nor down."""
        resting = (FrontendState.INITIALIZED, FrontendState.CLOSED, FrontendState.INVALID)
        return self.state in resting and not self.frontend.handshake.goals


_NEEDS_DEVICE: Final = (SrbFunction.SHUTDOWN, SrbFunction.FLUSH, SrbFunction.RESET_DEVICE)
