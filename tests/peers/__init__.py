"""Real programs as oracles: how a test asks for one.

`need` is called first in every test marked `peers`. Without XENPV_REQUIRE_PEERS a missing
program skips the test with a line that names the Debian package; with it, the test fails.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


def need(program: str, package: str) -> str:
    """Path of a program (searched in PATH and sbin) or of a file given by absolute path."""
    if program.startswith("/"):
        found = program if Path(program).exists() else None
    else:
        search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
        found = shutil.which(program, path=search)
    if found is not None:
        return found
    line = f"{program} is missing: apt-get install {package}"
    if os.environ.get("XENPV_REQUIRE_PEERS"):
        pytest.fail(line)
    pytest.skip(line)
