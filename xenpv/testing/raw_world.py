"""A whole world with raw frontends: what a fuzzer has fresh for each example."""

from __future__ import annotations

from collections.abc import Container, Mapping
from functools import lru_cache
from typing import Final

import attrs

from xenpv.host import device as devices
from xenpv.host.diskspec import DiskSpec
from xenpv.host.image import Image, MemoryImage
from xenpv.host.vifspec import VifSpec
from xenpv.platform import Platform
from xenpv.store import permission
from xenpv.store.connection import Connection
from xenpv.store.node import Node
from xenpv.testing.raw_front import BACKEND_DOMID, RawBlkFront, RawGuest, RawNetFront
from xenpv.testing.world import World
from xenpv.xen.loop import Chooser

# 1 MiB: 256 pages that cost nothing until they are touched.
GUEST_PAGES: Final = 256
SLACK_PAGES: Final = 64
GRANT_FRAMES: Final = 8
IMAGE_NAME: Final = "raw"
IMAGE_BYTES: Final = 64 << 10
KINDS: Final = ("vbd", "vif")
DEVID_XVDA: Final = 202 << 8
MAC: Final = bytes((0x00, 0x16, 0x3E, 0x00, 0x00, 0x01))


@attrs.frozen
class Directory:
    """One end's part of a device in the store, as the toolstack writes it.

    `lineage` is its node's, `names` are those of its keys, and `keys` are (lineage, value, is
    it xenstored's own domain's, which the reader only reads).
    """

    lineage: tuple[bytes, ...]
    owner: int
    reader: int
    names: Mapping[bytes, None]
    keys: tuple[tuple[tuple[bytes, ...], bytes, bool], ...]

    @classmethod
    def of(
        cls, path: str, owner: int, reader: int, keys: Mapping[str, str], fixed: Container[str]
    ) -> Directory:
        names = path.split("/")
        lineage = tuple("/".join(names[:end]).encode() for end in range(len(names), 1, -1))
        lineage = (*lineage, b"/")
        return cls(
            lineage=lineage,
            owner=owner,
            reader=reader,
            names=dict.fromkeys(key.encode() for key in keys),
            keys=tuple(
                ((f"{path}/{key}".encode(), *lineage), value.encode(), key in fixed)
                for key, value in keys.items()
            ),
        )

    def plant(self, client: Connection) -> None:
        """Put it into the tree whole: no watch fires, and nothing is checked again."""
        tree = client.server.tree
        nodes = tree.nodes
        perms = _permissions(client, self.owner, self.reader)
        fixed_perms = _permissions(client, BACKEND_DOMID, self.owner)
        node = nodes[b"/"]
        for path in self.lineage[-2::-1]:
            node = nodes.get(path) or tree.create(node, path, node.perms)
        tree.set_perms(node, perms)
        for lineage, value, fixed in self.keys:
            tree.add(Node(lineage, value, fixed_perms if fixed else perms, 0))
        node.add_names(self.names)
        tree.write(node, b"")


def _permissions(client: Connection, owner: int, reader: int) -> permission.Permissions:
    return permission.resolve(client.server, client, [b"n%d" % owner, b"r%d" % reader])


@lru_cache(maxsize=16)
def directories(
    domid: int, bridge: str, blkback: str, mode: str, kinds: tuple[str, ...] = KINDS
) -> tuple[Directory, ...]:
    """A disk and an interface, those of `kinds`, each frontend's directory before its backend's.
    `blkback` is the directory that the disk's has under backend/.
    """
    spec = DiskSpec(target=IMAGE_NAME, vdev="xvda", readwrite=mode == "w")
    disk = attrs.evolve(devices.vbd(spec, domid), backend_kind=blkback)
    nic = devices.vif(VifSpec(bridge=bridge, devid=0, mac=MAC), domid, hvm=True)
    directories: list[Directory] = []
    made = {"vbd": disk, "vif": nic}
    for device in [made[kind] for kind in kinds]:
        front = {**device.front, **device.front_ro, "backend": device.backend_path}
        back = {**device.back, "frontend": device.frontend_path, "hotplug-status": "connected"}
        del back["state"]  # written last, and so that the backend hears of it
        front_ro = device.front_ro
        directories += [
            Directory.of(device.frontend_path, domid, BACKEND_DOMID, front, front_ro),
            Directory.of(device.backend_path, BACKEND_DOMID, domid, back, ()),
        ]
    return tuple(directories)


class RawWorld(World):
    """A platform with one guest that has no kernel, a disk and a bridge port.

    The guest's domain has neither a store ring nor a console: nothing but what the devices
    need. Their directories are the toolstack's; a device that is not of `kinds` has none.
    `connect` brings both devices up.
    """

    def __init__(
        self, platform: Platform, image: Image, bridge: str, kinds: tuple[str, ...] = KINDS
    ) -> None:
        self.platform = platform
        self.image = image
        self.bridge = platform.bridge(bridge)
        domain = platform.dom0.domctl.create_domain(
            vcpus=1, max_pages=GUEST_PAGES + SLACK_PAGES, max_grant_frames=GRANT_FRAMES
        )
        domain.populate(GUEST_PAGES)
        self.guest = RawGuest(platform, domain)
        platform.images.register(IMAGE_NAME, image)
        kind = platform.blkback.directory
        self.vbd = RawBlkFront(self.guest, DEVID_XVDA, backend_kind=kind)
        self.vif = RawNetFront(self.guest, 0)
        self.kinds = kinds
        replant(self)
        domain.unpause()

    def connect(self) -> None:
        """Both devices at once. LocalProtocolError if a backend refuses."""
        fronts = (self.vbd, self.vif)
        self.platform.run()
        for front in fronts:
            front.attach()
            front.announce()
        self.platform.run()
        for front in fronts:
            front.finish()
        self.platform.run()

    def close(self) -> None:
        """Give everything back; a second call does nothing."""
        super().close()
        self.guest.evtchn.forget()


def replant(world: RawWorld) -> None:
    """What the toolstack writes for the world's devices, whose directories are not there."""
    guest, image = world.guest, world.image
    mode = "w" if image.writable else "r"
    kind = world.vbd.backend_kind
    for directory in directories(guest.domid, world.bridge.name, kind, mode, world.kinds):
        directory.plant(guest.xs.connection)
    for front in (world.vbd, world.vif):
        if front.kind in world.kinds:
            guest.xs.write(f"{front.backend_path}/state", "1")


def world_raw(
    seed: int = 0,
    *,
    image: Image | None = None,
    bridge: str = "xenbr0",
    chooser: Chooser | None = None,
) -> RawWorld:
    """A platform, a raw guest, its disk and its interface, connected.

    `image` None: 64 KiB of zeros. Cheap, so that a fuzzer can have a fresh one for each
    example. Use it as a context manager, or `close` it.
    """
    platform = Platform(seed=seed, chooser=chooser)
    try:
        world = RawWorld(
            platform, MemoryImage(bytearray(IMAGE_BYTES)) if image is None else image, bridge
        )
        world.connect()
    except BaseException:
        platform.close()
        raise
    return world
