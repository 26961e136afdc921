"""The page's file: template, style, script and data in one, which loads nothing.

The policy that the page gives itself (Content-Security-Policy) names its one style and one
script by their hashes; so whatever a guest's name or a packet smuggles into the markup would
not run, and nothing is fetched.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files
from typing import Any, Final

from xenpv.view.page.columns import printable, printable_lines, script_json

ROOM: Final = files("xenpv.view.page")
# In the order in which they are read: each uses those before it.
SCRIPTS: Final = (
    "columns", "words", "slots", "tape", "cursor", "list", "lanes", "palette", "surface",
    "timeline", "pointer", "overview", "events", "rings", "store", "packets", "keys", "main",
)  # fmt: skip
KINDS: Final = (
    ("DELIVER", "a task runs"),
    ("SEND", "event channel sends"),
    ("PUBLISH", "ring: slots published"),
    ("STORE", "store: request answered"),
    ("CHANGE", "store: node changed"),
    ("FRAME", "frame on a bridge"),
    ("GRANT", "grant operation"),
    ("TIMER", "timer"),
    ("NOTE", "note"),
    ("DOMAIN", "domain comes or goes"),
    ("DRAW", "choice by the seed"),
    ("OUTSIDE", "input from outside"),
)
SLOTS: Final = (
    ("empty", "nothing was published here yet"),
    ("unconsumed", "a request that the backend has not taken"),
    ("in flight", "a request that the backend has taken, or may have, without a response"),
    ("answered", "a response that the frontend has not taken"),
    ("done", "a response that the frontend has taken, or may have"),
)
GLOSSARY: Final = (
    ("event", "one step of the run, in the exact order of all; its number is its moment"),
    ("virtual time", "the model's clock: it stands still while something can happen, then jumps"),
    ("domain", "a virtual machine; d0 is the control domain, which serves the others' devices"),
    ("frontend, backend", "the two ends of a device: a guest's driver, and who serves it"),
    ("ring", "a page of memory that both ends share: requests go one way, responses the other"),
    ("event channel", "how one domain wakes another; port is the number of its end"),
    (
        "store",
        "xenstore, a tree of small values, by which the two ends of a device find each other",
    ),
    ("vbd, vif", "a disk and a network interface; blkif and netif are the layouts of their rings"),
    ("bridge, port", "a network switch in the control domain, and what is plugged into it"),
    ("task", "what the loop runs for a domain: an event's handler, a timer, a watch"),
)
HELP: Final = (
    (("←", "→"), "one event back, on"),
    (("Shift+←", "Shift+→"), "the event before, after in the selected lane"),
    (("Home", "End"), "first, last event"),
    (("+", "-"), "zoom the timeline in, out about the chosen event"),
    (("0",), "the whole run"),
    (("[", "]"), "move the timeline left, right"),
    (("Tab",), "to the next list; ↑ ↓ PgUp PgDn move in it, Enter opens, closes or jumps"),
    (("/",), "search; Enter and Shift+Enter or n and N find the next, the previous"),
    (("t",), "light or dark colours"),
    (("?",), "these keys; Esc closes"),
)


def page_of(
    tape: Mapping[str, Any], found: Mapping[str, Any] | None, *, title: str, repeat: str
) -> str:
    """The page of a tape's document and a run's, the one of `xenpv run --json`, if there is one.

    ModuleNotFoundError where Jinja2 is not installed.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        shown=printable, lines=printable_lines, counted=counted, grouped=grouped, done=done,
        seconds=seconds,
    )  # fmt: skip
    style = _read("page.css")
    script = _script()
    template = environment.from_string(_read("page.html.j2"))
    return template.render(
        policy=policy(style, script),
        style=Markup(style),  # noqa: S704 - ours
        script=Markup(script),  # noqa: S704 - ours
        data=Markup(script_json(tape)),  # noqa: S704 - script_json escapes what ends a script
        title=printable(title),
        found=found,
        closing=closing(found, tape),
        failures=[] if found is None else found["failures"],
        repeat=repeat,
        count=tape["events"]["count"],
        lost=tape["lost"],
        rings=bool(tape["rings"]),
        kinds=KINDS,
        slots=SLOTS,
        help=HELP,
        glossary=GLOSSARY,
    )


def _read(name: str) -> str:
    return ROOM.joinpath(name).read_text(encoding="utf-8")


def _script() -> str:
    """The scripts as one, which adds nothing to the window but what main.js does."""
    parts = (_read(f"js/{name}.js") for name in SCRIPTS)
    return f"'use strict';\n{{\n{''.join(parts)}}}\n"


def policy(style: str, script: str) -> str:
    """Content-Security-Policy: nothing but this style and this script, and no markup from text."""
    return "; ".join((
        "default-src 'none'",
        f"style-src '{_hash(style)}'",
        f"script-src '{_hash(script)}'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ))  # fmt: skip


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(sha256(text.encode()).digest()).decode("ascii")


def closing(found: Mapping[str, Any] | None, tape: Mapping[str, Any]) -> str:
    """The run in one line."""
    events = counted(tape["events"]["count"], "event")
    if found is None:
        return events
    devices = [device for guest in found["guests"] for device in guest["devices"]]
    used = [device for device in devices if not device["idle"]]
    verified = sum(device["verified"] for device in used)
    return (
        f"{counted(len(found['guests']), 'guest')}, {verified} of {counted(len(used), 'device')} "
        f"connected and verified, {events} in {seconds(found['virtual_ns'])} of virtual time"
    )


def done(device: Mapping[str, Any]) -> str:
    """What a run did with a device, as the report has it, without rates."""
    if device["idle"]:
        return printable(device["idle"])
    if device["kind"] == "vbd":
        parts = [f"{size(device['bytes_read'])} read"]
        if device["bytes_written"]:
            parts.append(f"{size(device['bytes_written'])} written and restored")
        elif device["readonly"]:
            parts.append("read-only")
        parts.append(printable(device["image"]))
    else:
        parts = [
            f"{device['mac']} on {printable(device['bridge'])}",
            counted(device["queues"], "queue"),
            f"{device['pings_answered']} of {counted(device['pings_sent'], 'ping')} answered",
            f"{counted(device['frames_sent'], 'frame')} out, {device['frames_received']} in",
        ]
    return ", ".join(parts)


def size(count: int) -> str:
    """MiB where it is one."""
    return f"{count / (1 << 20):.1f} MiB" if count >= 1 << 20 else counted(count, "byte")


def counted(count: int, noun: str) -> str:
    return f"{grouped(count)} {noun}{'' if count == 1 else 's'}"


def grouped(count: int) -> str:
    """12345 as 12,345."""
    return f"{count:,}"


def seconds(ns: int) -> str:
    """Virtual ns as seconds, exact."""
    return f"{ns // 10**9:,}.{ns % 10**9:09d} s"


def missing() -> str:
    """What to do where Jinja2 is not installed; "" where it is."""
    from importlib.util import find_spec

    return "" if find_spec("jinja2") else "needs Jinja2: pip install 'xenpv[report]'"
