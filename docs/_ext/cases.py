"""The catalogue of numbered cases, from the suites."""

from __future__ import annotations

import re
import sys
from itertools import groupby

from markdown import plain, table

from xenpv.testing.cases import SUITES, Case, all_cases
from xenpv.testing.cases import cases as of


def link(case: Case) -> str:
    """To its place in the catalogue: a name that all pages know."""
    return f"[{case.id}](#{case.id})"


def suites() -> str:
    """A table of them."""
    rows = []
    for name in SUITES:
        found = of(name)
        rows.append([
            f"[`{name}`]({name}.md)", found[0].id.split("-")[0] + "-", str(len(found)),
            str(sum(one.hostile for one in found)),
        ])  # fmt: skip
    rows.append(
        ["all", "", str(len(all_cases())), str(sum(one.hostile for one in all_cases().values()))]
    )
    return table(["suite", "ids", "cases", "of them with a peer that breaks the protocol"], rows)


def theme(case: Case) -> str:
    """What the module of the case says it is about: its first sentence, as a heading."""
    text = " ".join((sys.modules[case.check.__module__].__doc__ or "").split("\n\n")[0].split())
    first = re.split(r"(?<=[a-z)])\. ", text)[0].rstrip(".")
    return first.removeprefix(f"{case.suite}, ").removeprefix(f"{case.suite}: ")


def of_suite(name: str) -> str:
    """Every case of it, with all that `xenpv cases --explain` prints."""
    out = []
    for about, group in groupby(sorted(of(name), key=lambda one: one.id), theme):
        heading = plain(about[:1].upper() + about[1:])
        if f"## {heading}\n" not in out:
            out.append(f"## {heading}\n")
        for case in group:
            out += [
                f"({case.id})=\n### {case.id} {plain(case.title)}\n",
                f":expected: {plain(case.expected)}",
                f":source: {plain(case.source)}",
                f":requires: {plain(', '.join(case.requires) or 'nothing')}",
                f":peer: {'breaks the protocol' if case.hostile else 'keeps the protocol'}\n",
            ]
    return "\n".join(out)
