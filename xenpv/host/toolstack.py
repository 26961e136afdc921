"""The toolstack: domains out of configurations, and their way out (libxl_create.c, libxl_dom.c).

It runs outside the loop, as `xl` runs outside the kernel: each step writes to the store and
then lets the loop run until what it waits for is there, or virtual time is up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.errors import XenpvError
from xenpv.host import device as devices
from xenpv.host.creation import PAGES_PER_MIB, Creation
from xenpv.host.domid import Chance, Domid, Domids
from xenpv.host.domsuspend import DomSuspend
from xenpv.host.hotplug import Hotplug, HotplugScripts
from xenpv.host.libxl import LIBXL, Created, LibxlCtx, ToolstackError
from xenpv.host.xs import XsHandle
from xenpv.store.connection import Connection
from xenpv.xen.domain import SPECIAL_NR_PAGES, Domain
from xenpv.xen.loop import NS_PER_S
from xenpv.xen.upcall import Dispatcher

if TYPE_CHECKING:
    from xenpv.host.diskspec import DiskSpec
    from xenpv.host.domainconfig import DomainConfig
    from xenpv.host.vifspec import VifSpec

SLACK_PAGES: Final = 256  # LIBXL_MAXMEM_CONSTANT: 1 MiB above maxmem
SHUTDOWN_TIMEOUT_NS: Final = 60 * NS_PER_S


class Toolstack:
    """libxl of one host, as a client of xenstored in the control domain."""

    def __init__(
        self,
        control: Domain,
        connection: Connection,
        scripts: HotplugScripts,
        seed: int,
        dispatcher: Dispatcher | None = None,
    ) -> None:
        self.ctx = LibxlCtx(control, XsHandle(connection), dispatcher)
        self.creation = Creation(self.ctx)
        self.hotplug = Hotplug(self.ctx, scripts)
        self.domsuspend = DomSuspend(self.ctx)
        self.created: dict[int, Created] = {}
        # Machines of one loop often have one seed; their guests shall not have one MAC.
        machine = f" machine {control.machine}" if control.machine else ""
        self.chance = Chance(f"xenpv toolstack {seed}{machine}")
        self.domids = Domids(self.ctx, self.chance)

    @property
    def xs(self) -> XsHandle:
        return self.ctx.xs

    # creation

    def create(
        self,
        config: DomainConfig,
        *,
        domid: Domid = None,
        populate: Callable[[Created], None] | None = None,
    ) -> Created:
        """Everything up to the moment before unpause. Raises ToolstackError, undone.

        `domid` None: the next free one; "RANDOM": any. `populate(made)` replaces what fills
        memory, as a restore does: called once the domain has vcpus and max_mem, before it has
        channels; it owes every page, the special ones too. The store and console pages are
        cleared after it, grants 0 and 1 are seeded, all ports are new.
        """
        self._free_name(config.name)
        config = self._completed(config)
        made = Created(config=config, domain=self._domain_make(config, domid))
        self.created[made.domid] = made
        try:
            self.xs.transaction(lambda t: self.creation.write_tree(made, t))
            self.creation.set_time_offset(made)
            self.creation.build(made, populate)
            self._add_devices(made)
        except XenpvError:
            self.destroy(made)
            raise
        return made

    def _add_devices(self, made: Created) -> None:
        """Kind after kind, in libxl's order; the last step is the console's terminal."""
        self.hotplug.add_all(made, self._disks(made))
        self.creation.add_console(made)
        if made.config.is_hvm:
            self.creation.add_device_model(made)
        self.hotplug.add_all(made, self._vifs(made))
        self.creation.wait_console(made)

    def _disks(self, made: Created) -> list[devices.Device]:
        resolve = self.hotplug.resolve
        return [
            devices.vbd(one, made.domid, backend_domid=resolve(one.backend))
            for one in made.config.disks
        ]

    def _vifs(self, made: Created) -> list[devices.Device]:
        resolve, hvm = self.hotplug.resolve, made.config.is_hvm
        return [
            devices.vif(one, made.domid, hvm=hvm, backend_domid=resolve(one.backend))
            for one in made.config.vifs
        ]

    def _free_name(self, name: str) -> None:
        """ToolstackError(INVAL) if a domain has it."""
        if any(one.config.name == name for one in self.created.values()):
            raise ToolstackError(f"a domain named {name!r} exists", LIBXL.INVAL)

    def _domain_make(self, config: DomainConfig, domid: Domid) -> Domain:
        """libxl__domain_make, and of libxl__build_pre what limits it: paused, without a page."""
        domain = self.domids.create(
            domid,
            max_vcpus=config.maxvcpus,
            max_grant_frames=config.max_grant_frames,
            max_maptrack_frames=config.max_maptrack_frames,
            max_evtchn_port=config.max_event_channels,
            max_grant_version=config.max_grant_version,
            handle=bytes.fromhex((config.uuid or "").replace("-", "")),
        )
        domain.set_vcpus(config.maxvcpus)
        domain.set_processors(config.vcpus)
        domain.set_max_pages(config.maxmem_mib * PAGES_PER_MIB + SLACK_PAGES + SPECIAL_NR_PAGES)
        return domain

    def _completed(self, config: DomainConfig) -> DomainConfig:
        """The configuration with what creation makes up, as a restart has to find it again."""
        vifs = tuple(
            nic if nic.mac is not None else attrs.evolve(nic, mac=self.mac()) for nic in config.vifs
        )
        return attrs.evolve(config, uuid=config.uuid or self._uuid(), vifs=vifs)

    def _uuid(self) -> str:
        text = f"{self.chance.generator.getrandbits(128):032x}"
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))

    def mac(self) -> bytes:
        """Xen's own prefix, then random: 00:16:3e:(r & 7f):r:r."""
        tail = self.chance.generator.getrandbits(24)
        return bytes((0x00, 0x16, 0x3E, tail >> 16 & 0x7F, tail >> 8 & 0xFF, tail & 0xFF))

    # running domains

    def unpause(self, made: Created) -> None:
        made.domain.unpause()

    def request(self, made: Created, value: str) -> None:
        """Write control/shutdown and wait for its acknowledgement; ToolstackError after 60 s.

        The request is not withdrawn.
        """
        path = f"/local/domain/{made.domid}/control/shutdown"
        self.xs.write(path, value)
        self.ctx.wait(
            lambda: not self.xs.read(path),
            SHUTDOWN_TIMEOUT_NS,
            f"domain {made.domid} to acknowledge {value}",
        )

    def wait_shutdown(self, made: Created) -> int:
        """Until the domain stopped; its reason code."""
        domain = made.domain
        self.ctx.wait(
            lambda: domain.is_shutdown or domain.dying,
            2 * SHUTDOWN_TIMEOUT_NS,
            f"domain {made.domid} to shut down",
        )
        return 0 if domain.shutdown_code is None else domain.shutdown_code

    def attach(self, made: Created, spec: DiskSpec | VifSpec) -> int:
        """Hot add; see Hotplug.attach. An interface without a mac gets one of Xen's."""
        from xenpv.host.vifspec import VifSpec

        if isinstance(spec, VifSpec) and spec.mac is None:
            spec = attrs.evolve(spec, mac=self.mac())
        return self.hotplug.attach(made, spec)

    def destroy(self, made: Created) -> None:
        """Devices by force, the trees, then the domain. A second call does nothing."""
        if self.created.pop(made.domid, None) is None:
            return
        domid = made.domid
        if not made.domain.dying and not made.domain.pause_count:
            made.domain.pause()
        self.hotplug.remove_all(made)
        for path in (f"/vm/{made.uuid}", f"/local/domain/{domid}", f"/libxl/{domid}"):
            self.xs.rm(path)
        self.xs.rm_empty_parents(
            f"/local/domain/0/backend/console/{domid}/0", "/local/domain/0/backend"
        )
        self.domids.note_destroyed(domid)
        self.ctx.control.domctl.destroy_domain(made.domain)
        self.ctx.loop.run()


__all__ = ["Created", "HotplugScripts", "Toolstack", "ToolstackError"]
