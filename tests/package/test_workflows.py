"""The workflows of the how-tos, step by step from the wheel, and a night of fuzzing in a minute.

docs/howto/github-actions.md, docs/howto/fuzz-overnight.md
"""

from __future__ import annotations

import re
import shutil
import sys

import pytest

from tests.package.conftest import DIST, ROOT
from tests.test_front_howtos import steps, text
from tests.test_tutorial import follow

pytestmark = pytest.mark.package


@pytest.fixture(scope="module")
def runner(wheel, tmp_path_factory):
    """An empty environment that finds the wheel: a directory and its variables."""
    assert wheel.is_file()
    directory = tmp_path_factory.mktemp("runner")
    variables = follow.environment(DIST)
    first = follow.Reader(directory, variables)
    first.types(f"{sys.executable} -m venv environment")
    for name in ("github-actions", "fuzz-overnight"):
        for step in steps(name):
            if step.get("run", "").startswith("pip install"):
                first.types(f"environment/bin/{step['run']}")
                assert first.types("echo $?") == "0\n"
    first.close()
    variables["PATH"] = f"{directory}/environment/bin:{variables['PATH']}"
    return variables


@pytest.fixture
def reader(runner, tmp_path):
    shutil.copytree(
        ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("images", "__*")
    )
    made = follow.Reader(tmp_path, runner)
    yield made
    made.close()


def tutorial(reader) -> None:
    """The tutorial's driver, mended, and its tests."""
    page = (ROOT / "docs/tutorial/ring-bug.md").read_text(encoding="utf-8")
    for block in follow.blocks(follow.hurried(page)):
        if saved := follow.SAVE.search(block.before):
            reader.saves(saved[1], block.text)
        elif changed := follow.CHANGE.search(block.before):
            reader.changes(changed[1], changed[2], block.text)


@pytest.mark.parametrize("name", ["github-actions", "fuzz-overnight"])
def test_the_steps_of_a_workflow_run(name, reader) -> None:
    tutorial(reader)
    for step in steps(name):
        command = step.get("run", "")
        if not command or command.startswith("pip install"):
            continue
        command = re.sub(r"\$\{\{ [\w.]+ \}\}", "7", follow.hurried(command))
        told = reader.types(command)
        assert reader.types("echo $?") == "0\n", f"{command}\n{told}"


def test_what_was_found_is_played_on_every_push(reader) -> None:
    page = (ROOT / "docs/tutorial/ring-bug.md").read_text(encoding="utf-8")
    saved = [one for one in follow.blocks(page) if follow.SAVE.search(one.before)]
    reader.saves("mine.py", saved[0].text)
    assert "1 failures" in reader.types(
        "xenpv hunt blk-backend mine.py:Backend --seconds 1.5 --replays regressions"
    )
    (block,) = (one for one in follow.blocks(text("github-actions")) if one.language == "python")
    reader.saves("test_found.py", block.text)
    told = reader.types("python -m pytest -q test_found.py")
    assert "1 failed" in told
    assert "lost wake-up" in told
    tutorial(reader)
    assert "1 passed" in reader.types("python -m pytest -q test_found.py")


def test_a_night_is_as_the_page_says(reader) -> None:
    page = re.sub(r"--examples \d+", "--examples 40", follow.hurried(text("fuzz-overnight")))
    assert follow.follow(page, reader, installs=False)
