"""Dumps of platforms that run: they agree with what Xen and both ends know, and change nothing."""

from __future__ import annotations

import random

import pytest

from xenpv import Disk, MemoryImage, Platform, Vif
from xenpv.abi._kernel import lib
from xenpv.errors import LocalProtocolError
from xenpv.view.dump import dump, dump_grants, dump_ports, dump_ring, dump_store_ring
from xenpv.view.dump.live import dump_console, pages, ring_labels
from xenpv.view.rings import poke, rings_of


def rows(table):
    return table.as_json()["rows"]


def table_of(one, title):
    return next((rows(table) for table in one.tables if table.title == title), [])


@pytest.fixture(scope="module")
def worlds():
    """Platforms at rest: Windows and Linux guests, both event-channel ABIs, a driver domain."""
    made = []
    for personality, fifo in (
        ("windows", True),
        ("windows", False),
        ("linux", False),
        ("linux", True),
    ):
        xen = Platform(seed=3, dom0_vcpus=2)
        disk = Disk(MemoryImage(bytes(1 << 20)))
        guest = xen.create(
            name="web", personality=personality, fifo=fifo, vcpus=2, disks=[disk], vifs=[Vif()]
        )
        guest.start()
        if personality == "windows":
            guest.disks[0].read(0, 8)
            guest.nets[0].send(bytes(60))
            xen.run()
        made.append(xen)
    yield made
    for xen in made:
        xen.close()


def test_looking_changes_no_digest_and_no_byte():
    digests = []
    for looks in (False, True):
        with Platform(seed=5) as xen:
            guest = xen.create(name="web", disks=[Disk(MemoryImage(bytes(1 << 20)))], vifs=[Vif()])
            if looks:
                xen.loop.between = lambda: dump(xen)
            guest.start()
            guest.disks[0].read(0, 64)
            guest.nets[0].send(bytes(60))
            xen.run()
            digests.append((xen.digest, xen.loop.now, xen.loop.tasks_made))
    assert digests[0] == digests[1]


def test_the_access_hook_sees_nothing_of_it():
    with Platform(seed=5) as xen:
        xen.create(name="web", disks=[Disk(MemoryImage(bytes(1 << 20)))], vifs=[Vif()]).start()
        seen = []
        xen.hypervisor.set_hook(lambda *access: seen.append(access))
        before = len(seen)
        dump(xen)
        assert len(seen) == before


def test_indices_are_those_that_both_ends_have(worlds):
    for xen in worlds:
        known = rings_of(xen)
        assert len(known) >= 3
        for ring in known:
            one = dump_ring(ring)
            assert not one.wrong
            assert one.kind == ring.kind.name
            assert one.words["entries"] == ring.size
            assert one.words["req_prod_pvt"] == ring.front.index
            assert one.words["rsp_cons"] == ring.front.cons
            assert one.words["rsp_prod_pvt"] == ring.back.index
            assert one.words["req_cons"] == ring.back.cons
            assert one.counts["unconsumed_requests"] == (ring.front.index - ring.back.cons) % (
                1 << 32
            )
            assert one.counts["unconsumed_responses"] == 0
            assert one.counts["in_flight"] == (ring.front.index - ring.back.index) % (1 << 32)


def test_grants_are_those_that_xen_has_pinned(worlds):
    for xen in worlds:
        for domain in xen.hypervisor.domains.values():
            one = dump_grants(domain, most=1 << 16)
            found = table_of(one, "granted")
            mapped = {
                mapping.ref
                for other in xen.hypervisor.domains.values()
                for mapping in other.gnttab.maptrack.values()
                if mapping.granter is domain
            }
            assert {row["ref"] for row in found if "mapped by" in row["what"]} == mapped
            assert one.counts["in_use"] == one.counts["pinned"] == domain.gnttab.pinned()
            assert one.words["version"] == domain.gnttab.version
            assert not one.wrong


def test_ports_are_those_that_xen_has_bound(worlds):
    abis = set()
    for xen in worlds:
        for domain in xen.hypervisor.domains.values():
            one = dump_ports(domain, most=1 << 16)
            abis.add(one.words["abi"])
            found = table_of(one, "ports in use")
            bound = {port.number: port for port in domain.evtchn.ports if port.handle is not None}
            assert [row["port"] for row in found] == list(bound)
            for row in found:
                port = bound[row["port"]]
                assert row["state"] == port.state.name.lower()
                if row["state"] == "interdomain":
                    assert row["peer"] == f"d{port.remote_domid}:{port.remote_port}"
                pending = bool(lib.evtchn_is_pending(domain.kernel, port.number))
                masked = bool(lib.evtchn_is_masked(domain.kernel, port.number))
                assert ("pending" in row["bits"], "masked" in row["bits"]) == (pending, masked)
                if domain.evtchn.fifo:
                    assert row["priority"] == lib.evtchn_get_priority(port.handle)
    assert abis == {"2-level", "FIFO"}


@pytest.mark.parametrize("fifo", [False, True])
def test_bits_of_ports_that_are_raised_at_random(fifo):
    with Platform(seed=1) as xen:
        guest = xen.create(name="g", fifo=fifo, vcpus=2)
        guest.start()
        domain, dom0 = guest.created.domain, xen.dom0
        chance = random.Random(4)
        ports = []
        for _ in range(70):
            port = domain.evtchn.alloc_unbound(0)
            ports.append((port, dom0.evtchn.bind_interdomain(domain.domid, port)))
        for port, far in ports:
            if chance.random() < 0.7:
                domain.evtchn.unmask(port)
            if chance.random() < 0.5:
                dom0.evtchn.send(far)
        one = dump_ports(domain, most=999)
        for row in table_of(one, "ports in use"):
            pending = bool(lib.evtchn_is_pending(domain.kernel, row["port"]))
            masked = bool(lib.evtchn_is_masked(domain.kernel, row["port"]))
            assert ("pending" in row["bits"], "masked" in row["bits"]) == (pending, masked)
        assert one.counts["pending"] > 10
        assert one.counts["pending_not_masked"] > 5


def test_a_port_that_nobody_looks_at_is_told():
    with Platform(seed=1) as xen:
        guest = xen.create(name="g", fifo=False)
        guest.start()
        domain, dom0 = guest.created.domain, xen.dom0
        port = domain.evtchn.alloc_unbound(0)
        far = dom0.evtchn.bind_interdomain(domain.domid, port)
        domain.evtchn.unmask(port)
        dom0.evtchn.send(far)
        assert not dump_ports(domain).notes
        poke(xen.hypervisor, domain._shared_info, 8, bytes(8))  # evtchn_pending_sel of vcpu 0
        frame, offset = domain.vcpu_op.info_places.get(0, (domain._shared_info, 0))
        poke(xen.hypervisor, frame, offset + 8, bytes(8))
        (note,) = dump_ports(domain).notes
        assert note.startswith(f"ports {port} are pending, not masked, and in no vcpu's")


@pytest.mark.parametrize("version", [1, 2])
def test_grants_of_either_version_by_what_was_granted(version):
    with Platform(seed=1) as xen:
        guest = xen.create(name="g", personality="linux")
        domain = guest.created.domain
        domain.gnttab.set_version(version)
        frame = int(lib.grant_table_frame(domain.kernel, 0))
        size = 8 if version == 1 else 16
        pfn = 0x110
        domain.write(pfn, 0, b"x")
        entry = (1).to_bytes(2, "little") + bytes(2)
        at = 4 if version == 1 else 8
        entry = entry.ljust(at, b"\0") + pfn.to_bytes(size - at, "little")
        poke(xen.hypervisor, frame, 40 * size, entry)
        page = xen.dom0.holes.alloc()
        handle = xen.dom0.gnttab.map(domain.domid, 40, page)
        one = dump_grants(domain)
        row = next(row for row in table_of(one, "granted") if row["ref"] == 40)
        assert (row["type"], row["domid"], row["frame"]) == ("permit_access", 0, pfn)
        assert (row["flags"], row["what"]) == ("reading writing", "mapped by d0")
        assert one.words["version"] == version
        poke(xen.hypervisor, frame, 40 * size, bytes(size))  # it takes back what is mapped
        assert dump_grants(domain).wrong == ("ref 40 is mapped by d0 and not granted",)
        xen.dom0.gnttab.unmap(handle, page)
        assert not dump_grants(domain).wrong


def test_the_store_ring_with_what_xenstored_holds(worlds):
    for xen in worlds:
        domain = xen.guests[0].created.domain
        one = dump_store_ring(domain, served=xen.store_daemon.rings[domain.domid])
        assert one.counts == {"unconsumed_request_bytes": 0, "unconsumed_response_bytes": 0}
        assert not one.wrong and not one.notes
        assert dump_console(domain) is not None
        assert dump_store_ring(xen.dom0) is None


def test_rings_are_called_by_their_devices(worlds):
    for xen in worlds:
        names = [one.name for one in dump(xen)]
        assert any(name.startswith("d1 vbd/51712 ") and "ring-ref" in name for name in names)
        assert any(name.startswith("d1 vif/0") and "tx-ring-ref" in name for name in names)
        assert len(ring_labels(xen)) >= 3


def test_a_guest_that_writes_nonsense_into_the_store_names_nothing(worlds):
    xen = worlds[0]
    toolstack = xen.toolstack.xs
    for value in ("x", "", "99999999999999", "4294967295", "-1", "\u0661"):
        toolstack.write("/local/domain/1/device/vbd/9/ring-ref", value)
        assert not [name for name in ring_labels(xen).values() if "vbd/9" in name]


# Words of a header that a peer writes while everybody sleeps, and what is then WRONG.
POKED = {
    "rsp_prod ahead": (8, 5, "rsp_prod is 5 ahead of req_prod"),
    "req_prod far ahead": (0, 0x1000, "req_prod is 4096 ahead of rsp_prod"),
    "req_prod back": (0, 0xFFFF_FF00, "rsp_prod is 258 ahead of req_prod"),
}


@pytest.mark.parametrize(("offset", "value", "wrong"), POKED.values(), ids=POKED)
def test_words_that_a_peer_wrote_over(offset, value, wrong):
    with Platform(seed=1) as xen:
        guest = xen.create(name="g", disks=[Disk(MemoryImage(bytes(1 << 20)))])
        guest.start()
        guest.disks[0].read(0, 8)
        guest.disks[0].read(8, 8)
        (ring,) = rings_of(xen)
        base = int.from_bytes((2).to_bytes(4, "little"), "little")
        assert ring.word(0) == ring.word(8) == base
        poke(xen.hypervisor, ring.frames[0], offset, ((base if offset == 8 or value == 0x1000 else 0) + value & 0xFFFFFFFF).to_bytes(4, "little"))  # fmt: skip
        one = dump_ring(ring)
        assert one.wrong[0].startswith(wrong)
        assert any("is not what its end published" in line for line in one.wrong)
        assert one.counts["in_flight"] is None
        assert f"WRONG: {wrong}" in str(dump(xen))


def test_pages_that_are_not_there(worlds):
    xen = worlds[0]
    with pytest.raises(LocalProtocolError, match="there is no domain 9: there is 0, 1"):
        pages(xen, 9, [1])
    for pfn in (-1, 1 << 27, 1 << 60):
        with pytest.raises(LocalProtocolError, match="no page is there"):
            pages(xen, 1, [pfn])
