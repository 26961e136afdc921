"""The crash driver by itself, in a guest that stands still, with a raw backend or a real one.

Not a test module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import attrs

from tests.vbd import rawback
from tests.vbd.rawback import RawBack, Slot
from xenpv import Platform
from xenpv.vbd.crash.driver import CrashDriver, CrashImage, Mode, Step
from xenpv.vbd.srb import Srb
from xenpv.vbd.units import SPEC2024, SectorUnits
from xenpv.xen.domain import Domain

BARRIER_TOO = {"feature-barrier": "1"}
DEVID = rawback.DEVID


@attrs.define(eq=False)
class CrashScene:
    """`driver` of a guest whose normal driver was connected when everything stopped."""

    xen: Platform
    domain: Domain
    backs: list[RawBack]
    driver: CrashDriver

    @property
    def back(self) -> RawBack:
        return self.backs[0]

    @property
    def home(self) -> str:
        return f"/local/domain/{self.domain.domid}"

    def write(self, path: str, value: str) -> None:
        """As the toolstack."""
        self.xen.toolstack.ctx.xs.write(path, value)

    def read(self, path: str) -> str | None:
        return self.xen.toolstack.ctx.xs.read(path)

    def walk(self, until: Step | None = None) -> Step:
        """Poll it as its stack does, until it is at rest or at that step."""
        while self.driver.step is not until:
            wait = self.driver.poll()
            if wait is None:
                break
            self.xen.loop.advance(wait)
        return self.driver.step

    def connect(self) -> CrashScene:
        assert self.walk() is Step.READY, self.driver.failure
        self.xen.loop.run()
        return self

    def page(self, content: bytes = b"", pages: int = 1) -> int:
        pfn = self.domain.pages.alloc(pages)
        self.domain.write(pfn, 0, content.ljust(4096 * pages, b"\0"))
        return pfn

    def submit(self, cdb: bytes, data: list[tuple[int, int, int]] | None = None, **f: int) -> Srb:
        srb = Srb(cdb=cdb, data=data or [], **f)  # type: ignore[arg-type]
        self.driver.target.submit(srb)
        return srb

    def taken(self) -> list[Slot]:
        self.xen.loop.run()
        return self.back.taken()

    def answer(self, *responses: tuple[int, int]) -> None:
        """The backend answers, and the driver looks."""
        self.back.answer(*responses)
        self.driver.target.interrupt()


@contextmanager
def crash_scene(
    mode: Mode = Mode.DUMP,
    *,
    keys: Mapping[str, str] | None = None,
    usage: str | None = "1",
    disks: int = 1,
    units: SectorUnits = SPEC2024,
    quirks: frozenset[str] = frozenset(),
    is_aligned: bool = True,
) -> Iterator[CrashScene]:
    with rawback.scene(keys=keys, disks=disks) as made:
        bus = made.guest.bus
        assert bus is not None
        domain = made.domain
        if usage is not None:
            bus.store.write(f"data/scsi/target/0/{mode.value}", usage)
        image = CrashImage.load(domain, is_aligned=is_aligned)
        driver = CrashDriver(domain, mode, image, units=units, quirks=quirks)
        domain.quiesce("crash", made.xen.loop.system_time)
        yield CrashScene(made.xen, domain, made.backs, driver)


def cdb(operation: int, lba: int = 0, count: int = 0) -> bytes:
    """Of 10 or 16 bytes, as the operation's class has."""
    if operation >= 0x80:
        return bytes((operation, 0)) + lba.to_bytes(8, "big") + count.to_bytes(4, "big") + b"\0\0"
    return bytes((operation, 0)) + lba.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"
