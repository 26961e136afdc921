"""The scene of cases for a block backend: a raw guest, its disk, and the backend under test.

A case says what shape of frontend and disk it wants; until then there is none. What the
backend is like is read from the store, what it does from rings, grants, events and the disk.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from functools import cache
from typing import Any, Final

import attrs

from xenpv.host.image import Image, MemoryImage
from xenpv.platform import Platform
from xenpv.testing.cases.blkpeer import BlkPeer
from xenpv.testing.cases.claims import expect, expect_one
from xenpv.testing.cases.suite import CaseResult, Factory, Suite
from xenpv.testing.checkers import check_all
from xenpv.testing.ends import BackendWorld, user_blk_backend
from xenpv.testing.raw_world import DEVID_XVDA, RawWorld
from xenpv.xen.domain import PAGE_SIZE
from xenpv.xen.evtchn_port import PortState

SECTORS: Final = 512  # of 512 bytes, of the disk that every case has
VCPUS: Final = 2  # of dom0: Linux offers as many queues
# Keys of the backend that tell of a feature, with what they must be at least.
LIMITS: Final = {"max-ring-page-order": 1, "multi-queue-max-queues": 2}
FEATURES: Final = (
    "feature-barrier",
    "feature-discard",
    "feature-flush-cache",
    "feature-max-indirect-segments",
    "feature-persistent",
)


@cache
def _content() -> bytes:
    return b"".join(struct.pack("<I", number) * 128 for number in range(1, SECTORS + 1))


def content(sector: int, count: int) -> bytes:
    """What the disk has there at first: in each sector its number, from 1 on."""
    return _content()[sector * 512 : (sector + count) * 512]


MARK: Final = b"\xc3"


def marked(number: int, size: int = PAGE_SIZE) -> bytes:
    """Bytes that are not the disk's, nor those of another number."""
    return bytes((0x80 | number & 0x7F,)) * size


@attrs.frozen
class Blkback:
    """Our own backend as the one under test, in another of its profiles."""

    profile: str = "linux"


class BlkBackScene:
    """`front` connects a frontend; `image` is the disk that it has. One at a time.

    `hangs_up`: at the end the frontend closes as an honest one, and all must be given back.
    """

    def __init__(self, factory: Factory | Blkback | None, seed: int) -> None:
        self._factory = factory
        self._seed = seed
        self._default = False
        self.world: Any = None
        self.peer: BlkPeer | None = None
        self.image: Image
        self.hangs_up = True

    # worlds

    @property
    def features(self) -> Collection[str]:
        """Keys of FEATURES that are not 0, of LIMITS that are large enough."""
        peer = self.front()
        found = [name for name in FEATURES if peer.number(name)]
        return found + [name for name, least in LIMITS.items() if peer.number(name) >= least]

    def front(self) -> BlkPeer:
        """A connected frontend of one ring of one page, x86_64, and a disk of SECTORS."""
        if not self._default or self.peer is None:
            self.connected()
            self._default = True
        assert self.peer is not None
        return self.peer

    def connected(
        self,
        *,
        readonly: bool = False,
        sector_size: int = 512,
        image: Image | None = None,
        **shape: Any,
    ) -> BlkPeer:
        """A frontend of that shape (BlkPeer's), connected. Wrong if it is refused."""
        peer = self.waiting(readonly=readonly, sector_size=sector_size, image=image, **shape)
        peer.connect()
        expect(peer.backend_key("state"), "4", "the backend's state, once the frontend is ready")
        return peer

    def waiting(
        self,
        *,
        readonly: bool = False,
        sector_size: int = 512,
        image: Image | None = None,
        **shape: Any,
    ) -> BlkPeer:
        """A frontend that has written nothing yet, with a backend that waits for it."""
        self._drop()
        data = bytearray(_content())
        if image is None:
            image = MemoryImage(data, writable=not readonly, sector_size=sector_size)
        self.image = image
        self.world = self._world(image)
        kind = self.world.vbd.backend_kind
        run = self.world.run
        self.peer = BlkPeer(self.world.guest, DEVID_XVDA, backend_kind=kind, run=run, **shape)
        self.world.run()
        return self.peer

    def _world(self, image: Image) -> Any:
        factory = self._factory
        if factory is not None and not isinstance(factory, Blkback):
            return user_blk_backend(factory, image=image, seed=self._seed, connect=False)
        profile = "linux" if factory is None else factory.profile
        platform = Platform(seed=self._seed, blkback=profile, dom0_vcpus=VCPUS)
        try:
            return RawWorld(platform, image, "xenbr0")
        except BaseException:
            platform.close()
            raise

    def _drop(self) -> None:
        self._default = False
        world, self.world, self.peer = self.world, None, None
        if world is not None:
            world.close()

    # the end

    def finish(self) -> None:
        """Laws of conservation; then the frontend closes, and nothing of it may be held."""
        peer, world = self.peer, self.world
        if peer is None:
            return
        world.run()
        check_all(world.platform, hostile=[peer.guest.domid])
        if self.hangs_up:
            self.close_device()
            check_all(world.platform, hostile=[peer.guest.domid])
        if isinstance(world, BackendWorld):
            world.finish()  # what a user's driver leaves behind

    def close_device(self) -> None:
        """Closing, then Closed: the backend follows, and gives back pages and ports."""
        peer = self.peer
        assert peer is not None
        if peer.read_key("state") is not None:
            peer.state = 5
            self.world.run()
            peer.state = 6
            self.world.run()
            # None: online was 0, and it removed its directory.
            expect_one(peer.backend_key("state"), ("6", None), "the backend's state after a close")
        self.nothing_held()

    def nothing_held(self) -> None:
        """No page of the guest is mapped, and no port of the device is bound."""
        peer = self.peer
        assert peer is not None
        expect(peer.mapped, 0, "references that are still mapped after the close")
        ports = peer.domain.evtchn.ports
        bound = [
            ring.channel.port
            for ring in peer.rings
            if ring.channel.active and ports[ring.channel.port].state is PortState.INTERDOMAIN
        ]
        expect(bound, [], "ports of the device that are still bound after the close")

    def close(self) -> None:
        """Give the world back."""
        self._drop()


SUITE: Final = Suite("blk-backend", "BLKB-", BlkBackScene)


def check_blk_backend(
    factory: Factory | Blkback | None = None,
    *,
    only: Collection[str] = (),
    without: Collection[str] = (),
    seed: int = 0,
) -> list[CaseResult]:
    """Every case of the suite "blk-backend" against what `factory(end, image)` makes; None: ours.

    Raises CasesFailed; LocalProtocolError for an unknown id.
    """
    from xenpv.testing.cases import suite

    end: Any = factory
    return suite("blk-backend").check(end, only=only, without=without, seed=seed)
