from __future__ import annotations

import pytest

from tests.store.client import Store, answer, end, start
from xenpv.abi.xs import XS
from xenpv.errors import StoreError
from xenpv.store.permission import parse

# (permissions of /p, whether domain 1 may read it, may write it)
RIGHTS = [
    ((b"n0",), False, False),
    ((b"r0",), True, False),
    ((b"w0",), False, True),
    ((b"b0",), True, True),
    ((b"n1",), True, True),  # the owner's letter is for others
    ((b"n0", b"r1"), True, False),
    ((b"n0", b"w1"), False, True),
    ((b"n0", b"b1"), True, True),
    ((b"b0", b"n1"), False, False),  # an entry overrides the default, even with n
    ((b"b0", b"n1", b"b1"), False, False),  # the first match wins
    ((b"n0", b"r1", b"b1"), True, False),
    ((b"n0", b"b2"), False, False),
    ((b"r0", b"b2"), True, False),
    ((b"n2", b"b32757"), True, True),  # DOMID_ANY
    ((b"b0", b"n32757", b"b1"), False, False),
]


@pytest.mark.parametrize(("perms", "may_read", "may_write"), RIGHTS)
def test_rights_of_an_unprivileged_domain(
    store: Store, perms: tuple[bytes, ...], may_read: bool, may_write: bool
) -> None:
    guest = store.guest(1)
    store.write(b"/p", b"1")
    store.set_perms(b"/p", *perms)
    assert answer(guest, XS.READ, b"/p\0") == (b"1" if may_read else "EACCES")
    assert answer(guest, XS.DIRECTORY, b"/p\0") == (b"" if may_read else "EACCES")
    assert answer(guest, XS.WRITE, b"/p\x002") == (b"OK\0" if may_write else "EACCES")
    assert store.read(b"/p") == (b"2" if may_write else b"1")


def test_privileged_callers_bypass_permissions(store: Store) -> None:
    guest = store.guest(1)
    guest.call(XS.WRITE, b"mine\x001")
    assert store.read(b"/local/domain/1/mine") == b"1"
    store.write(b"/local/domain/1/mine", b"2")


def test_rm_needs_write_on_the_node_and_nothing_on_its_parent(store: Store) -> None:
    guest = store.guest(1)
    store.write(b"/p/q/r")
    store.set_perms(b"/p/q", b"w0")
    assert answer(guest, XS.RM, b"/p/q\0") == b"OK\0"
    assert store.read(b"/p/q") == "ENOENT"


def test_mkdir_of_an_existing_node_needs_write(store: Store) -> None:
    guest = store.guest(1)
    store.write(b"/p")
    assert answer(guest, XS.MKDIR, b"/p\0") == "EACCES"


@pytest.mark.parametrize(
    ("perms", "read", "write"),
    [(b"n0", "EACCES", "EACCES"), (b"r0", "ENOENT", "EACCES"), (b"w0", "EACCES", b"OK\0")],
)
def test_absence_is_hidden_unless_an_ancestor_grants_the_right(
    store: Store, perms: bytes, read: str, write: bytes | str
) -> None:
    guest = store.guest(1)
    store.write(b"/p")
    store.set_perms(b"/p", perms)
    assert answer(guest, XS.READ, b"/p/q/r\0") == read
    assert answer(guest, XS.RM, b"/p/q/r\0") == ("ENOENT" if write == b"OK\0" else write)
    assert answer(guest, XS.WRITE, b"/p/q/r\0") == write


def test_new_nodes_copy_the_parents_list_and_belong_to_an_unprivileged_creator(
    store: Store,
) -> None:
    guest = store.guest(1)
    store.write(b"/p")
    store.set_perms(b"/p", b"r2", b"b1")
    guest.call(XS.WRITE, b"/p/q/r\0")
    for path in (b"/p/q\0", b"/p/q/r\0"):
        assert store.dom0.call(XS.GET_PERMS, path) == b"r1\0b1\0"


def test_nodes_of_dom0_keep_the_parents_owner(store: Store) -> None:
    store.guest(1)
    store.write(b"/local/domain/1/a/b")
    assert store.dom0.call(XS.GET_PERMS, b"/local/domain/1/a/b\0") == b"n1\0"


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        (b"r1", b"r1"),
        (b"b01", b"b1"),
        (b"n0x1F", b"n31"),
        (b"w010", b"w8"),
        (b"r +7", b"r7"),
        (b"r\t-1", b"r-1"),
        (b"r4294967297", b"r1"),
        (b"r99999999999999999999", b"r-1"),  # strtol stops at LONG_MAX
    ],
)
def test_domids_are_read_as_strtol_does(store: Store, text: bytes, listed: bytes) -> None:
    store.write(b"/p")
    store.set_perms(b"/p", b"n0", text)
    assert store.dom0.call(XS.GET_PERMS, b"/p\0") == b"n0\0" + listed + b"\0"


@pytest.mark.parametrize(
    "text", [b"", b"r", b"x1", b"1", b"rx", b"r1x", b"r08", b"r0x", b"r 1 ", b"R1", b"r--1"]
)
def test_malformed_permission_is_einval(text: bytes) -> None:
    with pytest.raises(StoreError, match="EINVAL"):
        parse([b"n0", text])


def test_get_perms_needs_read(store: Store) -> None:
    guest = store.guest(1)
    store.write(b"/p")
    assert answer(guest, XS.GET_PERMS, b"/p\0") == "EACCES"


# SET_PERMS: each line breaks one rule and all that are checked later
SET_PERMS_ERRORS = [
    (b"!\0", "EINVAL"),  # no permission
    (b"!\0n9\0n0\0n0\0n0\0x\0", "ENOSPC"),  # too many
    (b"!\0n9\0x\0", "EINVAL"),  # syntax
    (b"!\0n9\0", "ENOENT"),  # no such owner
    (b"!\0n0\0", "EINVAL"),  # path
    (b"/hidden/x\0n0\0", "EACCES"),  # missing, and may not know
    (b"missing\0n0\0", "ENOENT"),  # missing, and may know
    (b"/dom0s\0n0\0", "EACCES"),  # not the owner
    (b"mine\0n2\0", "EPERM"),  # gives it away (XSA-352)
]


@pytest.mark.parametrize(("payload", "error"), SET_PERMS_ERRORS)
def test_set_perms_checks_in_order(store: Store, payload: bytes, error: str) -> None:
    guest = store.guest(1)
    guest.call(XS.WRITE, b"mine\0")
    store.write(b"/dom0s")
    store.set_perms(b"/dom0s", b"b0")
    assert answer(guest, XS.SET_PERMS, payload) == error


def test_set_perms_counts_the_size_of_the_node_last(store: Store) -> None:
    guest = store.guest(1)
    guest.call(XS.WRITE, b"mine\0" + b"v" * 2023)
    assert answer(guest, XS.SET_PERMS, b"mine\0n1\0r2\0") == "ENOSPC"
    assert answer(guest, XS.SET_PERMS, b"mine\0r1\0") == b"OK\0"


def test_owner_needs_no_letter_and_may_change_the_rest(store: Store) -> None:
    guest = store.guest(1)
    other = store.guest(2)
    guest.call(XS.WRITE, b"mine\x001")
    guest.call(XS.SET_PERMS, b"mine\0n1\0r2\0")
    assert answer(other, XS.READ, b"/local/domain/1/mine\0") == b"1"


def test_entry_for_a_domain_that_does_not_exist_is_listed_and_never_matches(store: Store) -> None:
    store.write(b"/p", b"1")
    store.set_perms(b"/p", b"n0", b"r9")
    assert store.dom0.call(XS.GET_PERMS, b"/p\0") == b"n0\0r9\0"
    store.platform.domids.add(9)
    store.platform.ids[9] = 1
    guest = store.introduce(9)
    store.write(b"/p", b"2")
    assert answer(guest, XS.READ, b"/p\0") == "EACCES"
    store.set_perms(b"/p", b"n0", b"r9")
    assert answer(guest, XS.READ, b"/p\0") == b"2"


def test_entry_set_before_the_domain_is_introduced_counts(store: Store) -> None:
    store.write(b"/p", b"1")
    store.set_perms(b"/p", b"n0", b"r1")
    assert answer(store.introduce(1), XS.READ, b"/p\0") == b"1"


def test_successor_with_the_same_domid_inherits_nothing(store: Store) -> None:  # XSA-322
    store.write(b"/p", b"1")
    store.introduce(1)
    store.set_perms(b"/p", b"n0", b"b1", b"r2")
    store.server.domain_died(1)
    assert store.dom0.call(XS.GET_PERMS, b"/p\0") == b"n0\0r2\0"
    store.platform.ids[1] = 2
    guest = store.introduce(1)
    assert answer(guest, XS.READ, b"/p\0") == "EACCES"
    store.write(b"/p", b"2")
    assert answer(guest, XS.READ, b"/p\0") == "EACCES"


def test_rights_kept_in_a_transaction_die_with_their_domain(store: Store) -> None:
    store.write(b"/p", b"1")
    store.introduce(1)
    tx = start(store.dom0)
    store.dom0.call(XS.SET_PERMS, b"/p\0n0\0b1\0", tx)
    store.server.domain_died(1)
    store.platform.ids[1] = 2
    guest = store.introduce(1)
    assert end(store.dom0, tx) == b"OK\0"
    assert answer(guest, XS.READ, b"/p\0") == "EACCES"


def test_domid_any_needs_the_writers_feature(store: Store) -> None:
    store.write(b"/p", b"1")
    store.dom0.call(XS.MKDIR, b"/local/domain/1\0")
    store.set_perms(b"/local/domain/1", b"n1")
    assert answer(store.dom0, XS.SET_FEATURE, b"1\x006\0") == b"OK\0"
    old = store.introduce(1)
    new = store.guest(2)
    old.call(XS.WRITE, b"a\x001")
    old.call(XS.SET_PERMS, b"a\0n1\0r32757\0")
    assert store.dom0.call(XS.GET_PERMS, b"/local/domain/1/a\0") == b"n1\0r32757\0"
    assert answer(new, XS.READ, b"/local/domain/1/a\0") == "EACCES"
    new.call(XS.WRITE, b"b\x002")
    new.call(XS.SET_PERMS, b"b\0n2\0r32757\0")
    assert answer(old, XS.READ, b"/local/domain/2/b\0") == b"2"


def test_target_lends_its_ownership_and_its_entries(store: Store) -> None:
    store.guest(1)
    stub = store.guest(2)
    other = store.guest(3)
    store.write(b"/p", b"1")
    store.set_perms(b"/p", b"n0", b"r1")
    assert answer(stub, XS.READ, b"/p\0") == "EACCES"
    store.dom0.call(XS.SET_TARGET, b"2\x001\0")
    assert answer(stub, XS.READ, b"/p\0") == b"1"
    assert answer(stub, XS.WRITE, b"/local/domain/1/x\0") == b"OK\0"
    assert store.dom0.call(XS.GET_PERMS, b"/local/domain/1/x\0") == b"n2\0"
    assert answer(other, XS.READ, b"/p\0") == "EACCES"


def test_permissions_change_in_a_transaction_too(store: Store) -> None:
    guest = store.guest(1)
    guest.call(XS.WRITE, b"mine\0")
    tx = start(guest)
    guest.call(XS.SET_PERMS, b"mine\0r1\0", tx)
    assert guest.call(XS.GET_PERMS, b"mine\0", tx) == b"r1\0"
    assert guest.call(XS.GET_PERMS, b"mine\0") == b"n1\0"
    assert end(guest, tx) == b"OK\0"
    assert guest.call(XS.GET_PERMS, b"mine\0") == b"r1\0"
