"""The commands, their options and what they exit with, from the parser of the command line."""

from __future__ import annotations

import argparse
import re
from typing import Any

from markdown import code, plain, table

from xenpv import cli
from xenpv.host import xlkeys


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (
        one for one in cli.parser()._actions if isinstance(one, argparse._SubParsersAction)
    )
    return dict(action.choices)


def commands() -> str:
    """A table of them, with the line that `xenpv --help` has for each."""
    (action,) = (
        one for one in cli.parser()._actions if isinstance(one, argparse._SubParsersAction)
    )
    rows = [
        [f"[`xenpv {one.dest}`](#xenpv-{one.dest})", plain(one.help or "")]
        for one in action._choices_actions
    ]
    return table(["command", ""], rows)


def in_full() -> str:
    """A section for each."""
    return "\n".join(f"## xenpv {name}\n\n{command(name)}" for name in subcommands())


def command(name: str) -> str:
    """Its usage, what it says of itself, and its options."""
    parser = subcommands()[name]
    out = [f"```text\n{usage(parser)}\n```\n"]
    if parser.description:
        out.append(plain(" ".join(parser.description.split())) + "\n")
    rows = [
        [names(one), default(one), plain(told(one))]
        for one in parser._actions
        if not isinstance(one, argparse._HelpAction)
    ]
    out.append(table(["argument", "default", ""], rows))
    if parser.epilog:
        out.append(f"```text\n{parser.epilog.strip()}\n```\n")
    return "\n".join(out)


def usage(parser: argparse.ArgumentParser) -> str:
    formatter = argparse.HelpFormatter(prog=parser.prog, width=88)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    return formatter.format_help().strip()


def names(action: argparse.Action) -> str:
    value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    if action.choices is not None and not action.metavar:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return code(f"{value}...") if action.nargs in ("*", "+") else code(str(value))
    spelled = f"{', '.join(action.option_strings)} {value if action.nargs != 0 else ''}"
    return code(spelled.strip())


def default(action: argparse.Action) -> str:
    """What it is without: said in brackets at the end of its help, or the parser's."""
    said = re.search(r"\((\d[^()]*)\)$", action.help or "")
    if said:
        return plain(said[1])
    if action.default in (None, False, [], "", argparse.SUPPRESS):
        return ""
    return code(str(action.default))


def told(action: argparse.Action) -> str:
    text = (action.help or "") % {"default": action.default, "prog": "xenpv"}
    said = re.search(r"^(.*?),? \(\d[^()]*\)$", text, re.DOTALL)
    return " ".join((said[1] if said else text).split())


def keys(which: str) -> str:
    """The keys of xl.cfg of one kind."""
    found: Any = getattr(xlkeys, which)
    return ", ".join(code(one) for one in found) + ".\n"
