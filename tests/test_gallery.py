"""docs/gallery: each page is a file of 20 to 60 lines that prints what the page says, in 2 s."""

from __future__ import annotations

import re
import resource
import shutil
from pathlib import Path

import pytest

from tests.peers import need
from tests.test_tutorial import follow

ROOT = Path(__file__).parents[1]
GALLERY = ROOT / "docs" / "gallery"
NAMES = sorted(path.stem for path in GALLERY.glob("*.md") if path.stem != "index")
SECONDS_MAX = 2.0  # of CPU


def text(name: str) -> str:
    return (GALLERY / f"{name}.md").read_text(encoding="utf-8")


def cpu() -> float:
    """Seconds of CPU of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(command, directory: Path) -> float:
    """Compare what it prints with the page; seconds of CPU that it took."""
    before = cpu()
    reader = follow.Reader(directory, follow.environment(None))
    appeared = reader.types(command.text)
    reader.leaves()
    follow.compare(command, "".join(f"{line.rstrip()}\n" for line in appeared.splitlines()))
    return cpu() - before


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("gallery")
    ignored = shutil.ignore_patterns("images", "__pycache__")
    shutil.copytree(ROOT / "examples", made / "examples", ignore=ignored)
    return made


def test_there_are_as_many_as_were_promised() -> None:
    assert len(NAMES) >= 10


@pytest.mark.parametrize("name", NAMES)
def test_it_prints_what_the_page_says(name, directory) -> None:
    if name == "qcow2_disk":
        need("qemu-nbd", "qemu-utils")
    (console,) = (one for one in follow.blocks(text(name)) if one.language == "console")
    (command,) = follow.commands(console)
    assert f"examples/{name}.py" in command.text
    spent = run(command, directory)
    if spent >= SECONDS_MAX:  # somebody else may have had the caches
        spent = run(command, directory)
    assert spent < SECONDS_MAX, f"{spent:.1f} s of CPU"


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_one_short_file(name) -> None:
    page = text(name)
    assert page.startswith("# ")
    question = page.split("\n\n")[1]
    assert "?" in question, "the page says which question it answers"
    assert re.findall(r"\{literalinclude\} \.\./\.\./examples/(\w+)\.py\n", page) == [name]
    lines = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert 20 <= len(lines) <= 60
    assert lines[0].startswith("# ruff: noqa: "), "the page shows the file without this line"
    after = page.split("## What to change next\n")[1]
    assert 1 <= after.count("\n- ") <= 4
    for target in re.findall(r"\]\((\.\.[\w./-]+)(?:#[\w-]+)?\)", page):
        assert (GALLERY / target).is_file(), target


def test_the_index_has_every_page_once() -> None:
    index = text("index")
    assert sorted(re.findall(r"\]\((\w+)\.md\)", index)) == NAMES
    assert sorted(re.findall(r"^(\w+)$", index.split("{toctree}")[1], re.MULTILINE)) == NAMES
