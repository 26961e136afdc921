"""The cases of the store, xenbus, event channels and grants can fail: each planted change does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import pytest

from tests.testing.cases.planted import Change
from tests.testing.cases.planted_bus import BACK, FRONT
from tests.testing.cases.planted_machine import EVTCHN, GRANT
from tests.testing.cases.planted_store import PROFILES, STORE
from xenpv.store.profile import C
from xenpv.testing.cases import Case, Outcome, case, cases
from xenpv.testing.cases.storescene import OurStore

CHANGES = [*STORE, *EVTCHN, *GRANT, *BACK, *FRONT]
SUITES = ("store", "evtchn", "grant", "xenbus-backend", "xenbus-frontend")


def fails(one: Case, factory: Callable[..., Any] | None = None) -> None:
    result = one.run(factory)
    assert result.outcome is Outcome.FAIL, f"{one.id} {one.title}: {result.outcome}"
    assert result.reason


@pytest.mark.parametrize(("switch", "ids"), PROFILES, ids=lambda value: str(value)[:60])
def test_another_rule_of_the_store_is_noticed(switch: dict[str, Any], ids: str) -> None:
    for name in ids.split():
        fails(case(name), OurStore(profile=attrs.evolve(C, **switch)))


@contextmanager
def changed(changes: list[Change]) -> Iterator[None]:
    """Attributes of classes and modules, and entries of tables."""
    with pytest.MonkeyPatch.context() as patch:
        for where, name, make in changes:
            if isinstance(where, dict):
                patch.setitem(where, name, make(where[name]))
            else:
                old = vars(where).get(name) or getattr(where, name)
                patch.setattr(where, name, make(old))
        yield


@pytest.mark.parametrize(
    ("changes", "ids"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES]
)
def test_a_planted_change_is_noticed(changes: list[Change], ids: str) -> None:
    with changed(changes):
        for name in ids.split():
            fails(case(name))


def test_every_case_fails_for_some_change() -> None:
    named = [name for *_, ids in (*PROFILES, *CHANGES) for name in ids.split()]
    known = [one.id for suite in SUITES for one in cases(suite)]
    assert sorted(dict.fromkeys(named)) == sorted(known)
