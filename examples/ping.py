# ruff: noqa: INP001 - a script, in no package
"""A guest pings a host on its bridge; what crossed the bridge can be kept for Wireshark.

python examples/ping.py [CAPTURE.pcapng]
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from xenpv import Platform, Vif
from xenpv.host.packet import arp_request, icmp_echo_request, parse_arp, parse_echo_reply
from xenpv.host.pcapng import PcapngCapture, PcapngWriter

OURS = bytes([192, 0, 2, 7])


def main(arguments: list[str]) -> None:
    with ExitStack() as stack:
        xen = stack.enter_context(Platform(seed=1))
        guest = xen.create(name="pinger", vifs=[Vif(bridge="xenbr0")])
        host = xen.respond("xenbr0", ipv4="192.0.2.1")
        if arguments:
            file = stack.enter_context(Path(arguments[0]).open("wb"))
            xen.bridge("xenbr0").taps.append(PcapngCapture(PcapngWriter(file)))
        guest.start()
        net = guest.nets[0]

        net.send(arp_request(net.mac, OURS, host.ipv4))
        xen.run()
        answer = parse_arp(net.received.pop())
        assert answer is not None
        print(f"192.0.2.1 is at {answer.sender_mac.hex(':')}")

        for sequence, size in enumerate((0, 56, net.mtu - 28)):
            payload = bytes(size)
            net.send(
                icmp_echo_request(net.mac, answer.sender_mac, OURS, host.ipv4, 1, sequence, payload)
            )
            xen.run()
            reply = parse_echo_reply(net.received.pop())
            assert reply is not None
            assert reply.payload == payload
            print(f"{len(payload)} bytes from 192.0.2.1: seq={reply.sequence}")
        guest.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
