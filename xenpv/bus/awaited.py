"""Backends that may still come: of devices that failed, or waited, without one.

The drivers of Windows try once. A toolstack that writes the two ends in any order would leave
them without their device, so here a device is tried again when its backend appears.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from xenpv.abi.xenbus import XenbusState as State
from xenpv.bus.handshake import parse_flag, parse_state
from xenpv.bus.store import Watch
from xenpv.errors import StoreError
from xenpv.xen.loop import Task

if TYPE_CHECKING:
    from xenpv.bus.xenbus import XenBus

TRIES_MAX: Final = 16  # of one device, while its directory is there
COMING: Final = (State.INITIALISING, State.INIT_WAIT)
CLOSED_TOO: Final = (*COMING, State.CLOSED)


class Awaited:
    """By device number: the backend's path, its watches, and the states to wait for."""

    def __init__(self, bus: XenBus, task: Task) -> None:
        self.bus = bus
        self._task = task
        self._backends: dict[int, tuple[str, Sequence[State], list[Watch]]] = {}
        self._tries: dict[int, int] = {}

    def add(self, number: int, path: str | None, states: Sequence[State] = COMING) -> None:
        """Wake the scan when that backend moves; not if it is there by now, and would do."""
        self.drop(number)
        if not path or self._tries.get(number, 0) >= TRIES_MAX or self._is_there(path, states):
            return
        watches: list[Watch] = []
        self._backends[number] = path, states, watches
        try:
            watches += [
                self.bus.store.watch_add(f"{path}/{key}", self._task) for key in ("state", "online")
            ]
        except StoreError as error:
            self.bus.log(f"{path}: {error}\n")

    def _is_there(self, path: str, states: Sequence[State]) -> bool:
        store = self.bus.store
        try:
            state, online = store.get(f"{path}/state"), store.get(f"{path}/online")
        except StoreError:
            return False
        return state is not None and parse_state(state) in states and parse_flag(online)

    def due(self) -> list[int]:
        """Those whose backend is there now; they are not waited for any more."""
        found = [
            number
            for number, (path, states, _watches) in self._backends.items()
            if self._is_there(path, states)
        ]
        for number in found:
            self._tries[number] = self._tries.get(number, 0) + 1
            self.drop(number)
        return found

    def drop(self, number: int) -> None:
        """It is there, or nobody wants it any more."""
        _path, _states, watches = self._backends.pop(number, ("", (), []))
        for watch in watches:
            try:
                self.bus.store.watch_remove(watch)
            except StoreError as error:
                self.bus.log(f"{watch.path!r}: {error}\n")

    def keep(self, numbers: Sequence[int]) -> None:
        """The others' directories are gone, and what was tried with them."""
        for number in [one for one in self._backends if one not in numbers]:
            self.drop(number)
        self._tries = {one: tries for one, tries in self._tries.items() if one in numbers}
