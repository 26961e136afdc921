"""The table of quirks: names are fixed, an unknown one is said with those that are."""

from __future__ import annotations

import pytest

from xenpv.errors import LocalProtocolError
from xenpv.vbd import quirks


def test_every_quirk_says_what_it_does_and_what_happens_without() -> None:
    assert all("; else " in text for text in quirks.QUIRKS.values())


def test_names_become_a_set() -> None:
    names = ["read6-zero", "b0-bytes"]
    assert quirks.check(names) == {"b0-bytes", "read6-zero"}
    assert quirks.check(()) == frozenset()


def test_an_unknown_quirk_is_named_with_the_known_ones() -> None:
    with pytest.raises(LocalProtocolError) as caught:
        quirks.check(["b0-bytes", "b1-bytes"])
    text = str(caught.value)
    assert text.startswith("no quirk 'b1-bytes': expected some of ")
    assert all(name in text for name in quirks.QUIRKS)
