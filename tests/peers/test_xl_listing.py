"""The formats of xenpv.host.listing, literally against those in the real xl."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers import need
from tests.peers.test_xl import XL
from xenpv.host import listing

pytestmark = pytest.mark.peers

FORMATS = [
    name for name in vars(listing) if name.endswith(("_HEADER", "_VERBOSE", "_ROW", "_REST"))
]


@pytest.fixture(scope="module")
def strings() -> list[str]:
    need(XL, "xen-utils-4.17")
    return [text.decode("latin-1") for text in Path(XL).read_bytes().split(b"\0")]


@pytest.mark.parametrize("name", [*FORMATS, "REASON_CODE", "NO_REASON", "LABEL"])
def test_the_format_is_xls(strings: list[str], name: str) -> None:
    wanted = getattr(listing, name)
    uuid, mac = "%02hhx%02hhx%02hhx", "%02hhx:%02hhx"
    found = [text for text in strings if text.rstrip("\n").endswith(wanted)]
    before = [text.rstrip("\n").removesuffix(wanted) for text in found]
    assert any(not text or text.startswith((uuid, mac)) for text in before), before
    assert len(FORMATS) == 10


@pytest.mark.parametrize(
    "names", [listing.BLOCK_NAMES, listing.NETWORK_NAMES], ids=["block", "network"]
)
def test_the_columns_are_xls(strings: list[str], names: tuple[str, ...]) -> None:
    assert [name for name in names if not any(text.endswith(name) for text in strings)] == []


def test_the_reasons_are_xls(strings: list[str]) -> None:
    assert any(text.endswith(listing.REASONS) for text in strings)
