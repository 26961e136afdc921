"""The sdist and the wheel: what is in them, and that each is whole by itself."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from configparser import ConfigParser
from email import message_from_bytes
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.package.conftest import ROOT, Environment

pytestmark = pytest.mark.package

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION = PROJECT["project"]["version"]
INFO = f"xenpv-{VERSION}.dist-info"
BUILT = {"xenpv/abi/_kernel.abi3.so", "xenpv/bench/_limit.abi3.so"}


def of_git() -> set[str]:
    """Every file that the project keeps."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


def of_wheel(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


def read(wheel: Path, name: str) -> bytes:
    with zipfile.ZipFile(wheel) as file:
        return file.read(name)


def test_the_wheels_name_says_which_pythons_take_it(wheel):
    platform = sysconfig.get_platform().replace("-", "_")
    assert wheel.name == f"xenpv-{VERSION}-cp311-abi3-{platform}.whl"
    tags = message_from_bytes(read(wheel, f"{INFO}/WHEEL"))
    assert tags["Tag"] == f"cp311-abi3-{platform}"
    assert tags["Root-Is-Purelib"] == "false"


def test_the_wheel_has_all_of_the_package_and_nothing_else(wheel):
    sources = {
        name for name in of_git() if name.startswith(("xenpv/", "_xenpv")) and "/." not in name
    }
    names = of_wheel(wheel)
    inside = {name for name in names if not name.startswith(f"{INFO}/")}
    assert inside - BUILT == sources
    assert inside - sources == BUILT
    assert "xenpv/py.typed" in inside
    assert {name.removeprefix(f"{INFO}/") for name in names - inside} == {
        "METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt",
    }  # fmt: skip
    assert read(wheel, f"{INFO}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_the_extensions_are_for_the_stable_abi(wheel):
    # A name that the limited API does not have would be undefined in a later Python.
    for name in BUILT:
        assert b"PyInit_" in read(wheel, name)
        assert not fnmatch(name, "*.cpython-*")


def test_the_metadata_is_the_projects(wheel):
    told = message_from_bytes(read(wheel, f"{INFO}/METADATA"))
    assert told["Name"] == "xenpv"
    assert told["Version"] == VERSION
    assert told["License-Expression"] == "BSD-2-Clause"
    assert told["Requires-Python"] == ">=3.11"
    assert told["Description-Content-Type"] == "text/markdown"
    assert told.get_payload() == (ROOT / "README.md").read_text()
    assert set(told.get_all("Classifier")) == set(PROJECT["project"]["classifiers"])
    needed = {line.split(">")[0] for line in told.get_all("Requires-Dist") if "extra" not in line}
    assert needed == {"attrs", "cffi", "hypothesis", "lark", "pytest"}


def test_the_entry_points_are_the_projects(wheel):
    told = ConfigParser()
    told.read_string(read(wheel, f"{INFO}/entry_points.txt").decode())
    wanted = dict(PROJECT["project"]["entry-points"])
    wanted["console_scripts"] = PROJECT["project"]["scripts"]
    assert {section: dict(told[section]) for section in told.sections()} == wanted


def test_the_sdist_has_every_file_of_the_project(sdist):
    with tarfile.open(sdist) as file:
        members = [member for member in file.getmembers() if member.isfile()]
    names = {member.name.removeprefix(f"xenpv-{VERSION}/") for member in members}
    assert of_git() <= names
    made = {name for name in names - of_git() if not name.startswith("xenpv.egg-info/")}
    assert made == {"PKG-INFO", "setup.cfg"}
    # A distribution runs it, as `make` does the tests.
    modes = {member.name.removeprefix(f"xenpv-{VERSION}/"): member.mode for member in members}
    assert modes[".ci/run"] & 0o111


def test_the_sdist_builds_to_the_same_wheel(sdist, wheel, tmp_path):
    fresh = Environment(tmp_path / "venv", sys.executable)
    command = [fresh.directory / "bin" / "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, sdist]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (again,) = tmp_path.glob("*.whl")
    assert again.name == wheel.name
    assert of_wheel(again) == of_wheel(wheel)


def test_the_tests_are_found_in_the_unpacked_sdist(sdist, tmp_path):
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path, filter="data")
    where = tmp_path / f"xenpv-{VERSION}"
    # Its C kernel is the one of this environment: what is asked is whether the tests are whole.
    for name in BUILT:
        (where / name).symlink_to(ROOT / name)
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
        "tests/abi/test_checksum.py", "tests/test_layers.py", "tests/test_examples.py", "--co",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
