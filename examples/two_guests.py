# ruff: noqa: INP001 - a script, in no package
"""Two guests on one bridge: frames one way, blocks of a shared read-only disk the other.

python examples/two_guests.py
"""

from __future__ import annotations

from xenpv import Disk, MemoryImage, Platform, Vif

EXPERIMENTAL = b"\x88\xb5"  # an EtherType for such as this (IEEE 802)
SECTORS = 2048


def main() -> None:
    library = MemoryImage(bytes(range(256)) * 2 * SECTORS, writable=False)
    with Platform(seed=42) as xen:
        alice, bob = (
            xen.create(
                name=name,
                disks=[Disk(library, readonly=True)],
                vifs=[Vif(bridge="xenbr0", mac=mac)],
            ).start()
            for name, mac in (("alice", "00:16:3e:00:00:0a"), ("bob", "00:16:3e:00:00:0b"))
        )

        first = alice.disks[0].read(0, 2)
        head = bob.nets[0].mac + alice.nets[0].mac + EXPERIMENTAL
        alice.nets[0].send_many([head + bytes([number]) + first for number in range(100)])
        xen.run()

        received = list(bob.nets[0].received)
        assert [frame[14] for frame in received] == list(range(100))
        assert all(frame[15:] == bob.disks[0].read(0, 2) for frame in received)
        print(f"bob has {len(received)} frames from alice and reads the same disk")
        for guest in (alice, bob):
            guest.shutdown()
        print(f"digest {xen.digest}")


if __name__ == "__main__":
    main()
