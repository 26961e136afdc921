"""A driver domain dies between any two steps, and comes back: its frontends survive both."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.flows.stepping import At
from xenpv import Disk, Guest, MemoryImage, Platform, ToolstackError, Vif
from xenpv.errors import LocalProtocolError
from xenpv.testing.census import leaks, take_census
from xenpv.vbd.disk import DiskError

SECTORS = 64
STRIDE = 8  # of the steps that are tried in a normal run


def driver(xen: Platform) -> Guest:
    return xen.create(name="b", personality="linux", driver_domain=True).start()


def kill(xen: Platform, victim: Guest) -> None:
    """What `xl destroy` comes to, at once: its trees, then the domain; nothing is waited for."""
    made = victim.created
    if xen.toolstack.created.pop(made.domid, None) is None:
        return
    made.domain.pause()
    for path in (f"/vm/{made.uuid}", f"/local/domain/{made.domid}", f"/libxl/{made.domid}"):
        xen.toolstack.xs.rm(path)
    xen.toolstack.xs.rm_empty_parents(
        f"/local/domain/0/backend/console/{made.domid}/0", "/local/domain/0/backend"
    )
    xen.dom0.domctl.destroy_domain(made.domain)


class Scene:
    """A driver domain `b`, and a guest with a disk and an interface of it."""

    def __init__(self, xen: Platform, personality: str) -> None:
        self.xen = xen
        self.personality = personality
        self.image = MemoryImage(bytearray(n // 512 & 0xFF for n in range(SECTORS * 512)))
        self.b = driver(xen)
        self.app: Guest | None = None

    def create(self) -> None:
        self.app = self.xen.create(
            name="app",
            personality=self.personality,
            disks=[Disk(self.image, backend="b")],
            vifs=[Vif("br0", mac="00:16:3e:00:00:01", backend="b")],
        )

    def connect(self) -> None:
        with suppress(ToolstackError):
            self.create()
            assert self.app is not None
            self.app.start()

    def traffic(self) -> None:
        assert self.app is not None
        for index in range(4):
            with suppress(DiskError, LocalProtocolError, IndexError):
                self.app.nets[0].send(b"\xff" * 6 + self.app.nets[0].mac + bytes(50))
            with suppress(DiskError, LocalProtocolError, IndexError):
                self.app.disks[0].write(index * 8, bytes([index]) * 4096)
            with suppress(DiskError, LocalProtocolError, IndexError):
                self.app.disks[0].read(index * 8, 8)

    def disconnect(self) -> None:
        assert self.app is not None
        with suppress(ToolstackError):
            self.app.detach("vif", 0)
        with suppress(ToolstackError):
            self.app.detach("vbd", 51712)

    def come_back(self) -> None:
        """A new `b`; what is left of each device is detached, and it is attached anew."""
        self.b = driver(self.xen)
        if self.app is None or self.app.domid not in self.xen.toolstack.created:
            self.connect()
            assert self.app is not None
        listed = self.xen.toolstack.xs.directory
        for kind, devid, device in (
            ("vbd", 51712, Disk(self.image, "xvda", backend="b")),
            ("vif", 0, Vif("br0", mac="00:16:3e:00:00:01", backend="b")),
        ):
            home = f"/libxl/{self.app.domid}/device/{kind}"
            if str(devid) in listed(home):
                with suppress(ToolstackError):
                    self.app.detach(kind, devid)
            if str(devid) in listed(home):
                self.app.detach(kind, devid, mode="auto")
            self.app.attach(device)

    def works(self) -> None:
        app = self.app
        assert app is not None
        assert app.running
        app.disks[0].write(40, b"\x5a" * 512)
        assert app.disks[0].read(40, 1) == b"\x5a" * 512
        assert self.image.buffer[40 * 512 : 41 * 512] == b"\x5a" * 512
        frame = b"\xff" * 6 + app.nets[0].mac + b"\x88\xb5" + bytes(46)
        app.nets[0].send(frame)
        self.xen.run()
        assert self.b.bridge("br0").frames[-1] == frame


Phase = Callable[[Scene], None]
PHASES: dict[str, tuple[list[Phase], Phase]] = {
    "connect": ([], Scene.connect),
    "traffic": ([Scene.connect], Scene.traffic),
    "disconnect": ([Scene.connect, Scene.traffic], Scene.disconnect),
}


def steps_of(phase: str, personality: str) -> int:
    """How many there are when nobody dies."""
    with Platform(seed=5) as xen:
        scene = Scene(xen, personality)
        before, during = PHASES[phase]
        for one in before:
            one(scene)
        at = xen.loop.scheduler = At(-1, lambda: None, f"xenstored d{scene.b.domid}")
        during(scene)
        return at.steps


def silence(xen: Platform, victim: Guest) -> None:
    """xenstored says nothing more to it; it lives on."""
    ring = xen.store_daemon.rings.get(victim.domid)
    if ring is not None:
        ring.frozen = 1


def befalls_at(
    phase: str,
    personality: str,
    step: int,
    what: Callable[[Platform, Guest], None] = kill,
    seed: int = 5,
) -> None:
    """`what` befalls `b` before that step of a phase; it ends, comes back, and all works."""
    with Platform(seed=seed) as xen:
        scene = Scene(xen, personality)
        empty = take_census(xen)
        before, during = PHASES[phase]
        for one in before:
            one(scene)
        xen.loop.scheduler = At(step, lambda: what(xen, scene.b), f"xenstored d{scene.b.domid}")
        during(scene)
        xen.loop.scheduler = None
        xen.run()
        assert scene.app is None or scene.app.running or scene.app.created.domain.dead
        kill(xen, scene.b)
        xen.run()
        scene.come_back()
        scene.works()
        assert scene.app is not None
        scene.app.destroy()
        assert leaks(empty, take_census(xen)) == []


PERSONALITIES = pytest.mark.parametrize("personality", ["windows", "linux"])


@PERSONALITIES
@pytest.mark.parametrize("phase", PHASES)
def test_a_driver_domain_dies_at_some_steps_and_comes_back(phase: str, personality: str) -> None:
    steps = steps_of(phase, personality)
    assert steps > 20
    for step in range(0, steps, STRIDE):
        befalls_at(phase, personality, step)


@pytest.mark.soak
@PERSONALITIES
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("seed", range(5))
def test_a_driver_domain_dies_at_any_step(phase: str, personality: str, seed: int) -> None:
    for step in range(steps_of(phase, personality) + 20):
        befalls_at(phase, personality, step, seed=seed)


@PERSONALITIES
@pytest.mark.parametrize("phase", PHASES)
def test_a_driver_domain_that_xenstored_forgets_raises_nothing(
    phase: str, personality: str
) -> None:
    for step in range(1, steps_of(phase, personality), 2 * STRIDE):
        befalls_at(phase, personality, step, silence)
