"""What a ring is called: by what its ends say, not by the size of its entries."""

from __future__ import annotations

import pytest

from examples.own_blk_backend import Backend
from examples.own_net_frontend import Frontend
from xenpv.bus.ring import FrontRing
from xenpv.errors import LocalProtocolError
from xenpv.testing import rings_of, user_blk_backend, user_net_frontend, world_raw
from xenpv.view.rings import KINDS, UNKNOWN, RingKind, declare, fields, kind_of

OWN = RingKind(
    name="kindsif",
    device="kinds",
    request="kinds_request",
    response="kinds_response",
    request_size=112,
    response_size=16,
    request_id="id",
    response_id="id",
    structs=(
        ("kinds_request", (("op", 0, 4), ("id", 4, 4), ("data[0]", 8, 8))),
        ("kinds_response", (("id", 0, 4), ("status", 4, 4))),
    ),
)


@pytest.fixture(autouse=True)
def _own():
    declare(OWN)
    declare(OWN)  # a module that is imported twice
    yield
    del KINDS["kindsif"]


@pytest.mark.parametrize(
    ("kind", "sizes", "row"),
    [
        ("blkif", (112, 16), "blkif_request[0] operation 0x5, id 0x7"),
        ("", (112, 16), "entry[0] 0500000000000000"),
        ("kindsif", (112, 16), "kinds_request[0] op 0x5, data[0] 0x7"),
        ("nobody's", (112, 16), "entry[0] 0500000000000000"),
        ("blkif", (64, 16), "entry[0] 0500000000000000"),
    ],
    ids=["blkif", "not named", "one's own of blkif's size", "not declared", "not of its size"],
)
def test_entries_are_decoded_as_what_the_ring_is_called(kind, sizes, row):
    with world_raw() as world:
        guest, pfn = world.guest, world.guest.page()
        front = FrontRing(guest.domain, (pfn,), req_size=sizes[0], rsp_size=sizes[1], kind=kind)
        front.push(bytes([5, 0, 0, 0, 0, 0, 0, 0, 7]).ljust(sizes[0], b"\0"), 1)
        (ring,) = [
            one for one in rings_of(world.platform) if one.front and one.front.pfns == (pfn,)
        ]
        (line,) = [one for one in ring.table() if "[0]" in one]
        assert line.strip().startswith(row)
        assert (ring.kind is UNKNOWN) == row.startswith("entry")


def test_a_name_means_one_layout():
    other = RingKind("kindsif", "kinds", "kinds_request", "kinds_response", 112, 24)
    with pytest.raises(LocalProtocolError, match="kindsif is declared with another layout"):
        declare(other)
    clash = RingKind(
        "other", "kinds", "blkif_request", "", 8, 8, structs=(("blkif_request", (("x", 0, 8),)),)
    )
    with pytest.raises(LocalProtocolError, match="struct blkif_request is declared with another"):
        declare(clash)
    assert "other" not in KINDS
    assert fields("no_such_struct") == ()


@pytest.mark.parametrize(
    ("device", "sizes", "kind"),
    [
        ("vbd", (112, 16), "blkif"),
        ("vbd", (108, 12), "blkif_x86_32"),
        ("vif", (12, 4), "netif_tx"),
        ("vif", (8, 8), "netif_rx"),
        ("vif", (16, 12), "xen_netif_ctrl"),
        ("vif", (112, 16), ""),
        ("kinds", (112, 16), "kindsif"),
    ],
)
def test_an_end_of_a_device_has_the_rings_of_its_class(device, sizes, kind):
    assert kind_of(device, *sizes) == kind


def test_a_users_end_names_its_rings_by_its_device():
    with user_blk_backend(Backend) as world:
        assert world.driver.ring.kind == "blkif"
    with user_net_frontend(Frontend) as world:
        assert (world.driver.tx.kind, world.driver.rx.kind) == ("netif_tx", "netif_rx")
