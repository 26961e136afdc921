"""What the system keeps on a disk, as it tells its driver (IRP_MN_DEVICE_USAGE_NOTIFICATION).

The crash driver finds the disk by these keys below data/scsi/target.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from xenpv.errors import StoreError
from xenpv.vbd.personality import WINDOWS

if TYPE_CHECKING:
    from xenpv.vbd.frontend import Frontend


class UsageType(enum.Enum):
    """DEVICE_USAGE_NOTIFICATION_TYPE; each is named as its key."""

    PAGING = "paging"
    HIBERNATION = "hibernation"
    DUMP = "dump"


class Usage:
    """`counts`: how many files of a kind are there. The driver has the last notification alone."""

    __slots__ = ("_frontend", "counts")

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend
        self.counts = dict.fromkeys(UsageType, 0)

    def notify(self, kind: UsageType, in_path: bool) -> None:
        """A file comes onto the disk, or goes. In D3 its key is written by the next Prepare."""
        self.counts[kind] = max(0, self.counts[kind] + (1 if in_path else -1))
        frontend = self._frontend
        if frontend.is_down or frontend.personality is not WINDOWS:
            return
        path = f"data/scsi/target/{frontend.target.target_id}/{kind.value}"
        try:
            frontend.store.write(path, self.values()[kind.value])
        except StoreError as error:
            frontend.bus.log(f"xenvbd: {path}: {error}\n")

    @property
    def is_used(self) -> bool:
        """The system does not let go of the disk."""
        return any(self.counts.values())

    def values(self) -> dict[str, str]:
        """By key: 0 or 1."""
        return {kind.value: str(int(count > 0)) for kind, count in self.counts.items()}
