"""Random commands to a guest and to the driver domain that serves it, which restarts now and then."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

from tests.flows.test_driver_domain_death import GONE, kill
from xenpv import Disk, Guest, MemoryImage, Platform, ToolstackError, Vif
from xenpv.testing.census import leaks, take_census

SECTORS = 128
MAC = "00:16:3e:00:00:01"
KINDS = {"vbd": 51712, "vif": 0}


class Pair:
    """`b` serves `app`. `served`: devices that are attached and whose backend has not died."""

    def __init__(self, xen: Platform, personality: str, seed: int) -> None:
        self.xen = xen
        self.personality = personality
        self.random = random.Random(seed)
        self.model = bytearray(SECTORS * 512)
        self.image = MemoryImage(bytearray(SECTORS * 512))
        self.b = self.driver()
        self.app = xen.create(name="app", personality=personality).start()
        self.attached: dict[str, None] = {}
        self.served: dict[str, None] = {}

    def driver(self) -> Guest:
        b = self.xen.create(name="b", personality="linux", driver_domain=True).start()
        b.images.register("disk", self.image)
        return b

    # commands

    def attach(self) -> None:
        for kind in KINDS:
            if kind not in self.attached:
                vif = Vif("br0", mac=MAC, backend="b")
                self.app.attach(Disk("disk", "xvda", backend="b") if kind == "vbd" else vif)
                self.attached[kind] = self.served[kind] = None
                if kind == "vif" and not self.app.nets:
                    # The last one's removal took back the request to unplug emulated NICs.
                    assert self.personality == "windows"
                    self.app.reboot()
                return

    def detach(self) -> None:
        for kind in self.random.sample(list(self.attached), min(1, len(self.attached))):
            self.app.detach(kind, KINDS[kind], mode="auto")
            del self.attached[kind]
            self.served.pop(kind, None)

    def _anew(self) -> None:
        self.served.clear()
        for kind in list(self.attached):
            self.app.detach(kind, KINDS[kind], mode="auto")
            del self.attached[kind]

    def destroy_b(self) -> None:
        self.b.destroy()
        self.b = self.driver()
        self._anew()

    def kill_b(self) -> None:
        """Under traffic."""
        self.traffic()
        with suppress(*GONE):
            if "vbd" in self.served:
                self.app.disks[0].start_read(0, 8)
        kill(self.xen, self.b)
        self.xen.run()
        self.b = self.driver()
        self._anew()

    def reboot_b(self) -> None:
        self.b.reboot()
        self._anew()

    def suspend(self) -> None:
        self.app.suspend()
        self.app.resume(fast=self.random.random() < 0.5)

    def reboot(self) -> None:
        self.app.reboot()

    def traffic(self) -> None:
        if "vbd" in self.served:
            at = self.random.randrange(SECTORS - 8)
            data = self.random.randbytes(8 * 512)
            self.app.disks[0].write(at, data)
            self.model[at * 512 : (at + 8) * 512] = data
        if "vif" in self.served:
            frame = b"\xff" * 6 + self.app.nets[0].mac + b"\x88\xb5" + self.random.randbytes(60)
            self.app.nets[0].send(frame)
            self.xen.run()
            assert self.b.bridge("br0").frames[-1] == frame

    def check(self) -> None:
        assert self.app.running
        assert self.b.running
        names = {"vbd": f"vbd{self.app.domid}.51712", "vif": f"vif{self.app.domid}.0"}
        assert sorted(self.b.driver_domain.serves) == sorted(names[kind] for kind in self.served)
        if "vbd" in self.served:
            assert self.app.disks[0].read(0, SECTORS) == self.model
        assert self.image.buffer == self.model
        assert len(self.app.nets) == ("vif" in self.served)


COMMANDS = (
    Pair.attach, Pair.attach, Pair.attach, Pair.detach, Pair.destroy_b, Pair.kill_b, Pair.reboot_b,
    Pair.suspend, Pair.reboot, Pair.traffic, Pair.traffic,
)  # fmt: skip


def run(seed: int, personality: str, count: int) -> None:
    with Platform(seed=seed) as xen:
        xen.create(name="warm").start().destroy()
        empty = take_census(xen)
        pair = Pair(xen, personality, seed)
        for _ in range(count):
            pair.random.choice(COMMANDS)(pair)
            pair.check()
        pair.app.destroy()
        assert pair.b.driver_domain.serves == []
        pair.b.destroy()
        assert leaks(empty, take_census(xen)) == []
        with pytest.raises(ToolstackError):
            xen.create(name="late", vifs=[Vif(backend="b")])


@pytest.mark.parametrize("personality", ["windows", "linux"])
@pytest.mark.parametrize("seed", range(3))
def test_restarts_among_random_commands(seed: int, personality: str) -> None:
    run(seed, personality, 40)


@pytest.mark.soak
@pytest.mark.parametrize("personality", ["windows", "linux"])
@pytest.mark.parametrize("seed", range(3, 40))
def test_restarts_among_many_random_commands(seed: int, personality: str) -> None:
    run(seed, personality, 120)
