"""A driver domain: a Linux guest whose kernel has netback and blkback, beside its frontends.

The composition root of such a guest: what is a backend's and what is a frontend's meets here.
Both ask xenstored over the guest's one ring page, and events of both come by XenBus' upcall.
Its bridges and images are its own, as are the daemon and the scripts that it runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from xenpv.back.blkback import Blkback, BlkbackFactory
from xenpv.back.blkprofile import Settings
from xenpv.back.netback import Netback, NetbackFactory
from xenpv.back.netprofile import Profile
from xenpv.back.ringstore import RingStore
from xenpv.back.store import BackStore
from xenpv.back.xenbus import BackendBus, DriverFactory
from xenpv.errors import HypercallError, PeerProtocolError, StoreError
from xenpv.framelists import frame_of, list_of
from xenpv.host.ddomain import DriverDomainDaemon
from xenpv.host.image import ImageProvider, Sectors
from xenpv.host.network import Bridge, Frame, Network
from xenpv.host.offload import blank_checksum, finish_checksum, segment
from xenpv.host.scripts import Scripts
from xenpv.net.adapter import Adapter
from xenpv.net.nbl import RESOURCES, NetBufferList
from xenpv.net.ndis import U32, NdisStatus
from xenpv.net.oid import Oid
from xenpv.net.packetfilter import PacketFilter
from xenpv.vif.adapter import Vif as XenVif
from xenpv.xen.loop import Task

if TYPE_CHECKING:
    from xenpv.back.store import BackWatch
    from xenpv.bus.channel import Channel
    from xenpv.bus.evtchn import EvtchnInterface
    from xenpv.bus.store import StoreInterface
    from xenpv.bus.xenbus import ClassDriverFactory, XenBus
    from xenpv.vif.interface import VifInterface
    from xenpv.xen.domain import Domain

QUEUE_MAX: Final = 1000  # frames that wait for an adapter (txqueuelen)
PROMISCUOUS: Final = U32.pack(PacketFilter.PROMISCUOUS)


class SharedPage:
    """STORE's ring page as the way of another client's requests (ringstore.Wire)."""

    def __init__(self, store: StoreInterface) -> None:
        self._store = store

    def send(self, message: bytes) -> None:
        try:
            self._store.send(message)
        except (PeerProtocolError, HypercallError) as error:
            raise StoreError("EIO", str(error)) from error

    def wait(self) -> None:
        try:
            self._store.spin()
        except (PeerProtocolError, HypercallError) as error:
            raise StoreError("EIO", str(error)) from error


class EvtchnDispatcher:
    """Ports of backends where the upcall is XenBus': what xen.upcall.Dispatcher is in dom0."""

    def __init__(self, domain: Domain, evtchn: EvtchnInterface) -> None:
        self.domain = domain
        self._evtchn = evtchn
        self._bound: dict[int, tuple[Channel, Task]] = {}

    def bind(self, port: int, name: str, run: Callable[[], object]) -> Task:
        """Events of `port` wake a new task that calls `run`. Raises HypercallError."""
        task = self.domain.task(name, run)
        try:
            self.bind_task(port, task)
        except HypercallError:
            self.domain.forget(task)
            raise
        return task

    def bind_task(self, port: int, task: Task) -> None:
        """Events of `port` wake a task that exists. Raises HypercallError."""
        # FIXED: whoever bound the port closes it.
        channel = self._evtchn.open_fixed(port, task.wake)
        self._bound[port] = channel, task
        self._evtchn.unmask(channel, force=True)

    def unbind_port(self, port: int) -> None:
        """Forget a port; its task lives on. Nothing happens to one that is not bound."""
        bound = self._bound.pop(port, None)
        if bound is not None:
            self._evtchn.close(bound[0])

    def unbind(self, port: int) -> None:
        """Forget a port; its task is retired unless another port wakes it too."""
        bound = self._bound.get(port)
        self.unbind_port(port)
        if bound is not None and all(task is not bound[1] for _, task in self._bound.values()):
            self.domain.forget(bound[1])


class Uplink:
    """A guest's adapter as a port of a bridge in that guest: promiscuous, both ways.

    A sum that is to be written yet, or a packet that is to be cut, is left to the adapter; what
    that has not switched on is done in software.
    """

    def __init__(self, domain: Domain, adapter: Adapter, bridge: Bridge) -> None:
        self.name = f"eth{adapter.number}"
        self.adapter = adapter
        self.bridge = bridge
        self.dropped = 0
        self._queue: deque[Frame] = deque()
        self._domain = domain
        self._task = domain.task(f"{bridge.name} {self.name}", self._send)
        adapter.set(Oid.GEN_CURRENT_PACKET_FILTER, PROMISCUOUS)
        bridge.attach(self)
        adapter.list_receiver = adapter.list_sender = Arrivals(self)

    def receive(self, frames: Sequence[Frame]) -> None:
        """Out of the bridge, to the adapter soon."""
        room = QUEUE_MAX - len(self._queue)
        self._queue.extend(frames[:room])
        self.dropped += max(len(frames) - room, 0)
        self._task.wake()

    def _send(self) -> None:
        frames = list(self._queue)
        self._queue.clear()
        lists = [list_of(frame) for frame in frames]
        self.adapter.send_lists(lists)
        # What its lists asked for is not switched on.
        refused = [n for n, one in enumerate(lists) if one.status is NdisStatus.FAILURE]
        if refused:
            parts = [part for n in refused for part in self._finished(frames[n])]
            self.adapter.send_lists([NetBufferList((part.data,)) for part in parts])

    def _finished(self, frame: Frame) -> list[Frame]:
        try:
            return [finish_checksum(part) for part in segment(frame)]
        except PeerProtocolError:
            self.dropped += 1
            return []

    def arrived(self, lists: Sequence[NetBufferList]) -> None:
        """From the adapter into the bridge. A large packet goes on as one."""
        batch = []
        for one in lists:
            frame = frame_of(one)
            try:
                batch.append(blank_checksum(frame) if frame.gso_type else frame)
            except PeerProtocolError:
                self.dropped += 1
        self.bridge.transmit(self, batch, self._domain.loop.now)

    def close(self) -> None:
        """Off the bridge; a second call does nothing."""
        found = self.bridge.ports.get(self.name)
        if found is not None and found.port is self:
            self.bridge.detach(self)
        self.adapter.list_receiver = self.adapter.list_sender = None
        self._domain.forget(self._task)


class Arrivals:
    """The protocol bound to a bridge's adapter (br_handle_frame)."""

    def __init__(self, uplink: Uplink) -> None:
        self._uplink = uplink

    def receive_lists(self, lists: Sequence[NetBufferList]) -> None:
        """Frames are copied into the bridge: lists go back at once."""
        self._uplink.arrived(lists)
        lent = [one for one in lists if not one.flags & RESOURCES]
        self._uplink.adapter.return_lists(lent)

    def sent_lists(self, lists: Sequence[NetBufferList]) -> None:
        """What the link or the backend did not take is lost."""
        refused = [one for one in lists if one.status is NdisStatus.NOT_ACCEPTED]
        self._uplink.dropped += len(refused)


class DriverDomain:
    """What a guest with `driver_domain` has beside others; it outlives its reboots.

    `images` and `network` are its root file system and its bridges. `backends` is there while
    its kernel runs, and `daemon` beside it. `netback_of`, `blkback_of`: which backend a device
    has, by the guest's domid and devid, of a disk by the directory below backend/ before them.
    """

    def __init__(
        self,
        netback_of: Callable[[int, int], Profile],
        blkback_of: Callable[[str, int, int], Settings],
        sectors_of: Callable[[str], Sectors | None],
    ) -> None:
        self.blkback_of = blkback_of
        self.netback_of = netback_of
        self.images = ImageProvider(sectors_of)
        self.network = Network()
        self.bridged: dict[int, str] = {}  # adapters that are ports of a bridge, by number
        self.uplinks: dict[int, Uplink] = {}
        self.backends: BackendBus | None = None
        self.daemon: DriverDomainDaemon | None = None
        self._domain: Domain | None = None
        self._host: BackStore | None = None
        self._death: BackWatch | None = None

    @property
    def serves(self) -> list[str]:
        """Devices of others that its kernel has, as it names them: vif5.0."""
        return [] if self.backends is None else [d.name for d in self.backends.devices.values()]

    # its kernel

    def prepare(self, domain: Domain, host: BackStore) -> ClassDriverFactory:
        """A kernel is to boot: its XenVif, with adapters above that may be ports of bridges.

        `host` is dom0's client: it tells when the domain is gone.
        """
        self.end()
        self._domain, self._host = domain, host
        self._death = host.watch("@releaseDomain", self._released)
        return partial(XenVif, miniport=self._adapter)

    def _adapter(self, vif: VifInterface) -> Adapter:
        adapter = Adapter(vif)
        name = self.bridged.get(adapter.number)
        if name is not None:
            self._enslave(adapter, name)
        return adapter

    def boot(self, bus: XenBus) -> None:
        """Bring up its backends beside XenBus, then the daemon."""
        domain = bus.domain
        client = RingStore(SharedPage(bus.store))
        bus.store.neighbour = client
        store = BackStore(domain, client, "backends")
        factories: dict[str, DriverFactory] = {
            **BlkbackFactory(self.images, self.blkback_of).by_directory(),
            "vif": NetbackFactory(self.network, self.netback_of),
        }
        try:
            dispatcher = EvtchnDispatcher(domain, bus.evtchn)
            self.backends = BackendBus(domain, store, dispatcher, factories)
            scripts = Scripts(self.images, self.network)
            self.daemon = DriverDomainDaemon(domain, store, scripts)
        except StoreError as error:
            bus.log(f"backends: {error}\n")

    def addif(self, bridge: str, number: int, adapter: Adapter | None) -> None:
        """`brctl addif`, and in the configuration of its network: the next boot does it too."""
        self.bridged[number] = bridge
        if adapter is not None:
            self._enslave(adapter, bridge)

    def _enslave(self, adapter: Adapter, bridge: str) -> None:
        assert self._domain is not None
        old = self.uplinks.pop(adapter.number, None)
        if old is not None:
            old.close()
        on = self.network.bridge(bridge)
        self.uplinks[adapter.number] = Uplink(self._domain, adapter, on)

    def _released(self, _path: str) -> None:
        if self._domain is not None and self._domain.dying:
            self.end()

    def end(self) -> None:
        """Its domain is gone: what is outside of that is let go, images and places on bridges.

        A second call does nothing.
        """
        if self._host is not None and self._death is not None:
            self._host.unwatch(self._death)
        for uplink in self.uplinks.values():
            uplink.close()
        self.uplinks.clear()
        if self.backends is not None:
            for device in self.backends.devices.values():
                driver = device.driver
                if isinstance(driver, Netback | Blkback):
                    driver.abandon()
        self.images.let_go()
        self.backends = self.daemon = None
        self._domain = self._host = self._death = None
