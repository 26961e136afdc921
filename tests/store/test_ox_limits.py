"""The limits that oxenstored sets for everybody, and what QEMU's emulation calls a breach."""

from __future__ import annotations

import pytest

from tests.store.client import Store, WireClient, answer
from xenpv.abi.xs import XS
from xenpv.store.profile import LEGACY, OX, C

LONG = b"/" + b"/".join([b"p" * 200] * 10)  # 2,010 bytes


@pytest.mark.parametrize(("size", "expected"), [(2048, b"OK\0"), (2049, "E2BIG")])
def test_a_value_of_anybody(size: int, expected: bytes | str) -> None:
    store = Store(OX)
    guest = store.guest(1)
    store.write(b"/local/domain/1/data", b"")
    store.set_perms(b"/local/domain/1/data", b"n1")
    for client, path in ((store.dom0, b"/v"), (guest, b"data"), (guest, b"data/new")):
        assert answer(client, XS.WRITE, path + b"\0" + b"v" * size) == expected


def test_a_long_value_where_nothing_may_be_written() -> None:
    store = Store(OX)
    guest = store.guest(1)
    store.write(b"/x", b"")
    assert answer(guest, XS.WRITE, b"/x/new/er\0" + b"v" * 2049) == "EACCES"
    assert answer(guest, XS.WRITE, b"/x/new\0" + b"v" * 2049) == "E2BIG"
    assert answer(guest, XS.WRITE, b"/x\0" + b"v" * 2049) == "E2BIG"
    assert answer(store.dom0, XS.READ, b"/x/new\0") == "ENOENT"


@pytest.mark.parametrize("op", [XS.READ, XS.WRITE, XS.MKDIR, XS.RM, XS.DIRECTORY, XS.GET_PERMS])
@pytest.mark.parametrize(("size", "refused"), [(2048, False), (2049, True)])
def test_a_path_of_anybody(op: XS, size: int, refused: bool) -> None:
    store = Store(OX)
    path = LONG + b"/" + b"q" * (size - len(LONG) - 1)
    assert len(path) == size
    guest = store.guest(1)
    for client in (store.dom0, guest):
        assert (answer(client, op, path + b"\0") == "EINVAL") is refused
    assert answer(store.dom0, XS.WATCH, path + b"\0t\0") == b"OK\0"
    guest.send(XS.WATCH, path + b"\0t\0")
    assert b"OK\0" in [payload for *_, payload in guest.messages()]


def test_the_short_ways_know_the_limits() -> None:
    store = Store(OX)
    client = store.server.connect_local("me")
    client.write(b"/v", b"1")
    for path, value, error in (
        (b"/v", b"v" * 2049, "E2BIG"),
        (b"/v/" + b"n" * 2046, b"", "EINVAL"),
    ):
        with pytest.raises(Exception, match=error):
            client.write(path, value)
    with pytest.raises(Exception, match="EINVAL"):
        client.read(b"/v/" + b"n" * 2046)
    with pytest.raises(Exception, match="E2BIG"):
        client.write_all(b"/new", {"a": "1", "b": "v" * 2049}, 0)
    assert answer(store.dom0, XS.READ, b"/v\0") == b"1"


@pytest.mark.parametrize("profile", [C, OX, LEGACY], ids=["c", "ox", "legacy"])
def test_a_reply_over_4096_bytes(profile: object) -> None:
    store = Store(profile)  # type: ignore[arg-type]
    for index in range(30):
        store.write(b"/big/%02d" % index + b"n" * 200, b"")
    socket = WireClient(store.server.connect_socket("s"))
    socket.send(XS.DIRECTORY, b"/big\0")
    ((op, _, _, payload),) = socket.messages()
    if profile is OX:
        assert (op, len(payload)) == (XS.DIRECTORY, 30 * 203)
    else:
        assert (op, payload) == (XS.ERROR, b"E2BIG\0")
    store.set_perms(b"/big", b"r0")
    assert answer(store.guest(1), XS.DIRECTORY, b"/big\0") == "E2BIG"  # over its ring


@pytest.mark.parametrize(
    ("op", "payload", "error"),
    [
        (XS.WRITE, b"n\0" + b"v" * 2049, "E2BIG"),
        (XS.READ, b"/" + b"p" * 3072 + b"\0", "E2BIG"),
        (XS.SET_PERMS, b"n\0" + b"n1\0" * 6, "ENOSPC"),
        (XS.SET_PERMS, b"n\0" + b"n1\0" * 5, ""),
    ],
)
def test_breaches_as_qemu_calls_them(op: XS, payload: bytes, error: str) -> None:
    store = Store(LEGACY)
    guest = store.guest(1)
    store.write(b"/local/domain/1/n", b"")
    store.set_perms(b"/local/domain/1/n", b"n1")
    assert answer(guest, op, payload) == (error or b"OK\0")
