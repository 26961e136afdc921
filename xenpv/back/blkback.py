"""blkback: the block backend, as the kernel's (drivers/block/xen-blkback/xenbus.c).

A device is probed at once to InitWait; its image is opened when the hotplug script said
`connected`; its rings are mapped when the frontend is at Initialised or Connected. It is
Connected when both are there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from xenpv.abi._kernel import lib
from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.blkif import PROTOCOL_DEFAULT, PROTOCOLS, Abi
from xenpv.back.blkprofile import PROFILES, Settings
from xenpv.back.blkring import INDIRECT_SEGMENTS_MAX, BlkRing, Bounce, Vbd
from xenpv.back.ring import BackRing
from xenpv.back.xenbus import Device, number_of
from xenpv.errors import ConfigError, GrantError, HypercallError, PeerProtocolError
from xenpv.host.image import Image
from xenpv.xen.loop import Task

RING_PAGE_ORDER_MAX: Final = 4  # XENBUS_MAX_RING_GRANT_ORDER

VDISK_CDROM: Final[int] = lib.VDISK_CDROM
VDISK_REMOVABLE: Final[int] = lib.VDISK_REMOVABLE
VDISK_READONLY: Final[int] = lib.VDISK_READONLY


class Images(Protocol):
    """Where images come from (host.image.ImageProvider)."""

    def open(self, params: str, writable: bool) -> Image:
        """Raises ConfigError."""

    def release(self, image: Image) -> None: ...


class BlkbackFactory:
    """Makes the driver of each disk of one backend domain.

    `settings_of(frontend_domid, devid)` says which backend it is to be; None: Linux'.
    """

    def __init__(
        self, images: Images, settings_of: Callable[[int, int], Settings] | None = None
    ) -> None:
        self.images = images
        self.bounce = Bounce()
        self._settings_of = settings_of

    def by_directory(self) -> dict[str, BlkbackFactory]:
        """It serves every directory under backend/ that a profile names."""
        return dict.fromkeys((one.directory for one in PROFILES.values()), self)

    def __call__(self, device: Device) -> Blkback:
        of = self._settings_of
        settings = Settings() if of is None else of(device.frontend_domid, device.devid)
        return Blkback(device, self.images, self.bounce, settings)


class Queue:
    """One mapped ring: its task, and the (handle, pfn) of each page."""

    __slots__ = ("driver", "mapped", "ring", "task")
    task: Task

    def __init__(self, driver: Blkback, ring: BlkRing, mapped: list[tuple[int, int]]) -> None:
        self.driver = driver
        self.ring = ring
        self.mapped = mapped

    def run(self) -> None:
        """One pass over the ring; the task is due again while there is more."""
        driver = self.driver
        if driver.vbd is None or driver.halted:
            return
        try:
            more = self.ring.service(driver.vbd)
        except (PeerProtocolError, HypercallError) as error:
            driver.halted = True
            driver.device.fatal(str(error))
            return
        if more:
            self.task.wake()


class Blkback:
    """The driver of one device."""

    __slots__ = ("_gone", "bounce", "device", "halted", "images", "queues", "settings", "vbd")

    def __init__(
        self,
        device: Device,
        images: Images,
        bounce: Bounce,
        settings: Settings,
    ) -> None:
        self.device = device
        self.settings = settings
        self.images = images
        self.bounce = bounce
        self.vbd: Vbd | None = None
        self.queues: list[Queue] = []
        self.halted = False  # the frontend broke the protocol: its rings are not looked at again
        self._gone = False  # destroyed: what the frontend writes no longer matters

    def probe(self) -> None:
        """Feature keys that a frontend may read at InitWait, then InitWait."""
        device = self.device
        device.write("feature-max-indirect-segments", str(INDIRECT_SEGMENTS_MAX))
        device.write("multi-queue-max-queues", str(self._queues_max))
        device.write("max-ring-page-order", str(RING_PAGE_ORDER_MAX))
        device.switch_state(State.INIT_WAIT)

    @property
    def _queues_max(self) -> int:
        return self.device.domain.vcpus

    # the frontend's states

    def frontend_changed(self, state: State) -> None:
        react = _FRONTEND_CHANGED.get(state)
        if react is not None and not self._gone:
            react(self)

    def _initialising(self) -> None:
        if self.device.state is State.CLOSED:
            self.device.switch_state(State.INIT_WAIT)

    def _connecting(self) -> None:
        if self.device.state is State.CONNECTED:
            return
        self._disconnect()
        try:
            self._map_rings()
        except BaseException:
            self._disconnect()
            raise
        self._connect()

    def _closing(self) -> None:
        self.device.switch_state(State.CLOSING)

    def _closed(self) -> None:
        self._disconnect()
        self.device.switch_state(State.CLOSED)
        if not self.device.online:
            self._destroy()
            self.device.wants = ("online",)

    def _vanished(self) -> None:
        """No frontend, or a state that is none: the device is unregistered."""
        self._destroy()
        # xenbus_dev_remove: only where the toolstack asked for it.
        if self.device.number("state", 0) == State.CLOSING:
            self.device.switch_state(State.CLOSED)

    def _destroy(self) -> None:
        self._gone = True
        self._disconnect()
        self._close_image()

    def remove(self) -> None:
        """The directory is gone; a second call does nothing."""
        self._destroy()

    def abandon(self) -> None:
        """The backend's own domain is dead, and with it all but the image."""
        self._gone = True
        self._close_image()

    # the image

    def hotplug_changed(self) -> None:
        if self.vbd is None and not self._gone and self.device.get("hotplug-status") == "connected":
            self._open_image()
            self._connect()

    def _open_image(self) -> None:
        device = self.device
        mode, params = device.get("mode"), device.get("params")
        if mode is None or params is None:
            device.wants = ("mode", "params")
            return
        writable = "w" in mode
        try:
            image = self.images.open(params, writable)
        except ConfigError as error:
            device.unready(f"creating vbd structure: {error}", "params", "mode", "hotplug-status")
            return
        discard = device.number("discard-enable", 1) != 0
        self.vbd = Vbd.of(image, readonly=not writable, discard=discard)

    def _close_image(self) -> None:
        vbd, self.vbd = self.vbd, None
        if vbd is not None:
            self.images.release(vbd.image)

    # rings

    def _map_rings(self) -> None:
        """connect_ring: PeerProtocolError for what the frontend's keys cannot mean."""
        device = self.device
        protocol = device.frontend_get("protocol")
        abi = PROTOCOLS.get(PROTOCOL_DEFAULT if protocol is None else protocol)
        if abi is None:
            raise PeerProtocolError(f"unknown fe protocol {protocol!r}")
        count = device.frontend_number("multi-queue-num-queues", 1)
        if not 0 < count <= self._queues_max:
            raise PeerProtocolError(f"guest requested {count} queues, {self._queues_max} at most")
        # Present, even as 0, it selects the numbered references.
        order = device.frontend_get("ring-page-order")
        names = ["ring-ref"]
        if order is not None:
            pages = 1 << self._number("ring-page-order", RING_PAGE_ORDER_MAX)
            names = [f"ring-ref{index}" for index in range(pages)]
        for index in range(count):
            prefix = "" if count == 1 else f"queue-{index}/"
            self._map_ring(prefix, names, abi)

    def _number(self, key: str, most: int) -> int:
        text = self.device.frontend_get(key)
        value = number_of(text, -1)  # of what was read once: the guest may write it again
        if not 0 <= value <= most:
            raise PeerProtocolError(f"{key} is {text!r}: expected 0 to {most}")
        return value

    def _map_ring(self, prefix: str, names: list[str], abi: Abi) -> None:
        device, domain = self.device, self.device.domain
        grefs = [self._number(prefix + name, 0xFFFFFFFF) for name in names]
        port = self._number(f"{prefix}event-channel", 0xFFFFFFFF)
        mapped: list[tuple[int, int]] = []
        try:
            for gref in grefs:
                mapped.append(self._map_page(gref))  # noqa: PERF401 - kept on failure
            pfns = [pfn for _handle, pfn in mapped]
            ring = BackRing(domain, pfns, req_size=abi.request_size, rsp_size=abi.response_size)
            local = domain.evtchn.bind_interdomain(device.frontend_domid, port)
        except BaseException:
            self._unmap(mapped)
            raise
        granter = domain.find(device.frontend_domid)
        assert granter is not None, "a page of it is mapped"
        blkring = BlkRing(ring, local, abi, granter, self.bounce)
        queue = Queue(driver=self, ring=blkring, mapped=mapped)
        name = f"{device.name}-{len(self.queues)}"
        try:
            queue.task = device.dispatcher.bind(local, name, queue.run)
        except HypercallError:
            domain.evtchn.close(local)
            self._unmap(mapped)
            raise
        self.queues.append(queue)

    def _map_page(self, gref: int) -> tuple[int, int]:
        domain = self.device.domain
        pfn = domain.holes.alloc()
        try:
            return domain.gnttab.map(self.device.frontend_domid, gref, pfn), pfn
        except GrantError as error:
            domain.holes.free(pfn)
            raise PeerProtocolError(f"mapping a ring page: {error}") from error

    def _unmap(self, mapped: list[tuple[int, int]]) -> None:
        domain = self.device.domain
        for handle, pfn in mapped:
            domain.gnttab.unmap(handle, pfn)
            domain.holes.free(pfn)

    def _connect(self) -> None:
        """xen_update_blkif_status and connect: tell what the disk is, then Connected."""
        if self.vbd is None or not self.queues:
            return
        self.device.store.transaction(self._publish)
        self.device.switch_state(State.CONNECTED)
        for queue in self.queues:
            queue.task.wake()  # requests may have come before the image

    def _publish(self, tx_id: int) -> None:
        device, vbd = self.device, self.vbd
        assert vbd is not None
        keys = {"feature-flush-cache": 1}
        if vbd.discard:
            keys["discard-granularity"] = vbd.image.sector_size
            keys["discard-alignment"] = 0
            keys["discard-secure"] = 0
            keys["feature-discard"] = 1
        keys["feature-barrier"] = 1
        keys["sectors"] = vbd.sectors
        keys["info"] = self._info(vbd)
        keys["sector-size"] = vbd.image.sector_size
        keys["physical-sector-size"] = vbd.image.physical_sector_size
        device.write_all({key: str(value) for key, value in keys.items()}, tx_id)

    def _info(self, vbd: Vbd) -> int:
        info = VDISK_READONLY if vbd.readonly else 0
        if self.device.get("device-type") == "cdrom":
            info |= VDISK_CDROM
        if self.device.number("removable", 0):
            info |= VDISK_REMOVABLE
        return info

    def _disconnect(self) -> None:
        """Close ports and unmap rings; idempotent. Nothing is ever in flight between passes."""
        queues, self.queues = self.queues, []
        for queue in queues:
            queue.task.retire()
            self.device.dispatcher.unbind(queue.ring.port)
            self.device.domain.evtchn.close(queue.ring.port)
            self._unmap(queue.mapped)
        self.halted = False


_FRONTEND_CHANGED: Final[dict[State, Callable[[Blkback], None]]] = {
    State.UNKNOWN: Blkback._vanished,
    State.INITIALISING: Blkback._initialising,
    State.INITIALISED: Blkback._connecting,
    State.CONNECTED: Blkback._connecting,
    State.CLOSING: Blkback._closing,
    State.CLOSED: Blkback._closed,
}
