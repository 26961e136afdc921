"""What a guest keeps of its memory when it crashes or hibernates: see xenpv.vbd.crash.

Each of the two files lies on a disk of the guest, from a sector on, as its registry says; so it
is there after a reboot too. It takes 8,192 bytes and 4,096 for each page of the guest's memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from xenpv.errors import HypercallError, LocalProtocolError
from xenpv.host.libxl import ToolstackError

if TYPE_CHECKING:
    from xenpv.bus.registry import Registry
    from xenpv.bus.windows import Windows
    from xenpv.bus.xenbus import XenBus
    from xenpv.host.toolstack import Created
    from xenpv.platform import Platform
    from xenpv.vbd.adapter import Vbd
    from xenpv.vbd.crash.place import Kind
    from xenpv.vbd.crash.stack import DumpStack
    from xenpv.vbd.disk import Disk

SECTOR_MAX = (1 << 64) - 1


class Dumping:
    """The part of a guest that concerns its dump and its hibernation."""

    created: Created
    platform: Platform
    windows: Windows | None

    @property
    def name(self) -> str:
        raise NotImplementedError

    @property
    def bus(self) -> XenBus | None:
        raise NotImplementedError

    @property
    def registry(self) -> Registry:
        raise NotImplementedError

    @property
    def running(self) -> bool:
        raise NotImplementedError

    @property
    def _vbd(self) -> Vbd | None:
        raise NotImplementedError

    def set_crash_dump(self, disk: Disk | int | None, *, lba: int = 0) -> None:
        """A complete memory dump goes to that disk, from sector `lba` on, when it bug-checks.

        `disk`: one of `disks`, or a TargetId, which need not be there yet; None: no dump. What
        is on the disk there is lost in a crash. LocalProtocolError for a guest that is not
        Windows, or has no 25 pages left for the crash driver.
        """
        from xenpv.vbd.crash.place import Kind

        self._set(Kind.DUMP, disk, lba)

    def set_hibernation(self, disk: Disk | int | None, *, lba: int = 0) -> None:
        """As set_crash_dump, of what is written when it hibernates."""
        from xenpv.vbd.crash.place import Kind

        self._set(Kind.HIBERNATION, disk, lba)

    @property
    def crash_dump(self) -> DumpStack | None:
        """The dump stack of this boot: its `stage`, `failure` and `file`."""
        return cast("DumpStack | None", None if self.bus is None else self.bus.crash.dumper)

    @property
    def hibernation(self) -> DumpStack | None:
        """The hibernation stack of this boot."""
        return cast("DumpStack | None", None if self.bus is None else self.bus.crash.hibernation)

    def hibernate(self) -> int:
        """Its user sends it to S4: devices close, memory is written, the domain powers off.

        The reason code that the domain gave. Without set_hibernation nothing is written.
        ToolstackError: the file could not be written, and the domain says that it crashed; or it
        did not go down. LocalProtocolError unless it has booted and runs.
        """
        bus = self.bus
        if bus is None or not bus.is_windows or not self.running:
            raise LocalProtocolError(f"guest {self.name!r} does not run Windows")
        stack = self.hibernation
        bus.sleep(s4=True)
        self.platform.run()
        if stack is not None and stack.failure:
            raise ToolstackError(f"guest {self.name!r} did not hibernate: {stack.failure}")
        reason = self.created.domain.shutdown_code
        if reason is None:
            raise ToolstackError(f"guest {self.name!r} did not go down")
        return reason

    def load_dumps(self, windows: Windows) -> None:
        """At its boot: the stacks that its registry asks for, before there is a bus."""
        from xenpv.vbd.crash.place import Kind

        try:
            windows.dumper = self._load(Kind.DUMP)
            windows.hibernation = self._load(Kind.HIBERNATION)
        except LocalProtocolError as error:
            self.created.domain.trace.note(self.created.domid, str(error))

    def _load(self, kind: Kind) -> DumpStack | None:
        from xenpv.vbd.crash import place

        at = place.read(self.registry, kind)
        if at is None:
            return None
        from xenpv.vbd.crash.driver import Mode
        from xenpv.vbd.crash.stack import DumpStack
        from xenpv.vbd.parameters import Parameters

        parameters = Parameters.read(self.registry)
        mode = Mode.DUMP if kind is place.Kind.DUMP else Mode.HIBER
        try:
            return DumpStack(
                self.created.domain,
                mode,
                at.lba,
                units=parameters.units,
                quirks=frozenset(parameters.quirks),
            )
        except HypercallError as error:
            raise LocalProtocolError(f"guest {self.name!r}: no memory for a dump") from error

    def _set(self, kind: Kind, disk: Disk | int | None, lba: int) -> None:
        from xenpv.vbd.crash import place

        if self.created.config.personality.value != "windows":
            raise LocalProtocolError(f"guest {self.name!r} does not run Windows")
        target_id = disk if disk is None or isinstance(disk, int) else disk.target.target_id
        if not 0 <= lba <= SECTOR_MAX or (target_id is not None and not 0 <= target_id < 128):
            raise LocalProtocolError(
                f"target {target_id}, sector {lba}: expected a target below 128"
            )
        before = place.read(self.registry, kind)
        after = None if target_id is None else place.Place(target_id, lba)
        place.write(self.registry, kind, after)
        bus = self.bus
        if bus is None:
            return
        stack = self._load(kind)
        if kind is place.Kind.DUMP:
            old, bus.crash.dumper = bus.crash.dumper, stack
        else:
            old, bus.crash.hibernation = bus.crash.hibernation, stack
        if old is not None:
            cast("DumpStack", old).unload()
        for at, in_path in ((before, False), (after, True)):
            target = (
                None if at is None or self._vbd is None else self._vbd.targets.get(at.target_id)
            )
            if target is not None:
                target.frontend.usage.notify(kind.usage, in_path)
