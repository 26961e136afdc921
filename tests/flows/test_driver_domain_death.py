"""A driver domain dies between any two steps, and comes back: its frontends survive both."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.flows.stepping import At
from xenpv import Disk, Guest, MemoryImage, Platform, ToolstackError, Vif
from xenpv.errors import HypercallError, LocalProtocolError
from xenpv.testing.census import leaks, take_census
from xenpv.vbd.disk import DiskError

SECTORS = 64
STRIDE = 8  # of the steps that are tried in a normal run

# What a program of the guest may see when its device, or its machine, is gone under it.
GONE = (DiskError, LocalProtocolError, HypercallError, IndexError)


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
            with suppress(*GONE):
                self.app.nets[0].send(b"\xff" * 6 + self.app.nets[0].mac + bytes(50))
            with suppress(*GONE):
                self.app.disks[0].write(index * 8, bytes([index]) * 4096)
            with suppress(*GONE):
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


def app_dies_at(phase: str, personality: str, step: int, seed: int = 5) -> None:
    """The guest is gone between two steps; `b` gives back what it had of it, and serves another."""
    with Platform(seed=seed) as xen:
        scene = Scene(xen, personality)
        before, during = PHASES[phase]
        for one in before:
            one(scene)

        def happens() -> None:
            if len(xen.guests) > 1:
                kill(xen, xen.guests[1])

        xen.loop.scheduler = At(step, happens, f"xenstored d{scene.b.domid + 1}")
        during(scene)
        xen.loop.scheduler = None
        for one in xen.guests[1:]:
            kill(xen, one)
        xen.run()
        assert xen.hypervisor.dead == []
        mapped = scene.b.created.domain.gnttab.maptrack
        assert len(list(mapped.values())) == 0
        assert scene.b.bridge("br0").ports == {}
        xen.toolstack.xs.rm(f"/local/domain/{scene.b.domid}/backend")
        xen.run()
        assert scene.b.driver_domain.serves == []
        scene.connect()
        scene.works()


@PERSONALITIES
@pytest.mark.parametrize("phase", PHASES)
def test_a_guest_dies_under_its_driver_domain(phase: str, personality: str) -> None:
    for step in range(3, steps_of(phase, personality), 2 * STRIDE):
        app_dies_at(phase, personality, step)


def test_a_driver_domain_that_stands_still_is_not_waited_for_for_ever() -> None:
    with Platform(seed=5) as xen:
        scene = Scene(xen, "windows")
        scene.connect()
        app = scene.app
        assert app is not None
        scene.b.created.domain.pause()
        begin = xen.loop.now
        with pytest.raises(ToolstackError, match="^waited 10 s .* to reach state 6$") as caught:
            app.detach("vbd", 51712)
        assert (caught.value.code, xen.loop.now - begin) == (-9, 10_000_000_000)
        with pytest.raises(ToolstackError, match="to reach state 6$"):
            app.detach("vbd", 51712, mode="forced")
        assert xen.toolstack.xs.directory(f"/libxl/{app.domid}/device/vbd") == []
        scene.b.created.domain.unpause()
        xen.run()
        assert scene.b.driver_domain.serves == [f"vif{app.domid}.0"]
        app.attach(Disk(scene.image, "xvda", backend="b"))
        scene.works()


def test_a_driver_domain_that_crashes_is_replaced() -> None:
    with Platform(seed=5) as xen:
        scene = Scene(xen, "windows")
        scene.connect()
        scene.b.crash()
        scene.traffic()
        assert scene.app is not None
        assert scene.app.running
        scene.b.destroy()
        scene.come_back()
        scene.works()


def test_one_driver_domain_is_served_by_another() -> None:
    """The disk of `mid` is of `low`, and `mid` serves an interface: `low` dies, then `mid`."""
    with Platform(seed=5) as xen:
        low = xen.create(name="low", personality="linux", driver_domain=True).start()
        image = MemoryImage(bytearray(SECTORS * 512))
        mid = xen.create(
            name="mid", personality="linux", driver_domain=True, disks=[Disk(image, backend="low")]
        ).start()
        app = xen.create(name="app", vifs=[Vif("br0", backend="mid")]).start()
        mid.disks[0].write(0, b"m" * 512)
        assert image.buffer[:512] == b"m" * 512
        low.destroy()
        frame = b"\xff" * 6 + app.nets[0].mac + bytes(50)
        app.nets[0].send(frame)
        xen.run()
        assert mid.bridge("br0").frames[-1] == frame
        mid.destroy()
        assert (app.running, app.nets) == (True, [])
