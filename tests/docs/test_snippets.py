"""Whatever a page shows is run: each fenced block of docs/ and README.md, by its language.

python   runs by itself: a fresh namespace, an empty directory, the root of the repository on
         the path. One that defines tests with fixtures is run by pytest.
console  `$ command` lines in an empty directory with examples/; other lines are of the output.
cfg      an xl.cfg file that is understood without a warning.
c        compiles, with the headers of C ends.
json, yaml, toml  are that.
text     is shown, and nobody can run it. Every other language is refused.

What needs more than that is run by a test of its own, named in ELSEWHERE.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs import console
from tests.docs.fences import ROOT, Fence, directives, fences, pages
from xenpv.host import config
from xenpv.testing.cends import INCLUDE

# (page, how the block's first line begins; "" for all of the page): the test that runs it
ELSEWHERE = {
    ("docs/howto/pytest.md", ""): "tests/test_examples.py::test_the_python_of_the_pytest_page_runs",
    ("docs/reference/hypervisor.md", ""): "tests/test_examples.py::test_the_python_of_the_hypervisor_page_runs_from_its_top_to_its_end",
    ("docs/reference/store.md", "import pyxs"): "tests/peers/test_store_clients.py::test_what_the_store_page_shows_of_the_socket",
    ("docs/reference/store.md", "$ xenpv store --socket xs"): "tests/peers/test_store_clients.py::test_what_the_store_page_shows_of_the_socket",
    ("docs/reference/store.md", "$ export XENSTORED_PATH=xs"): "tests/peers/test_store_clients.py::test_what_the_store_page_shows_of_the_socket",
    **{
        (f"docs/gallery/{path.name}", ""): "tests/test_gallery.py::test_it_prints_what_the_page_says"
        for path in (ROOT / "docs" / "gallery").glob("*.md")
        if path.stem != "index"
    },
    ("docs/tutorial/ring-bug.md", ""): "tests/test_tutorial.py::test_all_appears_as_the_page_says",
    ("docs/howto/store-socket.md", ""): "tests/test_front_howtos.py::test_all_appears_as_the_page_says",
    ("docs/howto/github-actions.md", ""): "tests/package/test_workflows.py::test_the_steps_of_a_workflow_run",
    ("docs/howto/fuzz-overnight.md", ""): "tests/package/test_workflows.py::test_a_night_is_as_the_page_says",
    ("docs/howto/scapy.md", ""): "tests/test_front_howtos.py::test_all_appears_as_the_page_says",
    ("docs/howto/disk-image.md", ""): "tests/test_front_howtos.py::test_all_appears_as_the_page_says",
}  # fmt: skip
# Directives that show code which nobody here would run.
REFUSED = {"code-block", "code", "sourcecode", "parsed-literal", "code-cell"}

ALL = [fence for page in pages() for fence in fences(page)]


def elsewhere(fence: Fence) -> str | None:
    """The test that runs it, if it is not one of these."""
    for (page, begin), test in ELSEWHERE.items():
        if fence.page == page and fence.first.startswith(begin):
            return test
    return None


HERE = [fence for fence in ALL if fence.language != "text" and elsewhere(fence) is None]


def python(fence: Fence, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = ast.parse(fence.text)
    tests = [
        one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name[:5] == "test_"
    ]
    path = directory / ("test_snippet.py" if tests else "snippet.py")
    path.write_text(fence.text)  # so that errors have a line of it
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    if any(test.name not in called for test in tests):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", path.name]
        done = subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(directory)
    exec(compile(fence.text, str(path), "exec"), {"__name__": "snippet"})  # noqa: S102 - our own page


def shell(fence: Fence, directory: Path, _patch: pytest.MonkeyPatch) -> None:
    console.run(fence.text, directory)


def cfg(fence: Fence, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)
    assert config.parse(fence.text, str(fence)).warnings == ()


def c(fence: Fence, directory: Path, _patch: pytest.MonkeyPatch) -> None:
    (directory / "snippet.c").write_text(fence.text)
    headers = [f"-I{INCLUDE}"]
    if "#include" not in fence.text:
        headers += ["-include", "xenpv_end.h", "-include", "xenpv_io.h"]
    command = ["cc", "-fsyntax-only", "-Wall", "-Werror", *headers, "snippet.c"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _reads(load: Callable[[str], Any]) -> Callable[[Fence, Path, pytest.MonkeyPatch], None]:
    def read(fence: Fence, _directory: Path, _patch: pytest.MonkeyPatch) -> None:
        assert load(fence.text)

    return read


RUN: dict[str, Callable[[Fence, Path, pytest.MonkeyPatch], None]] = {
    "python": python,
    "console": shell,
    "cfg": cfg,
    "c": c,
    "json": _reads(json.loads),
    "yaml": _reads(yaml.safe_load),
    "toml": _reads(tomllib.loads),
}


@pytest.mark.parametrize("fence", HERE, ids=str)
def test_the_block_does_what_it_says(
    fence: Fence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fence.language in RUN:
        RUN[fence.language](fence, tmp_path, monkeypatch)


@pytest.mark.parametrize("page", pages())
def test_every_block_says_what_it_is(page: str) -> None:
    unknown = [str(fence) for fence in fences(page) if fence.language not in {*RUN, "text"}]
    assert unknown == [], f"expected one of {', '.join(RUN)}, text"
    assert not REFUSED & {*directives(page)}


@pytest.mark.parametrize(("of", "test"), ELSEWHERE.items(), ids=str)
def test_what_is_run_elsewhere_is(of: tuple[str, str], test: str) -> None:
    page, begin = of
    assert [one for one in ALL if one.page == page and one.first.startswith(begin)], "stale row"
    path, name = test.split("::")
    text = (ROOT / path).read_text(encoding="utf-8")
    body = re.search(rf"^def {name}\(.*?(?=^def |^@|\Z)", text, re.MULTILINE | re.DOTALL)
    assert body is not None, test
    assert page in body[0] or page in text or str(Path(page).parent) in text
