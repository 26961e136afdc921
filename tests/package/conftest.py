"""What `make package` built, and an environment that it is installed in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"
# Other interpreters to try the wheel with: paths, separated as those of PATH are.
PYTHONS = [
    sys.executable,
    *filter(None, os.environ.get("XENPV_PYTHONS", "").split(os.pathsep)),
]


def only(pattern: str) -> Path:
    """The one file of that name in dist/."""
    found = sorted(DIST.glob(pattern))
    assert len(found) == 1, f"{pattern} in dist/: {found}: run `make package`"
    return found[0]


@pytest.fixture(scope="session")
def wheel() -> Path:
    return only("*.whl")


@pytest.fixture(scope="session")
def sdist() -> Path:
    return only("*.tar.gz")


class Environment:
    """A virtual environment; what runs in it finds its own programs and no others."""

    def __init__(self, directory: Path, python: str) -> None:
        self.directory = directory
        subprocess.run([python, "-m", "venv", directory], check=True)
        self.site = next(directory.glob("lib/python3.*/site-packages"))

    def install(self, *what: str | Path) -> None:
        """Install with pip, which may use a compiler."""
        command = [self.directory / "bin" / "pip", "install", "-q", *what]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def run(self, *command: str, where: Path, status: int = 0) -> str:
        """Standard output, and on failure of the test standard error beside it."""
        program = self.directory / "bin" / command[0]
        environment = {
            "PATH": str(self.directory / "bin"),
            "CC": "/nonexistent",
            "HOME": str(where),
            "TMPDIR": str(where),
        }
        done = subprocess.run(
            [program, *command[1:]],
            cwd=where, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout if status == 0 else done.stderr


@pytest.fixture(scope="session", params=PYTHONS)
def installed(request, tmp_path_factory, wheel) -> Environment:
    """The wheel and what it depends on, nothing else."""
    made = Environment(tmp_path_factory.mktemp("installed") / "venv", request.param)
    made.install(wheel)
    return made
