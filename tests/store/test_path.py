from __future__ import annotations

import pytest

from tests.store.client import Store, answer
from xenpv.abi.xs import XS
from xenpv.store.path import counted_length, parent_of


@pytest.mark.parametrize(
    ("path", "parent"),
    [(b"/a/b", b"/a"), (b"/a", b"/"), (b"/", b"/"), (b"@releaseDomain", b"/")],
)
def test_parent_of(path: bytes, parent: bytes) -> None:
    assert parent_of(path) == parent


@pytest.mark.parametrize(
    ("path", "length"),
    [
        (b"/local/domain/1/abc", 3),
        (b"/local/domain/12345/abc", 3),
        (b"/local/domain/123456/abc", 24),  # sscanf "%5u" leaves a digit before the slash
        (b"/local/domain/-1/abc", 3),
        (b"/local/domain/1", 15),
        (b"/local/domain//abc", 18),
        (b"/x/local/domain/1/abc", 21),
    ],
)
def test_home_prefix_does_not_count(path: bytes, length: int) -> None:
    assert counted_length(path) == length


@pytest.mark.parametrize(
    "path",
    [b"", b"/a/", b"//", b"/a//b", b"a/", b"/a b", b"/a!", b"/\xc3\xa4", b"/a.b", b"@a", b"/a\n"],
)
def test_malformed_path_is_einval(store: Store, path: bytes) -> None:
    for op in (XS.READ, XS.DIRECTORY, XS.MKDIR, XS.RM, XS.WRITE):
        assert answer(store.dom0, op, path + b"\0") == "EINVAL"


def test_at_sign_is_legal_inside_a_path_and_not_before_a_relative_one(store: Store) -> None:
    store.write(b"/local/domain/0/@x/y@z", b"1")
    assert store.read(b"/local/domain/0/@x/y@z") == b"1"
    assert store.read(b"@x/y@z") == "EINVAL"


def test_root_is_a_path(store: Store) -> None:
    assert store.read(b"/") == b""


def test_relative_path_is_below_the_callers_home(store: Store) -> None:
    guest = store.guest(3)
    guest.call(XS.WRITE, b"data/x\0g")
    store.dom0.call(XS.WRITE, b"data/x\0d")
    assert store.read(b"/local/domain/3/data/x") == b"g"
    assert store.read(b"/local/domain/0/data/x") == b"d"


def test_unprivileged_path_of_2047_passes_and_2048_does_not(store: Store) -> None:
    guest = store.guest(1)
    for size, expected in ((2047, "EACCES"), (2048, "EINVAL")):
        assert answer(guest, XS.READ, b"/" + b"x" * (size - 1) + b"\0") == expected
        assert store.read(b"/" + b"x" * (size - 1)) == "ENOENT"


def test_home_prefix_is_stripped_before_a_path_is_measured(store: Store) -> None:
    guest = store.guest(1)
    assert answer(guest, XS.READ, b"x" * 2047 + b"\0") == "ENOENT"
    assert answer(guest, XS.READ, b"/local/domain/1/" + b"x" * 2047 + b"\0") == "ENOENT"
    assert answer(guest, XS.READ, b"x" * 2048 + b"\0") == "EINVAL"


def test_path_of_an_existing_node_is_measured_too(store: Store) -> None:
    guest = store.guest(1)
    long = b"/" + b"x" * 2047
    store.write(long)
    store.set_perms(long, b"r0")
    assert answer(guest, XS.READ, long + b"\0") == "EINVAL"


def test_home_with_nothing_after_it_is_einval(store: Store) -> None:  # XSA-481
    guest = store.guest(1)
    for client in (store.dom0, guest):
        assert answer(client, XS.READ, b"/local/domain/\0") == "EINVAL"
