"""The defects of the zoo, from its rooms."""

from __future__ import annotations

from importlib import import_module

from cases import link
from markdown import code, plain, table

from xenpv.testing import cases
from xenpv.testing.zoo import Defect


def of_room(name: str) -> str:
    """A table of its defects; each id is an anchor."""
    room = import_module(f"xenpv.testing.zoo.{name}")
    rows = [
        [f"[{code(one.id)}]{{#{one.id}}}", plain(one.end), plain(one.mutation), hunt(one)]
        for one in room.DEFECTS
    ]
    return table(["defect", "in", "what is wrong", "what finds it"], rows)


def hunt(one: Defect) -> str:
    kind, _, what = one.hunt.partition(":")
    if kind == "case":
        return link(cases.case(what))
    if kind == "lifecycle":
        return f"life cycle {code(what)}"
    return f"{kind} {code(what)}"
