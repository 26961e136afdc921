# ruff: noqa: INP001 - a script, in no package
"""The shape of Qubes: a guest's network passes another guest, which dies and comes back."""

from __future__ import annotations

from xenpv import Guest, Platform, Vif
from xenpv.host.packet import arp_request, parse_arp

OURS, HOST = bytes([192, 0, 2, 7]), bytes([192, 0, 2, 1])


def network_domain(xen: Platform) -> Guest:
    """Netfront of dom0's bridge, and netback of others: its own adapter is a port of br0."""
    net = xen.create(
        name="net", personality="linux", driver_domain=True, vifs=[Vif("xenbr0")]
    ).start()
    net.addif("br0")
    return net


def ask(xen: Platform, app: Guest) -> str:
    """Who has the host's address, as ARP says."""
    eth = app.nets[0]
    eth.send(arp_request(eth.mac, OURS, HOST))
    xen.run()
    answer = parse_arp(eth.received.pop()) if eth.received else None
    return answer.sender_mac.hex(":") if answer else "nobody answers"


def main() -> None:
    with Platform(seed=1) as xen:
        xen.respond("xenbr0", ipv4="192.0.2.1")
        net = network_domain(xen)
        vif = Vif("br0", mac="00:16:3e:00:00:02", backend="net")
        app = xen.create(name="app", vifs=[vif]).start()
        print(f"net (domain {net.domid}) serves {', '.join(net.driver_domain.serves)}")
        print(f"through net: {ask(xen, app)}")
        net.destroy()
        print(f"app after the death of net: {len(app.nets)} adapters, running: {app.running}")
        net = network_domain(xen)
        app.detach("vif", 0)
        app.attach(vif)
        print(f"through the new net (domain {net.domid}): {ask(xen, app)}")


if __name__ == "__main__":
    main()
