"""The pages, built once for all tests that look at them."""

from __future__ import annotations

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


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages; a warning of Sphinx is a failure, as it is for `make docs`."""
    out = tmp_path_factory.mktemp("docs")
    arguments = ["-W", "--keep-going", "-q", "-d", str(out / "doctrees"), "docs", str(out / "html")]
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode or done.stderr:
        pytest.fail(done.stderr, pytrace=False)
    return out / "html"
