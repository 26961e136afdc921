"""Pages that are written from the code have all of it: cases, defects, commands, quirks."""

from __future__ import annotations

import argparse
import html
import re
from pathlib import Path

import pytest

from tests.docs.ext import ext
from xenpv.testing.cases import SUITES, all_cases, cases
from xenpv.testing.zoo import ROOMS, all_defects
from xenpv.vbd.quirks import QUIRKS


def text(path: Path) -> str:
    """What a reader sees of a page."""
    inside = path.read_text(encoding="utf-8").split('<article role="main"', 1)[1]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", inside.split("</article>")[0])).split())


@pytest.mark.parametrize("suite", SUITES)
def test_the_catalogue_shows_of_each_case_what_explain_prints(suite: str, built: Path) -> None:
    page = built / f"reference/cases-catalogue/{suite}.html"
    source, shown = page.read_text(encoding="utf-8"), text(page)
    for case in cases(suite):
        assert f'id="{case.id.lower()}"' in source
        own = shown[shown.index(f"{case.id} {case.title}") :]
        own = re.split(rf"{case.id.split('-')[0]}-\d{{3}} ", own[len(case.id) :])[0]
        for wanted in (case.expected, case.source, ", ".join(case.requires) or "nothing"):
            assert " ".join(wanted.split()) in own, case.id
        assert ("breaks the protocol" if case.hostile else "keeps the protocol") in own, case.id


def test_no_case_stands_anywhere_twice_or_not_at_all(built: Path) -> None:
    pages = [*(built / "reference/cases-catalogue").glob("*.html")]
    found = [
        one.upper()
        for page in pages
        for one in re.findall(r'<section id="([a-z]+-\d{3})">', page.read_text())
    ]
    assert sorted(found) == sorted(all_cases())
    assert len(found) == len(set(found))


def test_the_zoo_has_a_row_of_each_defect(built: Path) -> None:
    source = (built / "reference/zoo.html").read_text()
    shown = text(built / "reference/zoo.html")
    for one in all_defects().values():
        assert f'id="{one.id}"' in source
        assert f"{one.id} {one.end} {one.mutation}" in shown
    assert {
        *re.findall(
            r"from the code: zoo (\w+)",
            (Path(__file__).parents[2] / "docs/reference/zoo.md").read_text(),
        )
    } == {*ROOMS}


def test_every_command_and_option_has_its_row(built: Path) -> None:
    cli = ext("cli")
    shown = text(built / "reference/cli.html")
    for name, parser in cli.subcommands().items():
        own = shown[shown.index(f"xenpv {name} [") :]
        for action in parser._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            for spelled in action.option_strings or [str(action.metavar)]:
                assert spelled in own, (name, spelled)
            assert cli.told(action) in own, (name, action.dest)


@pytest.mark.parametrize(
    ("option", "settings", "row"),
    [
        ("--seed", {"metavar": "N", "help": "of every choice (0)"}, ("`--seed N`", "0", "of every choice")),
        ("--json", {"action": "store_true", "help": "one document"}, ("`--json`", "", "one document")),
        ("--tap", {"help": "a name (or none)"}, ("`--tap TAP`", "", "a name (or none)")),
        ("--way", {"choices": ["a", "b"], "default": "b", "help": "x"}, ("`--way {a,b}`", "`b`", "x")),
        ("files", {"nargs": "*", "metavar": "FILE", "help": "x"}, ("`FILE...`", "", "x")),
    ],
)  # fmt: skip
def test_a_row_of_an_argument(option: str, settings: dict, row: tuple[str, str, str]) -> None:
    cli = ext("cli")
    action = argparse.ArgumentParser().add_argument(option, **settings)
    assert (cli.names(action), cli.default(action), cli.told(action)) == row


def test_every_quirk_and_profile_is_told(built: Path) -> None:
    shown = text(built / "reference/profiles.html")
    for name, said in QUIRKS.items():
        assert f"{name} Parameters(quirks=...) {said}" in shown
    for word in ("linux-zerocopy", "tapdisk", "mirage", "legacy", "unheard-failure-is-timeout"):
        assert word in shown


@pytest.mark.parametrize(
    "plain",
    ["a * b * c", "x_y_z and __init__", "[a](b)", "<b> & &amp;", "~~no~~", "# no heading", "a | b", "`no code`", "1 < 2 > 0"],
)  # fmt: skip
def test_plain_text_shows_the_same_as_markdown(plain: str) -> None:
    from markdown_it import MarkdownIt

    shown = MarkdownIt("commonmark").render(ext("markdown").plain(plain)).replace("\\|", "|")
    assert html.unescape(re.sub(r"<[^>]+>", "", shown)).strip() == plain


def test_every_advisory_of_a_case_is_told_of_once_with_its_cases(built: Path) -> None:
    advisories = ext("advisories")
    told = [number for group in advisories.TOLD.values() for number in group]
    assert sorted(told) == sorted(advisories.named())
    page = (built / "explanation/threat-model.html").read_text()
    source = page[page.index('id="against-backends"') :]
    for number, named in advisories.named().items():
        row = next(row for row in source.split("<tr ") if f">XSA-{number}</a>" in row)
        for case in named:
            assert f"#{case.id.lower()}" in row, (number, case.id)
