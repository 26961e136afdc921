"""blkback: a disk of a guest, as the kernel's (drivers/block/xen-blkback/xenbus.c) or another's.

What a profile tells apart is in its table: the keys, the states, and how the frontend's keys are
read. A device is Connected when its image is open and its rings are mapped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.blkkeys import (
    VDISK_CDROM,
    VDISK_READONLY,
    VDISK_REMOVABLE,
    Offer,
    read_front,
    sectors_of,
    values,
)
from xenpv.back.blkprofile import PROFILES, STATE, Opens, Pending, Profile, Settings, Step
from xenpv.back.blkring import Bounce, Vbd
from xenpv.back.blkthread import Queue, connect
from xenpv.back.xenbus import BackendBus, Device, state_of
from xenpv.errors import ConfigError, HypercallError, LocalProtocolError, PeerProtocolError
from xenpv.host.image import Image

ACTIVE: Final = (State.INITIALISED, State.CONNECTED, State.CLOSING)  # xen_device_frontend_is_active


class Images(Protocol):
    """Where images come from (host.image.ImageProvider)."""

    def open(self, params: str, writable: bool) -> Image:
        """Raises ConfigError."""

    def release(self, image: Image) -> None: ...


class BlkbackFactory:
    """Makes the driver of each disk of one backend domain.

    `settings_of(directory, frontend_domid, devid)` says which backend it is to be; None: Linux'.
    """

    def __init__(
        self, images: Images, settings_of: Callable[[str, int, int], Settings] | None = None
    ) -> None:
        self.images = images
        self.bounce = Bounce()
        self._settings_of = settings_of

    def by_directory(self) -> dict[str, BlkbackFactory]:
        """It serves every directory under backend/ that a profile names."""
        return dict.fromkeys((one.directory for one in PROFILES.values()), self)

    def __call__(self, device: Device) -> Blkback:
        of = self._settings_of
        settings = (
            Settings() if of is None else of(device.kind, device.frontend_domid, device.devid)
        )
        return Blkback(device, self.images, self.bounce, settings)


class Blkback:
    """The driver of one device.

    `leaving` are queues whose connection went while requests were in flight.
    """

    __slots__ = (
        "_gone",
        "_held",
        "bounce",
        "device",
        "images",
        "leaving",
        "profile",
        "queues",
        "settings",
        "vbd",
    )

    def __init__(self, device: Device, images: Images, bounce: Bounce, settings: Settings) -> None:
        self.device = device
        self.settings = settings
        self.profile: Profile = settings.profile
        self.images = images
        self.bounce = bounce
        self.vbd: Vbd | None = None
        self.queues: list[Queue] = []
        self.leaving: list[Queue] = []
        self._held: State | None = None  # a frontend's state that waits for requests in flight
        self._gone = False  # destroyed: what the frontend writes no longer matters

    @property
    def halted(self) -> bool:
        """Whether a ring of it is not looked at any more: the frontend broke the protocol."""
        return any(queue.halted for queue in self.queues)

    @halted.setter
    def halted(self, halted: bool) -> None:
        for queue in self.queues:
            queue.halted = halted

    # the bus

    def probe(self) -> None:
        """Keys that a frontend may read at InitWait, and InitWait where that is due."""
        device, profile = self.device, self.profile
        if profile.opens is Opens.AT_PROBE and not self._open_image():
            return
        if profile.watches_itself:
            device.keys["state"] = device.keys["online"] = self._own_key_changed
        early = values(profile.early, self._offer())
        if profile.in_one:
            device.store.transaction(lambda tx_id: device.write_all(early, tx_id))
            if STATE in early:
                device.note_state(State.INIT_WAIT)
            return
        for key, value in early.items():
            if key == STATE:
                device.switch_state(State.INIT_WAIT)
            else:
                device.write(key, value)

    def _offer(self) -> Offer:
        vbd, device = self.vbd, self.device
        info = 0
        if vbd is not None:
            info = VDISK_READONLY if vbd.readonly else 0
            if device.get("device-type") == "cdrom":
                info |= VDISK_CDROM
            if device.number("removable", 0):
                info |= VDISK_REMOVABLE
        return Offer(
            profile=self.profile,
            units=self.settings.units,
            queues_max=self._queues_max,
            vbd=vbd,
            info=info,
        )

    @property
    def _queues_max(self) -> int:
        return self.profile.queues_max or self.device.domain.vcpus

    def frontend_changed(self, state: State) -> None:
        """Do what the frontend's state asks for."""
        if self._gone or self._held is not None:
            return
        step = self.profile.walk.get((self.device.state, state))
        if step is None:
            return
        try:
            _STEPS[step](self, state)
        except (PeerProtocolError, HypercallError) as error:
            self._disconnect()
            self._refuse(str(error))

    def _refuse(self, why: str) -> None:
        """What is wrong with a frontend; where its backend does not close, its log has it."""
        device = self.device
        if self.profile.fatal:
            device.fatal(why)
        else:
            device.broken = device.broken or why
            device.domain.trace.note(device.domain.domid, f"{device.name}: {why}")

    # steps

    def _wait(self, _state: State) -> None:
        if self.profile.needs_image and self.vbd is None:
            return
        self._disconnect()
        self.device.switch_state(State.INIT_WAIT)

    def _connecting(self, state: State) -> None:
        if self.profile.needs_image and self.vbd is None:
            return
        self._disconnect()
        if self.leaving and self._waits(state):
            return
        if self.leaving and self.profile.pending is Pending.ANSWERED:
            raise PeerProtocolError("pending I/O")
        self._map_rings()
        self._connect()

    def _closing(self, _state: State) -> None:
        self.device.switch_state(State.CLOSING)

    def _closed(self, state: State) -> None:
        device = self.device
        self._disconnect()
        if self._waits(state):
            return
        device.switch_state(State.CLOSED)
        if self.profile.retires and not device.online:
            self._destroy()
            device.wants = ("online",)

    def _vanished(self, _state: State) -> None:
        """No frontend, or a state that is none: the device is unregistered."""
        self._destroy()
        # xenbus_dev_remove: only where the toolstack asked for it.
        if self.device.number("state", 0) == State.CLOSING:
            self.device.switch_state(State.CLOSED)

    def _delete(self, _state: State) -> None:
        """The frontend's directory went; a state that is none is no reason."""
        if self.device.frontend_get("state") is None:
            self._destroy()
            self.device.store.remove(self.device.path)

    def _fatal(self, state: State) -> None:
        raise PeerProtocolError(f"saw state {int(state)} at frontend")

    def _destroy(self) -> None:
        self._gone = True
        self._disconnect()
        if not self.leaving:
            self._close_image()

    def remove(self) -> None:
        """The directory is gone; a second call does nothing."""
        self._destroy()

    def abandon(self) -> None:
        """The backend's own domain is dead, and with it all but the image."""
        self._gone = True
        self._close_image()

    def _own_key_changed(self) -> None:
        """xen_device_backend_changed: a toolstack asks for a close."""
        device = self.device
        state = state_of(device.get("state"))
        if self._gone or state is not State.CLOSING:
            return
        if state is not device.state:
            device.note_state(state)
        if device.frontend_state not in ACTIVE:
            self._closed(State.CLOSED)

    # the image

    def hotplug_changed(self) -> None:
        """The script is done, or was not needed."""
        if self.profile.opens is not Opens.AT_HOTPLUG or self.vbd is not None or self._gone:
            return
        if self.device.get("hotplug-status") != "connected":
            return
        if not self._open_image():
            return
        if self.profile.needs_image:
            self.frontend_changed(self.device.frontend_state)
        else:
            self._connect()

    def _open_image(self) -> bool:
        device = self.device
        mode, params = device.get("mode"), device.get("params")
        if mode is None or params is None:
            device.wants = ("mode", "params")
            return False
        writable = "w" in mode
        try:
            image = self.images.open(params, writable)
        except ConfigError as error:
            self._no_image(f"creating vbd structure: {error}")
            return False
        discard = device.number("discard-enable", 1) != 0
        self.vbd = Vbd.of(image, readonly=not writable, discard=discard)
        return True

    def _no_image(self, why: str) -> None:
        device, keys = self.device, ("params", "mode", "hotplug-status")
        if self.profile.fatal:
            device.unready(why, *keys)
            return
        # Others say it in a log alone; their toolstack looks here instead.
        self._refuse(why)
        device.wants = keys
        device.write("error", why)

    def _close_image(self) -> None:
        vbd, self.vbd = self.vbd, None
        if vbd is not None:
            self.images.release(vbd.image)

    def resized(self) -> None:
        """Its image has another size; tell the frontend where this backend does.

        Linux in one transaction with its state (xen_vbd_resize), QEMU in two writes
        (xen_block_resize_cb). The others know a disk as it was when they opened it.
        """
        old, device, profile = self.vbd, self.device, self.profile
        if old is None or not profile.resizes:
            return
        new = Vbd.of(old.image, readonly=old.readonly, discard=old.discard)
        self.vbd = new  # also where it is as large: its memory may be another
        if new.sectors == old.sectors:
            return
        if profile.resizes_in_one and device.state is not State.CONNECTED:
            return  # its thread, which looks at the size, does not run: told when it is connected
        sectors = str(sectors_of(new, self.settings.units))
        keys = {"sectors": sectors, "state": str(int(device.state))}
        if profile.resizes_in_one:
            device.store.transaction(lambda tx_id: device.write_all(keys, tx_id))
        else:
            device.write_all(keys)

    # rings

    def _map_rings(self) -> None:
        keys = read_front(self.device, self.profile, self.settings.units, self._queues_max)
        self._check_large(large=keys.large)
        for ring in keys.rings:
            name = f"{self.device.name}-{len(self.queues)}"
            queue = connect(self, ring, keys.abi, name, persistent=keys.persistent)
            self.queues.append(queue)

    def _check_large(self, *, large: bool) -> None:
        """What backends made of feature-large-sector-size, on a disk of larger sectors."""
        vbd, units = self.vbd, self.settings.units
        if vbd is None or vbd.image.sector_size == 1 << 9:
            return
        if units.wants_large and not large:
            raise PeerProtocolError("logical_block_size != 512 not supported by frontend")
        if units.refuses_large and large:
            raise PeerProtocolError("feature-large-sector-size: its requests cannot be read")

    def _connect(self) -> None:
        """xen_update_blkif_status and connect: tell what the disk is, then Connected."""
        device = self.device
        if self.vbd is None or not self.queues:
            return
        late = values(self.profile.late, self._offer())
        if late:
            device.store.transaction(lambda tx_id: device.write_all(late, tx_id))
        device.broken = ""
        device.switch_state(State.CONNECTED)
        for queue in self.queues:
            queue.ring.spurious = -1  # no event brings this look
            queue.task.wake()  # requests may have come before the image

    def _disconnect(self) -> None:
        """Let go of ports and rings; idempotent. Those with requests in flight are `leaving`."""
        queues, self.queues = self.queues, []
        self.leaving += [queue for queue in queues if not queue.stop()]

    def _waits(self, state: State) -> bool:
        """Whether what a state asks for has to wait until nothing is in flight."""
        if not self.leaving or self.profile.pending is not Pending.AWAITED:
            return False
        self._held = state
        return True

    def features_lost(self, names: list[str]) -> None:
        """The image cannot do what these keys offer (xen_blkbk_flush_diskcache, barrier)."""
        self.device.write_all(dict.fromkeys(names, "0"))

    def ring_broken(self, queue: Queue, why: str) -> None:
        """The frontend broke a ring, which is not looked at again (do_block_io_op's -EACCES).

        The device stays where it is, so that it can still be closed.
        """
        device = self.device
        device.broken = device.broken or why
        device.domain.trace.note(device.domain.domid, f"{queue.task.name}: halted: {why}")

    def queue_idle(self, queue: Queue) -> None:
        """The last request of a queue that is stopped has ended."""
        self.leaving.remove(queue)
        if self.leaving:
            return
        if self._gone:
            self._close_image()
        held, self._held = self._held, None
        if held is not None:
            self.frontend_changed(held)
            if self.device.frontend_state is not held:
                self.frontend_changed(self.device.frontend_state)


def resize(bus: BackendBus, device: Device, size_bytes: int) -> None:
    """Give a disk's image another size, and let all disks of it see that.

    ConfigError: it cannot have that. LocalProtocolError: there is no image, or its size is its
    owner's to change.
    """
    served = device.driver
    vbd = served.vbd if isinstance(served, Blkback) else None
    change = None if vbd is None else getattr(vbd.image, "resize", None)
    if vbd is None or change is None:
        raise LocalProtocolError(f"{device.name}: no image that can be resized")
    change(size_bytes)
    for one in bus.devices.values():
        driver = one.driver
        if isinstance(driver, Blkback) and driver.vbd and driver.vbd.image is vbd.image:
            driver.resized()


_STEPS: Final[dict[Step, Callable[[Blkback, State], None]]] = {
    Step.WAIT: Blkback._wait,
    Step.CONNECT: Blkback._connecting,
    Step.CLOSING: Blkback._closing,
    Step.CLOSED: Blkback._closed,
    Step.GONE: Blkback._vanished,
    Step.DELETE: Blkback._delete,
    Step.FATAL: Blkback._fatal,
}
