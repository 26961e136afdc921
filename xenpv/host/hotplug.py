"""Devices that come and go: at creation, to a domain that is there, and at its end.

libxl_device.c. The toolstack goes by its own copy of what there is, `/libxl/<domid>/device`;
what a guest makes of its directories changes nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from xenpv.errors import StoreError
from xenpv.host import device as devices
from xenpv.host.aodevice import DEVICE_TIMEOUT_NS, HOTPLUG_TIMEOUT_NS, AoDevice, Mode
from xenpv.host.device import Device, DeviceKey
from xenpv.host.hotplugscript import HotplugScripts, calls
from xenpv.host.libxl import LIBXL, STEP_NS, Created, LibxlCtx, ToolstackError

if TYPE_CHECKING:
    from xenpv.host.diskspec import DiskSpec
    from xenpv.host.vifspec import VifSpec

__all__ = ["DEVICE_TIMEOUT_NS", "HOTPLUG_TIMEOUT_NS", "Hotplug", "HotplugScripts", "Mode"]

# Nobody closes these: what is in the store is all there is to remove.
DIRECTORIES_ONLY = ("console", "vuart")
DOM0_NAMES = ("", "0", "Domain-0")  # as `backend` of a device
SCRIPT_KEYS = ("script", "params", "type", "gatewaydev")


class Hotplug:
    """Adds and removes devices of domains. `blkback`: who serves disks that do not say it."""

    def __init__(self, ctx: LibxlCtx, scripts: HotplugScripts, blkback: str = "linux") -> None:
        self.ctx = ctx
        self.scripts = scripts
        self.blkback = blkback

    # in

    def add_all(self, made: Created, new: Sequence[Device], *, hot: bool = False) -> None:
        """Devices of one kind, side by side. `hot`: the domain is there and may run.

        ToolstackError: the first that failed; the nodes of every one stay, and so do those
        that came up. What fails at creation goes with the domain.
        """
        coming = []
        for device in new:
            self._write(made, device)
            one = AoDevice(self.ctx, self.scripts, device, calls(device, device.back, adds=True))
            one.connect(watched=hot and not made.domain.pause_count)
            coming.append(one)
        self._finish(coming)
        self._raise_first(coming)

    def _write(self, made: Created, device: Device) -> None:
        try:
            device.add(self.ctx.xs)
        except StoreError as error:
            if error.name != "EEXIST":
                raise
            raise _exists(device) from error
        made.devices.append(device)
        if device.kind == "vif":
            self.ctx.control.trace.note(0, f"vif{made.domid}.{device.devid}: {device.back['mac']}")

    def attach(self, made: Created, spec: DiskSpec | VifSpec) -> int:
        """Hot add; the devid. The configuration that a reboot goes by has it from then on.

        ToolstackError: DEVICE_EXISTS, DOMAIN_NOTFOUND, or why it did not come up; its nodes
        stay then, to be detached. ConfigError: a domain cannot have it beside what it has.
        """
        from xenpv.host.diskspec import DiskSpec

        self._must_exist(made)
        device = (
            self._new_disk(made, spec) if isinstance(spec, DiskSpec) else self._new_nic(made, spec)
        )
        self.add_all(made, [device], hot=True)
        return device.devid

    def _new_disk(self, made: Created, spec: DiskSpec) -> Device:
        device = self.disk(made, spec)
        self._must_be_new(device)
        made.config = attrs.evolve(made.config, disks=(*made.config.disks, spec))
        return device

    def disk(self, made: Created, spec: DiskSpec) -> Device:
        """The device of a disk. ConfigError, ToolstackError(DOMAIN_NOTFOUND): there is none."""
        return devices.vbd(
            spec,
            made.domid,
            backend_domid=self.resolve(spec.backend),
            pv=made.config.is_pv,
            blkback=self.blkback,
        )

    def _new_nic(self, made: Created, spec: VifSpec) -> Device:
        from xenpv.host.vifspec import NicType

        if spec.devid is None:
            spec = attrs.evolve(spec, devid=devices.next_devid(self.ctx.xs, made.domid, "vif"))
        # What is plugged in while a domain runs has no emulated twin, unless it is asked for.
        spec = attrs.evolve(spec, type=spec.type or NicType.VIF)
        backend_domid = self.resolve(spec.backend)
        hvm = made.config.is_hvm
        device = devices.vif(spec, made.domid, hvm=hvm, backend_domid=backend_domid)
        self._must_be_new(device)
        made.config = attrs.evolve(made.config, vifs=(*made.config.vifs, spec))
        return device

    def resolve(self, backend: str) -> int:
        """libxl__resolve_domid: a domain's name or number, "" for this one.

        ToolstackError DOMAIN_NOTFOUND unless it exists: it is looked up when a device is made.
        """
        if backend in DOM0_NAMES:
            return self.ctx.control.domid
        read = self.ctx.xs.read
        if backend.isdecimal() and len(backend) < 6:
            if read(f"/local/domain/{int(backend)}/domid") is not None:
                return int(backend)
        else:
            for domid in self.ctx.xs.directory("/local/domain"):
                if domid.isdecimal() and read(f"/local/domain/{domid}/name") == backend:
                    return int(domid)
        why = f"no domain {backend!r} that could be a backend; dom0 is 'Domain-0'"
        raise ToolstackError(why, LIBXL.DOMAIN_NOTFOUND)

    def _must_exist(self, made: Created) -> None:
        if made.domain.dying:
            raise ToolstackError(f"domain {made.domid} does not exist", LIBXL.DOMAIN_NOTFOUND)

    def _must_be_new(self, device: Device) -> None:
        if self.ctx.xs.read(device.libxl_path) is not None:
            raise _exists(device)

    # out

    def detach(self, made: Created, kind: str, devid: int, mode: Mode) -> None:
        """Hot remove. ToolstackError: there is no such device, or its backend does not close.

        SAFE leaves all as it is then; of the other two FORCED alone reports that it had to.
        """
        self._must_exist(made)
        found = [
            one
            for one in devices.stored(self.ctx.xs, made.domid)
            if (one.kind, one.devid) == (kind, devid)
        ]
        if not found:
            why = f"domain {made.domid} has no {kind} {devid}"
            raise ToolstackError(why, LIBXL.INVAL)
        going = self._remove(made, found, mode)
        if self.ctx.xs.read(found[0].libxl_path) is None:
            self._forget(made, found[0])
        self._raise_first(going)

    def remove_all(self, made: Created) -> list[ToolstackError]:
        """At the domain's end: by force, side by side; what went wrong on the way."""
        known = devices.stored(self.ctx.xs, made.domid)
        if self.ctx.xs.read(f"/libxl/{made.domid}/device") is None:
            # Somebody deleted the copy: what it was a copy of is all that is left to go by.
            console = DeviceKey(kind="console", devid=0, domid=made.domid, backend_domid=0)
            known = [*made.devices, console]
        for key in known:
            if key.backend_kind in DIRECTORIES_ONLY:
                key.destroy(self.ctx.xs)
        known = [key for key in known if key.backend_kind not in DIRECTORIES_ONLY]
        going = self._remove(made, known, Mode.FORCED)
        made.devices.clear()
        errors = [one.error for one in going if one.error is not None]
        for error in errors:
            self.ctx.control.trace.note(0, str(error))
        return errors

    def _remove(self, made: Created, known: Sequence[DeviceKey], mode: Mode) -> list[AoDevice]:
        runs = not (made.domain.pause_count or made.domain.is_shutdown or made.domain.dying)
        going = []
        for key in known:
            read = self.ctx.xs.read
            keys = {name: read(f"{key.libxl_path}/{name}") for name in SCRIPT_KEYS}
            one = AoDevice(self.ctx, self.scripts, key, calls(key, keys, adds=False), mode)
            one.remove(runs=runs)
            going.append(one)
        self._finish(going)
        return going

    def _forget(self, made: Created, key: DeviceKey) -> None:
        """A domain's configuration names what is in the store (retrieve_domain_configuration)."""
        made.devices = [
            one for one in made.devices if (one.kind, one.devid) != (key.kind, key.devid)
        ]
        config = made.config
        if key.kind == "vbd":
            disks = tuple(one for one in config.disks if one.number != key.devid)
            made.config = attrs.evolve(config, disks=disks)
        elif key.kind == "vif":
            vifs = tuple(one for one in config.vifs if one.devid != key.devid)
            made.config = attrs.evolve(config, vifs=vifs)

    # waiting

    def _finish(self, ops: Sequence[AoDevice]) -> None:
        """Let the loop run until all of them are over: each has its deadlines."""
        loop = self.ctx.loop
        loop.run()
        waiting = [one for one in ops if not one.poll()]
        while waiting:
            loop.advance(STEP_NS)
            waiting = [one for one in waiting if not one.poll()]

    def _raise_first(self, ops: Sequence[AoDevice]) -> None:
        errors = [one.error for one in ops if one.error is not None]
        for error in errors[1:]:
            self.ctx.control.trace.note(0, str(error))
        if errors:
            raise errors[0]


def _exists(device: Device) -> ToolstackError:
    text = f"{device.kind} {device.devid} of domain {device.domid} already exists in xenstore"
    return ToolstackError(text, LIBXL.DEVICE_EXISTS)
