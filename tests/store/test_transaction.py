from __future__ import annotations

import pytest

from tests.store.client import Store, answer, end, start
from xenpv.abi.xs import XS

Step = tuple[XS, bytes]


def do(store: Store, steps: list[Step], tx_id: int = 0) -> None:
    for op, payload in steps:
        answer(store.dom0, op, payload, tx_id)


READ_A = (XS.READ, b"/a\0")
WRITE_A = (XS.WRITE, b"/a\x001")
WRITE_B = (XS.WRITE, b"/b\x001")
READ_Q = (XS.READ, b"/d/q\0")

# (inside the transaction, concurrently, how T ends): the C column of the conflict matrix
CONFLICTS = [
    ([READ_A], [WRITE_A], "EAGAIN"),
    ([READ_A, WRITE_B], [WRITE_A], "EAGAIN"),
    ([READ_A, WRITE_B], [(XS.SET_PERMS, b"/a\0n0\0")], "EAGAIN"),
    ([(XS.GET_PERMS, b"/a\0"), WRITE_B], [WRITE_A], "EAGAIN"),
    ([(XS.GET_PERMS, b"/a\0"), WRITE_B], [(XS.SET_PERMS, b"/a\0r0\0")], "EAGAIN"),
    ([WRITE_A], [WRITE_A], "EAGAIN"),
    ([WRITE_A], [(XS.WRITE, b"/a\x000")], "EAGAIN"),  # the value it had
    ([(XS.DIRECTORY, b"/a\0"), WRITE_B], [(XS.WRITE, b"/a/new\0")], "EAGAIN"),
    ([(XS.DIRECTORY, b"/a\0"), WRITE_B], [(XS.RM, b"/a/b\0")], "EAGAIN"),
    ([(XS.DIRECTORY, b"/a\0"), WRITE_B], [(XS.WRITE, b"/a/b\x002")], b"OK\0"),
    ([(XS.WRITE, b"/d/x\0")], [(XS.WRITE, b"/d/z\0")], "EAGAIN"),
    ([(XS.WRITE, b"/d/y\0")], [(XS.WRITE, b"/d/z\0")], b"OK\0"),
    ([READ_Q, WRITE_B], [(XS.WRITE, b"/d/q\0")], "EAGAIN"),
    ([READ_Q, (XS.WRITE, b"/d/w\0")], [(XS.WRITE, b"/d/q\0")], "EAGAIN"),
    ([(XS.RM, b"/a\0")], [(XS.WRITE, b"/a/b\x002")], "EAGAIN"),
    ([(XS.RM, b"/a\0")], [(XS.RM, b"/a\0")], "EAGAIN"),  # XSA-440
    # a missing path counts up to its nearest existing ancestor and no further
    ([READ_Q], [(XS.WRITE, b"/d/r\0")], "EAGAIN"),
    ([READ_Q], [(XS.WRITE, b"/d\x002")], "EAGAIN"),
    ([READ_Q], [(XS.WRITE, b"/new\0")], b"OK\0"),
    ([(XS.RM, b"/d/q\0")], [(XS.WRITE, b"/d\x002")], "EAGAIN"),
    ([(XS.MKDIR, b"/d\0")], [(XS.WRITE, b"/d\x002")], "EAGAIN"),
    ([(XS.SET_PERMS, b"/d/q\0n0\0")], [(XS.WRITE, b"/d\x002")], "EAGAIN"),
    ([], [WRITE_A], b"OK\0"),
    ([WRITE_B], [WRITE_A], b"OK\0"),
]


@pytest.mark.parametrize(("inside", "outside", "ends"), CONFLICTS)
def test_conflicts(
    store: Store, inside: list[Step], outside: list[Step], ends: bytes | str
) -> None:
    do(store, [(XS.WRITE, b"/a\x000"), (XS.WRITE, b"/a/b\0"), WRITE_B, (XS.WRITE, b"/d/y\0")])
    tx = start(store.dom0)
    do(store, inside, tx)
    do(store, outside)
    before = store.server.dump()
    assert end(store.dom0, tx) == ends
    if ends == "EAGAIN":
        assert store.server.dump() == before
        assert end(store.dom0, tx) == "ENOENT"


def test_there_is_no_snapshot_at_the_start(store: Store) -> None:
    store.write(b"/a", b"old")
    tx = start(store.dom0)
    store.write(b"/a", b"new")
    assert store.dom0.call(XS.READ, b"/a\0", tx) == b"new"
    do(store, [WRITE_B], tx)
    assert end(store.dom0, tx) == b"OK\0"


def test_later_accesses_use_the_copy_of_the_first(store: Store) -> None:
    store.write(b"/a/b", b"old")
    tx = start(store.dom0)
    for path in (b"/a\0", b"/a/b\0"):
        store.dom0.call(XS.READ, path, tx)
    store.write(b"/a/b", b"new")
    store.write(b"/a/c")
    store.dom0.call(XS.RM, b"/a/b\0")
    assert store.dom0.call(XS.READ, b"/a/b\0", tx) == b"old"
    assert store.dom0.call(XS.DIRECTORY, b"/a\0", tx) == b"b\0"
    assert end(store.dom0, tx) == "EAGAIN"


def test_what_is_done_inside_is_seen_inside_alone_until_the_end(store: Store) -> None:
    store.write(b"/a/gone")
    tx = start(store.dom0)
    do(store, [(XS.WRITE, b"/a/x/y\x001"), (XS.RM, b"/a/gone\0")], tx)
    assert store.dom0.call(XS.READ, b"/a/x/y\0", tx) == b"1"
    assert store.dom0.call(XS.DIRECTORY, b"/a\0", tx) == b"x\0"
    assert answer(store.dom0, XS.READ, b"/a/gone\0", tx) == "ENOENT"
    assert store.dom0.call(XS.DIRECTORY, b"/a\0") == b"gone\0"
    assert end(store.dom0, tx) == b"OK\0"
    assert store.dom0.call(XS.DIRECTORY, b"/a\0") == b"x\0"
    assert store.read(b"/a/x/y") == b"1"


def test_f_drops_everything(store: Store) -> None:
    store.write(b"/a", b"1")
    tx = start(store.dom0)
    do(store, [(XS.RM, b"/a\0"), WRITE_B], tx)
    assert end(store.dom0, tx, b"F") == b"OK\0"
    assert store.read(b"/a") == b"1"
    assert store.read(b"/b") == "ENOENT"


def test_two_that_share_nothing_both_commit(store: Store) -> None:
    store.write(b"/a/x")
    store.write(b"/b/x")
    first, second = start(store.dom0), start(store.dom0)
    do(store, [(XS.WRITE, b"/a/x\x001")], first)
    do(store, [(XS.WRITE, b"/b/x\x002")], second)
    assert end(store.dom0, second) == b"OK\0"
    assert end(store.dom0, first) == b"OK\0"
    assert (store.read(b"/a/x"), store.read(b"/b/x")) == (b"1", b"2")


def test_directory_changed_outside_and_inside_keeps_both_views_apart(store: Store) -> None:
    for name in (b"1", b"2"):
        store.write(b"/d/" + name)
    first, second = start(store.dom0), start(store.dom0)
    for tx in (first, second):
        do(store, [(XS.WRITE, b"/d/%d\0" % (tx + 10))], tx)
    store.write(b"/d/3")
    assert store.dom0.call(XS.DIRECTORY, b"/d\0", first) == b"1\x002\x0011\0"
    assert store.dom0.call(XS.DIRECTORY, b"/d\0", second) == b"1\x002\x0012\0"
    assert store.dom0.call(XS.DIRECTORY, b"/d\0") == b"1\x002\x003\0"
    end(store.dom0, first)
    end(store.dom0, second)
    assert store.dom0.call(XS.DIRECTORY, b"/d\0") == b"1\x002\x003\0"


# ids


def test_ids_count_up_per_connection_and_skip_those_in_use(store: Store) -> None:
    other = store.server.connect_local("other")
    assert [start(store.dom0), start(store.dom0), start(other)] == [1, 2, 1]
    end(store.dom0, 1)
    assert start(store.dom0) == 3
    store.dom0.next_transaction = 0xFFFFFFFF
    assert [start(store.dom0), start(store.dom0), start(store.dom0)] == [0xFFFFFFFF, 1, 4]


def test_ids_belong_to_their_connection(store: Store) -> None:
    other = store.server.connect_local("other")
    tx = start(store.dom0)
    assert answer(other, XS.READ, b"/\0", tx) == "ENOENT"


def test_transactions_do_not_nest(store: Store) -> None:
    tx = start(store.dom0)
    assert answer(store.dom0, XS.TRANSACTION_START, b"\0", tx) == "EBUSY"
    assert end(store.dom0, tx) == b"OK\0"


@pytest.mark.parametrize("payload", [b"", b"T", b"T\0T\0", b"X\0", b"TF\0", b"\0", b"t\0"])
def test_wrong_end_leaves_the_transaction_open(store: Store, payload: bytes) -> None:
    tx = start(store.dom0)
    assert answer(store.dom0, XS.TRANSACTION_END, payload, tx) == "EINVAL"
    assert end(store.dom0, tx) == b"OK\0"


def test_end_without_transaction(store: Store) -> None:
    assert end(store.dom0, 0) == "ENOENT"
    assert answer(store.dom0, XS.TRANSACTION_END, b"X\0", 0) == "EINVAL"


# failures inside


def test_a_failed_read_does_no_harm(store: Store) -> None:
    tx = start(store.dom0)
    assert answer(store.dom0, XS.READ, b"/none\0", tx) == "ENOENT"
    do(store, [WRITE_B], tx)
    assert end(store.dom0, tx) == b"OK\0"


def test_a_failed_write_poisons_the_transaction(store: Store) -> None:
    guest = store.guest(1)
    tx = start(guest)
    assert answer(guest, XS.WRITE, b"x\0" + b"v" * 3000, tx) == "ENOSPC"
    assert answer(guest, XS.WRITE, b"y\0", tx) == b"OK\0"
    assert end(guest, tx) == "ENOMEM"
    assert store.dom0.call(XS.DIRECTORY, b"/local/domain/1\0") == b""


def test_an_owner_that_died_meanwhile_fails_the_transaction(store: Store) -> None:
    store.introduce(1)
    tx = start(store.dom0)
    do(store, [(XS.WRITE, b"/a\0"), (XS.SET_PERMS, b"/a\0n1\0")], tx)
    store.server.domain_died(1)
    assert end(store.dom0, tx) == "ENOMEM"
    assert store.read(b"/a") == "ENOENT"


def test_copies_at_odds_are_refused_and_end_in_eagain(store: Store) -> None:
    store.write(b"/a/b/c")
    tx = start(store.dom0)
    store.dom0.call(XS.READ, b"/a/b\0", tx)
    store.dom0.call(XS.RM, b"/a/b/c\0")  # listed in the copy, gone when it is looked for
    assert answer(store.dom0, XS.RM, b"/a/b\0", tx) == "EIO"
    assert end(store.dom0, tx) == "EAGAIN"
    tx = start(store.dom0)
    store.dom0.call(XS.DIRECTORY, b"/a\0", tx)
    store.write(b"/a/new")  # there when it is looked for, not listed in the copy
    assert answer(store.dom0, XS.RM, b"/a/new\0", tx) == "EIO"
    assert end(store.dom0, tx) == "EAGAIN"
    assert store.dom0.call(XS.DIRECTORY, b"/a\0") == b"b\0new\0"


# events


def test_each_changed_node_fires_once_in_order_of_first_access(store: Store) -> None:
    store.write(b"/a/b", b"0")
    store.dom0.call(XS.WATCH, b"/\0t\0")
    tx = start(store.dom0)
    steps = [
        (XS.READ, b"/a/b\0"),
        (XS.WRITE, b"/c\0"),
        (XS.WRITE, b"/a/b\x001"),
        (XS.WRITE, b"/c\x002"),
        (XS.SET_PERMS, b"/a/b\0n0\0"),
        (XS.WRITE, b"/d/e/f\0"),
    ]
    do(store, steps, tx)
    assert store.events() == [(b"/", b"t")]
    assert end(store.dom0, tx) == b"OK\0"
    assert store.events() == [(path, b"t") for path in (b"/a/b", b"/c", b"/d/e/f")]


def test_rm_fires_its_root_before_the_descendants(store: Store) -> None:
    store.write(b"/a/b/c")
    for path in (b"/a/b/c", b"/a/b", b"/a"):
        store.dom0.call(XS.WATCH, path + b"\0" + path + b"\0")
    store.events()
    tx = start(store.dom0)
    do(store, [(XS.RM, b"/a/b\0")], tx)
    end(store.dom0, tx)
    assert store.events() == [(b"/a/b", b"/a/b"), (b"/a/b", b"/a"), (b"/a/b/c", b"/a/b/c")]


@pytest.mark.parametrize("how", [b"T", b"F"])
def test_created_and_deleted_nodes_fire_nothing(store: Store, how: bytes) -> None:
    store.dom0.call(XS.WATCH, b"/\0t\0")
    store.events()
    tx = start(store.dom0)
    do(store, [(XS.WRITE, b"/x\0"), (XS.RM, b"/x\0")], tx)
    assert end(store.dom0, tx, how) == b"OK\0"
    assert store.events() == []


def test_a_failed_commit_fires_nothing(store: Store) -> None:
    store.write(b"/a")
    store.dom0.call(XS.WATCH, b"/\0t\0")
    tx = start(store.dom0)
    do(store, [WRITE_A], tx)
    store.write(b"/a")
    store.events()
    assert end(store.dom0, tx) == "EAGAIN"
    assert store.events() == []


def test_deletion_is_heard_by_those_who_could_read_before_the_transaction(store: Store) -> None:
    guest = store.guest(1)
    for name, perms in ((b"/open", b"r0"), (b"/shut", b"n0")):
        store.write(name)
        store.set_perms(name, perms)
        guest.send(XS.WATCH, name + b"\0t\0")
    guest.messages()
    tx = start(store.dom0)
    do(
        store,
        [
            (XS.SET_PERMS, b"/open\0n0\0"),
            (XS.SET_PERMS, b"/shut\0r0\0"),
            (XS.RM, b"/open\0"),
            (XS.RM, b"/shut\0"),
        ],
        tx,
    )
    assert end(store.dom0, tx) == b"OK\0"
    assert guest.events() == [(b"/open", b"t")]


def test_events_of_a_commit_precede_its_reply(store: Store) -> None:
    guest = store.guest(1)
    guest.send(XS.WATCH, b"x\0t\0")
    guest.messages()
    tx = start(guest)
    guest.call(XS.WRITE, b"x\0", tx)
    guest.send(XS.TRANSACTION_END, b"T\0", tx_id=tx)
    assert guest.messages() == [
        (XS.WATCH_EVENT, 0, 0, b"x\0t\0"),
        (XS.TRANSACTION_END, 0, tx, b"OK\0"),
    ]


def test_special_nodes_change_in_transactions(store: Store) -> None:
    store.dom0.call(XS.WATCH, b"@introduceDomain\0t\0")
    store.events()
    tx = start(store.dom0)
    store.dom0.call(XS.SET_PERMS, b"@introduceDomain\0n0\0r1\0", tx)
    assert store.dom0.call(XS.GET_PERMS, b"@introduceDomain\0") == b"n0\0"
    assert store.events() == []
    assert end(store.dom0, tx) == b"OK\0"
    assert store.events() == [(b"@introduceDomain", b"t")]
    assert store.dom0.call(XS.GET_PERMS, b"@introduceDomain\0") == b"n0\0r1\0"
