"""`python -m xenpv.abi [--json]`: every layout and constant that this build has."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import Final, NoReturn

from xenpv.abi import layout

BAD_INPUT: Final = 2
INTERRUPTED: Final = 128 + signal.SIGINT


class Parser(argparse.ArgumentParser):
    """Bad arguments get one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: list[str] | None = None) -> int:
    """Print the table; 0 whatever a reader does with it, 2 if it cannot be written."""
    parser = Parser(
        prog="python -m xenpv.abi",
        description="Sizes, offsets and constants of Xen's public headers, as compiled.",
        epilog="example: python -m xenpv.abi | grep -A 9 blkif_request:",
        allow_abbrev=False,
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
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        # The interpreter must not flush once more. A reader (`| head`) may have seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0
        why = f"what was to be printed cannot be written: {error.strerror}"
        print(f"{parser.prog}: {why}", file=sys.stderr)
        return BAD_INPUT
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
