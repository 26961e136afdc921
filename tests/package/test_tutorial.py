"""The tutorial, followed to the letter from the wheel, in an empty environment."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.package.conftest import DIST, ROOT

pytestmark = pytest.mark.package


def test_the_tutorial_finds_its_bug_in_less_than_ten_minutes(wheel, tmp_path):
    assert wheel.is_file()
    script = ROOT / "docs" / "tutorial" / "follow.py"
    command = [sys.executable, script, "--wheels", DIST]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (seconds,) = re.findall(r"([\d.]+) s in all", done.stdout)
    print(done.stdout)
    assert float(seconds) < 600
