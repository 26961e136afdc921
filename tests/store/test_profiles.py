"""What the implementations of xenstored do differently: the tables of xen-core 1.5 and 6."""

from __future__ import annotations

import pytest

from tests.store.client import Store, answer, end, start
from xenpv.abi.xs import XS
from xenpv.errors import ConfigError
from xenpv.store.profile import PROFILES, named

# (what the transaction does, what happens outside, how it ends under c, ox and legacy).
# Requests are (type, payload); before, /a = 1, /b = 1, /d/y = 1, /d/k/l = 1 and /a/b = 1.
READ_A = (XS.READ, b"/a\0")
WRITE_A = (XS.WRITE, b"/a\0002")
WRITE_B = (XS.WRITE, b"/b\0002")
Rows = list[tuple[str, list[tuple[XS, bytes]], list[tuple[XS, bytes]], str, str, str]]
CONFLICTS: Rows = [
    ("nothing happens", [READ_A, WRITE_B], [], "OK", "OK", "OK"),
    ("something far away", [READ_A, WRITE_B], [(XS.WRITE, b"/z\0001")], "OK", "OK", "EAGAIN"),
    ("only read", [READ_A], [WRITE_A], "EAGAIN", "OK", "EAGAIN"),
    ("read and written elsewhere", [READ_A, WRITE_B], [WRITE_A], "EAGAIN", "EAGAIN", "EAGAIN"),
    ("read, the same value written", [READ_A, WRITE_B], [(XS.WRITE, b"/a\0001")], "EAGAIN", "OK", "EAGAIN"),
    ("perms read, perms set", [(XS.GET_PERMS, b"/a\0"), WRITE_B], [(XS.SET_PERMS, b"/a\0b0\0")], "EAGAIN", "EAGAIN", "EAGAIN"),
    ("blind write", [WRITE_A], [(XS.WRITE, b"/a\0003")], "EAGAIN", "OK", "EAGAIN"),
    ("listed, child created", [(XS.DIRECTORY, b"/d\0"), WRITE_B], [(XS.WRITE, b"/d/z\0001")], "EAGAIN", "EAGAIN", "EAGAIN"),
    ("listed, child removed", [(XS.DIRECTORY, b"/d\0"), WRITE_B], [(XS.RM, b"/d/y\0")], "EAGAIN", "EAGAIN", "EAGAIN"),
    ("listed, child's value changed", [(XS.DIRECTORY, b"/d\0"), WRITE_B], [(XS.WRITE, b"/d/y\0002")], "OK", "OK", "EAGAIN"),
    ("sibling creations", [(XS.WRITE, b"/d/x\0001")], [(XS.WRITE, b"/d/z\0001")], "EAGAIN", "OK", "EAGAIN"),
    ("existing written, sibling created", [(XS.WRITE, b"/d/y\0002")], [(XS.WRITE, b"/d/z\0001")], "OK", "OK", "EAGAIN"),
    ("missing read, then created", [(XS.READ, b"/d/q\0"), WRITE_B], [(XS.WRITE, b"/d/q\0001")], "EAGAIN", "OK", "EAGAIN"),
    ("missing read, sibling written", [(XS.READ, b"/d/q\0"), (XS.WRITE, b"/d/w\0001")], [(XS.WRITE, b"/d/q\0001")], "EAGAIN", "EAGAIN", "EAGAIN"),
    ("missing read, another created", [(XS.READ, b"/d/q\0"), WRITE_B], [(XS.WRITE, b"/d/r\0001")], "EAGAIN", "OK", "EAGAIN"),
    ("subtree removed, child written", [(XS.RM, b"/a\0")], [(XS.WRITE, b"/a/b\0002")], "EAGAIN", "OK", "EAGAIN"),
    ("both remove it", [(XS.RM, b"/a\0")], [(XS.RM, b"/a\0")], "EAGAIN", "OK", "EAGAIN"),
    ("rights on the way change", [(XS.WRITE, b"/d/k/l\0002")], [(XS.SET_PERMS, b"/d\0n0\0")], "OK", "OK", "EAGAIN"),
    ("deep creation, sibling created", [(XS.WRITE, b"/d/m/n\0001")], [(XS.WRITE, b"/d/o\0001")], "EAGAIN", "OK", "EAGAIN"),
]  # fmt: skip


def make(profile: str) -> Store:
    store = Store(profile=PROFILES[profile])
    for path in (b"/a", b"/b", b"/d/y", b"/d/k/l", b"/a/b"):
        store.write(path, b"1")
    return store


@pytest.mark.parametrize("profile", ["c", "ox", "legacy"])
@pytest.mark.parametrize(("name", "inside", "outside", "c", "ox", "legacy"), CONFLICTS, ids=[row[0] for row in CONFLICTS])  # fmt: skip
def test_how_a_transaction_ends(
    profile: str, name: str, inside: list[tuple[XS, bytes]], outside: list[tuple[XS, bytes]],
    c: str, ox: str, legacy: str,
) -> None:  # fmt: skip
    store = make(profile)
    client, other = store.dom0, store.server.connect_local("other")
    tx = start(client)
    for op, payload in inside:
        answer(client, op, payload, tx)
    for op, payload in outside:
        assert isinstance(answer(other, op, payload), bytes)
    before = store.server.dump()
    result = end(client, tx)
    wanted = {"c": c, "ox": ox, "legacy": legacy}[profile]
    assert (result if isinstance(result, str) else "OK") == wanted
    if wanted != "OK":
        assert store.server.dump() == before
    else:
        for op, payload in inside:
            if op is XS.WRITE:
                path, value = payload.split(b"\0", 1)
                assert store.read(path) == value
            elif op is XS.RM:
                assert store.read(payload[:-1]) == "ENOENT"
    assert not getattr(store.server.tree, "snapshots", [])


@pytest.mark.parametrize(("profile", "seen"), [("c", b"new"), ("ox", b"1"), ("legacy", b"1")])
def test_when_a_transaction_looks(profile: str, seen: bytes) -> None:
    store = make(profile)
    tx = start(store.dom0)
    other = store.server.connect_local("other")
    other.call(XS.WRITE, b"/a\0new")
    other.call(XS.RM, b"/d\0")
    other.call(XS.WRITE, b"/made\0001")
    assert store.dom0.call(XS.READ, b"/a\0", tx) == seen
    if profile == "c":
        assert answer(store.dom0, XS.READ, b"/d/y\0", tx) == "ENOENT"
        assert store.dom0.call(XS.READ, b"/made\0", tx) == b"1"
    else:
        assert store.dom0.call(XS.READ, b"/d/y\0", tx) == b"1"
        assert store.dom0.call(XS.DIRECTORY, b"/d\0", tx) == b"k\0y\0"
        assert answer(store.dom0, XS.READ, b"/made\0", tx) == "ENOENT"


def test_a_merge_keeps_both_sides_changes() -> None:
    store = make("ox")
    tx = start(store.dom0)
    for number in range(5):
        store.dom0.call(XS.WRITE, b"/d/n%d/v\0%d" % (number, number), tx)
    other = store.server.connect_local("other")
    other.call(XS.WRITE, b"/d/x/v\0001")
    other.call(XS.RM, b"/d/y\0")
    assert end(store.dom0, tx) == b"OK\0"
    assert store.dom0.call(XS.DIRECTORY, b"/d\0") == b"k\0n0\0n1\0n2\0n3\0n4\0x\0"
    assert store.read(b"/d/n3/v") == b"3"
    assert store.read(b"/d/x/v") == b"1"


@pytest.mark.parametrize(
    ("profile", "events"),
    [
        ("c", [b"/a", b"/b"]),
        ("ox", [b"/a", b"/b", b"/a"]),
        ("legacy", [b"/a", b"/b"]),
    ],
)
def test_events_of_a_commit(profile: str, events: list[bytes]) -> None:
    store = make(profile)
    watcher = store.server.connect_local("watcher")
    watcher.call(XS.WATCH, b"/\0t\0")
    watcher.events.clear()
    tx = start(store.dom0)
    for payload in (b"/a\0002", b"/b\0002", b"/a\0003"):
        store.dom0.call(XS.WRITE, payload, tx)
    assert not watcher.events
    assert end(store.dom0, tx) == b"OK\0"
    # In this process' queue equal events are one (EventQueue), whatever the profile.
    assert [path for path, _ in watcher.events] == list(dict.fromkeys(events))


@pytest.mark.parametrize(
    ("profile", "order"), [("c", [15, 11]), ("ox", [11, 15]), ("legacy", [11, 15])]
)
def test_the_writers_own_event_and_its_reply(profile: str, order: list[int]) -> None:
    store = make(profile)
    guest = store.guest(1)
    guest.send(XS.WATCH, b"k\0t\0")
    guest.messages()
    guest.send(XS.WRITE, b"k\0001")
    assert [op for op, *_ in guest.messages()] == order


@pytest.mark.parametrize(("profile", "seen"), [("c", 1), ("ox", 20), ("legacy", 20)])
def test_equal_events_that_wait(profile: str, seen: int) -> None:
    store = make(profile)
    guest = store.guest(1)
    guest.send(XS.WATCH, b"k\0t\0")
    guest.messages()
    for _ in range(20):
        store.write(b"/local/domain/1/k", b"1")
    assert len(guest.events()) == seen


@pytest.mark.parametrize(
    ("profile", "names"), [("c", b"z\0a\0m\0"), ("ox", b"a\0m\0z\0"), ("legacy", b"a\0m\0z\0")]
)
def test_order_of_children(profile: str, names: bytes) -> None:
    store = make(profile)
    for name in (b"z", b"a", b"m"):
        store.write(b"/e/" + name)
    assert store.dom0.call(XS.DIRECTORY, b"/e\0") == names
    part = store.dom0.call(XS.DIRECTORY_PART, b"/e\0000\0") if profile != "ox" else b"g\0" + names
    assert part.split(b"\0", 1)[1].rstrip(b"\0") == names.rstrip(b"\0")


# (request of guest 1, answers under c, ox, legacy); /h is hidden, /local/domain/1 its home.
REFUSALS = [
    ("missing below hidden", XS.READ, b"/h/none\0", "EACCES", "ENOENT", "ENOENT"),
    ("hidden itself", XS.READ, b"/h\0", "EACCES", "EACCES", "EACCES"),
    ("write below hidden", XS.WRITE, b"/h/none\0001", "EACCES", "EACCES", "EACCES"),
    ("rm of what is not there", XS.RM, b"none\0", "OK", "OK", "ENOENT"),
    ("giving a node away", XS.SET_PERMS, b"k\0n2\0", "EPERM", "EACCES", "EPERM"),
    ("partial listing", XS.DIRECTORY_PART, b"k\0000\0", "OK", "ENOSYS", "OK"),
    ("features", XS.GET_FEATURE, b"", "OK", "ENOSYS", "ENOSYS"),
]


@pytest.mark.parametrize("profile", ["c", "ox", "legacy"])
@pytest.mark.parametrize(("name", "op", "payload", "c", "ox", "legacy"), REFUSALS, ids=[row[0] for row in REFUSALS])  # fmt: skip
def test_what_a_guest_is_told(
    profile: str, name: str, op: XS, payload: bytes, c: str, ox: str, legacy: str
) -> None:
    store = make(profile)
    store.write(b"/h", b"1")
    store.set_perms(b"/h", b"n0")
    guest = store.guest(1)
    guest.call(XS.WRITE, b"k\0001")
    result = answer(guest, op, payload)
    assert (result if isinstance(result, str) else "OK") == {"c": c, "ox": ox, "legacy": legacy}[
        profile
    ]


@pytest.mark.parametrize(
    ("profile", "owner"), [("c", b"n1\0"), ("ox", b"b2\0r1\0"), ("legacy", b"b2\0r1\0")]
)
def test_owner_of_what_a_guest_creates(profile: str, owner: bytes) -> None:
    store = make(profile)
    store.write(b"/shared", b"")
    store.set_perms(b"/shared", b"b2", b"r1") if profile != "c" else store.set_perms(
        b"/shared", b"b2"
    )
    guest = store.guest(1)
    if profile != "c":
        store.set_perms(b"/shared", b"b2", b"b1")
        guest.call(XS.WRITE, b"/shared/x\0001")
        assert store.dom0.call(XS.GET_PERMS, b"/shared/x\0") == b"b2\0b1\0"
    else:
        guest.call(XS.WRITE, b"/shared/x\0001")
        assert store.dom0.call(XS.GET_PERMS, b"/shared/x\0") == b"b1\0"


@pytest.mark.parametrize(
    ("profile", "error"), [("c", "ENOENT"), ("ox", "EIO"), ("legacy", "ENOENT")]
)
def test_an_unknown_transaction(profile: str, error: str) -> None:
    assert answer(make(profile).dom0, XS.READ, b"/a\0", 99) == error


@pytest.mark.parametrize(
    ("profile", "error", "fits"),
    [("c", "ENOSPC", 127), ("ox", "EQUOTA", 101), ("legacy", "E2BIG", 127)],
)
def test_watch_quota(profile: str, error: str, fits: int) -> None:
    guest = make(profile).guest(1)
    for number in range(fits):
        guest.send(XS.WATCH, b"k\0%d\0" % number)
        assert guest.messages()[0][0] == XS.WATCH
    assert answer(guest, XS.WATCH, b"k\0more\0") == error


@pytest.mark.parametrize(("profile", "left"), [("c", "EINVAL"), ("ox", b""), ("legacy", b"")])
def test_rm_of_the_root(profile: str, left: bytes | str) -> None:
    store = make(profile)
    result = answer(store.dom0, XS.RM, b"/\0")
    if isinstance(left, str):
        assert result == left
        assert store.read(b"/a") == b"1"
    else:
        assert result == b"OK\0"
        assert store.dom0.call(XS.DIRECTORY, b"/\0") == left


@pytest.mark.parametrize(("profile", "heard"), [("c", 0), ("ox", 0), ("legacy", 1)])
def test_who_may_hear(profile: str, heard: int) -> None:
    store = make(profile)
    guest = store.guest(1)
    store.set_perms(b"/", b"n0")
    store.set_perms(b"/a", b"n0")
    guest.send(XS.WATCH, b"/a\0t\0")
    guest.messages()
    store.write(b"/a", b"2")
    assert len(guest.events()) == heard


def test_an_unknown_profile_is_named() -> None:
    with pytest.raises(ConfigError, match="'cxx': expected c, ox, legacy"):
        named("cxx")
