# ruff: noqa: INP001 - a script, in no package
"""Three guests, two VLANs and a capture of one port: who hears a broadcast?

python examples/vlans.py
"""

from __future__ import annotations

from io import BytesIO

from xenpv import Platform, Vif
from xenpv.host.pcapng import PcapngCapture, PcapngWriter

EXPERIMENTAL = b"\x88\xb5"
PORTS = {"office": "10", "lab": "20", "router": "10/20"}  # in the words of xl.cfg


def main() -> None:
    capture = BytesIO()
    with Platform(seed=1) as xen:
        bridge = xen.bridge("xenbr0")
        guests = {
            name: xen.create(name=name, vifs=[Vif(vlan=vlan)], personality="linux").start()
            for name, vlan in PORTS.items()
        }
        port = f"vif{guests['router'].domid}.0"
        bridge.taps.append(PcapngCapture(PcapngWriter(capture), port=port))
        for sender in ("office", "lab"):
            for guest in guests.values():
                guest.nets[0].received.clear()
            net = guests[sender].nets[0]
            net.send(b"\xff" * 6 + net.mac + EXPERIMENTAL + b"hello".ljust(46, b"\0"))
            xen.run()
            for name, guest in guests.items():
                for frame in guest.nets[0].received:
                    tag = frame[12:16].hex() if frame[12:14] == b"\x81\x00" else "no tag"
                    print(f"{sender} calls: {name} hears it with {tag}")
    print(f"{len(capture.getvalue())} bytes of pcapng from {port}")


if __name__ == "__main__":
    main()
