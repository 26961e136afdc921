"""What other projects' test suites ask of a xenstored, against ours (xen-core 4).

test-xenstore (Xen), pyxs' server tests, ocaml-xenstore's server_test and core_test, and QEMU's
test-xs-node; the names are theirs. Not here, because they say nothing about a server: pyxs'
rows without a server (its packet, path and argument checks are its own), test_api_completeness
(skips), its parametrisation over /dev/xen, core_test `test`; ocaml's setperms_owner (an owner
gives its node away: XSA-352 says no, tested in test_xsa) and its empty stubs (directory,
release_watches, recursive_rm_watch, no_watch_no_error, bounded_watch_events). Its quota tests
set limits through magic nodes below /tool/xenstored/quota, which only it has: here they are set
in the server. The real programs run in tests/peers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import attrs
import pytest

from tests.store.client import Store, WireClient, answer, end, message, split, start
from tests.world import World, make
from xenpv.abi.xs import XS
from xenpv.errors import StoreError
from xenpv.store.profile import LEGACY, OX, C

PROFILES = pytest.mark.parametrize(
    "store", [C, OX, LEGACY], ids=["c", "ox", "legacy"], indirect=True
)
LEGACY_ONLY = pytest.mark.parametrize("store", [LEGACY], ids=["legacy"], indirect=True)


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Store:
    return Store(getattr(request, "param", C))


def ls(store: Store, path: bytes, tx_id: int = 0) -> bytes | str:
    return answer(store.dom0, XS.DIRECTORY, path + b"\0", tx_id)


def get(store: Store, path: bytes, tx_id: int = 0) -> bytes | str:
    return answer(store.dom0, XS.READ, path + b"\0", tx_id)


def put(store: Store, path: bytes, value: bytes = b"", tx_id: int = 0) -> bytes | str:
    return answer(store.dom0, XS.WRITE, path + b"\0" + value, tx_id)


def rm(store: Store, path: bytes, tx_id: int = 0) -> bytes | str:
    return answer(store.dom0, XS.RM, path + b"\0", tx_id)


def watch(store: Store, path: bytes, token: bytes = b"t") -> None:
    store.dom0.call(XS.WATCH, path + b"\0" + token + b"\0")
    store.dom0.events.clear()


def paths(store: Store) -> list[bytes]:
    return [path for path, _ in store.events()]


# test-xenstore


@PROFILES
@pytest.mark.parametrize("size", [1, 2000])
def test_xenstore_read_and_write(store: Store, size: int) -> None:
    for value in (b"a" * size, b"b" * size):
        assert put(store, b"/t/n", value) == b"OK\0"
        assert get(store, b"/t/n") == value


@PROFILES
def test_xenstore_dir(store: Store) -> None:
    names = [b"%d" % index for index in range(10)]
    for name in names:
        put(store, b"/t/" + name)
    assert ls(store, b"/t") == b"".join(name + b"\0" for name in names)


@PROFILES
def test_xenstore_rm_node(store: Store) -> None:
    put(store, b"/t/n")
    assert rm(store, b"/t/n") == b"OK\0"
    assert get(store, b"/t/n") == "ENOENT"


@PROFILES
def test_xenstore_rm_dir(store: Store) -> None:
    for index in range(10):
        put(store, b"/t/dir/%d" % index)
    assert rm(store, b"/t/dir") == b"OK\0"
    assert ls(store, b"/t/dir") == "ENOENT"
    assert ls(store, b"/t") == b""


@PROFILES
@pytest.mark.parametrize("how", [b"T", b"F"])
def test_xenstore_ta_empty(store: Store, how: bytes) -> None:
    assert end(store.dom0, start(store.dom0), how) == b"OK\0"


@PROFILES
@pytest.mark.parametrize(("how", "left"), [(b"T", b"12"), (b"F", b"1")])
def test_xenstore_ta_rmw(store: Store, how: bytes, left: bytes) -> None:
    put(store, b"/t/n", b"1")
    tx = start(store.dom0)
    value = get(store, b"/t/n", tx)
    assert isinstance(value, bytes)
    put(store, b"/t/n", value + b"2", tx)
    assert (get(store, b"/t/n"), get(store, b"/t/n", tx)) == (b"1", b"12")
    assert end(store.dom0, tx, how) == b"OK\0"
    assert get(store, b"/t/n") == left


@PROFILES
def test_xenstore_ta_err(store: Store) -> None:
    put(store, b"/t/n", b"1")
    tx = start(store.dom0)
    get(store, b"/t/n", tx)
    put(store, b"/t/n", b"2")
    put(store, b"/t/other", b"", tx)
    assert get(store, b"/t/n", tx) == b"1"
    assert end(store.dom0, tx) == "EAGAIN"


# pyxs, the rows that need a server


@PROFILES
def test_pyxs_ls_of_what_is_missing(store: Store) -> None:
    assert ls(store, b"/missing") == "ENOENT"


@PROFILES
def test_pyxs_transaction_start_rollback_commit(store: Store) -> None:
    for how, left in ((b"F", "ENOENT"), (b"T", b"v")):
        tx = start(store.dom0)
        put(store, b"/foo", b"v", tx)
        assert end(store.dom0, tx, how) == b"OK\0"
        assert get(store, b"/foo") == left


@PROFILES
def test_pyxs_watch_unwatch(store: Store) -> None:
    store.dom0.call(XS.WATCH, b"/foo\0a b|c\0")  # tokens are any text
    assert store.events() == [(b"/foo", b"a b|c")]
    assert answer(store.dom0, XS.UNWATCH, b"/foo\0other\0") == "ENOENT"
    assert answer(store.dom0, XS.UNWATCH, b"/foo\0a b|c\0") == b"OK\0"


@PROFILES
def test_pyxs_monitor_introduce_domain(store: Store) -> None:
    watch(store, b"@introduceDomain")
    store.guest(1)
    assert store.events() == [(b"@introduceDomain", b"t")]


@pytest.mark.parametrize(
    ("op", "payload", "error"),
    [
        (XS.READ, b"/unexisting/path\0", "ENOENT"),
        (XS.READ, b"/bad char\0", "EINVAL"),
        (XS.WRITE, b"/a%b\0v", "EINVAL"),
        (99, b"/\0", "ENOSYS"),
        (-1 & 0xFFFFFFFF, b"", "ENOSYS"),
    ],
)
@PROFILES
def test_pyxs_execute_command_errors(store: Store, op: int, payload: bytes, error: str) -> None:
    assert answer(store.dom0, op, payload) == error


@PROFILES
def test_pyxs_ids_are_echoed(store: Store) -> None:  # _invalid_op, _invalid_tx_id
    client = WireClient(store.server.connect_socket("s"))
    tx = start(client)
    client.send(XS.READ, b"/\0", req_id=77)
    client.send(XS.READ, b"/\0", req_id=78, tx_id=tx)
    assert [(op, req, tx_id) for op, req, tx_id, _ in client.messages()] == [
        (XS.READ, 77, 0),
        (XS.READ, 78, tx),
    ]


@PROFILES
def test_pyxs_read_write_mkdir_delete_list_exists(store: Store) -> None:
    store.dom0.call(XS.MKDIR, b"/local\0")
    assert get(store, b"/local") == b""
    put(store, b"/foo/bar", b"baz")
    assert get(store, b"/foo/bar") == b"baz"
    store.dom0.call(XS.MKDIR, b"/foo/dir\0")
    assert ls(store, b"/foo") == b"bar\0dir\0"
    assert rm(store, b"/foo/bar") == b"OK\0"
    assert get(store, b"/foo/bar") == "ENOENT"


def test_pyxs_perms(store: Store) -> None:
    put(store, b"/foo")
    for perms in ([b"n0"], [b"b0"], [b"b0", b"n1", b"r2"]):
        if perms != [b"n0"]:
            store.set_perms(b"/foo", *perms)
        listed = store.dom0.call(XS.GET_PERMS, b"/foo\0")
        assert listed == b"".join(text + b"\0" for text in perms)


@pytest.mark.parametrize("domid", [0, 999])
def test_pyxs_get_domain_path(store: Store, domid: int) -> None:
    assert store.dom0.call(XS.GET_DOMAIN_PATH, b"%d\0" % domid) == b"/local/domain/%d\0" % domid


def test_pyxs_is_domain_introduced(store: Store) -> None:
    for domid in (1, 2):
        store.guest(domid)
    for name in store.dom0.call(XS.DIRECTORY, b"/local/domain\0").split(b"\0")[:-1]:
        assert store.dom0.call(XS.IS_DOMAIN_INTRODUCED, name + b"\0") == b"T\0"
    assert store.dom0.call(XS.IS_DOMAIN_INTRODUCED, b"999\0") == b"F\0"


@PROFILES
def test_pyxs_uncommitted_transaction(store: Store) -> None:
    client = store.server.connect_local("gone")
    tx = start(client)
    client.call(XS.WRITE, b"/foo\0v", tx)
    store.server.disconnect(client)
    assert get(store, b"/foo") == "ENOENT"
    assert store.server.credit.transactions == 0


@PROFILES
def test_pyxs_monitor(store: Store) -> None:
    store.dom0.call(XS.WATCH, b"/foo\0boo\0")
    assert store.events() == [(b"/foo", b"boo")]
    put(store, b"/foo", b"1")
    put(store, b"/foo/bar", b"2")
    assert store.events() == [(b"/foo", b"boo"), (b"/foo/bar", b"boo")]
    store.dom0.call(XS.UNWATCH, b"/foo\0boo\0")
    put(store, b"/foo", b"3")
    assert store.events() == []


@PROFILES
def test_pyxs_context_manager_close_idempotent(store: Store) -> None:
    client = store.server.connect_local("c")
    assert client.call(XS.READ, b"/\0") == b""
    for _ in range(2):
        store.server.disconnect(client)
    assert get(store, b"/") == b""


@PROFILES
def test_pyxs_transaction_exception(store: Store) -> None:
    """What pyxs does when the body raises: END F, and the store is as it was."""
    before = store.server.dump()
    tx = start(store.dom0)
    put(store, b"/foo/bar", b"v", tx)
    assert answer(store.dom0, XS.READ, b"/none\0", tx) == "ENOENT"
    assert end(store.dom0, tx, b"F") == b"OK\0"
    assert store.server.dump() == before


@PROFILES
def test_pyxs_nested_transaction(store: Store) -> None:
    tx = start(store.dom0)
    assert answer(store.dom0, XS.TRANSACTION_START, b"\0", tx) == "EBUSY"
    other = start(store.dom0)  # beside it, as pyxs' nested block does
    assert other != tx
    assert [end(store.dom0, one) for one in (other, tx)] == [b"OK\0", b"OK\0"]


@PROFILES
def test_pyxs_monitor_leftover_events(store: Store) -> None:
    client = WireClient(store.server.connect_socket("s"))
    client.send(XS.WATCH, b"/foo\0boo\0")
    client.messages()
    put(store, b"/foo/a")
    client.send(XS.UNWATCH, b"/foo\0boo\0")
    put(store, b"/foo/b")
    assert [(op, payload) for op, _, _, payload in client.messages()] == [
        (XS.WATCH_EVENT, b"/foo/a\0boo\0"),
        (XS.UNWATCH, b"OK\0"),
    ]


@PROFILES
def test_pyxs_multiple_monitors_hear_each_delivered_event(store: Store) -> None:
    monitors = [store.server.connect_local(f"m{index}") for index in range(3)]
    for monitor in monitors:
        monitor.call(XS.WATCH, b"/foo\0t\0")
    heard = [0, 0, 0]
    for _ in range(5):
        for index, monitor in enumerate(monitors):
            heard[index] += len(monitor.events)
            monitor.events.clear()
        put(store, b"/foo", b"same")
    assert heard == [5, 5, 5]  # the first is that of the registration


@PROFILES
def test_pyxs_different_tokens(store: Store) -> None:
    watch(store, b"/foo", b"a")
    watch(store, b"/foo", b"b")
    put(store, b"/foo")
    assert sorted(store.events()) == [(b"/foo", b"a"), (b"/foo", b"b")]  # ox: latest first


@PROFILES
def test_pyxs_header_decode_error(store: Store) -> None:
    client = WireClient(store.server.connect_socket("s"))
    client.send(XS.READ, b"/\0", tx_id=128)
    ((op, _, tx_id, _),) = client.messages()
    assert (op, tx_id) == (XS.ERROR, 128)
    assert client.call(XS.READ, b"/\0") == b""


@pytest.mark.parametrize(
    ("store", "expected"), [(C, b"OK\0"), (OX, b"OK\0"), (LEGACY, "EAGAIN")], indirect=["store"],
    ids=["c", "ox", "legacy"],
)  # fmt: skip
def test_pyxs_transaction_commit_retry(store: Store, expected: bytes | str) -> None:
    """A write after the start and before the first access: EAGAIN for pyxs, not for Xen's."""
    tx = start(store.dom0)
    put(store, b"/foo/bar/boo", b"boo")
    put(store, b"/foo/bar/baz", b"baz", tx)
    assert end(store.dom0, tx) == expected


# ocaml-xenstore, server_test


@pytest.mark.parametrize(
    ("store", "expected"), [(C, "EACCES"), (OX, "ENOENT"), (LEGACY, "ENOENT")], indirect=["store"],
    ids=["c", "ox", "legacy"],
)  # fmt: skip
def test_ocaml_implicit_create(store: Store, expected: str) -> None:
    guest = store.guest(1)
    store.write(b"/a", b"")
    assert answer(guest, XS.READ, b"/a/b\0") == expected
    assert answer(guest, XS.WRITE, b"/a/b\0hello") == "EACCES"
    assert put(store, b"/a/b", b"hello") == b"OK\0"


def test_ocaml_directory_order(store: Store) -> None:
    for name in b"213":
        put(store, b"/a/%c" % name)
    assert ls(store, b"/a") == b"2\x001\x003\0"


@PROFILES
def test_ocaml_getperms_of_setperms(store: Store) -> None:
    for domid in (1, 2, 3, 4):
        store.guest(domid)
    put(store, b"/foo")
    store.set_perms(b"/foo", b"n1", b"r2", b"w3", b"b4")
    assert store.dom0.call(XS.GET_PERMS, b"/foo\0") == b"n1\0r2\0w3\0b4\0"


@PROFILES
def test_ocaml_mkdir(store: Store) -> None:
    guest = store.guest(1)
    tx = start(store.dom0)
    store.dom0.call(XS.MKDIR, b"/bench/local/domain/0\0", tx)
    store.dom0.call(XS.SET_PERMS, b"/bench/local/domain/0\0r1\0", tx)
    assert get(store, b"/bench/local/domain/0", tx) == b""
    assert end(store.dom0, tx) == b"OK\0"
    assert answer(guest, XS.READ, b"/bench/local/domain/0\0") == b""


@PROFILES
def test_ocaml_empty(store: Store) -> None:
    assert answer(store.dom0, XS.READ, b"\0") == "EINVAL"


def test_ocaml_rm(store: Store) -> None:
    put(store, b"/a/b/c", b"hello")
    assert rm(store, b"/a") == b"OK\0"
    assert rm(store, b"/a") == b"OK\0"  # its parent is there
    assert rm(store, b"/a/b") == "ENOENT"
    assert get(store, b"/a/b/c") == "ENOENT"


@PROFILES
def test_ocaml_set_target(store: Store) -> None:
    stub, _guest = store.guest(1), store.guest(2)
    put(store, b"/foo/bar")
    store.set_perms(b"/foo/bar", b"r2")
    store.set_perms(b"/foo", b"n2")
    assert answer(stub, XS.WRITE, b"/foo/bar\0hello") == "EACCES"
    store.dom0.call(XS.SET_TARGET, b"1\x002\0")
    assert answer(stub, XS.WRITE, b"/foo/bar\0hello") == b"OK\0"


@PROFILES
def test_ocaml_transactions_are_isolated(store: Store) -> None:
    tx = start(store.dom0)
    put(store, b"/foo", b"a", tx)
    assert get(store, b"/foo") == "ENOENT"
    other = start(store.dom0)
    assert get(store, b"/foo", other) == "ENOENT"
    assert end(store.dom0, tx) == b"OK\0"
    assert get(store, b"/foo") == b"a"


@pytest.mark.parametrize("store", [C, OX], ids=["c", "ox"], indirect=True)
def test_ocaml_independent_transactions_coalesce(store: Store) -> None:
    put(store, b"/a")
    put(store, b"/b")
    first, second = start(store.dom0), start(store.dom0)
    put(store, b"/a/foo", b"f", first)
    put(store, b"/b/foo", b"s", second)
    assert [end(store.dom0, tx) for tx in (first, second)] == [b"OK\0", b"OK\0"]


@pytest.mark.parametrize(
    ("store", "expected"), [(C, "EAGAIN"), (OX, b"OK\0"), (LEGACY, "EAGAIN")], indirect=["store"],
    ids=["c", "ox", "legacy"],
)  # fmt: skip
def test_ocaml_device_create_coalesce(store: Store, expected: bytes | str) -> None:
    put(store, b"/backend/vbd")
    first, second = start(store.dom0), start(store.dom0)
    put(store, b"/backend/vbd/1", b"", first)
    put(store, b"/backend/vbd/2", b"", second)
    assert end(store.dom0, first) == b"OK\0"
    assert end(store.dom0, second) == expected


@PROFILES
def test_ocaml_transactions_really_do_conflict(store: Store) -> None:
    put(store, b"/foo", b"0")
    first, second = start(store.dom0), start(store.dom0)
    for tx in (first, second):
        value = get(store, b"/foo", tx)
        assert value == b"0"
    put(store, b"/foo", b"1", first)
    put(store, b"/foo", b"2", second)
    assert end(store.dom0, first) == b"OK\0"
    assert end(store.dom0, second) == "EAGAIN"


@PROFILES
def test_ocaml_simple_watches(store: Store) -> None:
    watch(store, b"/foo", b"t1")
    put(store, b"/foo", b"a")
    assert paths(store) == [b"/foo"]
    put(store, b"/foo/bar", b"b")
    assert paths(store) == [b"/foo/bar"]
    put(store, b"/bar", b"c")
    assert paths(store) == []
    rm(store, b"/foo/bar")
    assert paths(store) == [b"/foo/bar"]


@PROFILES
def test_ocaml_relative_watches(store: Store) -> None:
    guest = store.guest(1)
    guest.call(XS.WRITE, b"device\0")
    guest.send(XS.WATCH, b"device\0t\0")
    guest.messages()
    store.write(b"/local/domain/1/device/vbd", b"")
    assert guest.events() == [(b"device/vbd", b"t")]


@PROFILES
def test_ocaml_transaction_watches(store: Store) -> None:
    watch(store, b"/foo")
    for how, heard in ((b"F", []), (b"T", [b"/foo"])):
        tx = start(store.dom0)
        put(store, b"/foo", b"hello", tx)
        assert paths(store) == []
        end(store.dom0, tx, how)
        assert paths(store) == heard


@PROFILES
def test_ocaml_introduce_watches(store: Store) -> None:
    watch(store, b"@introduceDomain")
    watch(store, b"@releaseDomain")
    store.guest(5)
    assert paths(store) == [b"@introduceDomain"]
    store.dom0.call(XS.RELEASE, b"5\0")
    assert b"@releaseDomain" in paths(store)


@PROFILES
@pytest.mark.parametrize(
    "path", [b"/quota/default/number-of-entries", b"/tool/xenstored/log/reply-err/ENOENT"]
)
def test_ocaml_control_perms(store: Store, path: bytes) -> None:
    assert answer(store.guest(1), XS.WRITE, path + b"\0001") == "EACCES"


@pytest.mark.parametrize(("limit", "expected"), [(5, "E2BIG"), (6, b"OK\0")])
def test_ocaml_quota_maxsize(limit: int, expected: bytes | str) -> None:
    store = Store(attrs.evolve(OX, value_max=limit))
    assert put(store, b"/a", b"hello") == b"OK\0"
    assert put(store, b"/a", b"hello2") == expected


def test_ocaml_watch_event_quota() -> None:
    """Two events for the guest and two for its watch; then who writes has to wait."""
    store = Store(attrs.evolve(OX, events_max=2))
    guest, writer = store.guest(1), store.guest(2)
    store.write(b"/shared", b"")
    store.set_perms(b"/shared", b"b0")
    guest.send(XS.WATCH, b"/shared\0t\0")
    guest.messages()
    for number in range(5):
        assert writer.call(XS.WRITE, b"/shared\0%d" % number) == b"OK\0"
    writer.send(XS.WRITE, b"/shared\0005")
    assert writer.messages() == []
    assert len(guest.events()) == 5
    assert writer.messages()[0][0] == XS.WRITE
    assert len(guest.events()) == 1


def entries(store: Store, domid: int) -> int:
    return store.server.known[domid].nodes


@PROFILES
def test_ocaml_quota(store: Store) -> None:
    first, second = store.guest(1), store.guest(2)
    assert (entries(store, 1), entries(store, 2)) == (1, 1)
    first.call(XS.WRITE, b"/local/domain/1/data/test\0")
    assert (entries(store, 1), entries(store, 2)) == (3, 1)
    second.call(XS.WRITE, b"/local/domain/2/data\0")
    assert (entries(store, 1), entries(store, 2)) == (3, 2)
    first.call(XS.RM, b"/local/domain/1/data\0")
    assert (entries(store, 1), entries(store, 2)) == (1, 2)


@pytest.mark.parametrize("store", [C, OX], ids=["c", "ox"], indirect=True)
def test_ocaml_quota_transaction(store: Store) -> None:
    first, second = store.guest(1), store.guest(2)
    first.call(XS.WRITE, b"/local/domain/1/data/test/node0\0node0")
    second.call(XS.WRITE, b"/local/domain/2/data/test\0")
    tx = start(first)
    assert first.call(XS.RM, b"/local/domain/1/data/test\0", tx) == b"OK\0"
    second.call(XS.WRITE, b"/local/domain/2/data/test/node0\0node0")
    assert (entries(store, 1), entries(store, 2)) == (4, 4)
    assert end(first, tx) == b"OK\0"
    assert (entries(store, 1), entries(store, 2)) == (2, 4)


@PROFILES
def test_ocaml_quota_setperms(store: Store) -> None:
    """A domain cannot use up another's quota; that it may not even give its nodes away is newer."""
    first = store.guest(1)
    store.guest(2)
    first.call(XS.WRITE, b"/local/domain/1/private/foo\0hello")
    assert (entries(store, 1), entries(store, 2)) == (3, 1)
    assert isinstance(answer(first, XS.SET_PERMS, b"/local/domain/1/private/foo\0n2\0"), str)
    assert (entries(store, 1), entries(store, 2)) == (3, 1)


def test_ocaml_quota_maxent() -> None:
    """Of a guest: nobody counts dom0's nodes."""
    store = Store(OX)
    guest = store.guest(1)
    guest.connection.domain.limits.nodes = 2 + 1  # the first refusal lies beyond it
    assert answer(guest, XS.WRITE, b"a\0hello") == b"OK\0"
    assert answer(guest, XS.WRITE, b"b\0hello") == "EQUOTA"
    assert answer(guest, XS.WRITE, b"a\0there") == b"OK\0"
    guest.connection.domain.limits.nodes = 3 + 1
    assert answer(guest, XS.WRITE, b"b\0hello") == b"OK\0"
    assert answer(guest, XS.WRITE, b"c\0hello") == "EQUOTA"
    assert put(store, b"/local/domain/1/c", b"") == b"OK\0"


def test_ocaml_watches_read_perm(store: Store) -> None:
    guest = store.guest(1)
    store.write(b"/secret/a", b"")
    guest.send(XS.WATCH, b"/secret\0t\0")
    guest.messages()
    store.write(b"/secret/a", b"1")
    assert guest.events() == []


# ocaml-xenstore, core_test


@pytest.mark.parametrize("op", list(XS))
def test_core_op_ids(op: XS) -> None:
    assert XS(int(op)) is op
    assert op not in (20, 27)


@pytest.mark.parametrize("text", [b"n0", b"r1", b"w2", b"b3", b"n0,r1,w2,b3", b"b5,n1"])
def test_core_acl_parser(store: Store, text: bytes) -> None:
    put(store, b"/foo")
    store.set_perms(b"/foo", *text.split(b","))
    assert store.dom0.call(XS.GET_PERMS, b"/foo\0") == text.replace(b",", b"\0") + b"\0"


# Each request byte for byte, as (type, tx_id, payload, bytes with req_id 1).
REQUESTS = [
    (XS.DIRECTORY, 0, b"/a\0", b"\x01\0\0\0\x01\0\0\0\0\0\0\0\x03\0\0\0/a\0"),
    (XS.READ, 0, b"/a\0", b"\x02\0\0\0\x01\0\0\0\0\0\0\0\x03\0\0\0/a\0"),
    (XS.GET_PERMS, 0, b"/a\0", b"\x03\0\0\0\x01\0\0\0\0\0\0\0\x03\0\0\0/a\0"),
    (XS.WATCH, 0, b"a\0t\0", b"\x04\0\0\0\x01\0\0\0\0\0\0\0\x04\0\0\0a\0t\0"),
    (XS.UNWATCH, 0, b"a\0t\0", b"\x05\0\0\0\x01\0\0\0\0\0\0\0\x04\0\0\0a\0t\0"),
    (XS.TRANSACTION_START, 0, b"\0", b"\x06\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0"),
    (XS.TRANSACTION_END, 258, b"T\0", b"\x07\0\0\0\x01\0\0\0\x02\x01\0\0\x02\0\0\0T\0"),
    (XS.INTRODUCE, 0, b"1\x002\x003\0", b"\x08\0\0\0\x01\0\0\0\0\0\0\0\x06\0\0\x001\x002\x003\0"),
    (XS.RELEASE, 0, b"1\0", b"\x09\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\x001\0"),
    (XS.GET_DOMAIN_PATH, 0, b"1\0", b"\x0a\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\x001\0"),
    (XS.WRITE, 1, b"/a\0v", b"\x0b\0\0\0\x01\0\0\0\x01\0\0\0\x04\0\0\0/a\0v"),
    (XS.MKDIR, 1, b"/a\0", b"\x0c\0\0\0\x01\0\0\0\x01\0\0\0\x03\0\0\0/a\0"),
    (XS.RM, 1, b"/a\0", b"\x0d\0\0\0\x01\0\0\0\x01\0\0\0\x03\0\0\0/a\0"),
    (XS.SET_PERMS, 0, b"/a\0n1\0", b"\x0e\0\0\0\x01\0\0\0\0\0\0\0\x06\0\0\0/a\0n1\0"),
    (XS.IS_DOMAIN_INTRODUCED, 0, b"1\0", b"\x11\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\x001\0"),
    (XS.SET_TARGET, 0, b"1\x002\0", b"\x13\0\0\0\x01\0\0\0\0\0\0\0\x04\0\0\x001\x002\0"),
]


@pytest.fixture
def world() -> Iterator[World]:
    made = make()
    yield made
    made.hypervisor.close()


@pytest.mark.parametrize(("op", "tx_id", "payload", "expected"), REQUESTS)
def test_core_packet_printing_of_requests(
    world: World, op: XS, tx_id: int, payload: bytes, expected: bytes
) -> None:
    _, client = world.bus_store()
    put_bytes = client._put
    sent = []

    def spy(data: bytes, size: int) -> int:
        sent.append(bytes(data[:size]))
        return int(put_bytes(data, size))

    client._put = spy  # type: ignore[assignment]
    with suppress(StoreError):  # what it is answered is not the matter here
        client.request(op, payload, tx_id)
    assert sent == [expected]


# What is asked of a store where /a is "v" and has the child x, and the bytes of the answer.
RESPONSES = [
    (XS.DIRECTORY, b"/a\0", b"\x01\0\0\0\x07\0\0\0\0\0\0\0\x02\0\0\0x\0"),
    (XS.READ, b"/a\0", b"\x02\0\0\0\x07\0\0\0\0\0\0\0\x01\0\0\0v"),
    (XS.GET_PERMS, b"/a\0", b"\x03\0\0\0\x07\0\0\0\0\0\0\0\x03\0\0\0n0\0"),
    (XS.WATCH, b"/a\0t\0", (b"\x04\0\0\0\x07\0\0\0\0\0\0\0\x03\0\0\0OK\0"
     b"\x0f\0\0\0\0\0\0\0\0\0\0\0\x05\0\0\0/a\0t\0")),
    (XS.UNWATCH, b"/w\0t\0", b"\x05\0\0\0\x07\0\0\0\0\0\0\0\x03\0\0\0OK\0"),
    (XS.TRANSACTION_START, b"\0", b"\x06\0\0\0\x07\0\0\0\0\0\0\0\x02\0\0\x001\0"),
    (XS.INTRODUCE, b"5\x001\x002\0", b"\x08\0\0\0\x07\0\0\0\0\0\0\0\x03\0\0\0OK\0"),
    (XS.GET_DOMAIN_PATH, b"1\0", b"\x0a\0\0\0\x07\0\0\0\0\0\0\0\x10\0\0\0/local/domain/1\0"),
    (XS.WRITE, b"/a\0w", b"\x0b\0\0\0\x07\0\0\0\0\0\0\0\x03\0\0\0OK\0"),
    (XS.MKDIR, b"/a\0", b"\x0c\0\0\0\x07\0\0\0\0\0\0\0\x03\0\0\0OK\0"),
    (XS.RM, b"/a\0", b"\x0d\0\0\0\x07\0\0\0\0\0\0\0\x03\0\0\0OK\0"),
    (XS.SET_PERMS, b"/a\0r0\0", b"\x0e\0\0\0\x07\0\0\0\0\0\0\0\x03\0\0\0OK\0"),
    (XS.READ, b"/no\0", b"\x10\0\0\0\x07\0\0\0\0\0\0\0\x07\0\0\0ENOENT\0"),
    (XS.IS_DOMAIN_INTRODUCED, b"1\0", b"\x11\0\0\0\x07\0\0\0\0\0\0\0\x02\0\0\0F\0"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "payload", "expected"), RESPONSES)
def test_core_packet_printing_of_responses(
    store: Store, op: XS, payload: bytes, expected: bytes
) -> None:
    assert replies(store, [message(op, payload, req_id=7)]) == expected


def replies(store: Store, pieces: list[bytes]) -> bytes:
    put(store, b"/a/x")
    put(store, b"/a", b"v")
    connection = store.server.connect_socket("s")
    connection.call(XS.WATCH, b"/w\0t\0")
    connection.take_output(1 << 16)
    for piece in pieces:
        connection.feed(piece)
    return connection.take_output(1 << 16)


@pytest.mark.parametrize("sample", range(30))
def test_core_packet_parsing(sample: int) -> None:
    """Thirty packets, whole and byte by byte: the same answer."""
    if sample < len(REQUESTS):
        data = REQUESTS[sample][3]
    else:
        op, payload, _ = RESPONSES[sample - len(REQUESTS)]
        data = message(op, payload, req_id=sample)
    whole = replies(Store(), [data])
    assert whole
    assert replies(Store(), [data[at : at + 1] for at in range(len(data))]) == whole
    assert split(whole)[0][1] == split(data)[0][1]


# QEMU, test-xs-node


@PROFILES
def test_qemu_simple(store: Store) -> None:
    guest = store.guest(1)
    watch(store, b"/some")
    assert answer(guest, XS.READ, b"/some/relative/path\0") in ("EACCES", "ENOENT")
    put(store, b"/some/relative/path", b"something")
    assert get(store, b"/some/relative/path") == b"something"
    assert paths(store) == [b"/some/relative/path"]
    assert answer(guest, XS.WRITE, b"/some/relative/path\0x") == "EACCES"
    assert ls(store, b"/some/relative") == b"path\0"
    put(store, b"/some/relative/path2", b"another")
    store.events()
    assert rm(store, b"/some/relative") == b"OK\0"
    assert get(store, b"/some/relative/path") == "ENOENT"
    assert b"/some/relative" in paths(store)
    assert ls(store, b"/some") == b""


@LEGACY_ONLY
def test_qemu_simple_node_counts(store: Store) -> None:
    """As many as there: the root, the guest's home and what is in it."""
    nodes = store.server.nodes
    guest = store.guest(1)
    home = b"/local/domain/1/"
    assert len(nodes) == 4
    store.write(home + b"some")
    store.set_perms(home + b"some", b"n1")
    assert len(nodes) == 5
    assert guest.call(XS.WRITE, b"some/relative/path\0something") == b"OK\0"
    assert len(nodes) == 7
    assert answer(guest, XS.WRITE, b"/local/domain/badplace\0moredata") == "EACCES"
    assert guest.call(XS.WRITE, home + b"some/relative/path2\0something else") == b"OK\0"
    assert guest.call(XS.WRITE, b"some/relative/path\0another thing") == b"OK\0"
    assert len(nodes) == 8
    assert guest.call(XS.WRITE, b"some/relative\0moredata") == b"OK\0"
    assert len(nodes) == 8
    tx = start(guest)
    guest.call(XS.WRITE, b"some/new/er\0", tx)
    assert len(nodes) == 8
    assert end(guest, tx, b"F") == b"OK\0"
    assert guest.call(XS.RM, b"some/relative\0") == b"OK\0"
    assert len(nodes) == 5


def test_qemu_simple_generations(store: Store) -> None:
    def generation(path: bytes) -> int:
        return int(store.dom0.call(XS.DIRECTORY_PART, path + b"\x000\0").split(b"\0")[0])

    put(store, b"/some/a")
    before = generation(b"/some")
    put(store, b"/some/b")
    assert generation(b"/some") > before
    before = generation(b"/some")
    put(store, b"/some/a", b"v")
    assert generation(b"/some") == before


@PROFILES
@pytest.mark.parametrize(("disturb", "how"), [(False, b"F"), (True, b"T"), (False, b"T")])
def test_qemu_tx_abort_fail_succeed(store: Store, disturb: bool, how: bytes) -> None:
    put(store, b"/some/node", b"something")
    watch(store, b"/some")
    tx = start(store.dom0)
    get(store, b"/some/node", tx)
    put(store, b"/some/other", b"v", tx)
    assert paths(store) == []
    if disturb:
        put(store, b"/some/node", b"else")
        assert paths(store) == [b"/some/node"]
    assert end(store.dom0, tx, how) == ("EAGAIN" if disturb else b"OK\0")
    committed = how == b"T" and not disturb
    assert paths(store) == ([b"/some/other"] if committed else [])
    assert get(store, b"/some/other") == (b"v" if committed else "ENOENT")


@PROFILES
def test_qemu_tx_rm(store: Store) -> None:
    for name in (b"a", b"b/c", b"b/d"):
        put(store, b"/some/deep/" + name, b"v")
    watch(store, b"/some/deep")
    tx = start(store.dom0)
    rm(store, b"/some/deep", tx)
    assert ls(store, b"/some", tx) == b""
    assert end(store.dom0, tx) == b"OK\0"
    assert paths(store)[0] == b"/some/deep"  # the root of what went, and first
    assert get(store, b"/some/deep/b/c") == "ENOENT"


@PROFILES
def test_qemu_tx_resurrect(store: Store) -> None:
    """State is the same everywhere; which nodes fire is each one's own."""
    put(store, b"/some/deep/path", b"v")
    put(store, b"/some/deep/sibling", b"s")
    tx = start(store.dom0)
    rm(store, b"/some/deep", tx)
    put(store, b"/some/deep/path", b"new", tx)
    assert end(store.dom0, tx) == b"OK\0"
    assert get(store, b"/some/deep/path") == b"new"
    assert get(store, b"/some/deep") == b""
    assert get(store, b"/some/deep/sibling") == "ENOENT"


@LEGACY_ONLY
def test_qemu_tx_resurrect_events(store: Store) -> None:
    put(store, b"/some/deep/path", b"v")
    put(store, b"/some/deep/sibling", b"s")
    watch(store, b"/some/deep/sibling", b"gone")
    watch(store, b"/some/deep/path", b"back")
    tx = start(store.dom0)
    rm(store, b"/some/deep", tx)
    put(store, b"/some/deep/path", b"new", tx)
    assert end(store.dom0, tx) == b"OK\0"
    heard = store.events()
    assert (b"/some/deep/sibling", b"gone") in heard
    assert (b"/some/deep/path", b"back") in heard


def in_qemu(store: Store, *writes: bytes) -> WireClient:
    """Its set-up: the guest owns `some` and watches it."""
    guest = store.guest(1, b"n0")
    store.write(b"/local/domain/1/some")
    store.set_perms(b"/local/domain/1/some", b"n1")
    for payload in writes:
        guest.call(XS.WRITE, payload)
    guest.send(XS.WATCH, b"some\0watch\0")
    guest.messages()
    return guest


@LEGACY_ONLY
def test_qemu_tx_rm_events(store: Store) -> None:
    guest = in_qemu(store, b"some/deep/dark/relative/path\0something")
    assert len(store.server.nodes) == 9
    tx = start(guest)
    guest.call(XS.RM, b"some/deep/dark\0", tx)
    assert len(store.server.nodes) == 9
    guest.send(XS.TRANSACTION_END, b"T\0", tx_id=tx)
    assert [payload for *_, payload in guest.messages()] == [b"OK\0", b"some/deep/dark\0watch\0"]
    assert len(store.server.nodes) == 6


WIPED = (
    b"some/deep/dark/relative/path\0something",
    b"some/place/safe\0keepme",
    b"some/deep/dark\0foo",
)


@LEGACY_ONLY
@pytest.mark.parametrize(
    ("back", "heard"),
    [
        (
            b"some/deep/dark/different/path",
            [b"some/deep/dark", b"some/deep/dark/relative", b"some/deep/dark/different/path"],
        ),
        (b"some/deep/dark/relative/path", [b"some/deep/dark", b"some/deep/dark/relative/path"]),
    ],
)
def test_qemu_tx_resurrect_and_resurrect2_events(
    store: Store, back: bytes, heard: list[bytes]
) -> None:
    """What lost its value, what is new and the topmost of what is gone are told."""
    guest = in_qemu(store, *WIPED)
    assert len(store.server.nodes) == 11
    tx = start(guest)
    guest.call(XS.RM, b"some/deep\0", tx)
    guest.call(XS.WRITE, back + b"\0something", tx)
    guest.send(XS.TRANSACTION_END, b"T\0", tx_id=tx)
    told = [payload.split(b"\0")[0] for op, *_, payload in guest.messages() if op == XS.WATCH_EVENT]
    assert sorted(told) == sorted(heard)
    assert len(store.server.nodes) == 11
    assert guest.call(XS.READ, back + b"\0") == b"something"
    assert guest.call(XS.READ, b"some/deep/dark\0") == b""


@PROFILES
def test_qemu_tx_resurrect2(store: Store) -> None:
    put(store, b"/some/deep/path", b"v")
    tx = start(store.dom0)
    rm(store, b"/some/deep/path", tx)
    assert get(store, b"/some/deep/path", tx) == "ENOENT"
    put(store, b"/some/deep/path", b"again", tx)
    assert get(store, b"/some/deep/path", tx) == b"again"
    assert end(store.dom0, tx) == b"OK\0"
    assert get(store, b"/some/deep/path") == b"again"
