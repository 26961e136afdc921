"""A whole world with raw frontends: what a fuzzer has fresh for each example."""

from __future__ import annotations

from functools import lru_cache
from types import TracebackType
from typing import Final, Self

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
from xenpv.xen.loop import Chooser

# 1 MiB: 256 pages that cost nothing until they are touched.
GUEST_PAGES: Final = 256
SLACK_PAGES: Final = 64
GRANT_FRAMES: Final = 8
IMAGE_NAME: Final = "raw"
IMAGE_BYTES: Final = 64 << 10
DEVID_XVDA: Final = 202 << 8
MAC: Final = bytes((0x00, 0x16, 0x3E, 0x00, 0x00, 0x01))


@attrs.frozen
class Directory:
    """One end's part of a device in the store, as the toolstack writes it.

    `keys` are (name, value, is it xenstored's own domain's, which the reader only reads).
    """

    path: bytes
    owner: int
    reader: int
    keys: tuple[tuple[bytes, bytes, bool], ...]

    def plant(self, client: Connection) -> None:
        """Put it into the tree whole: no watch fires, and nothing is checked again."""
        tree = client.server.tree
        perms = _permissions(client, self.owner, self.reader)
        node = tree.nodes[b"/"]
        at = b""
        for name in self.path[1:].split(b"/"):
            at += b"/" + name
            node = tree.nodes.get(at) or tree.create(node, at, node.perms)
        tree.set_perms(node, perms)
        for name, value, fixed in self.keys:
            lineage = (b"%b/%b" % (at, name), *node.lineage)
            own = _permissions(client, BACKEND_DOMID, self.owner) if fixed else perms
            tree.add(Node(lineage, value, own, 0))
            node.add_name(name)
        tree.write(node, b"")


def _permissions(client: Connection, owner: int, reader: int) -> permission.Permissions:
    return permission.resolve(client.server, client, [b"n%d" % owner, b"r%d" % reader])


@lru_cache(maxsize=16)
def _directories(domid: int, bridge: str) -> tuple[Directory, ...]:
    """A disk and an interface, each frontend's directory before its backend's."""
    disk = devices.vbd(DiskSpec(target=IMAGE_NAME, vdev="xvda"), domid)
    nic = devices.vif(VifSpec(bridge=bridge, devid=0, mac=MAC), domid, hvm=True)
    directories = []
    for device in (disk, nic):
        front = {**device.front, **device.front_ro, "backend": device.backend_path}
        back = {**device.back, "frontend": device.frontend_path, "hotplug-status": "connected"}
        del back["state"]  # written last, and so that the backend hears of it
        for path, owner, reader, keys in (
            (device.frontend_path, domid, BACKEND_DOMID, front),
            (device.backend_path, BACKEND_DOMID, domid, back),
        ):
            encoded = [
                (key.encode(), value.encode(), keys is front and key in device.front_ro)
                for key, value in keys.items()
            ]
            directories.append(Directory(path.encode(), owner, reader, tuple(encoded)))
    return tuple(directories)


class RawWorld:
    """A platform with one guest that has no kernel, a disk and a bridge port.

    The guest's domain has neither a store ring nor a console: nothing but what the devices
    need. Their directories are the toolstack's. `connect` brings both devices up.
    """

    def __init__(self, platform: Platform, image: Image, bridge: str) -> None:
        self.platform = platform
        self.image = image
        self.bridge = platform.bridge(bridge)
        domain = platform.dom0.domctl.create_domain(
            vcpus=1, max_pages=GUEST_PAGES + SLACK_PAGES, max_grant_frames=GRANT_FRAMES
        )
        domain.populate(GUEST_PAGES)
        self.guest = RawGuest(platform, domain)
        platform.images.register(IMAGE_NAME, image)
        for directory in _directories(domain.domid, bridge):
            directory.plant(self.guest.xs.connection)
        self.vbd = RawBlkFront(self.guest, DEVID_XVDA)
        self.vif = RawNetFront(self.guest, 0)
        for front in (self.vbd, self.vif):
            self.guest.xs.write(f"{front.backend_path}/state", "1")
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

    def run(self) -> int:
        """Let everything happen that is due; tasks run."""
        return self.platform.run()

    def close(self) -> None:
        """Give everything back; a second call does nothing."""
        self.platform.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


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
