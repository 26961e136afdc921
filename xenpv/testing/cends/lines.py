"""Which line of a driver an address is of."""

from __future__ import annotations

import subprocess
from pathlib import Path

from xenpv.testing.ends.blame import Place


class Lines:
    """Of one library or program; addresses are offsets from where it is loaded.

    Without binutils' addr2line, or debug information, a place is the file and the address.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[int, Place] = {}

    def place(self, address: int) -> Place:
        found = self._known.get(address)
        if found is None:
            found = self._known[address] = self._look(address)
        return found

    def _look(self, address: int) -> Place:
        command = ["addr2line", "-f", "-e", str(self.path), f"{address:#x}"]
        try:
            done = subprocess.run(  # noqa: S603 - binutils on what we built
                command, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return Place(str(self.path), 0, f"address {address:#x}")
        function, _, where = done.stdout.strip().partition("\n")
        file, _, line = where.partition(" (discriminator")[0].rpartition(":")
        number = int(line) if line.isdigit() else 0
        return Place(file if file not in ("", "??") else str(self.path), number, function)

    def knows(self, address: int) -> bool:
        """Whether it is a line of somebody's."""
        return bool(self.place(address).line)
