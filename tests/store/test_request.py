from __future__ import annotations

import pytest

from tests.store.client import Store, answer
from xenpv.abi.xs import XS

ONE_STRING = (XS.DIRECTORY, XS.READ, XS.GET_PERMS, XS.MKDIR, XS.RM)


def directory(store: Store, path: bytes) -> list[bytes]:
    return store.dom0.call(XS.DIRECTORY, path + b"\0").split(b"\0")[:-1]


def test_a_new_store_has_what_xenstored_makes(store: Store) -> None:
    assert directory(store, b"/") == [b"tool"]
    assert directory(store, b"/tool") == [b"xenstored"]
    assert store.dom0.call(XS.GET_PERMS, b"/tool/xenstored\0") == b"n0\0"
    assert store.dom0.call(XS.GET_PERMS, b"@introduceDomain\0") == b"n0\0"
    assert store.dom0.call(XS.GET_PERMS, b"@releaseDomain\0") == b"n0\0r32757\0"


@pytest.mark.parametrize("op", ONE_STRING)
@pytest.mark.parametrize("payload", [b"", b"/a", b"/a\0\0", b"/a\0b", b"\0/a\0", b"/a\0/b\0"])
def test_one_argument_needs_exactly_one_nul_at_its_end(
    store: Store, op: XS, payload: bytes
) -> None:
    store.write(b"/a")
    assert answer(store.dom0, op, payload) == "EINVAL"


def test_write_creates_parents_and_read_gives_any_bytes_back(store: Store) -> None:
    assert store.dom0.call(XS.WRITE, b"/a/b/c\0x\0\xff") == b"OK\0"
    assert store.read(b"/a/b/c") == b"x\0\xff"
    assert store.read(b"/a/b") == b""


def test_write_without_nul_is_einval(store: Store) -> None:
    assert answer(store.dom0, XS.WRITE, b"/a") == "EINVAL"
    assert answer(store.dom0, XS.WRITE, b"") == "EINVAL"
    assert store.read(b"/a") == "ENOENT"


def test_children_keep_the_order_of_their_creation(store: Store) -> None:
    for name in (b"2", b"1", b"3"):
        store.write(b"/d/" + name)
    assert directory(store, b"/d") == [b"2", b"1", b"3"]
    store.dom0.call(XS.RM, b"/d/1\0")
    assert directory(store, b"/d") == [b"2", b"3"]
    store.write(b"/d/1")
    assert directory(store, b"/d") == [b"2", b"3", b"1"]


def test_directory_of_a_leaf_is_empty(store: Store) -> None:
    store.write(b"/d")
    assert store.dom0.call(XS.DIRECTORY, b"/d\0") == b""


def test_mkdir_of_what_exists_changes_nothing(store: Store) -> None:
    store.write(b"/d", b"1")
    generation = store.server.tree.generation
    assert store.dom0.call(XS.MKDIR, b"/d\0") == b"OK\0"
    assert store.read(b"/d") == b"1"
    assert store.server.tree.generation == generation


def test_rm_takes_the_subtree(store: Store) -> None:
    store.write(b"/d/e/f")
    assert store.dom0.call(XS.RM, b"/d\0") == b"OK\0"
    for path in (b"/d", b"/d/e", b"/d/e/f"):
        assert store.read(path) == "ENOENT"


def test_rm_of_a_missing_node_depends_on_its_parent(store: Store) -> None:
    store.write(b"/d")
    assert answer(store.dom0, XS.RM, b"/d/x\0") == b"OK\0"
    assert answer(store.dom0, XS.RM, b"/d/x/y\0") == "ENOENT"


def test_rm_of_the_root_is_einval(store: Store) -> None:
    assert answer(store.dom0, XS.RM, b"/\0") == "EINVAL"
    assert answer(store.guest(1), XS.RM, b"/\0") == "EACCES"


def test_a_thousand_levels_come_and_go(store: Store) -> None:  # XSA-418
    path = b"/a" * 1000
    store.write(path, b"deep")
    assert store.read(path) == b"deep"
    store.dom0.call(XS.RM, b"/a\0")
    assert store.read(b"/a") == "ENOENT"
    assert len(store.server.nodes) == 3


def test_reply_over_4096_bytes_is_e2big(store: Store) -> None:
    for number in range(40):
        store.write(b"/d/" + b"%03d" % number * 33 + b"xx")  # names of 101 bytes
    assert len(directory(store, b"/d")) * 102 == 4080
    store.write(b"/d/" + b"y" * 16)
    assert answer(store.dom0, XS.DIRECTORY, b"/d\0") == "E2BIG"


def test_largest_value_of_a_privileged_caller_is_what_fits_the_payload(store: Store) -> None:
    value = b"v" * (4096 - len(b"/abc\0"))
    store.write(b"/abc", value)
    assert store.read(b"/abc") == value


# DIRECTORY_PART


def part(store: Store, path: bytes, offset: bytes) -> tuple[int, bytes]:
    generation, _, names = store.dom0.call(
        XS.DIRECTORY_PART, path + b"\0" + offset + b"\0"
    ).partition(b"\0")
    return int(generation), names


def test_directory_part_ends_with_one_nul_more(store: Store) -> None:
    for name in (b"aa", b"b"):
        store.write(b"/d/" + name)
    generation = store.server.nodes[b"/d"].generation
    assert part(store, b"/d", b"0") == (generation, b"aa\0b\0\0")
    assert part(store, b"/d", b"1") == (generation, b"a\0b\0\0")
    assert part(store, b"/d", b"3") == (generation, b"b\0\0")
    for beyond in (b"5", b"9999", b"-1"):
        assert part(store, b"/d", beyond) == (generation, b"\0")


def test_directory_parts_are_whole_names_and_make_up_the_directory(store: Store) -> None:
    names = [b"%d" % number * 29 for number in range(100, 400)]
    for name in names:
        store.write(b"/d/" + name)
    found = b""
    sizes = []
    while True:
        generation, chunk = part(store, b"/d", b"%d" % len(found))
        sizes.append(len(b"%d\0" % generation) + len(chunk))
        if chunk.endswith(b"\0\0"):
            found += chunk[:-1]
            break
        assert chunk.endswith(b"\0")
        found += chunk
    assert found.split(b"\0")[:-1] == names
    assert max(sizes) <= 4096
    assert min(sizes[:-1]) > 4096 - 88 - 1


@pytest.mark.parametrize("payload", [b"/d\0", b"/d\x000", b"/d\x000\0x\0", b""])
def test_directory_part_needs_two_strings(store: Store, payload: bytes) -> None:
    store.write(b"/d")
    assert answer(store.dom0, XS.DIRECTORY_PART, payload) == "EINVAL"


# generations


@pytest.mark.parametrize(
    ("op", "payload"),
    [
        (XS.WRITE, b"/d/x\0same"),
        (XS.SET_PERMS, b"/d/x\0n0\0"),
    ],
)
def test_every_change_gives_a_new_generation(store: Store, op: XS, payload: bytes) -> None:
    store.write(b"/d/x", b"same")
    before = store.server.nodes[b"/d/x"].generation
    parent = store.server.nodes[b"/d"].generation
    store.dom0.call(op, payload)
    assert store.server.nodes[b"/d/x"].generation > before
    assert store.server.nodes[b"/d"].generation == parent


@pytest.mark.parametrize(
    ("op", "payload"), [(XS.WRITE, b"/d/new\0"), (XS.MKDIR, b"/d/new\0"), (XS.RM, b"/d/x\0")]
)
def test_a_child_that_comes_or_goes_changes_its_parent(
    store: Store, op: XS, payload: bytes
) -> None:
    store.write(b"/d/x")
    above = store.server.nodes[b"/"].generation
    before = store.server.nodes[b"/d"].generation
    store.dom0.call(op, payload)
    assert store.server.nodes[b"/d"].generation > before
    assert store.server.nodes[b"/"].generation == above
