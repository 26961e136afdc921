"""The table of quirks: names are fixed, an unknown one is said with those that are."""

from __future__ import annotations

import pytest

from xenpv.bus.registry import Registry
from xenpv.errors import LocalProtocolError
from xenpv.vbd import quirks
from xenpv.vbd.parameters import PATH, QUIRKS, Parameters


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


def test_a_parameter_that_is_no_quirk_is_refused_and_in_the_registry_it_is_none() -> None:
    with pytest.raises(LocalProtocolError, match="no quirk 'fast'"):
        Parameters(quirks=("fast",))
    registry = Registry({PATH: {QUIRKS: ("fast", "b0-bytes")}})
    assert Parameters.read(registry).quirks == ("b0-bytes",)
