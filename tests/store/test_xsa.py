"""The advisories about xenstored, each as what has to happen instead (xen-core 5)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.store.client import Store, WireClient, answer, end, message, start
from tests.store.rawguest import add_guest
from tests.world import World, make
from xenpv.abi.xs import XS
from xenpv.store.profile import OX

DATA = b"/local/domain/1/"


@pytest.fixture
def ox() -> Store:
    return Store(OX)


@pytest.fixture
def world() -> Iterator[World]:
    made = make()
    yield made
    made.hypervisor.close()


def reuse(store: Store, domid: int) -> WireClient:
    """The domain dies and another one gets its domid."""
    store.server.domain_died(domid)
    store.platform.ids[domid] += 1
    return store.guest(domid)


def test_xsa_38_ox_guest_ring_indices_are_not_trusted() -> None:
    world = make(profile=OX)
    guest, other = add_guest(world), add_guest(world)
    guest.field("req_prod", guest.field("req_cons") + 1025)
    guest.notify()
    guest.field("req_prod", guest.field("req_cons"))
    guest.send(XS.READ, b"data\0")
    assert guest.messages() == []
    assert other.call(XS.READ, b"data\0") == b""
    world.hypervisor.close()


def test_xsa_72_ox_reply_over_4096_bytes_is_e2big(ox: Store) -> None:
    for index in range(50):
        ox.write(b"/local/domain/1/d/%s%02d" % (b"n" * 100, index))
    guest = ox.guest(1)
    ox.set_perms(b"/local/domain/1/d", b"n1")
    assert answer(guest, XS.DIRECTORY, b"d\0") == "E2BIG"


def test_xsa_115_watch_events_need_the_right_to_read(store: Store) -> None:
    guest = store.guest(1)
    store.write(b"/secret/a")
    guest.send(XS.WATCH, b"/secret/a\0t\0")
    guest.send(XS.WATCH, b"/\0t\0")
    guest.messages()
    store.write(b"/secret/a", b"1")
    store.dom0.call(XS.RM, b"/secret\0")
    assert guest.messages() == []


def test_xsa_115_is_domain_introduced_is_privileged(store: Store) -> None:
    assert answer(store.guest(1), XS.IS_DOMAIN_INTRODUCED, b"0\0") == "EACCES"


def test_xsa_206_a_flood_of_writes_does_not_starve_a_transaction(world: World) -> None:
    guest = add_guest(world)
    tx = world.client.call(XS.TRANSACTION_START, b"\0")
    assert tx
    for index in range(60):
        guest.call(XS.WRITE, b"data/x\x00%d" % index)
    assert world.loop.now >= 200_000_000  # beyond a burst of ten, 200 a second


def test_xsa_322_a_new_domain_does_not_inherit_an_old_domids_acls(store: Store) -> None:
    store.guest(1)
    store.write(b"/x", b"v")
    store.set_perms(b"/x", b"n0", b"r1")
    assert answer(reuse(store, 1), XS.READ, b"/x\0") == "EACCES"


@pytest.mark.parametrize("kind", [XS.READ, XS.WRITE, XS.WATCH, XS.MKDIR])
def test_xsa_323_path_lengths_are_checked_everywhere(kind: XS) -> None:
    for store, fits in ((Store(), 2047), (Store(OX), 2048)):
        if kind is XS.WATCH and store.server.profile is OX:
            continue  # oxenstored measures the paths of nodes alone
        guest = store.guest(1)
        path = b"/" + b"a" * fits  # one byte too many
        payload = path + (b"\0t\0" if kind is XS.WATCH else b"\0")
        assert answer(guest, kind, payload) == "EINVAL"


def test_xsa_324_an_event_that_is_too_long_is_dropped(store: Store) -> None:
    watcher = store.server.connect_local("w")
    watcher.call(XS.WATCH, b"/a\0" + b"t" * 3000 + b"\0")
    watcher.events.clear()
    store.write(b"/a/" + b"b" * 1500)
    assert not watcher.events
    store.write(b"/a/b")
    assert len(watcher.events) == 1


def test_xsa_325_a_broken_ring_does_not_lose_the_release(store: Store) -> None:
    guest = store.guest(1)
    watcher = store.server.connect_local("w")
    watcher.call(XS.WATCH, b"@releaseDomain\0t\0")
    watcher.events.clear()
    guest.connection.feed(message(XS.READ, b"")[:12] + b"\xff\xff\xff\xff")
    assert guest.connection.fatal
    assert store.dom0.call(XS.IS_DOMAIN_INTRODUCED, b"1\0") == b"T\0"
    assert not watcher.events
    store.server.domain_died(1)
    assert list(watcher.events) == [(b"@releaseDomain", b"t")]


def test_xsa_326_what_a_guest_makes_xenstored_hold_is_bounded(store: Store) -> None:
    guest = store.guest(1)
    limits = guest.connection.domain.limits
    store.write(b"/local/domain/1/big", b"v" * 3000)
    guest.send(XS.WATCH, b"/local/domain/1\0t\0")
    for index in range(5000):
        guest.send(XS.READ, b"big\0")
        store.write(b"/local/domain/1/n%d" % index, b"")
    domain = guest.connection.domain
    assert domain.outstanding <= limits.outstanding
    assert domain.memory <= limits.memory


def test_xsa_330_ox_reset_watches_cleans_the_index(ox: Store) -> None:
    guest = ox.guest(1)
    for index in range(50):
        guest.send(XS.WATCH, b"/w%d\0t\0" % index)
    guest.messages()
    guest.call(XS.RESET_WATCHES, b"\0")
    assert ox.server.watches.by_path == {}
    assert guest.connection.domain.watches == 0


@pytest.mark.parametrize(("profile", "error"), [("c", "EPERM"), ("ox", "EACCES")])
def test_xsa_352_a_guest_gives_no_node_away(profile: str, error: str, ox: Store) -> None:
    store = ox if profile == "ox" else Store()
    guest = store.guest(1)
    store.guest(2)
    guest.call(XS.WRITE, b"mine\0v")
    assert answer(guest, XS.SET_PERMS, b"mine\0n2\0") == error
    assert guest.call(XS.GET_PERMS, b"mine\0") == b"n1\0"


def test_xsa_353_ox_the_root_is_checked_too(ox: Store) -> None:
    guest = ox.guest(1)
    for op, payload in ((XS.WRITE, b"/\0v"), (XS.RM, b"/\0"), (XS.SET_PERMS, b"/\0n1\0")):
        assert answer(guest, op, payload) == "EACCES"


@pytest.mark.parametrize("inside", [False, True])
def test_xsa_414_and_415_a_failed_create_leaves_nothing(store: Store, inside: bool) -> None:
    guest = store.guest(1)
    domain = guest.connection.domain
    tx = start(guest) if inside else 0
    before = (domain.nodes, domain.memory, store.server.ls_fp())
    payload = b"a/b/c\0" + b"v" * 2040
    assert answer(guest, XS.WRITE, payload, tx) == "ENOSPC"
    if inside:
        assert end(guest, tx) == "ENOMEM"
    assert (domain.nodes, domain.memory, store.server.ls_fp()) == before


def test_xsa_416_no_memory_stays_with_a_reply_that_is_never_read(store: Store) -> None:
    guest = store.guest(1)
    guest.call(XS.WRITE, b"a\0" + b"v" * 1500)
    before = guest.connection.domain.memory
    for _ in range(15):
        guest.send(XS.READ, b"a\0")
    assert guest.connection.domain.memory == before + 15 * (16 + 1500)
    guest.messages()
    assert guest.connection.domain.memory == before


def test_xsa_417_rights_of_a_deleted_domain_are_not_reused(store: Store) -> None:
    store.guest(1)
    store.write(b"/x", b"v")
    store.set_perms(b"/x", b"n1", b"r2")
    store.server.domain_died(1)
    store.write(b"/x", b"v")
    store.platform.ids[1] += 1
    assert answer(store.guest(1), XS.READ, b"/x\0") == "EACCES"


def test_xsa_418_a_thousand_levels(store: Store) -> None:
    guest = store.guest(1)
    guest.connection.domain.limits.nodes = 0
    path = b"/".join([b"a"] * 1000)
    guest.call(XS.WRITE, path + b"\0v")
    assert guest.call(XS.RM, b"a\0") == b"OK\0"
    guest.call(XS.WRITE, path + b"\0v")
    store.server.domain_died(1)
    assert store.read(b"/local/domain/1/a") == "ENOENT"


def test_xsa_419_what_is_below_a_dead_domains_node_goes_too(store: Store) -> None:
    guest, other = store.guest(1), store.guest(2)
    guest.call(XS.WRITE, b"shared\0")
    guest.call(XS.SET_PERMS, b"shared\0n1\0b2\0")
    other.call(XS.WRITE, b"/local/domain/1/shared/theirs\0v")
    held = other.connection.domain.nodes
    store.server.domain_died(1)
    assert store.read(b"/local/domain/1/shared/theirs") == "ENOENT"
    assert other.connection.domain.nodes == held - 1


@pytest.mark.parametrize("length", [0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_xsa_420_ox_a_length_that_looks_negative_is_clamped(ox: Store, length: int) -> None:
    guest = ox.guest(1)
    header = message(XS.READ, b"")[:12] + length.to_bytes(4, "little")
    guest.connection.feed(header + b"x" * 4096)
    assert [op for op, *_ in guest.messages()] == [XS.ERROR]
    assert guest.call(XS.GET_DOMAIN_PATH, b"1\0") == b"/local/domain/1\0"


def test_xsa_421_removals_in_a_transaction_keep_the_accounts(store: Store) -> None:
    guest = store.guest(1)
    before = (guest.connection.domain.nodes, guest.connection.domain.memory)
    for how in (b"F", b"T"):
        guest.call(XS.WRITE, b"a/b\0v")
        tx = start(guest)
        guest.call(XS.RM, b"a\0", tx)
        guest.call(XS.WRITE, b"a\0v", tx)
        guest.call(XS.RM, b"a\0", tx)
        assert end(guest, tx, how) == b"OK\0"
    assert (guest.connection.domain.nodes, guest.connection.domain.memory) == before


def test_xsa_425_clients_that_go_while_events_are_sent(store: Store) -> None:
    first = store.guest(1)
    second = store.guest(2)
    second.send(XS.WATCH, b"@releaseDomain\0t\0")
    second.messages()
    store.server.domain_died(1)
    store.server.domain_died(2)
    assert (first.connection.closed, second.connection.closed) == (True, True)


def test_xsa_440_delete_against_delete_is_eagain_and_no_more(store: Store) -> None:
    store.write(b"/a/b", b"v")
    first, second = start(store.dom0), start(store.dom0)
    for tx in (first, second):
        store.dom0.call(XS.RM, b"/a\0", tx)
    assert end(store.dom0, first) == b"OK\0"
    assert end(store.dom0, second) == "EAGAIN"


@pytest.mark.parametrize("path", [b"/local/domain/", b"/local/domain//", b"/local/domain/1/"])
def test_xsa_481_a_home_prefix_alone_is_einval(store: Store, path: bytes) -> None:
    guest = store.guest(1)
    assert answer(guest, XS.READ, path + b"\0") == "EINVAL"
    assert answer(store.dom0, XS.READ, path + b"\0") == "EINVAL"


def test_xsa_483_ox_counts_do_not_outlive_a_domid(ox: Store) -> None:
    guest = ox.guest(1)
    for index in range(20):
        guest.call(XS.WRITE, b"n%d\0" % index)
    start(guest)
    domain = reuse(ox, 1).connection.domain
    assert (domain.nodes, domain.watches, domain.transactions) == (1, 0, 0)


def test_xsa_484_reset_watches_inside_a_transaction(store: Store) -> None:
    guest = store.guest(1)
    tx = start(guest)
    assert answer(guest, XS.RESET_WATCHES, b"\0", tx) == b"OK\0"
    assert end(guest, tx) == "ENOENT"
    assert guest.connection.domain.transactions == 0
