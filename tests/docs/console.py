"""A block of `$ command` lines with their output, run as somebody would who copies it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import attrs

from tests.docs.fences import ROOT
from tests.peers import need

SECONDS_MAX = 100
# command: the Debian package that has it
PACKAGES = {
    "gcc": "gcc",
    "mcopy": "mtools",
    "qemu-img": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "tshark": "tshark",
    "xenstore-ls": "xenstore-utils",
    "xenstore-read": "xenstore-utils",
    "xenstore-write": "xenstore-utils",
}


@attrs.frozen
class Command:
    line: str
    output: tuple[str, ...]  # lines; one of `...` stands for any number of others


def commands(text: str) -> list[Command]:
    """Those of a block; lines that end in a backslash go on in the next."""
    found: list[Command] = []
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("$ "):
            whole = line[2:]
            while whole.endswith("\\"):
                whole += "\n" + next(lines)
            found.append(Command(whole, ()))
        elif not found:
            raise AssertionError(f"expected a line that begins with '$ ', not {line!r}")
        else:
            found[-1] = attrs.evolve(found[-1], output=(*found[-1].output, line))
    return found


def run(text: str, directory: Path) -> None:
    """One shell for the block, in a directory with examples/; each command's output and status."""
    wanted = commands(text)
    (directory / "examples").exists() or shutil.copytree(
        ROOT / "examples",
        directory / "examples",
        ignore=shutil.ignore_patterns("images", "__pycache__"),
    )
    here = [command for command in wanted if not _checked_otherwise(command.line)]
    for command in here:
        word = command.line.split()[0]
        if word in PACKAGES:
            need(word, PACKAGES[word])
    script = "".join(f"{command.line}\necho; echo ': end of it' $?\n" for command in here)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash"], input=script, cwd=directory, env=os.environ | {"PATH": path, "COLUMNS": "100"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS_MAX, check=False,
    )  # fmt: skip
    ends = list(re.finditer(r"\n?^: end of it (\d+)\n", done.stdout, re.MULTILINE))
    assert len(ends) == len(here), done.stdout
    start = 0
    for command, end in zip(here, ends, strict=True):
        said = done.stdout[start : end.start()]
        start = end.end()
        _compare(command, said, int(end[1]))


def _compare(command: Command, said: str, status: int) -> None:
    """What is shown is there, in its order. A command that fails is shown with what it says."""
    lines = iter(said.splitlines())
    for line in command.output:
        if line.strip() in ("", "..."):
            continue
        assert any(line.rstrip() in one for one in lines), (
            f"{command.line}: {line!r} not in\n{said}"
        )
    assert status == 0 or any(command.output), f"{command.line}: exit status {status}\n{said}"


def _checked_otherwise(line: str) -> bool:
    """Whether it is of those that change the machine, which are compared with what there is."""
    for begin, check in OTHERWISE.items():
        if line.startswith(begin):
            check(line)
            return True
    return False


def _of_make(line: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in line.split("#", maxsplit=1)[0].split()[1:]:
        assert "=" in word or re.search(rf"^{word}:", makefile, re.MULTILINE), line


def _of_pip(line: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for named in re.findall(r"\[([\w,]+)\]", line):
        assert set(named.split(",")) <= {*extras}, line


def _of_apt(line: str) -> None:
    there = (ROOT / ".ci/run").read_text().split()
    for word in line.split("install", 1)[1].replace("\\", " ").split():
        assert word.startswith("-") or word in there, word


OTHERWISE: dict[str, Callable[[str], None]] = {
    "make ": _of_make,
    "pip install": _of_pip,
    "python -m pip install": _of_pip,
    "apt-get install": _of_apt,
    "sudo apt-get install": _of_apt,
}
