"""Which line of a driver an address is of."""

from __future__ import annotations

import subprocess
import weakref
from pathlib import Path
from typing import IO

from xenpv.errors import ConfigError
from xenpv.testing.ends.blame import Place


class Lines:
    """Of one library or program; addresses are offsets from where it is loaded.

    binutils' addr2line is asked, which runs as long as this does: what is looked up while a
    driver is called costs it no time. ConfigError: it is not there. Where it says nothing, a
    place is the file and the address.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[int, Place] = {}
        try:
            process = subprocess.Popen(  # noqa: S603 - binutils on what we built
                ["addr2line", "-f", "-e", str(path)],  # noqa: S607 - wherever the user has it
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except OSError as error:
            raise ConfigError(f"addr2line: {error.strerror}: expected binutils") from error
        assert process.stdin is not None
        assert process.stdout is not None
        self._asked: IO[str] = process.stdin
        self._said: IO[str] = process.stdout
        weakref.finalize(self, _stop, process)

    def place(self, address: int) -> Place:
        found = self._known.get(address)
        if found is None:
            found = self._known[address] = self._look(address)
        return found

    def _look(self, address: int) -> Place:
        function, where = "", ""
        try:
            self._asked.write(f"{address:#x}\n")
            self._asked.flush()
            function, where = self._said.readline().strip(), self._said.readline().strip()
        except OSError:
            pass  # it is gone
        file, _, line = where.partition(" (discriminator")[0].rpartition(":")
        if not line.isdigit() or file in ("", "??"):
            return Place(str(self.path), 0, f"address {address:#x}")
        return Place(file, int(line), function)


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
