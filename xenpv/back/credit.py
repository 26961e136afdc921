"""The rate limit of a vif: credit in bytes, filled up once per window (netback's credit_*).

`rate` of the backend's directory is "bytes,usec". A packet that is beyond the credit stays on
the ring until a timer has filled it up; none is ever dropped for it.
"""

from __future__ import annotations

from typing import Final

import attrs

from xenpv.xen.loop import NS_PER_MS, Task, Timer

BURST_MIN: Final = 131_072  # bytes, whatever the rate: the largest packet must get through once
_ULONG: Final = (1 << 64) - 1
_USEC_PER_MS: Final = 1000


@attrs.frozen
class Rate:
    """`bytes` in each window of `window_ns`: whole milliseconds, as netback counts."""

    bytes: int
    window_ns: int

    @classmethod
    def parse(cls, text: str | None) -> Rate | None:
        """xen_net_read_rate: two decimal numbers and nothing else; None: no limit."""
        credit, comma, usec = (text or "").partition(",")
        if not comma or not _is_decimal(credit) or not _is_decimal(usec):
            return None
        window_ms = (int(usec) & _ULONG) // _USEC_PER_MS
        return cls(int(credit) & _ULONG, window_ms * NS_PER_MS)


def _is_decimal(text: str) -> bool:
    return text.isascii() and text.isdigit()


class Credit:
    """What one queue may still send. `task` is woken when there is more: call `refill` then."""

    def __init__(self, rate: Rate, timer: Timer) -> None:
        self.rate = rate
        self.remaining = rate.bytes
        self._timer = timer
        self._start = timer.loop.now  # of the present window

    @property
    def task(self) -> Task:
        return self._timer.task

    @property
    def is_waiting(self) -> bool:
        """Whether a packet waits for the next window."""
        return self._timer.armed

    def spend(self, size: int) -> bool:
        """Pay for a packet of `size` bytes; False: it has to wait."""
        if size > self.remaining and self._is_exceeded(size):
            return False
        self.remaining -= size
        return True

    def covers(self, size: int) -> bool:
        """Pay for packets of `size` bytes in all if none of them has to wait; else nothing."""
        if size > self.remaining:
            return False
        self.remaining -= size
        return True

    def _is_exceeded(self, size: int) -> bool:
        """tx_credit_exceeded."""
        if self._timer.armed:
            return True
        now = self._timer.loop.now
        following = self._start + self.rate.window_ns
        if now >= following:
            self._start = now
            self.refill()
        if size <= self.remaining:
            return False
        # Of nothing there will never be more: Linux' timer would fire for ever.
        if self.rate.bytes:
            self._await(following)
            self._start = following
        return True

    def _await(self, following: int) -> None:
        """Come back when the window that begins at `following` does."""
        self._timer.arm(max(0, following - self._timer.loop.now))

    def refill(self) -> None:
        """tx_add_credit: one window's worth, up to a burst."""
        most = max(BURST_MIN, self.rate.bytes)
        self.remaining = min(self.remaining + self.rate.bytes, most)

    def change(self, rate: Rate) -> None:
        """xen_net_rate_changed: who waits need wait no longer; saved credit is cut to the rate."""
        self.rate = rate
        if self._timer.armed:
            self._timer.arm(0)
        elif self.remaining > rate.bytes:
            self.remaining = rate.bytes

    def cancel(self) -> None:
        self._timer.cancel()
