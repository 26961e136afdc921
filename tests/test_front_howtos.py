"""How-tos whose blocks build on each other: followed from their top to their end.

docs/howto/store-socket.md, docs/howto/scapy.md, docs/howto/disk-image.md; and what a runner reads in
docs/howto/github-actions.md and docs/howto/fuzz-overnight.md, whose commands tests/package runs.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.peers import need
from tests.test_tutorial import follow

ROOT = Path(__file__).parents[1]
HOWTO = ROOT / "docs" / "howto"
NEEDS = {
    "store-socket": [("xenstore-ls", "xenstore-utils")],
    "disk-image": [("sfdisk", "fdisk"), ("mkfs.ext4", "e2fsprogs"), ("qemu-nbd", "qemu-utils")],
    "scapy": [],
}


def text(name: str) -> str:
    return (HOWTO / f"{name}.md").read_text(encoding="utf-8")


@pytest.fixture
def reader(tmp_path):
    shutil.copytree(
        ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("images", "__*")
    )
    made = follow.Reader(tmp_path, follow.environment(None))
    yield made
    made.close()


@pytest.mark.peers
@pytest.mark.parametrize("name", NEEDS)
def test_all_appears_as_the_page_says(name, reader) -> None:
    for program, package in NEEDS[name]:
        need(program, package)
    assert follow.follow(text(name), reader, installs=False)


# The workflows of GitHub Actions


def workflow(name: str) -> dict:
    (block,) = (one for one in follow.blocks(text(name)) if one.language == "yaml")
    return yaml.safe_load(block.text)


def steps(name: str) -> list[dict]:
    (job,) = workflow(name)["jobs"].values()
    return job["steps"]


@pytest.mark.parametrize("name", ["github-actions", "fuzz-overnight"])
def test_a_workflow_has_what_a_runner_asks_for(name) -> None:
    document = workflow(name)
    assert document[True], "`on`, which YAML reads as true"
    (job,) = document["jobs"].values()
    assert job["runs-on"].startswith("ubuntu-")
    assert job["timeout-minutes"] <= 360  # a job of GitHub's ends then
    for step in steps(name):
        assert ("run" in step) != ("uses" in step)
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1"))
    kept = steps(name)[-1]
    assert kept["if"] == "failure()"
    runs = "\n".join(step.get("run", "") for step in steps(name))
    assert f"--replays {kept['with']['path']}" in runs


@pytest.mark.parametrize("name", [*NEEDS, "github-actions", "fuzz-overnight"])
def test_links_of_the_page_lead_somewhere(name) -> None:
    for target in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text(name)):
        assert (HOWTO / target).is_file(), target


def test_the_line_of_cron_is_one() -> None:
    (line,) = re.findall(r"^(\S+ \S+ \S+ \S+ \S+)  cd /srv", text("fuzz-overnight"), re.MULTILINE)
    assert len(line.split()) == 5
    assert r"$(date +\%j)" in text("fuzz-overnight")  # a bare % ends a command of cron
