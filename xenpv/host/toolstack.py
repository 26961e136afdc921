"""The toolstack: domains out of configurations, and their way out (libxl_create.c, libxl_dom.c).

It runs outside the loop, as `xl` runs outside the kernel: each step writes to the store and
then lets the loop run until what it waits for is there, or virtual time is up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import attrs

from xenpv.errors import XenpvError
from xenpv.host import device as devices
from xenpv.host.creation import Creation
from xenpv.host.domid import Chance, Domid, Domids
from xenpv.host.hotplug import Hotplug, HotplugScripts
from xenpv.host.libxl import Created, LibxlCtx, ToolstackError
from xenpv.host.monitor import Monitors
from xenpv.host.runtime import Runtime, max_pages
from xenpv.host.xs import XsHandle
from xenpv.store.connection import Connection
from xenpv.xen.domain import Domain
from xenpv.xen.loop import NS_PER_S
from xenpv.xen.upcall import Dispatcher

if TYPE_CHECKING:
    from xenpv.host.coredump import CoreDumps
    from xenpv.host.diskspec import DiskSpec
    from xenpv.host.domainconfig import DomainConfig
    from xenpv.host.domsuspend import DomSuspend
    from xenpv.host.vifspec import VifSpec


class Toolstack:
    """libxl of one host, as a client of xenstored in the control domain.

    `blkback`: the profile of disks that say neither who serves them nor which format they have.
    """

    def __init__(
        self,
        control: Domain,
        connection: Connection,
        scripts: HotplugScripts,
        seed: int,
        dispatcher: Dispatcher | None = None,
        *,
        blkback: str = "linux",
    ) -> None:
        self.ctx = LibxlCtx(control, XsHandle(connection), dispatcher)
        self.creation = Creation(self.ctx)
        self.hotplug = Hotplug(self.ctx, scripts, blkback)
        self.created: dict[int, Created] = {}
        # Machines of one loop often have one seed; their guests shall not have one MAC.
        machine = f" machine {control.machine}" if control.machine else ""
        self.chance = Chance(f"xenpv toolstack {seed}{machine}")
        self.domids = Domids(self.ctx, self.chance)
        self.runtime = Runtime(self.ctx, self.created)
        self.monitors = Monitors(self.ctx)

    @cached_property
    def domsuspend(self) -> DomSuspend:
        from xenpv.host.domsuspend import DomSuspend

        return DomSuspend(self.ctx)

    @cached_property
    def dumps(self) -> CoreDumps:
        from xenpv.host.coredump import CoreDumps

        return CoreDumps()

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
        self.runtime.free_name(config.name)
        config = self._completed(config)
        made = Created(config=config, domain=self._domain_make(config, domid))
        self.created[made.domid] = made
        try:
            self._fill(made, populate)
        except XenpvError:
            self.destroy(made)
            raise
        return made

    def _fill(self, made: Created, populate: Callable[[Created], None] | None) -> None:
        self.xs.transaction(lambda t: self.creation.write_tree(made, t))
        self.creation.set_time_offset(made)
        self.creation.build(made, populate)
        self._add_devices(made)

    def _add_devices(self, made: Created) -> None:
        """Kind after kind, in libxl's order; the last step is the console's terminal."""
        self.hotplug.add_all(made, self._disks(made))
        self.creation.add_console(made)
        if made.config.is_hvm:
            self.creation.add_device_model(made)
        self.hotplug.add_all(made, self._vifs(made))
        self.creation.wait_console(made)

    def _disks(self, made: Created) -> list[devices.Device]:
        return [self.hotplug.disk(made, one) for one in made.config.disks]

    def _vifs(self, made: Created) -> list[devices.Device]:
        resolve, hvm = self.hotplug.resolve, made.config.is_hvm
        return [
            devices.vif(one, made.domid, hvm=hvm, backend_domid=resolve(one.backend))
            for one in made.config.vifs
        ]

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
        domain.set_max_pages(max_pages(config.maxmem_mib * 1024))
        return domain

    def _completed(self, config: DomainConfig) -> DomainConfig:
        """The configuration with what creation makes up, as a restart has to find it again."""
        vifs = tuple(
            nic if nic.mac is not None else attrs.evolve(nic, mac=self.chance.mac())
            for nic in config.vifs
        )
        return attrs.evolve(config, uuid=config.uuid or self.chance.uuid(), vifs=vifs)

    # running domains

    def unpause(self, made: Created) -> None:
        """See Runtime.unpause."""
        self.runtime.unpause(made)

    def request(self, made: Created, value: str) -> None:
        """See Runtime.request: control/shutdown, and its acknowledgement."""
        self.runtime.request(made, value)

    def wait_shutdown(self, made: Created) -> int:
        """See Runtime.wait_shutdown: the reason code."""
        return self.runtime.wait_shutdown(made)

    def preserve(self, made: Created, name: str) -> None:
        """See Runtime.preserve: a dead domain makes room for the next."""
        self.runtime.preserve(made, name, self.chance.uuid())

    def soft_reset(self, made: Created) -> None:
        """libxl_domain_soft_reset: the same domain with its memory, and all else anew.

        ToolstackError: what a creation may fail of, and the domain is destroyed; DOMAIN_NOTFOUND.
        """
        self.runtime.must_exist(made)
        if not made.domain.pause_count:
            made.domain.pause()
        self.xs.release_domain(made.domid)
        self._clean_up(made)
        self.ctx.loop.advance(0)  # backends see that their devices went, before they come again
        try:
            self.ctx.control.domctl.soft_reset(made.domid)
            made.domain.set_processors(made.config.vcpus)
            self._fill(made, _memory_stays)
        except XenpvError:
            self.destroy(made)
            raise

    def utc_suffix(self) -> str:
        """What xl puts behind the name of a domain that it keeps: -YYYYMMDDTHHMMZ."""
        from datetime import UTC, datetime

        clock = self.ctx.control.clock
        seconds = clock.wc_sec + (clock.wc_nsec + self.ctx.loop.now) // NS_PER_S
        return f"{datetime.fromtimestamp(seconds, UTC):-%Y%m%dT%H%MZ}"

    def attach(self, made: Created, spec: DiskSpec | VifSpec) -> int:
        """Hot add; see Hotplug.attach. An interface without a mac gets one of Xen's."""
        from xenpv.host.vifspec import VifSpec

        if isinstance(spec, VifSpec) and spec.mac is None:
            spec = attrs.evolve(spec, mac=self.chance.mac())
        return self.hotplug.attach(made, spec)

    def destroy(self, made: Created) -> None:
        """Devices by force, the trees, then the domain; whatever state it is in, and whatever
        others have taken away already. A second call does nothing.
        """
        domid = made.domid
        if self.created.get(domid) is not made:
            return
        del self.created[domid]
        if not made.domain.dying and not made.domain.pause_count:
            made.domain.pause()
        self._clean_up(made)
        self.domids.note_destroyed(domid)
        self.ctx.control.domctl.destroy_domain(made.domain)
        self.ctx.loop.advance(0)

    def _clean_up(self, made: Created) -> None:
        """Of a paused domain, which reaches its device model no more: devices, then trees.

        What the guest made of its directories does not matter: /libxl/N/device says which
        devices there are.
        """
        self.hotplug.remove_all(made)
        domid = made.domid
        for path in (f"/vm/{made.uuid}", f"/local/domain/{domid}", f"/libxl/{domid}"):
            self.xs.rm(path)


def _memory_stays(made: Created) -> None:
    """What fills the memory of a domain that is reset."""


__all__ = ["Created", "HotplugScripts", "Toolstack", "ToolstackError"]
