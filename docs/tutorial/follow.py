# ruff: noqa: S607 - a script, in no package, that types what a page says
"""Follow a tutorial to the letter: write its files, type its commands, compare what appears.

    python docs/tutorial/follow.py --wheels dist    as a reader would, in an empty environment
    python docs/tutorial/follow.py --here           with this Python's xenpv, nothing is installed

These are read from the page: "Save this as `NAME`:" or "In `NAME`, `METHOD` becomes:" before a
block, blocks of a console, whose commands stand behind "$ ", and other blocks of Python, which
run by themselves. A block of text is for the eyes. A line "..." of an output stands for any
lines, "..." in a line for any words, and a count of examples for any count. What pip says of this
machine's indexes is nobody's business. Exit status 1, with the line of the page, if something
else appears.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).with_name("ring-bug.md")
FENCE: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAVE: Final = re.compile(r"[Ss]ave\s+(?:this|it)\s+as\s+`([\w./]+)`[^`]*:\s*\Z")
CHANGE: Final = re.compile(r"In\s+`([\w.]+)`,\s+`(\w+)`\s+becomes:\s*\Z")
COUNT: Final = re.compile(r"\b\d+\\ examples$")  # of an escaped line
INSTALLS: Final = ("python3 -m venv", ". ring/bin/activate", "pip install")
NOTICES: Final = ("WARNING: ", "[notice]")
SECONDS_MAX: Final = 600.0


class Differs(Exception):  # noqa: N818 - what it says of the page
    """What appeared is not what the page says."""


@dataclass(frozen=True)
class Block:
    """One block of the page: its language, text and first line; what the page says before it."""

    language: str
    text: str
    line: int
    before: str


@dataclass(frozen=True)
class Command:
    """What a reader types, and what the page says that appears."""

    text: str
    output: tuple[str, ...]
    line: int


def blocks(page: str) -> Iterator[Block]:
    """In the order of the page."""
    for found in FENCE.finditer(page):
        line = page.count("\n", 0, found.start()) + 2
        yield Block(found[1], found[2], line, page[max(0, found.start() - 300) : found.start()])


def commands(block: Block) -> list[Command]:
    """The commands of a console block."""
    found: list[Command] = []
    for number, line in enumerate(block.text.splitlines(), block.line):
        if line.startswith("$ "):
            found.append(Command(line[2:], (), number))
        elif not found:
            raise Differs(f"line {number}: output before any command")
        else:
            last = found.pop()
            found.append(Command(last.text, (*last.output, line), last.line))
    return found


def pattern(output: Sequence[str]) -> re.Pattern[str]:
    """What matches an output as the page has it."""
    parts = []
    for line in output:
        if line == "...":
            parts.append(r"(?:.*\n)*?")
            continue
        words = re.escape(line).replace(r"\.\.\.", ".*")
        parts.append(COUNT.sub(lambda _: r"\d+\ examples", words) + r"\n")
    return re.compile("".join(parts))


class Reader:
    """Somebody with a shell in an empty directory."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self._shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def close(self) -> None:
        """The shell ends, and all that it started."""
        with self._shell as shell, suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGTERM)
            os.killpg(shell.pid, signal.SIGKILL)

    def leaves(self) -> None:
        """As `close`, but the shell ends by itself, and waits for what it started."""
        self._shell.communicate("exit\n", timeout=60)

    def types(self, command: str) -> str:
        """Type one command; what appears."""
        shell, mark = self._shell, "--- it is done ---"
        assert shell.stdin is not None
        assert shell.stdout is not None
        typed = f"{{ {command}\n}} </dev/null"
        shell.stdin.write(f"{typed}\n_status=$?; echo '{mark}'; (exit $_status)\n")
        shell.stdin.flush()
        lines: list[str] = []
        for line in shell.stdout:
            if line.rstrip("\n").endswith(mark):
                return "".join([*lines, line.removesuffix(f"{mark}\n")])
            lines.append(line)
        raise Differs(f"the shell ended in {command!r}")

    def saves(self, name: str, text: str) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def changes(self, name: str, method: str, text: str) -> None:
        """Put `text` in the place of a method."""
        path = self.directory / name
        source = path.read_text(encoding="utf-8")
        lines = source.splitlines(keepends=True)
        found = [
            node
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef) and node.name == method
        ]
        if len(found) != 1:
            raise Differs(f"{name} has {len(found)} methods {method}: expected one")
        start, end = found[0].lineno - 1, found[0].end_lineno
        self.saves(name, "".join([*lines[:start], text, *lines[end:]]))


def compare(command: Command, appeared: str) -> None:
    """Differs if that is not what the page says."""
    if command.text.startswith("pip install"):
        lines = appeared.splitlines(keepends=True)
        appeared = "".join(one for one in lines if one.strip() and not one.startswith(NOTICES))
    if pattern(command.output).fullmatch(appeared):
        return
    wanted = [f"{line}\n" for line in command.output]
    shown = "".join(
        difflib.unified_diff(wanted, appeared.splitlines(keepends=True), "the page", "appeared")
    )
    raise Differs(f"line {command.line}: $ {command.text}\n{shown}")


def hurried(page: str) -> str:
    """The page with short hunts."""
    return re.sub(r"(--seconds |\bseconds=)\d+", r"\g<1>1.5", page)


def follow(page: str, reader: Reader, *, installs: bool) -> dict[str, float]:
    """Do what the page says; seconds of each command. Differs."""
    seconds: dict[str, float] = {}
    for block in blocks(page):
        if saved := SAVE.search(block.before):
            reader.saves(saved[1], block.text)
        elif changed := CHANGE.search(block.before):
            reader.changes(changed[1], changed[2], block.text)
        elif block.language == "console":
            for command in commands(block):
                if not installs and command.text.startswith(INSTALLS):
                    continue
                began = time.monotonic()
                compare(command, reader.types(command.text))
                seconds[f"line {command.line}: {command.text}"] = time.monotonic() - began
        elif block.language == "python":
            reader.saves("snippet.py", block.text)
            told = reader.types("python snippet.py")
            if reader.types("echo $?; rm snippet.py") != "0\n":
                raise Differs(f"line {block.line}: a block fails\n{told}")
        elif block.language != "text":
            raise Differs(f"line {block.line}: the page does not say what to do with it")
    return seconds


def environment(wheels: Path | None) -> dict[str, str]:
    """What the reader's shell has: nothing of ours but where wheels are, or this Python's xenpv."""
    found = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    if wheels is None:
        found["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), found["PATH"]])
    else:
        links = [found.get("PIP_FIND_LINKS", ""), str(wheels.resolve())]
        found["PIP_FIND_LINKS"] = " ".join(one for one in links if one)
        here = str(Path(sys.executable).parent)
        found["PATH"] = os.pathsep.join(
            one for one in found["PATH"].split(os.pathsep) if one != here
        )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all appeared as the page says."""
    options = argparse.ArgumentParser(description="follow the tutorial to the letter")
    where = options.add_mutually_exclusive_group(required=True)
    where.add_argument("--wheels", type=Path, metavar="DIR", help="where xenpv's wheel is")
    where.add_argument("--here", action="store_true", help="with this Python's xenpv")
    options.add_argument("--page", type=Path, default=PAGE)
    chosen = options.parse_args(arguments)
    directory = Path(tempfile.mkdtemp(prefix="xenpv-tutorial-"))
    reader = Reader(directory, environment(chosen.wheels))
    try:
        began = time.monotonic()
        seconds = follow(chosen.page.read_text(encoding="utf-8"), reader, installs=not chosen.here)
        whole = time.monotonic() - began
    except Differs as error:
        print(f"{chosen.page.name}, {error}", file=sys.stderr)
        return 1
    finally:
        reader.close()
        shutil.rmtree(directory)
    for command, took in seconds.items():
        print(f"{took:6.1f} s  {command}")
    print(f"{whole:6.1f} s in all, without the reading")
    return 0 if whole < SECONDS_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
