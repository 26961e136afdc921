"""The link as the toolstack has it: `speed` and `disconnect` of the frontend's directory.

XenVif watches both while the interface is enabled. The toolstack may plug the cable out and in,
and change the speed, at any time.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from xenpv.bus.handshake import parse_flag
from xenpv.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpv.bus.store import Watch
    from xenpv.bus.xenbus import XenBus

KEYS: Final = ("speed", "disconnect")
UNITS: Final = {"g": 10**9, "m": 10**6, "k": 10**3}  # bit/s
SPEED: Final = re.compile(r"[ \t\n\v\f\r]*\+?([0-9]{1,19})(.?)", re.DOTALL | re.ASCII)
SPEED_MAX: Final = (1 << 64) - 1


def parse_speed(text: str) -> int:
    """A decimal number and at most one letter, g, m or k in either case; without one it is g.

    In bit/s; 0 for anything else, and for what no u64 holds.
    """
    found = SPEED.fullmatch(text)
    if found is None:
        return 0
    unit = UNITS.get(found[2].lower() or "g", 0)
    speed = int(found[1]) * unit
    return speed if speed <= SPEED_MAX else 0


class Link:
    """Of the interface at `path`. `changed` is called when one of the keys changed.

    `speed` is in bit/s, 0 where the toolstack's text is no speed; `default` where it names none.
    """

    def __init__(self, bus: XenBus, path: str, default: int, changed: Callable[[], object]) -> None:
        self.bus = bus
        self.path = path
        self.speed = self._default = default
        self.is_disconnected = False
        self._changed = changed
        self._task = bus.domain.task(f"{path} link", self._look)
        self._watches: list[Watch] = []
        self._fresh: list[bytes] = []  # watches whose first event says nothing new

    @property
    def is_up(self) -> bool:
        return bool(self.speed) and not self.is_disconnected

    def watch(self) -> None:
        """Begin to listen. StoreError, and then it does not."""
        try:
            for key in KEYS:
                path = f"{self.path}/{key}"
                self._fresh.append(path.encode())
                self._watches.append(self.bus.store.watch_add(path, self._task, self._is_news))
            self.read()
        except StoreError:
            self.unwatch()
            raise

    def _is_news(self, path: bytes) -> bool:
        """The first event of a watch comes with it: what it is about is read then."""
        if path in self._fresh:
            self._fresh.remove(path)
            return False
        return True

    def unwatch(self) -> None:
        watches, self._watches = self._watches, []
        self._fresh.clear()
        for watch in watches:
            try:
                self.bus.store.watch_remove(watch)
            except StoreError as error:
                self.bus.log(f"xenvif: {self.path}: {error}\n")

    def read(self) -> None:
        """StoreError: nothing could be read."""
        speed, disconnect = self.bus.store.get_many([f"{self.path}/{key}" for key in KEYS])
        self.speed = self._default if speed is None else parse_speed(speed)
        self.is_disconnected = parse_flag(disconnect)

    def _look(self) -> None:
        if not self._watches:
            return  # an event from before
        before = self.speed, self.is_disconnected
        try:
            self.read()
        except StoreError as error:
            self.bus.log(f"xenvif: {self.path}: {error}\n")
        if before != (self.speed, self.is_disconnected):
            self._changed()

    def forget(self) -> None:
        """The interface is gone."""
        self.unwatch()
        self.bus.domain.forget(self._task)
