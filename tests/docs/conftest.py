"""The pages, built once for all tests that look at them."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.fences import ROOT

# Sphinx in a process where whoever looks up a host or connects to one ends it.
OFFLINE = """
import os, sys
from sphinx.cmd.build import main

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        print("network:", event, arguments[-1], file=sys.stderr, flush=True)
        os._exit(9)

sys.addaudithook(refuse)
sys.exit(main(sys.argv[1:]))
"""


BUILD = ROOT / "build" / "docs-tested"


@pytest.fixture(scope="session")
def built() -> Path:
    """The pages; a warning of Sphinx is a failure, as it is for `make docs`.

    What was read of pages that have not changed since is used again, and all are written. Of
    several processes of one run the first builds, and the others wait for it.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", "")
    with (BUILD / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if not run or lock.read() != run:
            _build()
            lock.truncate(0)
            lock.write(run)
    return BUILD / "html"


def _build() -> None:
    shutil.rmtree(BUILD / "html", ignore_errors=True)
    arguments = ["-W", "--keep-going", "-q", "-a", "-d", str(BUILD / "doctrees"), "docs"]
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *arguments, str(BUILD / "html")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode or done.stderr:
        # A page that was read is not warned of again.
        shutil.rmtree(BUILD / "doctrees", ignore_errors=True)
        pytest.fail(done.stderr, pytrace=False)
