"""The backend's multicast filter, as XenVif keeps it (mac.c and transmitter.c).

A backend that follows a list is told each group by a request on queue 0. It filters while
`request-multicast-control` is 1, which it is unless this end wants every group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from xenpv.errors import StoreError
from xenpv.vif.callbacks import PacketType

if TYPE_CHECKING:
    from xenpv.vif.frontend import Frontend

KEY: Final = "request-multicast-control"
LEVEL_ALL: Final = 2  # mac.py's FilterLevel


class MulticastControl:
    """Of one interface, over all its connections."""

    __slots__ = ("_frontend", "_written")

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend
        self._written = ""

    @property
    def is_used(self) -> bool:
        """The backend of this connection follows a list, and may."""
        frontend = self._frontend
        disabled = frontend.parameters.transmitter.disable_multicast_control
        return frontend.features.dynamic_multicast and not disabled

    def keys(self) -> list[tuple[str, str | None]]:
        """What is written when it connects."""
        self._written = self._value() if self.is_used else ""
        return [(KEY, self._written)] if self._written else []

    def _value(self) -> str:
        level = self._frontend.mac.levels[PacketType.MULTICAST]
        return "0" if level == LEVEL_ALL else "1"

    def level_changed(self) -> None:
        """Another filter level, while it is connected."""
        frontend = self._frontend
        if not self.is_used or not frontend.queues:
            return
        value = self._value()
        if value == self._written:
            return
        self._written = value
        path = f"{frontend.path}/{KEY}"
        try:
            frontend.bus.store.write(path, value)
        except StoreError as error:
            frontend.bus.log(f"xenvif: {path}: {error}\n")

    def replace(self, old: Sequence[bytes], new: Sequence[bytes]) -> None:
        """Add those that are new, then remove the missing."""
        if not self.is_used or not self._frontend.queues:
            return
        changes = [(address, True) for address in new if address not in old]
        changes += [(address, False) for address in old if address not in new]
        if changes:
            self._frontend.queues[0].control_multicast(changes)
