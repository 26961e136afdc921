"""The scene of cases for a block frontend: a guest with the frontend under test, a program above
it, and a backend in the case's hands.

A case says what the backend offers; until then there is no world. What the frontend is like is
read from its keys and its ring, what came of a request from the program's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import attrs

from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.xenbus import Device, Driver
from xenpv.guest import Guest
from xenpv.host.image import MemoryImage
from xenpv.platform import Disk as XenDisk
from xenpv.platform import Platform
from xenpv.testing.cases.blkbackpeer import BlkBackPeer
from xenpv.testing.cases.blkpeer import DISCARD
from xenpv.testing.cases.blkscene import SECTORS, content
from xenpv.testing.cases.claims import expect, expect_one
from xenpv.testing.cases.suite import CaseResult, Factory, Suite
from xenpv.testing.checkers import check_all
from xenpv.testing.ends import FrontendWorld, user_blk_frontend
from xenpv.testing.ends.app import DiskApp, OwnDiskApp, Started
from xenpv.testing.raw_world import DEVID_XVDA
from xenpv.testing.world import World

# All that a frontend may make use of.
OFFERS: Final = {
    "feature-max-indirect-segments": "256",
    "max-ring-page-order": "4",
    "multi-queue-max-queues": "4",
}
KEYS: Final = {"feature-discard": "1", "feature-barrier": "1"}
PAGE_SECTORS: Final = 8
MEMORY_MIB: Final = 32
VCPUS: Final = 2  # of the guest: XenVbd makes as many queues


class OwnWorld(World):
    """A guest of ours whose one disk has a raw backend."""

    def __init__(self, seed: int, personality: str, make: Callable[[Device], BlkBackPeer]) -> None:
        self.platform = Platform(seed=seed)
        self._make = make
        try:
            self.platform.backends.drivers = {"vbd": self._plug}
            self.guest: Guest = self.platform.create(
                name="guest",
                memory_mib=MEMORY_MIB,
                vcpus=VCPUS,
                disks=[XenDisk(MemoryImage(bytearray(SECTORS * 512)))],
                personality=personality,
            )
        except BaseException:
            self.platform.close()
            raise
        self.app: DiskApp = OwnDiskApp(lambda: self.guest.disks[0], self.run)
        self.xs = self.platform.toolstack.xs
        self.path = f"/local/domain/{self.guest.domid}/device/vbd/{DEVID_XVDA}"

    def _plug(self, device: Device) -> Driver:
        return self._make(device)

    def boot(self) -> None:
        """Let the guest come as far as it does."""
        self.platform.toolstack.unpause(self.guest.created)
        self.run()


@attrs.frozen
class Blkfront:
    """Our own frontend as the one under test, of another personality."""

    personality: str = "windows"


class BlkFrontScene:
    """`back` gives a connected backend, `app` drives the frontend.

    `hangs_up`: at the end the device is unplugged, and every reference must have ended.
    """

    def __init__(self, factory: Factory | Blkfront | None, seed: int) -> None:
        self._factory = factory
        self._seed = seed
        self._trusted = True
        self.world: Any = None
        self.app: Any = None
        self.peers: list[BlkBackPeer] = []
        self.hangs_up = True

    @property
    def features(self) -> Collection[str]:
        """What the frontend makes use of where it is offered: indirect, discard, pages, queues."""
        peer = self.back(OFFERS, keys=KEYS)
        self.read(0, 32 * PAGE_SECTORS)
        self.app.start_discard(0, PAGE_SECTORS)
        self.world.run()
        used = {
            "indirect": any(one.indirect for one in peer.requests),
            "discard": any(one.operation == DISCARD for one in peer.requests),
            "pages": len(peer.ring_refs) > len(peer.srings),
            "queues": len(peer.srings) > 1,
        }
        return [name for name, is_used in used.items() if is_used]

    # worlds

    def back(
        self,
        offers: Mapping[str, str] | None = None,
        *,
        keys: Mapping[str, str] | None = None,
        answers: Mapping[State, State] | None = None,
        trusted: bool = True,
    ) -> BlkBackPeer:
        """A backend that the frontend connected to. `offers` are keys at InitWait, `keys` those
        that come with Connected, `answers` states that it writes other than an honest one.

        Wrong if the frontend does not connect.
        """
        peer = self.boots(offers, keys=keys, answers=answers, trusted=trusted)
        expect(peer.frontend_key("state"), "4", "the frontend's state, its backend is Connected")
        return peer

    def boots(
        self,
        offers: Mapping[str, str] | None = None,
        *,
        keys: Mapping[str, str] | None = None,
        answers: Mapping[State, State] | None = None,
        trusted: bool = True,
    ) -> BlkBackPeer:
        """As `back`, wherever the frontend comes to."""
        if self.world is not None:
            self.laws()
        self._drop()

        def make(device: Device) -> BlkBackPeer:
            peer = BlkBackPeer(device, bytearray(content(0, SECTORS)))
            peer.features.update(offers or {})
            peer.keys.update(keys or {})
            self.peers.append(peer)
            return peer

        self.world = world = self._world(make)
        self.app = world.app
        for state, answer in (answers or {}).items():
            self.peers[-1].answers[state] = answer
        if not trusted:
            world.xs.write(f"{world.path}/trusted", "0")
        world.boot()
        return self.peers[-1]

    def _world(self, make: Callable[[Device], BlkBackPeer]) -> Any:
        factory = self._factory
        if factory is not None and not isinstance(factory, Blkfront):
            return user_blk_frontend(factory, seed=self._seed, connect=False, vbd=make)
        personality = "windows" if factory is None else factory.personality
        return OwnWorld(self._seed, personality, make)

    def _drop(self) -> None:
        world, self.world, self.app = self.world, None, None
        self.peers = []
        if world is not None:
            world.close()

    # what a program does

    def read(self, sector: int, nr_sectors: int) -> bytes:
        """A read that must succeed."""
        return self.ends(self.app.start_read(sector, nr_sectors), okay=True).data

    def write(self, sector: int, data: bytes) -> None:
        """A write that must succeed."""
        self.ends(self.app.start_write(sector, data), okay=True)

    def ends(self, started: Started, *, okay: bool | None = None) -> Started:
        """Let the world run; the request must be over, and as `okay` says unless that is None."""
        self.world.run()
        expect(started.done, True, "whether a program's request is answered")
        if okay is not None:
            expect(started.okay, okay, "whether a program's request succeeded")
        return started

    # the end

    def finish(self) -> None:
        """Laws of conservation and of every request; then the device goes, and no reference of
        it leads anywhere.
        """
        if self.world is None:
            return
        self.world.run()
        self.laws()
        if self.hangs_up:
            self.unplug()
            self.laws()
        if isinstance(self.world, FrontendWorld):
            self.world.finish()  # what a user's driver leaves behind

    def laws(self) -> None:
        """CheckFailed, Wrong."""
        check_all(self.world.platform, hostile=[0])
        for peer in self.peers:
            expect(peer.findings, [], "what does not hold of the frontend's requests")

    def unplug(self) -> None:
        """The toolstack takes the disk away: the frontend goes to Closed, its grants end."""
        peer = self.peers[-1]
        refs = [*peer.ring_refs, *dict.fromkeys(ref for one in peer.requests for ref in one.refs)]
        was_closed = peer.state is State.CLOSED
        peer.write_key("online", "0")
        peer.state = State.CLOSING
        self.world.run()
        if not was_closed:  # win-xenvbd writes nothing then
            # None: it is Closed, and its directory is gone.
            expect_one(peer.frontend_key("state"), ("6", None), "its state after an unplug")
        peer.detach()
        self.world.run()
        left = [ref for ref in refs if peer.grants(ref, readonly=True)]
        expect(left, [], "references that still lead to a page of the guest's")

    def close(self) -> None:
        """Give the world back."""
        self._drop()


SUITE: Final = Suite("blk-frontend", "BLKF-", BlkFrontScene)


def check_blk_frontend(
    factory: Factory | Blkfront | None = None,
    *,
    only: Collection[str] = (),
    without: Collection[str] = (),
    seed: int = 0,
) -> list[CaseResult]:
    """Every case of the suite "blk-frontend" against what `factory(end)` makes; None: ours.

    Raises CasesFailed; LocalProtocolError for an unknown id.
    """
    from xenpv.testing.cases import suite

    end: Any = factory
    return suite("blk-frontend").check(end, only=only, without=without, seed=seed)
