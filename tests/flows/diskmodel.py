"""A disk as a table of what each sector may hold, and a guest that is held against it.

Not a test module. A write that succeeded leaves one content in its sectors; one that failed, or
that others overlapped while it was under way, leaves all that were written there. A read gives
what its sectors held at some moment while it was under way. Every SRB completes once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import attrs

from tests.flows.stepping import in_order, waited_for
from xenpv import Disk, Guest, MemoryImage, Platform
from xenpv.back.blkback import resize
from xenpv.back.blkprofile import PROFILES
from xenpv.errors import HypercallError, LocalProtocolError
from xenpv.testing.checkers import check_all
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.srb import Srb, SrbFunction, SrbStatus
from xenpv.vbd.units import UNITS
from xenpv.xen.domain import PAGE_SIZE
from xenpv.xen.loop import Loop, Task

GUARD = 0xEE
Scatter = list[tuple[int, int, int]]


@attrs.frozen(kw_only=True)
class Shape:
    """What connects, and how."""

    profile: str = "linux"
    front_units: str = "spec2024"
    back_units: str | None = None
    sector_size: int = 512
    order: int = 0
    queues: int = 1
    persistent: bool = False
    latency_ns: int = 0
    discard: bool = True
    resizes: bool = False  # while it is in use
    sectors: int = 2048  # of sector_size


@attrs.frozen(kw_only=True)
class Step:
    """One thing that happens, `gap` steps of the loop after the one before.

    `kind`: read, write, flush, unmap, drain (SRB_FUNCTION_FLUSH), reset, suspend, or resize (to
    `count` sectors).
    `cuts` are where the buffer is cut into elements of the scatter list, `offsets` where each
    begins in its page.
    """

    kind: str
    gap: int = 0
    lba: int = 0
    count: int = 1
    queue: int = 0
    cdb: int = 10
    cuts: tuple[int, ...] = ()
    offsets: tuple[int, ...] = (0,)
    cancelled: bool = False  # of a suspend


@attrs.define(eq=False)
class Command:
    """One SRB under way. `seen`: what each of its sectors held since it was sent."""

    step: Step
    srb: Srb
    scatter: Scatter
    pfns: list[tuple[int, int]]
    data: list[bytes] = attrs.Factory(list)
    seen: list[set[bytes]] = attrs.Factory(list)
    alone: bool = True  # no other write touched its sectors
    cut: bool = False  # some of its sectors went and perhaps came again while it was under way
    completions: int = 0
    finish: Callable[[Command], None] | None = None

    def wake(self) -> None:
        self.completions += 1
        if self.finish is not None:
            self.finish(self)


@attrs.define(eq=False)
class Gaps:
    """A scheduler in the loop's own order that does each step of a program in its turn."""

    scene: Scene
    left: int = 0

    def _count(self) -> None:
        while self.scene.program and self.left <= 0:
            step = self.scene.program.pop(0)
            self.left = self.scene.program[0].gap if self.scene.program else 0
            self.scene.do(step)
        self.left -= 1

    def drain(self, loop: Loop, limit: int) -> int:
        return in_order(loop, limit, self._count)

    def pump(self, loop: Loop, task: Task) -> bool:
        return waited_for(loop, task)


@attrs.define(eq=False)
class Scene:
    """A guest with one disk, and the table. `run` does a program and checks everything."""

    shape: Shape
    xen: Platform
    guest: Guest
    image: MemoryImage
    sectors: list[set[bytes]]
    program: list[Step] = attrs.Factory(list)
    commands: list[Command] = attrs.Factory(list)
    done: list[Command] = attrs.Factory(list)
    number: int = 0

    @classmethod
    def of(cls, xen: Platform, shape: Shape) -> Scene:
        size = shape.sector_size
        content = [bytes([i % 251]) * size for i in range(shape.sectors)]
        image = MemoryImage(bytearray(b"".join(content)), sector_size=size)
        disk = Disk(
            image, profile=shape.profile, units=shape.back_units, latency_ns=shape.latency_ns
        )
        parameters = Parameters(
            ring_page_order=shape.order,
            queues=shape.queues,
            units=UNITS[shape.front_units],
            persistent=shape.persistent,
        )
        guest = xen.create(name="web", vcpus=4, disks=[disk], vbd=parameters).start()
        return cls(shape, xen, guest, image, [{one} for one in content])

    # what happens

    def do(self, step: Step) -> None:
        if step.kind == "suspend":
            # As the toolstack asks; who answers does so in its time.
            path = f"/local/domain/{self.guest.domid}/control/shutdown"
            self.xen.toolstack.xs.write(path, "suspend")
        elif step.kind == "resize":
            self._resize(step.count)
        elif not self.guest.created.domain.is_shutdown:
            self._submit(step)

    def _resize(self, count: int) -> None:
        """What goes is lost; what comes is zeros, and what is still written there."""
        size, xvda = self.shape.sector_size, 51712
        directory = PROFILES[self.shape.profile].directory
        device = self.xen.backends.device(directory, self.guest.domid, xvda)
        if device is None:
            return
        try:
            resize(self.xen.backends, device, count * size)
        except LocalProtocolError:
            return  # it is not open: the guest is on its way
        old = len(self.sectors)
        del self.sectors[count:]
        self.sectors += [{bytes(size)} for _ in range(old, count)]
        for command in self.commands:
            if not command.completions and command.step.lba + command.step.count > min(old, count):
                command.cut = True
                for index, one in enumerate(command.data):
                    if command.step.lba + index < len(self.sectors):
                        self.sectors[command.step.lba + index].add(one)

    def _submit(self, step: Step) -> None:
        if self.guest.bus is None or not self.guest.disks:
            return
        target = self.guest.disks[0].target
        make = {
            "read": self._transfer,
            "write": self._transfer,
            "unmap": self._unmap,
            "flush": self._simple,
            "drain": self._simple,
            "reset": self._simple,
        }[step.kind]
        command = make(step)
        if command is not None:
            self.commands.append(command)
            command.srb.on_complete = command
            command.finish = self._finished
            target.submit(command.srb)

    def _scatter(self, step: Step, nr_bytes: int) -> tuple[Scatter, list[tuple[int, int]]] | None:
        """The buffer: as many elements as there are cuts and one, each in pages of its own."""
        cuts = sorted({cut % nr_bytes for cut in step.cuts if cut % nr_bytes})
        ends = [*cuts, nr_bytes]
        scatter: Scatter = []
        held = []
        domain = self.guest.created.domain
        start = 0
        for index, end in enumerate(ends):
            offset = step.offsets[index % len(step.offsets)] % PAGE_SIZE
            pages = -(-(offset + end - start) // PAGE_SIZE)
            try:
                pfn = domain.pages.alloc(pages)
            except HypercallError:
                for one, count in held:
                    domain.pages.free(one, count)
                return None
            held.append((pfn, pages))
            domain.write(pfn, 0, bytes([GUARD]) * (pages * PAGE_SIZE))
            scatter.append((pfn, offset, end - start))
            start = end
        return scatter, held

    def _fill(self, scatter: Scatter, data: bytes) -> None:
        domain = self.guest.created.domain
        at = 0
        for pfn, offset, length in scatter:
            domain.write(pfn, offset, data[at : at + length])
            at += length

    def _pages(self, held: Sequence[tuple[int, int]]) -> list[bytearray]:
        domain = self.guest.created.domain
        return [bytearray(domain.read(pfn, 0, count * PAGE_SIZE)) for pfn, count in held]

    def _transfer(self, step: Step) -> Command | None:
        size = self.shape.sector_size
        found = self._scatter(step, step.count * size)
        if found is None:
            return None
        scatter, held = found
        writes = step.kind == "write"
        command = Command(
            step, Srb(cdb=cdb(step), data=scatter, queue_tag=step.queue), scatter, held
        )
        touched = range(step.lba, step.lba + step.count)
        if writes:
            self.number += 1
            rng = random.Random(self.number)
            command.data = [rng.randbytes(16).ljust(size, b"w") for _ in touched]
            self._fill(scatter, b"".join(command.data))
            if touched.stop > len(self.sectors):
                command.cut = True
                if not self.shape.resizes:
                    return command  # refused as a whole
                # The driver may not know yet: of its requests only the last is refused.
            self._written(command)
        else:
            command.seen = [set(one) for one in self.sectors[touched.start : touched.stop]]
            command.cut = touched.stop > len(self.sectors)
        return command

    def _written(self, command: Command) -> None:
        """Its data may be there from now on, for whoever reads or writes there too."""
        first = command.step.lba
        count = min(len(command.data), len(self.sectors) - first)
        for index, one in enumerate(command.data[: max(count, 0)]):
            self.sectors[first + index].add(one)
        for other in self.commands:
            if other.completions:
                continue
            step = other.step
            low, high = max(first, step.lba), min(first + count, step.lba + step.count)
            if low >= high:
                continue
            if other.seen:
                for at in range(low, min(high, step.lba + len(other.seen))):
                    other.seen[at - step.lba].add(command.data[at - first])
            elif other.data:
                other.alone = command.alone = False

    def _unmap(self, step: Step) -> Command | None:
        found = self._scatter(step, 24)
        if found is None:
            return None
        scatter, held = found
        header = (22).to_bytes(2, "big") + (16).to_bytes(2, "big") + bytes(4)
        lba = step.lba.to_bytes(8, "big") + step.count.to_bytes(4, "big") + bytes(4)
        self._fill(scatter, header + lba)
        code = bytes((0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0))
        command = Command(step, Srb(cdb=code, data=scatter, queue_tag=step.queue), scatter, held)
        command.cut = step.lba + step.count > len(self.sectors)
        # Until it is looked at, the disk may have become large enough.
        if self.shape.discard and (self.shape.resizes or not command.cut):
            zero = bytes(self.shape.sector_size)
            command.data = [zero] * step.count
            self._written(command)
        return command

    def _simple(self, step: Step) -> Command:
        if step.kind == "flush":
            srb = Srb(cdb=bytes((0x35,)).ljust(10, b"\0"), queue_tag=step.queue)
        else:
            functions = {"drain": SrbFunction.FLUSH, "reset": SrbFunction.RESET_DEVICE}
            srb = Srb(function=functions[step.kind], queue_tag=step.queue)
        return Command(step, srb, [], [])

    # what is true then

    def _finished(self, command: Command) -> None:
        step = command.step
        if command.srb.srb_status is SrbStatus.SUCCESS and (command.data or step.kind == "read"):
            if command.cut:
                assert self.shape.resizes, f"{step} succeeded beyond the end"
            elif step.kind == "read":
                self._check_read(command)
            elif command.alone:
                for index, one in enumerate(command.data):
                    self.sectors[step.lba + index] = {one}
        self._check_guards(command)
        self.done.append(command)

    def _data(self, command: Command) -> bytes:
        domain = self.guest.created.domain
        return b"".join([domain.read(*element) for element in command.scatter])

    def _check_read(self, command: Command) -> None:
        step, size = command.step, self.shape.sector_size
        data = self._data(command)
        assert len(data) == step.count * size
        for index, seen in enumerate(command.seen):
            one = data[index * size : (index + 1) * size]
            assert one in seen, f"sector {step.lba + index} reads {one[:20]!r}, never written"

    def _check_guards(self, command: Command) -> None:
        """Nothing around the buffer changed; for a write, nothing in it either."""
        for (_, offset, length), page in zip(
            command.scatter, self._pages(command.pfns), strict=True
        ):
            outside = page[:offset] + page[offset + length :]
            assert outside == bytes([GUARD]) * len(outside), "bytes beside the buffer were written"
        if command.step.kind == "write":
            assert self._data(command) == b"".join(command.data), "the buffer of a write changed"

    def run(self, program: Sequence[Step]) -> None:
        self.program = list(program)
        gaps = Gaps(self)
        loop = self.xen.loop
        before, loop.scheduler = loop.scheduler, gaps
        try:
            self._go(gaps)
        finally:
            loop.scheduler = before
        self._settle()

    def _go(self, gaps: Gaps) -> None:
        for _ in range(len(self.program) + 8):
            self.xen.run()
            suspend = self.guest.created.domain.is_shutdown
            if suspend:
                self.guest.resume(fast=bool(len(self.done) % 2))
                continue
            if not self.program:
                break
            gaps.left = self.program[0].gap if len(self.program) > 1 else 0
            self.do(self.program.pop(0))
        # The driver's own rounds of a reset, and disks that take their time.
        self.xen.advance(1)

    def _settle(self) -> None:
        for command in self.commands:
            assert command.completions == 1, f"{command.step} completed {command.completions} times"
            for pfn, count in command.pfns:
                self.guest.created.domain.pages.free(pfn, count)
        size = self.shape.sector_size
        disk = self.guest.disks[0]
        assert disk.capacity == len(self.sectors)
        seen = disk.read(0, len(self.sectors))
        assert seen == bytes(self.image.buffer[: len(seen)])
        for lba, allowed in enumerate(self.sectors):
            one = seen[lba * size : (lba + 1) * size]
            assert one in allowed, (
                f"sector {lba} holds {one[:20]!r}, which is none of {len(allowed)}"
            )
        check_all(self.xen)


def cdb(step: Step) -> bytes:
    """READ or WRITE of the length that the step asks for, if that can say it."""
    writes, lba, count = step.kind == "write", step.lba, step.count
    length = step.cdb
    if length == 6 and (lba > 0x1FFFFF or count > 256):
        length = 10
    if length == 10 and count > 0xFFFF:
        length = 16
    if length == 6:
        return bytes((0x0A if writes else 0x08,)) + lba.to_bytes(3, "big") + bytes((count & 255, 0))
    code = {10: (0x28, 0x2A), 12: (0xA8, 0xAA), 16: (0x88, 0x8A)}[length][writes]
    if length == 10:
        return bytes((code, 0)) + lba.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"
    if length == 12:
        return bytes((code, 0)) + lba.to_bytes(4, "big") + count.to_bytes(4, "big") + b"\0\0"
    return bytes((code, 0)) + lba.to_bytes(8, "big") + count.to_bytes(4, "big") + b"\0\0"
