"""Overlays: bytes as operations, targets that hold, and targets that find things."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenpv.abi.blkif import BLKIF_RSP
from xenpv.back import blkring
from xenpv.errors import LocalProtocolError
from xenpv.testing import fuzz_one, overlay
from xenpv.testing.checkers import CheckFailed
from xenpv.testing.overlays import blkback
from xenpv.testing.overlays.language import Language, Operation

TARGETS = overlay.targets()
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
    for data in (b"", bytes(40), *examples(name, EXAMPLES)):
        fuzz_one(data, name)


# blk-backend


def blk(*operations: bytes) -> bytes:
    return b"".join(operations)


TEXT = blkback.LANGUAGE.text
WRITE_1 = TEXT("request", wish=1)
RUN = TEXT("run")
PERSISTENT = TEXT("connect", persistent=1)


def status_of_a_write_is_error(original: Any) -> Any:
    def judge(self: Any, vbd: Any, first: int, end: int) -> None:
        original(self, vbd, first, end)
        for index in range(first, end):
            if self._verdicts[index]:
                self._verdicts[index] = int(BLKIF_RSP.EOPNOTSUPP)

    return judge


def moves_nothing(_original: Any) -> Any:
    return lambda *_args: 0


def never_notifies(original: Any) -> Any:
    return lambda blk_pass, count: min(0, original(blk_pass, count))


def forgets_to_unmap(_original: Any) -> Any:
    return lambda _domain, _mapped: None


FILL = TEXT("write", value=7)
DEFECTS = {
    "a wrong status": (blkring.BlkRing, "_judge", status_of_a_write_is_error, (TEXT("disk", variant=1), WRITE_1, RUN)),
    "data that does not move": (blkring, "blk_copy", moves_nothing, (FILL, WRITE_1, RUN)),
    "no notification": (blkring, "blk_answer", never_notifies, (WRITE_1, RUN)),
    "ring pages kept": ("xenpv.back.blkthread", "unmap", forgets_to_unmap, ()),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFECTS)
def test_blk_backend_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home, attribute, change, text = DEFECTS[name]
    data = b"".join(text)
    fuzz_one(data)
    if isinstance(home, str):
        monkeypatch.setattr(f"{home}.{attribute}", change(None))
    else:
        monkeypatch.setattr(home, attribute, change(getattr(home, attribute)))
    with pytest.raises(CheckFailed):
        fuzz_one(data)
