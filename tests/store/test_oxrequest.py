"""Requests that oxenstored 4.17 answers in its own way: what it was seen to answer."""

from __future__ import annotations

import gc

import pytest

from tests.store.client import Store, answer, end, start
from xenpv.abi.xs import XS
from xenpv.errors import StoreError
from xenpv.store.oxrequest import c_int_of_string, int_of_string, shown
from xenpv.store.profile import OX, C


@pytest.fixture
def ox() -> Store:
    return Store(OX)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"0", 0), (b"17", 17), (b"0x1F", 31), (b"0X1f", 31), (b"0o17", 15), (b"0b101", 5),
        (b"0u9", 9), (b"1_000", 1000), (b"1_", 1), (b"-1", -1), (b"+1", 1), (b"-0x2", -2),
        (b"4611686018427387903", (1 << 62) - 1), (b"-4611686018427387904", -(1 << 62)),
        (b"0x7fffffffffffffff", -1), (b"4611686018427387904", None),
        (b"0x8000000000000000", None), (b"", None), (b"_1", None), (b" 1", None),
        (b"1 ", None), (b"0x", None), (b"0x_1", None), (b"x1", None), (b"1x", None), (b"-", None),
    ],
)  # fmt: skip
def test_numbers_as_ocaml_reads_them(text: bytes, value: int | None) -> None:
    if value is None:
        with pytest.raises(StoreError, match="EINVAL"):
            int_of_string(text)
    else:
        assert int_of_string(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"7", 7), (b"", 0), (b"x7y", 7), (b"-1", 1), (b"0x1", 0), (b"7x9", 7), (b"abc", 0),
        (b"99999999999999999999", 7766279631452241919),
    ],
)  # fmt: skip
def test_the_first_digits(text: bytes, value: int) -> None:
    assert shown(c_int_of_string(text)) == value


def test_a_negative_number_is_shown_without_a_sign() -> None:
    assert shown(-1) == 9223372036854775807


def test_special_names_are_children_of_the_root(ox: Store) -> None:
    root = b"@introduceDomain\0@releaseDomain\0local\0tool\0"
    assert ox.dom0.call(XS.DIRECTORY, b"/\0") == root
    for text in (b"/\0all\0", b"@a\0special\0", b"/@a\0path\0"):
        ox.dom0.call(XS.WATCH, text)
    ox.events()
    assert ox.dom0.call(XS.WRITE, b"@a\0v") == b"OK\0"
    assert ox.events() == [(b"/@a", b"all"), (b"/@a", b"path")]
    assert ox.read(b"/@a") == ox.read(b"@a") == b"v"
    assert ox.dom0.call(XS.DIRECTORY, b"/\0") == b"@a\0" + root
    assert ox.dom0.call(XS.RM, b"@releaseDomain\0") == b"OK\0"
    assert answer(ox.dom0, XS.GET_PERMS, b"@releaseDomain\0") == "ENOENT"
    assert answer(ox.dom0, XS.READ, b"@a/b\0") == "EINVAL"


@pytest.mark.parametrize("perms", [b"n0\0", b"r0\0", b"n0\0r1\0"])
def test_who_hears_of_domains(ox: Store, perms: bytes) -> None:
    guest = ox.guest(1)
    ox.dom0.call(XS.SET_PERMS, b"@introduceDomain\0" + perms)
    guest.send(XS.WATCH, b"@introduceDomain\0t\0")
    guest.messages()
    ox.introduce(2)
    assert len(guest.events()) == (perms != b"n0\0")


def test_who_may_read_the_root_hears_of_domains(ox: Store) -> None:
    guest = ox.guest(1)
    guest.send(XS.WATCH, b"@introduceDomain\0t\0")
    guest.messages()
    ox.set_perms(b"/", b"r0")
    ox.introduce(2)
    assert guest.events() == [(b"@introduceDomain", b"t")]


def test_mkdir_of_the_root_succeeds_for_everybody(ox: Store) -> None:
    guest = ox.guest(1)
    for client in (ox.dom0, guest):
        assert answer(client, XS.MKDIR, b"/\0") == b"OK\0"
    tx = start(guest)
    guest.call(XS.MKDIR, b"/\0", tx)
    ox.write(b"/x", b"1")
    assert end(guest, tx) == b"OK\0"  # by a replay
    assert answer(Store(C).guest(1), XS.MKDIR, b"/\0") == "EACCES"


def test_the_permissions_of_the_root(ox: Store) -> None:
    guest = ox.guest(1)
    assert answer(guest, XS.SET_PERMS, b"/\0r0\0") == "EACCES"
    ox.set_perms(b"/", b"b0")
    assert answer(guest, XS.SET_PERMS, b"/\0n1\0") == "EACCES"
    assert answer(guest, XS.SET_PERMS, b"/\0r0\0") == b"OK\0"
    assert ox.dom0.call(XS.GET_PERMS, b"/\0") == b"r0\0"


def test_permissions_name_domains_that_are_to_come(ox: Store) -> None:
    ox.write(b"/x", b"v")
    ox.write(b"/owned", b"v")
    ox.set_perms(b"/x", b"n0", b"r2", b"b77", b"n-1")
    ox.set_perms(b"/owned", b"n3")
    assert ox.dom0.call(XS.GET_PERMS, b"/x\0") == b"n0\0r2\0b77\0n9223372036854775807\0"
    guest, owner = ox.introduce(2), ox.introduce(3)
    assert answer(guest, XS.READ, b"/x\0") == b"v"
    assert answer(owner, XS.WRITE, b"/owned\0w") == b"OK\0"
    assert ox.server.known[3].nodes == 1
    ox.server.domain_died(2)
    ox.server.domain_died(3)
    assert ox.dom0.call(XS.GET_PERMS, b"/x\0") == b"n0\0b77\0n9223372036854775807\0"
    assert ox.read(b"/owned") == "ENOENT"
    ox.platform.ids[2] += 1
    assert answer(ox.introduce(2), XS.READ, b"/x\0") == "EACCES"


def test_nobody_fills_the_store_with_domains_that_never_come(ox: Store) -> None:
    guest = ox.guest(1)
    guest.call(XS.WRITE, b"x\0")
    for number in range(1000, 3000):
        guest.call(XS.SET_PERMS, b"x\0n1\0r%d\0" % number)
    gc.collect()
    assert len(ox.server.strangers) <= 2
    assert sorted(ox.server.known) == [0, 1]


def test_a_target_gives_its_rights_besides_ones_own(ox: Store) -> None:
    guest = ox.guest(1)
    ox.guest(2)
    ox.write(b"/x", b"v")
    ox.set_perms(b"/x", b"n0", b"n1", b"r2")
    ox.write(b"/y", b"v")
    ox.set_perms(b"/y", b"n0", b"n2", b"r1")
    assert [answer(guest, XS.READ, path) for path in (b"/x\0", b"/y\0")] == ["EACCES", b"v"]
    ox.dom0.call(XS.SET_TARGET, b"1\x002\0")
    assert [answer(guest, XS.READ, path) for path in (b"/x\0", b"/y\0")] == [b"v", b"v"]
    ox.server.domain_died(2)  # nobody keeps it
    assert ox.dom0.call(XS.IS_DOMAIN_INTRODUCED, b"2\0") == b"F\0"
    assert answer(guest, XS.READ, b"/x\0") == "EACCES"


# (request, answer); domain 1 is introduced with frame 1, domain 9 does not exist.
LIFE: list[tuple[XS, bytes, bytes | str]] = [
    (XS.INTRODUCE, b"1\0001\0007\0", b"OK\0"),
    (XS.INTRODUCE, b"1\0002\0007\0", "EINVAL"),
    (XS.INTRODUCE, b"1\0x\0007\0", "EIO"),
    (XS.INTRODUCE, b"x\0001\0007\0", "EINVAL"),
    (XS.INTRODUCE, b"9\0001\0007\0", "EINVAL"),
    (XS.INTRODUCE, b"0x2\0001\0000", b"OK\0"),
    (XS.INTRODUCE, b"0\0000\0003\0", b"OK\0"),
    (XS.RELEASE, b"9\0", "EINVAL"),
    (XS.RELEASE, b"0\0", "EINVAL"),
    (XS.RELEASE, b"1", "EINVAL"),
    (XS.RELEASE, b"1\0", b"OK\0"),
    (XS.RESUME, b"9\0", "EINVAL"),
    (XS.RESUME, b"0\0", b"OK\0"),
    (XS.RESUME, b"1", b"OK\0"),
    (XS.SET_TARGET, b"9\0001\0", "ENOENT"),
    (XS.SET_TARGET, b"1\0009\0", b"OK\0"),
    (XS.SET_TARGET, b"1\0009", "EINVAL"),
    (XS.IS_DOMAIN_INTRODUCED, b"0x1\0", b"T\0"),
    (XS.IS_DOMAIN_INTRODUCED, b"\0", "EINVAL"),
    (XS.GET_DOMAIN_PATH, b"-1\0", b"/local/domain/1\0"),
    (XS.GET_DOMAIN_PATH, b"1", "EINVAL"),
    (XS.UNWATCH, b"/a!\0t\0", "ENOENT"),
    (XS.UNWATCH, b"\0t\0", "EINVAL"),
    (XS.CONTROL, b"frobnicate\0", b"OK\0"),
    (XS.CONTROL, b"quota\0001\0", b"dom1 quota: 1/1000\0"),
    (XS.CONTROL, b"quota\0009\0", b"dom9 quota: not set\0"),
    (XS.CONTROL, b"quota\0x\0", b"OK\0"),
    (XS.CONTROL, b"mfn\0001\0", b"1\0"),
    (XS.CONTROL, b"mfn\0009\0", b"OK\0"),
]


@pytest.mark.parametrize(("op", "payload", "expected"), LIFE)
def test_answers_to_dom0(ox: Store, op: XS, payload: bytes, expected: bytes | str) -> None:
    ox.guest(1)
    assert answer(ox.dom0, op, payload) == expected


def test_control_tells_a_guest_nothing_and_lists_watches(ox: Store) -> None:
    guest = ox.guest(1)
    guest.send(XS.WATCH, b"a/b\0tok\0")
    guest.messages()
    assert answer(guest, XS.CONTROL, b"watches\0") == b"OK\0"
    assert answer(ox.dom0, XS.CONTROL, b"watches\0") == b"watch D1: a/b tok\n\0"


def test_introduce_again_keeps_watches_and_transactions(ox: Store) -> None:
    guest = ox.guest(1)
    guest.send(XS.WATCH, b"x\0t\0")
    guest.messages()
    tx = start(guest)
    ox.dom0.call(XS.INTRODUCE, b"1\0001\0007\0")
    ox.write(b"/local/domain/1/x", b"1")
    assert guest.events() == [(b"x", b"t")]
    assert end(guest, tx) == b"OK\0"


@pytest.mark.parametrize("how", ["dies", "is released"])
def test_nobody_hears_of_a_dead_domains_nodes(ox: Store, how: str) -> None:
    guest = ox.guest(1)
    guest.call(XS.WRITE, b"a/b\0v")
    ox.write(b"/local/domain/1/a/zero", b"")
    ox.set_perms(b"/local/domain/1/a/zero", b"n0")
    for text in (b"/\0all\0", b"/local/domain/1/a\0a\0", b"@releaseDomain\0r\0"):
        ox.dom0.call(XS.WATCH, text)
    tx = start(ox.dom0)
    ox.dom0.call(XS.READ, b"/tool\0", tx)
    ox.dom0.call(XS.WRITE, b"/tool/x\0", tx)
    ox.events()
    if how == "dies":
        ox.server.domain_died(1)
    else:
        ox.dom0.call(XS.RELEASE, b"1\0")
    assert ox.events() == [(b"@releaseDomain", b"r")]
    assert ox.dom0.call(XS.DIRECTORY, b"/local/domain\0") == b""
    assert end(ox.dom0, tx) == b"OK\0"


def test_each_look_at_a_domain_that_is_down_is_told(ox: Store) -> None:
    ox.guest(1)
    ox.dom0.call(XS.WATCH, b"@releaseDomain\0r\0")
    ox.events()
    for _ in range(2):
        ox.server.domain_shutdown(1)
        assert ox.events() == [(b"@releaseDomain", b"r")]


def test_the_transaction_is_looked_for_first(ox: Store) -> None:
    guest = ox.guest(1)
    for client in (ox.dom0, guest):
        assert answer(client, 99, b"/\0", 55) == "EIO"
        assert answer(client, XS.DIRECTORY_PART, b"/\x000\0", 55) == "EIO"
    assert answer(guest, XS.INTRODUCE, b"5\0001\0002\0", 55) == "EIO"
    tx = start(guest)
    assert answer(guest, 99, b"/\0", tx) == "ENOSYS"


def test_the_reply_to_a_watch_names_no_transaction(ox: Store) -> None:
    guest = ox.guest(1)
    for client in (guest, None):
        if client is None:
            conn = ox.server.connect_socket("s")
            data = conn.serve(b"\x05\0\0\0\x01\0\0\0\x09\0\0\0\x04\0\0\0a\0t\0")
            assert data == b"\x10\0\0\0\x01\0\0\0\0\0\0\0\x07\0\0\0ENOENT\0"
        else:
            client.send(XS.UNWATCH, b"a\0t\0", tx_id=9)
            assert client.messages() == [(XS.ERROR, 0, 0, b"ENOENT\0")]


@pytest.mark.parametrize("argument", [b"T", b"T\0x", b"T\0"])
def test_how_a_transaction_is_told_to_end(ox: Store, argument: bytes) -> None:
    tx = start(ox.dom0)
    ox.dom0.call(XS.WRITE, b"/x\0v", tx)
    assert answer(ox.dom0, XS.TRANSACTION_END, b"X\0", tx) == "EINVAL"
    assert answer(ox.dom0, XS.TRANSACTION_END, argument, tx) == b"OK\0"
    assert ox.read(b"/x") == b"v"


def test_a_guest_has_1024_requests_in_a_transaction(ox: Store) -> None:
    guest = ox.guest(1)
    tx = start(guest)
    for number in range(1024):
        assert guest.call(XS.WRITE, b"k\0%d" % number, tx) == b"OK\0"
    for op, payload in (
        (XS.READ, b"k\0"),
        (XS.TRANSACTION_END, b"T\0"),
        (XS.TRANSACTION_END, b"F\0"),
        (XS.RESET_WATCHES, b"\0"),
    ):
        assert answer(guest, op, payload, tx) == "EQUOTA"
    assert answer(guest, XS.RESET_WATCHES, b"\0") == b"OK\0"
    assert answer(guest, XS.TRANSACTION_END, b"F\0", tx) == "EIO"
    assert answer(guest, XS.READ, b"k\0") == "ENOENT"
    tx = start(ox.dom0)
    for number in range(1100):
        ox.dom0.call(XS.WRITE, b"/k\0%d" % number, tx)
    assert end(ox.dom0, tx) == b"OK\0"


def test_every_level_of_a_path_counts_and_the_owner_above_pays(ox: Store) -> None:
    guest, other = ox.guest(1), ox.guest(2)
    ox.set_perms(b"/local/domain/1", b"n1", b"b2")
    guest.connection.domain.limits.nodes = 3 + 1
    assert answer(other, XS.WRITE, b"/local/domain/1/a/b/c\0") == "EQUOTA"
    assert ox.read(b"/local/domain/1/a") == "ENOENT"  # oxenstored leaves what it made
    assert answer(other, XS.WRITE, b"/local/domain/1/a/b\0") == b"OK\0"
    assert answer(guest, XS.WRITE, b"c\0") == "EQUOTA"
    assert answer(other, XS.WRITE, b"mine\0") == b"OK\0"
    tx = start(guest)
    guest.call(XS.RM, b"a/b\0", tx)
    assert answer(guest, XS.WRITE, b"c\0", tx) == b"OK\0"
    assert answer(guest, XS.WRITE, b"d\0", tx) == "EQUOTA"
    assert end(guest, tx) == b"OK\0"


@pytest.mark.parametrize(("size", "expected"), [(2048, b"OK\0"), (2049, "EINVAL")])
def test_of_a_path_in_a_home_the_rest_is_measured(
    ox: Store, size: int, expected: bytes | str
) -> None:
    path = b"/local/domain/123456/" + b"x" * size
    assert answer(ox.dom0, XS.WRITE, path + b"\0") == expected


@pytest.mark.parametrize(("dies", "expected"), [(False, b"OK\0"), (True, "EAGAIN")])
def test_a_death_makes_every_node_another_to_a_transaction(
    ox: Store, dies: bool, expected: bytes | str
) -> None:
    ox.guest(1)
    ox.write(b"/d", b"")
    ox.write(b"/b", b"")
    tx = start(ox.dom0)
    assert answer(ox.dom0, XS.READ, b"/d/q\0", tx) == "ENOENT"
    ox.dom0.call(XS.WRITE, b"/b\0v", tx)
    ox.server.connect_local("other").call(XS.WRITE, b"/d/q\0v")
    if dies:
        ox.server.domain_died(1)
    assert end(ox.dom0, tx) == expected  # replayed, where it could be merged
