"""Overlays: bytes as operations, targets that hold, and targets that find things."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenpv.abi.blkif import BLKIF_RSP
from xenpv.abi.xenbus import XenbusState as State
from xenpv.back import blkring, blkthread, netrx, nettx
from xenpv.back import netback as netback_driver
from xenpv.back import xenbus as xenbus_driver
from xenpv.errors import LocalProtocolError
from xenpv.net.adapter import Adapter
from xenpv.store import request
from xenpv.store import watch as store_watch
from xenpv.store.tree import Tree
from xenpv.testing import fuzz_one, overlay
from xenpv.testing.checkers import CheckFailed
from xenpv.testing.overlays import blkback, blkfront, netback, netfront, store, xenbus
from xenpv.testing.overlays.language import Language, Operation
from xenpv.testing.world import World
from xenpv.vbd import granter
from xenpv.vbd import ring as vbd_ring
from xenpv.vbd.srb import SrbStatus
from xenpv.vif import frontend as vif_frontend

TARGETS = overlay.targets()
overlay_text = {"blk-frontend": blkfront.LANGUAGE.text, "net-frontend": netfront.LANGUAGE.text}
EXAMPLES = 60


def examples(name: str, count: int, size: int = overlay.SIZE_MAX) -> list[bytes]:
    draw = random.Random(f"test {name}")
    return [draw.randbytes(1 + int(draw.random() * size)) for _ in range(count)]


# the language


@given(st.binary(max_size=64))
@settings(max_examples=50)
def test_the_operations_of_any_bytes_are_those_bytes(data: bytes) -> None:
    for target in TARGETS.values():
        pieces = target.split(data)
        assert b"".join(pieces) == data
        assert len(target.words(data)) == len(pieces)


def test_an_operation_gets_zeros_for_what_is_missing() -> None:
    seen: list[tuple[str, bytes]] = []
    language = Language(
        Operation("one", ("a", "b"), lambda s, args: s.append(("one", args)), 2),
        Operation("two", (), lambda s, args: s.append(("two", args))),
    )
    for operation, args in language.read(bytes((1, 9, 8, 2, 3, 7))):
        operation.act(seen, args)
    assert seen == [("one", b"\x09\x08"), ("two", b""), ("one", b"\x07\x00")]
    assert language.words(bytes((1, 9, 0, 2))) == ["one a=9", "two"]
    assert language.text("two") + language.text("one", b=3) == bytes((2, 0, 0, 3))
    with pytest.raises(LocalProtocolError, match=r"^one takes \('a', 'b'\), not \['c'\]$"):
        language.text("one", c=1)


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="no target is called 'disk': expected blk-back"):
        fuzz_one(b"", "disk")


# every target


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_for_our_own_end(name: str) -> None:
    count = EXAMPLES // 3 if "frontend" in name else EXAMPLES
    for data in (b"", bytes(40), *examples(name, count)):
        fuzz_one(data, name)


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "store"])
def test_equal_bytes_give_equal_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    digests: list[str] = []
    original = World.close

    def close(world: World) -> None:
        digests.append(world.platform.digest)
        original(world)

    fuzz_one(b"", name)  # what a target makes once
    monkeypatch.setattr(World, "close", close)
    for data in examples(name, 3):
        fuzz_one(data, name)
        fuzz_one(data, name)
        assert len(digests) == 2
        assert digests[0] == digests[1]
        digests.clear()


@pytest.mark.parametrize("name", ["blk-frontend", "net-frontend"])
def test_a_backend_bears_its_own_bytes_over_requests(name: str) -> None:
    text = overlay_text[name]
    writes = text("slot", offset=108, b0=59, b1=46, b2=204, b3=140)
    begin = text("command", what=1) if name == "blk-frontend" else text("hold", on=1) + text("send")
    more = text("serve") if name == "blk-frontend" else text("hold")
    for offset in range(109):
        where = text("slot", offset=offset, b0=59, b1=46, b2=204, b3=140)
        if offset % 12 == 0:
            fuzz_one(begin + text("run") + where + writes + more, name)


# what targets find: (target, where the mistake is made, what of it, the mistake, the overlay)


def answers_with(wrong: Any) -> Any:
    """A function that does what it did, and says something else."""

    def change(original: Any) -> Any:
        def changed(*args: Any, **kwargs: Any) -> Any:
            original(*args, **kwargs)
            return wrong

        return changed

    return change


def instead(wrong: Any) -> Any:
    """A function that does nothing, and says this."""
    return lambda _original: lambda *_args, **_kwargs: wrong


def refuses_with_another_status(original: Any) -> Any:
    def judge(self: Any, vbd: Any, first: int, end: int) -> None:
        original(self, vbd, first, end)
        for index in range(first, end):
            if self._verdicts[index]:
                self._verdicts[index] = int(BLKIF_RSP.EOPNOTSUPP)

    return judge


def no_nulls(original: Any) -> Any:
    return lambda responses, ids, _extras, status: original(responses, ids, 0, status)


def other_ids(original: Any) -> Any:
    return lambda self, responses: original(self, [responses[0] ^ 1, *responses[1:]])


def writable(original: Any) -> Any:
    return lambda self, pfn, count, readonly: original(self, pfn, count, False)


def twice(original: Any) -> Any:
    def send(self: Any, frame: bytes) -> None:
        original(self, frame)
        original(self, frame)

    return send


def cuts_values(original: Any) -> Any:
    return lambda tree, node, value: original(tree, node, value[:-1])


def int_of(original: Any) -> Any:
    return lambda text: original(text) if text is None else State(int(text))


BLK = blkback.LANGUAGE.text
NET = netback.LANGUAGE.text
ST = store.LANGUAGE.text
XB = xenbus.LANGUAGE.text
BF = blkfront.LANGUAGE.text
NF = netfront.LANGUAGE.text
WRITE = BLK("write", value=7) + BLK("request", wish=1) + BLK("run")
SEND = NET("send") + NET("run")
RECEIVE = NET("post") + NET("arrive", size=1)
READ_ONLY = BLK("disk", variant=1)

DEFECTS: dict[str, tuple[str, Any, str, Any, tuple[bytes, ...]]] = {
    "blk: a wrong status": ("blk-backend", blkring.BlkRing, "_judge", refuses_with_another_status, (READ_ONLY, WRITE)),
    "blk: data that does not move": ("blk-backend", blkring, "blk_copy", instead(0), (WRITE,)),
    "blk: no notification": ("blk-backend", blkring, "blk_answer", answers_with(0), (WRITE,)),
    "blk: ring pages kept": ("blk-backend", blkthread, "unmap", instead(None), ()),
    "net: a fragment without a header": ("net-backend", nettx, "ETHERNET", lambda _: 12, (NET("send", size=8), NET("run"))),
    "net: no response to an extra": ("net-backend", nettx, "answer", no_nulls, (NET("send", shape=0x50), NET("run"))),
    "net: a frame lost": ("net-backend", netback_driver.Netback, "transmit", instead(None), (SEND,)),
    "net: a wrong id received": ("net-backend", netrx.RxQueue, "_publish", other_ids, (RECEIVE,)),
    "vbd: a write's page may be written": ("blk-frontend", granter.Granter, "permit_run", writable, (BF("command", what=1), BF("run"), BF("serve"))),
    "vbd: an error that succeeds": ("blk-frontend", vbd_ring.Ring, "_outcome", instead(SrbStatus.SUCCESS), (BF("command"), BF("run"), BF("answer"))),
    "vbd: a command lost": ("blk-frontend", vbd_ring.Ring, "_finish", instead(None), (BF("command"), BF("run"))),
    "vif: a frame twice": ("net-frontend", Adapter, "send", twice, (NF("send"),)),
    "vif: rings kept": ("net-frontend", vif_frontend.Frontend, "_release", instead(None), ()),
    "store: a removal that removes nothing": ("store", request, "remove", instead(None), (ST("request", type=1), ST("request", type=4))),
    "store: watches counted for ever": ("store", store_watch, "forget", instead(None), (ST("request", who=2, type=6), ST("request", who=2, type=15))),
    "store: values cut short": ("store", Tree, "write", cuts_values, (ST("pieces", value=9), ST("request"))),
    "xenbus: watches kept": ("xenbus", xenbus_driver.Device, "unwatch", instead(None), ()),
    "xenbus: a garbage state raises": ("xenbus", xenbus_driver, "state_of", int_of, (XB("state", text=17), XB("run"))),
    "net: still on the bridge": ("net-backend", netback_driver.Netback, "_carrier_off", instead(None), ()),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFECTS)
def test_a_target_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, home, attribute, change, text = DEFECTS[name]
    data = b"".join(text)
    fuzz_one(data, target)
    monkeypatch.setattr(home, attribute, change(getattr(home, attribute)))
    with pytest.raises((CheckFailed, ValueError)):
        fuzz_one(data, target)


def test_a_raw_disk_bears_a_sector_number_of_64_bits() -> None:
    """It is its own: laid over a request's slot before it was read."""
    fuzz_one(bytes.fromhex("f0b4265c3629c820ee89a89680db9b26"), "blk-frontend")


@pytest.mark.parametrize("data", ["fea71ccd89f537ab3426566a9d1a", "a43f33583090bb6f18328e2fc43b"])
def test_nothing_is_expected_of_rx_slots_that_were_posted_and_taken_back(data: str) -> None:
    fuzz_one(bytes.fromhex(data), "net-backend")
