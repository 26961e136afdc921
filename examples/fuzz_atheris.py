# ruff: noqa: INP001 - a script, in no package
"""A driver for fuzzers: bytes become what a hostile end does (docs/howto/fuzzing.md).

    python examples/fuzz_atheris.py FILE...          run inputs again, one by one
    py-afl-fuzz -i corpus -o found -- python examples/fuzz_atheris.py -      AFL++: from stdin
    python examples/fuzz_atheris.py --atheris corpus/        libFuzzer, by atheris

`XENPV_TARGET` names the target: blk-backend, net-backend, blk-frontend, net-frontend, store or
xenbus. Whatever is raised is a finding.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

TARGET = os.environ.get("XENPV_TARGET", "blk-backend")


def test_one_input(data: bytes) -> None:
    """One example."""
    from xenpv.testing import fuzz_one

    fuzz_one(data, TARGET)


def main(arguments: list[str]) -> int:
    """0: nothing was found."""
    if arguments[:1] == ["--atheris"]:
        import atheris  # pip install atheris

        with atheris.instrument_imports(include=["xenpv"]):
            from xenpv.testing import fuzz_one  # noqa: F401 - imported here to be instrumented
        atheris.Setup([sys.argv[0], *arguments[1:]], test_one_input)
        atheris.Fuzz()
        return 0
    for name in arguments or ["-"]:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        test_one_input(data)
        print(f"{name}: {len(data)} bytes over {TARGET}: nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
