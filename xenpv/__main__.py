"""The command `xenpv`, as `python -m xenpv` too. Ctrl-C gets its line also during the imports."""

from __future__ import annotations

import sys
from typing import Final

INTERRUPTED: Final = 130  # 128 + SIGINT, as in a shell


def main() -> int:
    """Run the command; its exit status."""
    try:
        from xenpv.cli import main as command

        return command()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
