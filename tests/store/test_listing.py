from __future__ import annotations

from tests.store.client import Store
from xenpv.store.listing import Listed

EXPECTED = r"""/tool = ""   (n0)
/tool/xenstored = ""   (n0)
/b = ""   (n0)
/b/2 = "tab\t nl\n cr\r back\\ \001\x1b\x7f\xff "quotes""   (n0)
/b/1 = ""   (r1,w0)
/a = ""   (n0)
"""


def test_ls_fp_escapes_values_and_keeps_the_order(store: Store) -> None:
    store.write(b"/b/2", b'tab\t nl\n cr\r back\\ \x01\x1b\x7f\xff "quotes"')
    store.write(b"/b/1")
    store.set_perms(b"/b/1", b"r1", b"w0")
    store.write(b"/a")
    assert store.server.ls_fp() == EXPECTED


def test_ls_fp_of_a_subtree_leaves_its_root_out(store: Store) -> None:
    store.write(b"/a/b/c", b"1")
    assert store.server.ls_fp(b"/a") == '/a/b = ""   (n0)\n/a/b/c = "1"   (n0)\n'
    assert store.server.ls_fp(b"/a/b/c") == ""
    assert store.server.ls_fp(b"/none") == ""


def test_dump_gives_values_and_permissions(store: Store) -> None:
    store.write(b"/a/b", b"\xff")
    store.set_perms(b"/a/b", b"n1", b"r2")
    assert store.server.dump(b"/a") == [Listed(b"/a/b", b"\xff", (b"n1", b"r2"))]
