from __future__ import annotations

import pytest

from tests.store.client import Store, answer, end, start
from xenpv.abi.xs import XS
from xenpv.errors import HypercallError

SPECIAL = (b"@introduceDomain", b"@releaseDomain")


def listen(store: Store, *paths: bytes) -> None:
    for path in paths:
        store.dom0.call(XS.WATCH, path + b"\0t\0")
    store.events()


def heard(store: Store) -> list[bytes]:
    return [path for path, _ in store.events()]


def introduced(store: Store, domid: int) -> bool:
    return store.dom0.call(XS.IS_DOMAIN_INTRODUCED, b"%d\0" % domid) == b"T\0"


def test_introduce_fires_once(store: Store) -> None:
    listen(store, *SPECIAL)
    assert not introduced(store, 1)
    first = store.introduce(1)
    assert heard(store) == [b"@introduceDomain"]
    assert introduced(store, 1)
    again = store.introduce(1)
    assert again.connection is first.connection
    assert heard(store) == []


def test_introduce_again_resets_the_connection(store: Store) -> None:
    guest = store.guest(1)
    guest.send(XS.WATCH, b"x\0t\0")
    guest.messages()
    tx = start(guest)
    guest.connection.feed(b"half a header"[:7])
    store.write(b"/local/domain/1/x")
    store.introduce(1)
    assert not guest.connection.wants_output
    store.write(b"/local/domain/1/x")
    assert guest.messages() == []
    assert end(guest, tx) == "ENOENT"


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b"1\x001\0", "EINVAL"),
        (b"x\x001\x002\0", "EINVAL"),
        (b"70000\x001\x002\0", "EINVAL"),
        (b"1\x001\x000\0", "EINVAL"),
        (b"1\x001\0-2\0", "EINVAL"),
        (b"9\x001\x002\0", "EINVAL"),  # what the platform says of a domain it has not
    ],
)
def test_introduce_errors(store: Store, payload: bytes, error: str) -> None:
    assert answer(store.dom0, XS.INTRODUCE, payload) == error
    assert list(store.server.known) == [0]


def test_platform_errors_have_their_names(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(domid: int, gfn: int, port: int) -> None:
        raise HypercallError(3, f"no domain {domid}, {gfn}, {port}")

    monkeypatch.setattr(store.platform, "map_ring", refuse)
    # ESRCH has no name on the wire: a client reads EINVAL.
    assert answer(store.dom0, XS.INTRODUCE, b"1\x001\x002\0") == "ESRCH"
    monkeypatch.undo()
    store.introduce(1)
    monkeypatch.setattr(store.platform, "map_ring", refuse)
    assert answer(store.dom0, XS.INTRODUCE, b"1\x001\x002\0") == b"OK\0"


def test_without_a_platform_introduce_makes_the_domain_exist() -> None:
    store = Store()
    store.server.domains = None
    assert answer(store.dom0, XS.SET_PERMS, b"/\0n4\0") == "ENOENT"
    assert answer(store.dom0, XS.INTRODUCE, b"4\x001\x002\0") == b"OK\0"
    assert answer(store.dom0, XS.INTRODUCE, b"4\x001\x002\0") == b"OK\0"
    assert introduced(store, 4)
    assert answer(store.dom0, XS.RELEASE, b"4\0") == b"OK\0"
    assert not introduced(store, 4)


@pytest.mark.parametrize("how", ["release", "death"])
def test_death_removes_what_the_domain_owned_and_then_says_so(store: Store, how: str) -> None:
    guest = store.guest(1)
    guest.call(XS.WRITE, b"/local/domain/1/a/b\0")
    store.write(b"/elsewhere/kept")
    store.write(b"/elsewhere/x/y")
    store.set_perms(b"/elsewhere/x", b"n1")
    store.set_perms(b"/elsewhere/x/y", b"n2")
    listen(store, b"/local", b"/local/domain/1/a/b", b"/elsewhere", *SPECIAL)
    if how == "release":
        assert answer(store.dom0, XS.RELEASE, b"1\0") == b"OK\0"
    else:
        store.server.domain_died(1)
    assert heard(store) == [
        b"/local/domain/1/a/b",
        b"/local/domain/1",
        b"/elsewhere/x",
        b"@releaseDomain",
    ]
    assert store.read(b"/local/domain/1") == "ENOENT"
    assert store.read(b"/elsewhere/x/y") == "ENOENT"
    assert store.read(b"/elsewhere/kept") == b""
    assert store.platform.unmapped == [1]
    assert not introduced(store, 1)
    assert store.server.known.keys() == {0, 2}


def test_release_errors(store: Store) -> None:
    for op in (XS.RELEASE, XS.RESUME):
        assert answer(store.dom0, op, b"1\0") == "ENOENT"
        assert answer(store.dom0, op, b"0\0") == "EINVAL"
        assert answer(store.dom0, op, b"x\0") == "EINVAL"
        assert answer(store.dom0, op, b"1") == "EINVAL"


def test_domains_own_watches_do_not_see_its_end(store: Store) -> None:
    guest = store.guest(1)
    guest.send(XS.WATCH, b"@releaseDomain\0t\0")
    guest.send(XS.WATCH, b"/local/domain/1\0t\0")
    guest.messages()
    store.server.domain_died(1)
    assert guest.connection.take_output(4096) == b""
    guest.connection.feed(b"anything at all, long enough to be a header")
    assert guest.connection.take_output(4096) == b""


def test_other_guests_hear_of_the_nodes_that_go(store: Store) -> None:
    guest = store.guest(1)
    other = store.guest(2)
    guest.call(XS.WRITE, b"x\0")
    guest.call(XS.SET_PERMS, b"x\0n1\0r2\0")
    other.send(XS.WATCH, b"/local/domain/1/x\0t\0")
    other.messages()
    store.server.domain_died(1)
    assert other.events() == [(b"/local/domain/1/x", b"t")]


def test_root_and_special_nodes_outlive_their_owner(store: Store) -> None:
    store.introduce(1)
    store.set_perms(b"/", b"r1")
    store.set_perms(b"@releaseDomain", b"r1")
    store.write(b"/kept")
    store.set_perms(b"/kept", b"n0")
    store.server.domain_died(1)
    assert store.read(b"/kept") == b""
    assert store.dom0.call(XS.GET_PERMS, b"/\0") == b"r0\0"
    assert store.dom0.call(XS.GET_PERMS, b"@releaseDomain\0") == b"r0\0"


def test_domain_only_named_in_permissions_dies_silently(store: Store) -> None:
    store.write(b"/p/q")
    store.set_perms(b"/p", b"n3")
    listen(store, b"/", *SPECIAL)
    store.server.domain_died(3)
    assert heard(store) == [b"/p"]
    assert store.read(b"/p") == "ENOENT"


def test_unknown_domain_and_dom0_do_not_die(store: Store) -> None:
    store.server.domain_died(4)
    store.server.domain_died(0)
    assert introduced(store, 0)


def test_shutdown_fires_once_until_resume(store: Store) -> None:
    store.introduce(1)
    listen(store, *SPECIAL)
    store.server.domain_shutdown(2)
    assert heard(store) == []
    for _ in range(2):
        store.server.domain_shutdown(1)
        store.server.domain_shutdown(1)
        assert heard(store) == [b"@releaseDomain"]
        assert answer(store.dom0, XS.RESUME, b"1\0") == b"OK\0"
    store.server.domain_died(1)
    assert heard(store) == [b"@releaseDomain"]


def test_reused_domid_is_a_new_domain(store: Store) -> None:
    old = store.guest(1)
    old.call(XS.WRITE, b"x\0")
    listen(store, b"/local", *SPECIAL)
    store.platform.ids[1] = 2
    new = store.introduce(1)
    assert new.connection is not old.connection
    assert heard(store) == [b"/local/domain/1", b"@releaseDomain", b"@introduceDomain"]
    assert store.server.known[1].nodes == 0  # XSA-483


def test_live_holder_keeps_its_dead_target_introduced_and_silent(store: Store) -> None:
    guest = store.guest(1)
    guest.call(XS.WRITE, b"x\0")
    store.guest(2)
    store.dom0.call(XS.SET_TARGET, b"2\x001\0")
    listen(store, b"/local", *SPECIAL)
    store.server.domain_died(1)
    store.server.domain_shutdown(1)
    assert heard(store) == []
    assert introduced(store, 1)
    assert answer(store.dom0, XS.RELEASE, b"1\0") == "EINVAL"
    assert answer(store.dom0, XS.RESUME, b"1\0") == "EINVAL"
    assert answer(store.dom0, XS.SET_TARGET, b"2\x001\0") == "EINVAL"
    store.server.domain_died(2)
    assert heard(store) == [
        b"/local/domain/1",
        b"@releaseDomain",
        b"/local/domain/2",
        b"@releaseDomain",
    ]
    assert not introduced(store, 1)


def test_domain_that_is_its_own_target_can_die(store: Store) -> None:
    store.guest(1)
    store.dom0.call(XS.SET_TARGET, b"1\x001\0")
    store.server.domain_died(1)
    assert not introduced(store, 1)


def test_targets_in_a_circle_end_with_the_last_of_them(store: Store) -> None:
    for domid in (1, 2):
        store.introduce(domid)
    store.dom0.call(XS.SET_TARGET, b"1\x002\0")
    store.dom0.call(XS.SET_TARGET, b"2\x001\0")
    store.server.domain_died(1)
    store.server.domain_died(2)
    assert store.server.known.keys() == {0}


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"1\0", "EINVAL"),
        (b"1\x002\0", b"OK\0"),
        (b"1\x003\0", "ENOENT"),
        (b"3\x001\0", "ENOENT"),
        (b"1\0x\0", "EINVAL"),
    ],
)
def test_set_target(store: Store, payload: bytes, expected: bytes | str) -> None:
    store.introduce(1)
    store.introduce(2)
    assert answer(store.dom0, XS.SET_TARGET, payload) == expected


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (b"0", b"/local/domain/0"),
        (b"", b"/local/domain/0"),
        (b" 12", b"/local/domain/12"),
        (b"+7", b"/local/domain/7"),
        (b"\t009", b"/local/domain/9"),
        (b"999", b"/local/domain/999"),
        (b"65535", b"/local/domain/65535"),
        (b"65536", None),
        (b"-1", None),
        (b"1x", None),
        (b"x", None),
        (b"1 ", None),
        (b" ", None),
        (b"0x1", None),
    ],
)
def test_get_domain_path_reads_domids(store: Store, text: bytes, path: bytes | None) -> None:
    expected = path + b"\0" if path is not None else "EINVAL"
    assert answer(store.dom0, XS.GET_DOMAIN_PATH, text + b"\0") == expected


def test_is_domain_introduced(store: Store) -> None:
    for text, expected in ((b"0", b"T\0"), (b"1", b"F\0"), (b"32752", b"T\0")):
        assert store.dom0.call(XS.IS_DOMAIN_INTRODUCED, text + b"\0") == expected


# features


def test_features(store: Store) -> None:
    guest = store.guest(1)
    assert store.dom0.call(XS.GET_FEATURE, b"") == b"14\0"
    assert guest.call(XS.GET_FEATURE, b"") == b"14\0"
    assert answer(guest, XS.GET_FEATURE, b"1\0") == "EACCES"
    assert store.dom0.call(XS.GET_FEATURE, b"1\0") == b"14\0"
    assert answer(store.dom0, XS.GET_FEATURE, b"1\x002\0") == "EINVAL"
    assert answer(store.dom0, XS.GET_FEATURE, b"9\0") == "ENOENT"


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"2\0", "EINVAL"),
        (b"9\x001\0", "ENOENT"),
        (b"1\x001\0", "EBUSY"),  # introduced, and the bit is not supported
        (b"2\x001\0", "EINVAL"),
        (b"2\x006\0", b"OK\0"),
    ],
)
def test_set_feature_checks_in_order(store: Store, payload: bytes, expected: bytes | str) -> None:
    store.introduce(1)
    assert answer(store.dom0, XS.SET_FEATURE, payload) == expected


def test_features_set_before_are_offered_after_the_introduction(store: Store) -> None:
    store.dom0.call(XS.SET_FEATURE, b"2\x002\0")
    assert store.introduce(2).call(XS.GET_FEATURE, b"") == b"2\0"
