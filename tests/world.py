"""A platform without devices, built from its parts: what tests of the lower rooms stand on."""

from __future__ import annotations

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.hvm import HVM_PARAM
from xenpv.abi.xs import XS
from xenpv.back.store import BackStore
from xenpv.bus.evtchn import EvtchnInterface
from xenpv.bus.gnttab import GnttabInterface
from xenpv.bus.store import StoreInterface
from xenpv.store.connection import Connection
from xenpv.store.profile import C, Profile
from xenpv.store.ring import StoreDaemon
from xenpv.store.server import Xenstored
from xenpv.xen.domain import CONSOLE_PFN, XENSTORE_PFN, Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop
from xenpv.xen.upcall import Dispatcher

NR_FRAMES = 1 << 16


@attrs.define(eq=False)
class World:
    """dom0 with xenstored and a privileged client, and one introduced guest."""

    hypervisor: Hypervisor
    dom0: Domain
    dispatcher: Dispatcher
    server: Xenstored
    daemon: StoreDaemon
    client: Connection
    guest: Domain

    @property
    def loop(self) -> Loop:
        return self.hypervisor.loop

    def write(self, path: str, value: str) -> None:
        """As dom0."""
        self.client.call(XS.WRITE, path.encode() + b"\0" + value.encode())

    def read(self, path: str) -> str:
        return self.client.call(XS.READ, path.encode() + b"\0").decode()

    def chmod(self, path: str, *entries: str) -> None:
        payload = b"".join(text.encode() + b"\0" for text in (path, *entries))
        self.client.call(XS.SET_PERMS, payload)

    def back_store(self) -> BackStore:
        return BackStore(self.dom0, self.server.connect_local("test"), "test")

    def bus_store(self) -> tuple[EvtchnInterface, StoreInterface]:
        evtchn = EvtchnInterface(self.guest)
        port = self.guest.hvm_param(HVM_PARAM.STORE_EVTCHN)
        return evtchn, StoreInterface(self.guest, evtchn, XENSTORE_PFN, port)

    def gnttab(self) -> GnttabInterface:
        return GnttabInterface(self.guest)


def make(seed: int = 1, profile: Profile = C) -> World:
    """A world whose guest owns /local/domain/1/data."""
    hypervisor = Hypervisor(Loop(seed=seed), nr_frames=NR_FRAMES)
    dom0 = hypervisor.create_domain(0, vcpus=1, max_pages=2048)
    dom0.populate(1024)
    dom0.unpause()
    dispatcher = Dispatcher(dom0)
    server = Xenstored(clock=hypervisor.loop.system_time, profile=profile)
    daemon = StoreDaemon(dom0, dispatcher, server)
    guest = hypervisor.create_domain(vcpus=1, max_pages=2048)
    guest.populate(1024)
    guest.populate_special()
    for param, ref, pfn in (
        (HVM_PARAM.CONSOLE_EVTCHN, 0, CONSOLE_PFN),
        (HVM_PARAM.STORE_EVTCHN, 1, XENSTORE_PFN),
    ):
        dom0.hvm.set_param(guest.domid, param, guest.evtchn.alloc_unbound(0))
        guest.check(lib.grant_entry_set(guest.kernel, ref, 0, pfn, 1))
    guest.unpause()
    world = World(
        hypervisor=hypervisor,
        dom0=dom0,
        dispatcher=dispatcher,
        server=server,
        daemon=daemon,
        client=server.connect_local("toolstack"),
        guest=guest,
    )
    world.write("/local/domain/1", "")
    world.chmod("/local/domain/1", "n0", "r1")
    world.write("/local/domain/1/data", "")
    world.chmod("/local/domain/1/data", "n1")
    port = guest.hvm_param(HVM_PARAM.STORE_EVTCHN)
    world.client.call(XS.INTRODUCE, b"1\0%d\0%d\0" % (XENSTORE_PFN, port))
    world.loop.run()
    return world
