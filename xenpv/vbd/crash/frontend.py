"""The frontend that the crash driver becomes: keys, walks and features (xencrsh frontend.c)."""

from __future__ import annotations

from typing import Final

from xenpv.abi.xenbus import XenbusState as State
from xenpv.errors import StoreError
from xenpv.vbd import blkif
from xenpv.vbd.crash.backend import CrashBackend, number
from xenpv.vbd.crash.failure import CrashError
from xenpv.vbd.crash.ring import Ring
from xenpv.vbd.crash.store import CrashStore

DOMID_MAX: Final = 0x7FEF
# What the connection before may have left, and would mislead the backend.
STALE: Final = (
    "ring-page-order",
    "feature-online-resize",
    "feature-surprise-remove",
    "multi-queue-num-queues",
    "feature-persistent",
)


class CrashFrontend:
    """Of device/vbd/`device`, as target `target_id`; `device` is what the store has for it."""

    def __init__(self, store: CrashStore, device: str, target_id: int) -> None:
        self.store = store
        self.device = device
        self.target_id = target_id
        self.path = f"device/vbd/{device}"
        self.backend_path = ""
        self.backend_domid = 0

    @property
    def handle(self) -> int:
        """blkif_vdev_t is 16 bits wide."""
        return number(self.device, 0) & 0xFFFF

    @classmethod
    def find(cls, store: CrashStore, device: str, target_id: int) -> CrashFrontend:
        """With its backend. CrashError where the directory names none."""
        found = cls(store, device, target_id)
        domid = number(store.read(f"{found.path}/backend-id"), 0)
        path = store.read(f"{found.path}/backend")
        if not path or domid > DOMID_MAX:
            raise CrashError(f"{found.path}: there is no such device")
        found.backend_path, found.backend_domid = path, domid
        return found

    def clear(self) -> None:
        """After its own close: no stale key stays."""
        for key in STALE:
            self.store.remove(f"{self.path}/{key}")

    def prepare(self) -> None:
        """Before the walk to InitWait."""
        home = f"data/scsi/target/{self.target_id}"
        for key, value in (
            ("frontend", self.path),
            ("device", self.device),
            ("filter", "absent"),
        ):
            self.store.write(f"{home}/{key}", value)
        self.switch_state(State.INITIALISING)

    def connect(self, ring: Ring, backend: CrashBackend) -> None:
        """Before the walk to Connected: the keys in a transaction, then Initialised."""
        keys = {
            "event-channel": str(ring.port),
            "ring-ref": str(ring.gref),
            "protocol": blkif.PROTOCOL,
            "feature-surprise-remove": "1",
            "feature-online-resize": "1",
        }
        if backend.units.large_feature:
            keys["feature-large-sector-size"] = "1"
        keys["multi-queue-num-queues"] = "1"
        self.store.write_all(self.path, keys)
        self.switch_state(State.INITIALISED)

    def switch_state(self, state: State) -> None:
        self.store.write(f"{self.path}/state", str(int(state)))


def devices(store: CrashStore) -> list[str]:
    """The names below device/vbd. CrashError: there are none."""
    try:
        return store.directory("device/vbd")
    except StoreError as error:
        raise CrashError(f"device/vbd: {error}") from error


TARGETS_MAX: Final = 128  # XENVBD_MAX_TARGETS of the crash driver
FALLBACK: Final = ("768", 0)  # vdev hda, target 0


def find_target(store: CrashStore, usage: str) -> tuple[str, int]:
    """The device and TargetId of the first target with that usage, or the fallback."""
    try:
        names = store.directory("data/scsi/target")
    except StoreError as error:
        if error.name != "ENOENT":
            raise
        names = []
    numbers = sorted(int(name) for name in names if name.isdecimal() and len(name) < 4)
    for target_id in numbers:
        home = f"data/scsi/target/{target_id}"
        if target_id < TARGETS_MAX and number(store.read(f"{home}/{usage}"), 0):
            device = store.read(f"{home}/device")
            if device:
                return device, target_id
    return FALLBACK
