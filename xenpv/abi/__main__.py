"""`python -m xenpv.abi [--json]`: every layout and constant that this build has."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator

from xenpv.abi import layout


def main(argv: list[str] | None = None) -> int:
    """Print the table; 0 whatever a reader does with it."""
    parser = argparse.ArgumentParser(
        prog="python -m xenpv.abi",
        description="Sizes, offsets and constants of Xen's public headers, as compiled.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, stable for scripts")
    arguments = parser.parse_args(argv)
    if arguments.json:
        table = {"structs": layout.structs(), "constants": layout.constants()}
        lines = iter([json.dumps(table, indent=1)])
    else:
        lines = text()
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; the interpreter must not flush once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def text() -> Iterator[str]:
    """Lines: structs with offset and size of each field, then constants."""
    for name, described in layout.structs().items():
        yield f"{name}: {described['size']} bytes{newer(name)}"
        for field, (offset, size) in described["fields"].items():
            yield f"  {offset:5} {size:5}  {field}"
        yield ""
    for name, value in layout.constants().items():
        yield f"{name} = {value}" + (f" ({value:#x})" if value > 9 else "") + newer(name)


def newer(name: str) -> str:
    header = layout.NEWER_THAN_4_17.get(name)
    return f"; newer than 4.17: {header}" if header else ""


if __name__ == "__main__":
    raise SystemExit(main())
