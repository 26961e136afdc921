from __future__ import annotations

import pytest

from tests.store.client import Store, WireClient, answer, end, start
from xenpv.abi.xs import XS
from xenpv.store.connection import Connection


def watch(client: WireClient | Store, path: bytes, token: bytes = b"t") -> None:
    """Registers, and takes the first event."""
    payload = path + b"\0" + token + b"\0"
    if isinstance(client, Store):
        client.dom0.call(XS.WATCH, payload)
        assert client.events()[-1] == (path, token)
        return
    client.send(XS.WATCH, payload)
    (kind, *_, reply), event = client.messages()
    assert (kind, reply) == (XS.WATCH, b"OK\0")
    assert event == (XS.WATCH_EVENT, 0, 0, payload)


def test_first_event_has_the_path_as_given_and_follows_the_reply(store: Store) -> None:
    guest = store.guest(1)
    for path in (b"/nowhere/at/all", b"x", b"/", b"@releaseDomain", b"@anything"):
        watch(guest, path)


@pytest.mark.parametrize(
    ("watched", "changed", "hears"),
    [
        (b"/a", b"/a", True),
        (b"/a", b"/a/b", True),
        (b"/a", b"/a/b/c/d", True),
        (b"/a", b"/ab", False),
        (b"/a/b", b"/a", False),
        (b"/", b"/a/b", True),
        (b"/a/b", b"/a/c", False),
    ],
)
def test_event_matches_the_node_and_what_is_above_it(
    store: Store, watched: bytes, changed: bytes, hears: bool
) -> None:
    store.write(b"/a/b/c/d")
    watch(store, watched)
    store.write(changed)
    assert store.events() == ([(changed, b"t")] if hears else [])


@pytest.mark.parametrize(("depth", "heard"), [(0, 1), (1, 2), (2, 3), (100, 4)])
def test_depth_limits_the_levels(store: Store, depth: int, heard: int) -> None:
    paths = [b"/a", b"/a/b", b"/a/b/c", b"/a/b/c/d"]
    store.write(paths[-1])
    store.dom0.call(XS.WATCH, b"/a\0t\0%d\0" % depth)
    assert store.events() == [(b"/a", b"t")]
    for path in paths:
        store.write(path)
    assert store.events() == [(path, b"t") for path in paths[:heard]]


def test_depth_of_a_watch_on_the_root(store: Store) -> None:
    store.write(b"/a/b")
    store.dom0.call(XS.WATCH, b"/\0t\x001\0")
    store.events()
    for path in (b"/", b"/a", b"/a/b"):
        store.write(path)
    assert store.events() == [(b"/", b"t"), (b"/a", b"t")]


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"/a\0", "EINVAL"),
        (b"/a\0t\x001\0x\0", "EINVAL"),
        (b"/a\0t\0-1\0", "EINVAL"),
        (b"/a\0t\0junk\0", b"OK\0"),
        (b"/a/\0t\0", "EINVAL"),
        (b"/a\0t\0", b"OK\0"),
        (b"/a\0\0", b"OK\0"),
        (b"@any\0t\0", b"OK\0"),
        (b"@a!\0t\0", "EINVAL"),
    ],
)
def test_watch_arguments(store: Store, payload: bytes, expected: bytes | str) -> None:
    assert answer(store.dom0, XS.WATCH, payload) == expected


def test_depth_needs_the_feature(store: Store) -> None:
    store.dom0.call(XS.MKDIR, b"/local/domain/1\0")
    store.set_perms(b"/local/domain/1", b"n1")
    store.dom0.call(XS.SET_FEATURE, b"1\x0010\0")
    assert answer(store.introduce(1), XS.WATCH, b"x\0t\x001\0") == "EINVAL"


def test_same_path_and_token_is_eexist_whatever_the_depth(store: Store) -> None:
    store.dom0.call(XS.WATCH, b"/local/domain/0/a\0t\0")
    assert answer(store.dom0, XS.WATCH, b"/local/domain/0/a\0t\x001\0") == "EEXIST"
    assert answer(store.dom0, XS.WATCH, b"a\0t\0") == "EEXIST"
    assert answer(store.dom0, XS.WATCH, b"a\0u\0") == b"OK\0"


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"/a\0t\0", b"OK\0"),
        (b"/a\0u\0", "ENOENT"),
        (b"/b\0t\0", "ENOENT"),
        (b"/a\0", "EINVAL"),
        (b"/a\0t\0x\0", "EINVAL"),
        (b"/a/\0t\0", "EINVAL"),
    ],
)
def test_unwatch(store: Store, payload: bytes, expected: bytes | str) -> None:
    watch(store, b"/a")
    assert answer(store.dom0, XS.UNWATCH, payload) == expected
    store.write(b"/a")
    assert store.events() == ([] if expected == b"OK\0" else [(b"/a", b"t")])


def test_watch_requests_ignore_the_transaction_id(store: Store) -> None:
    assert answer(store.dom0, XS.WATCH, b"/a\0t\0", 77) == b"OK\0"
    assert answer(store.dom0, XS.UNWATCH, b"/a\0t\0", 77) == b"OK\0"


@pytest.mark.parametrize(
    ("op", "payload", "heard"),
    [
        (XS.WRITE, b"/a/b\x001", [b"/a/b"]),
        (XS.WRITE, b"/a/b\0", [b"/a/b"]),  # the value it had
        (XS.WRITE, b"/a/x/y/z\0", [b"/a/x/y/z"]),  # nothing for the parents it makes
        (XS.MKDIR, b"/a/x/y\0", [b"/a/x/y"]),
        (XS.MKDIR, b"/a/b\0", []),  # exists
        (XS.SET_PERMS, b"/a/b\0n0\0", [b"/a/b"]),
        (XS.RM, b"/a/x\0", []),  # does not exist
        (XS.RM, b"/a/x/y\0", []),  # fails
        (XS.READ, b"/a/b\0", []),
    ],
)
def test_what_fires(store: Store, op: XS, payload: bytes, heard: list[bytes]) -> None:
    store.write(b"/a/b")
    watch(store, b"/a")
    answer(store.dom0, op, payload)
    assert store.events() == [(path, b"t") for path in heard]


def test_rm_fires_descendants_on_themselves_and_then_the_root_upwards(store: Store) -> None:
    for path in (b"/a/b/c/1", b"/a/b/c/2", b"/a/b/d"):
        store.write(path)
    watched = (b"/a", b"/a/b", b"/a/b/c", b"/a/b/c/1", b"/a/b/c/2", b"/a/b/d", b"/a/b/never")
    for path in watched:
        watch(store, path, path)
    store.dom0.call(XS.RM, b"/a/b\0")
    assert store.events() == [
        (b"/a/b/c/1", b"/a/b/c/1"),
        (b"/a/b/c/2", b"/a/b/c/2"),
        (b"/a/b/c", b"/a/b/c"),
        (b"/a/b/d", b"/a/b/d"),
        (b"/a/b", b"/a"),
        (b"/a/b", b"/a/b"),
    ]


def test_relative_watch_hears_relative_paths(store: Store) -> None:
    guest = store.guest(1)
    watch(guest, b"device")
    watch(guest, b"/local/domain/1/device", b"absolute")
    store.write(b"/local/domain/1/device/vif/0/state", b"4")
    assert guest.events() == [
        (b"device/vif/0/state", b"t"),
        (b"/local/domain/1/device/vif/0/state", b"absolute"),
    ]


def test_order_is_by_age_of_the_connection_then_by_registration(store: Store) -> None:
    order: list[tuple[str, bytes]] = []
    second = store.server.connect_local("second")
    store.write(b"/a/b")
    for client, path, token in (
        (second, b"/a", b"1"),
        (store.dom0, b"/a/b", b"2"),
        (second, b"/", b"3"),
        (store.dom0, b"/", b"4"),
        (store.dom0, b"/a", b"5"),
    ):
        client.call(XS.WATCH, path + b"\0" + token + b"\0")
    for client in (store.dom0, second):
        client.events.clear()
        client.on_event = Wake(order, client)
    store.dom0.call(XS.WRITE, b"/a/b\0")
    assert order == [("dom0", b"2"), ("second", b"1")]
    assert [token for _, token in store.dom0.events] == [b"2", b"4", b"5"]
    assert [token for _, token in second.events] == [b"1", b"3"]


class Wake:
    """Notes which connection was woken, and by which event."""

    def __init__(self, order: list[tuple[str, bytes]], connection: Connection) -> None:
        self.order = order
        self.connection = connection

    def wake(self) -> None:
        _, token = list(self.connection.events)[-1]
        self.order.append((self.connection.name, token))


# permission to hear


@pytest.mark.parametrize(
    ("parent", "node", "hears"),
    [
        (b"n0", b"n0", False),
        (b"n0", b"r0", True),
        (b"r0", b"n0", True),
        (b"n0", b"w0", False),
        (b"n0", b"n1", True),
    ],
)
def test_watcher_must_read_the_node_or_its_parent(
    store: Store, parent: bytes, node: bytes, hears: bool
) -> None:
    guest = store.guest(1)
    store.write(b"/p/q")
    store.set_perms(b"/p", parent)
    store.set_perms(b"/p/q", node)
    watch(guest, b"/p")
    store.write(b"/p/q")
    assert guest.events() == ([(b"/p/q", b"t")] if hears else [])


def test_losing_the_right_to_read_is_the_last_thing_heard(store: Store) -> None:
    guest = store.guest(1)
    store.write(b"/p")
    store.set_perms(b"/p", b"r0")
    watch(guest, b"/p")
    store.set_perms(b"/p", b"n0")
    assert guest.events() == [(b"/p", b"t")]
    store.set_perms(b"/p", b"n0", b"r2")
    assert guest.events() == []


def test_removed_nodes_are_heard_of_by_those_who_could_read_them(store: Store) -> None:
    guest = store.guest(1)
    store.write(b"/p/open")
    store.write(b"/p/shut")
    store.set_perms(b"/p/open", b"r0")
    watch(guest, b"/p/open")
    watch(guest, b"/p/shut")
    store.dom0.call(XS.RM, b"/p\0")
    assert guest.events() == [(b"/p/open", b"t")]


# coalescing


def test_an_event_that_waits_already_is_dropped(store: Store) -> None:
    guest = store.guest(1)
    watch(guest, b"x")
    for _ in range(20):
        store.write(b"/local/domain/1/x")
    assert guest.events() == [(b"x", b"t")]
    store.write(b"/local/domain/1/x")
    assert guest.events() == [(b"x", b"t")]


def test_local_clients_miss_only_what_waits_already(store: Store) -> None:
    watch(store, b"/a")
    store.write(b"/a")
    store.write(b"/a/b")
    store.write(b"/a")
    assert store.dom0.events.popleft() == (b"/a", b"t")
    store.write(b"/a")
    assert store.events() == [(b"/a/b", b"t"), (b"/a", b"t")]


def test_an_event_half_sent_still_waits(store: Store) -> None:
    guest = store.guest(1)
    watch(guest, b"x")
    store.write(b"/local/domain/1/x")
    half = guest.connection.take_output(7)
    store.write(b"/local/domain/1/x")
    rest = guest.connection.take_output(4096)
    assert (half + rest).count(b"x\0t\0") == 1


def test_special_events_are_never_dropped(store: Store) -> None:
    watch(store, b"@introduceDomain")
    for domid in (1, 2, 3):
        store.introduce(domid)
    assert store.events() == [(b"@introduceDomain", b"t")] * 3


# special nodes


def test_arbitrary_special_name_never_fires(store: Store) -> None:
    watch(store, b"@foo")
    store.introduce(1)
    store.server.domain_died(1)
    assert store.events() == []


def test_special_watches_by_depth(store: Store) -> None:
    for token, depth in ((b"plain", b""), (b"zero", b"0\0"), (b"one", b"1\0"), (b"two", b"2\0")):
        store.dom0.call(XS.WATCH, b"@releaseDomain\0" + token + b"\0" + depth)
    for token, depth in ((b"of 1", b""), (b"of 1, zero", b"0\0"), (b"of 1, one", b"1\0")):
        store.dom0.call(XS.WATCH, b"@releaseDomain/1\0" + token + b"\0" + depth)
    store.introduce(1)
    store.introduce(2)
    store.events()
    store.server.domain_died(2)
    assert store.events() == [
        (b"@releaseDomain", b"plain"),
        (b"@releaseDomain/2", b"one"),
        (b"@releaseDomain/2", b"two"),
    ]
    store.server.domain_shutdown(1)
    named = [
        (b"@releaseDomain/1", token)
        for token in (b"one", b"two", b"of 1", b"of 1, zero", b"of 1, one")
    ]
    assert store.events() == [*named, (b"@releaseDomain", b"plain")]


def test_release_is_open_to_all_and_introduce_to_dom0(store: Store) -> None:
    guest = store.guest(1)
    watch(guest, b"@releaseDomain")
    watch(guest, b"@introduceDomain")
    store.introduce(2)
    store.server.domain_died(2)
    assert guest.events() == [(b"@releaseDomain", b"t")]


def test_set_perms_opens_a_special_node_and_fires_its_name(store: Store) -> None:
    guest = store.guest(1)
    watch(guest, b"@introduceDomain")
    guest.send(XS.WATCH, b"@introduceDomain\0deep\x001\0")
    guest.messages()
    store.set_perms(b"@introduceDomain", b"n0", b"r1")
    assert guest.events() == [(b"@introduceDomain", b"t"), (b"@introduceDomain", b"deep")]
    store.introduce(2)
    assert guest.events() == [(b"@introduceDomain", b"t"), (b"@introduceDomain/2", b"deep")]
    assert answer(guest, XS.GET_PERMS, b"@introduceDomain\0") == b"n0\0r1\0"


def test_readable_root_leaks_special_events(store: Store) -> None:
    guest = store.guest(1)
    watch(guest, b"@introduceDomain")
    store.set_perms(b"/", b"r0")
    store.introduce(2)
    assert guest.events() == [(b"@introduceDomain", b"t")]


@pytest.mark.parametrize(
    ("op", "payload", "error"),
    [
        (XS.GET_PERMS, b"@nothing\0", "ENOENT"),
        (XS.SET_PERMS, b"@nothing\0n0\0", "ENOENT"),
        (XS.READ, b"@releaseDomain\0", "EINVAL"),
        (XS.WRITE, b"@releaseDomain\0x", "EINVAL"),
        (XS.RM, b"@releaseDomain\0", "EINVAL"),
        (XS.DIRECTORY, b"@releaseDomain\0", "EINVAL"),
        (XS.MKDIR, b"@new\0", "EINVAL"),
    ],
)
def test_special_names_have_permissions_only(
    store: Store, op: XS, payload: bytes, error: str
) -> None:
    assert answer(store.dom0, op, payload) == error


# resets


def test_reset_watches_drops_watches_and_transactions(store: Store) -> None:
    watch(store, b"/a")
    tx = start(store.dom0)
    assert answer(store.dom0, XS.RESET_WATCHES, b"") == b"OK\0"
    store.write(b"/a")
    assert store.events() == []
    assert end(store.dom0, tx) == "ENOENT"
    assert not store.server.watches.by_path


def test_reset_watches_inside_a_transaction(store: Store) -> None:  # XSA-484
    tx = start(store.dom0)
    store.dom0.call(XS.WRITE, b"/a\0", tx)
    assert answer(store.dom0, XS.RESET_WATCHES, b"\0", tx) == b"OK\0"
    assert end(store.dom0, tx) == "ENOENT"
    assert store.read(b"/a") == "ENOENT"


def test_disconnect_takes_the_watches(store: Store) -> None:
    client = store.server.connect_local("short")
    client.call(XS.WATCH, b"/a\0t\0")
    store.server.disconnect(client)
    assert not store.server.watches.by_path
    store.write(b"/a")
    assert not client.events


def test_event_too_long_for_a_payload_is_dropped(store: Store) -> None:  # XSA-324
    token = b"t" * (4096 - len(b"/\0\0"))
    store.dom0.call(XS.WATCH, b"/\0" + token + b"\0")
    assert store.events() == [(b"/", token)]
    store.write(b"/a")
    assert store.events() == []
