# ruff: noqa: INP001 - a script, in no package
"""Two domains share a page and an event channel, by nothing but hypercalls.

python examples/hypercalls.py
"""

from __future__ import annotations

from xenpv.abi._kernel import lib
from xenpv.errors import GrantError, HypercallError
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop

PAGE = 0x100  # pfn
GREF = 8  # the first 8 are the toolstack's
READ_ONLY = lib.GTF_permit_access | lib.GTF_readonly


def main() -> None:
    hypervisor = Hypervisor(Loop(seed=1))
    dom0, guest = (hypervisor.create_domain(domid, max_pages=256) for domid in (0, 1))
    for domain in (dom0, guest):
        domain.populate(64)
        domain.unpause()

    guest.write(PAGE, 0, b"from the guest")
    lib.grant_entry_set(guest.kernel, GREF, dom0.domid, PAGE, READ_ONLY)
    there = dom0.holes.alloc()
    handle = dom0.gnttab.map(guest.domid, GREF, there, readonly=True)
    print("mapped:", dom0.read(there, 0, 14).decode())
    try:
        dom0.gnttab.map(guest.domid, GREF, dom0.holes.alloc(), readonly=False)
    except GrantError as error:
        print("to write:", error.name)
    print("taken back while it is mapped:", lib.grant_entry_revoke(guest.kernel, GREF) == 0)
    dom0.gnttab.unmap(handle, there)
    print("taken back when it is not:", lib.grant_entry_revoke(guest.kernel, GREF) == 0)

    port = guest.evtchn.alloc_unbound(dom0.domid)
    far = dom0.evtchn.bind_interdomain(guest.domid, port)
    guest.evtchn.send(port)
    print(f"port {far} of domain 0 is pending:", bool(lib.evtchn_is_pending(dom0.kernel, far)))
    guest.evtchn.close(port)
    try:
        guest.evtchn.send(port)
    except HypercallError as error:
        print("sent to a closed port:", error.name)
    hypervisor.close()


if __name__ == "__main__":
    main()
