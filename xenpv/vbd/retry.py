"""What a class driver sends again (classpnp, ClassInterpretSenseInfo): what may pass.

Refused requests and devices that are gone do not. Of sense data, ILLEGAL REQUEST and DATA
PROTECT do not; without any, an ERROR says nothing of its reason, and is tried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.vbd.srb import Srb, SrbStatus
from xenpv.xen.loop import NS_PER_MS, Timer

if TYPE_CHECKING:
    from xenpv.vbd.pending import Piece
    from xenpv.vbd.target import Target

INTERVAL_NS: Final = 1000 * NS_PER_MS
PASSING: Final = (
    SrbStatus.ABORTED,
    SrbStatus.ERROR,
    SrbStatus.BUSY,
    SrbStatus.TIMEOUT,
    SrbStatus.BUS_RESET,
    SrbStatus.REQUEST_FLUSHED,
)
FINAL_KEYS: Final = (0x5, 0x7)  # ILLEGAL REQUEST, DATA PROTECT


def may_pass(srb: Srb) -> bool:
    """Whether a failed SRB may succeed later."""
    key = srb.sense_info[2] & 0x0F if len(srb.sense_info) > 2 else 0
    return srb.srb_status in PASSING and key not in FINAL_KEYS


class Retry:
    """Pieces of one disk's commands that wait for their next try, INTERVAL_NS at most."""

    __slots__ = ("_target", "_timer", "_waiting")

    def __init__(self, target: Target) -> None:
        self._target = target
        self._waiting: list[Piece] = []
        task = target.domain.task(f"disk {target.devid} retry", self._again)
        self._timer: Timer = target.domain.timer(task)

    def later(self, piece: Piece) -> None:
        piece.repeat()
        self._waiting.append(piece)
        if not self._timer.armed:
            self._timer.arm(INTERVAL_NS)

    def _again(self) -> None:
        waiting, self._waiting = self._waiting, []
        for piece in waiting:
            self._target.submit(piece.srb)

    def forget(self) -> None:
        """The device is gone: what waits learns it now."""
        self._target.domain.forget_timer(self._timer)
        self._again()
