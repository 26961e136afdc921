"""What an installation, a fresh clone and the documents rely on."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import xenpv
from xenpv import errors
from xenpv.host import xlkeys

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKE = shutil.which("make")


def files():
    """Of the project, without what is made from them."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for path in map(Path, done.stdout.splitlines()) if (ROOT / path).is_file()]


def test_the_entry_points_are_there():
    scripts = PROJECT["project"]["scripts"]
    plugins = PROJECT["project"]["entry-points"]["pytest11"]
    for target in scripts.values():
        module, name = target.split(":")
        assert callable(getattr(importlib.import_module(module), name))
    for module in plugins.values():
        assert module in PROJECT["tool"]["setuptools"]["py-modules"]
        importlib.import_module(module)


def test_every_data_file_of_the_package_is_installed():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["xenpv"]
    data = [path for path in files() if path.parts[0] == "xenpv" and path.suffix != ".py"]
    assert data
    for path in data:
        inside = path.relative_to("xenpv").as_posix()
        assert any(fnmatch(inside, pattern) for pattern in patterns), path


# What a program that makes platforms has no need of; dis and threading come with attrs.
HEAVY = {
    "_xenpv_hypothesis", "argparse", "asyncio", "concurrent", "csv", "dataclasses", "datetime",
    "email", "greenlet", "hypothesis", "importlib.metadata", "ipaddress", "json", "lark", "logging",
    "multiprocessing", "pathlib", "pytest", "rich", "scapy", "select", "socket", "ssl",
    "subprocess", "tempfile", "urllib", "xenpv.bench", "xenpv.boot", "xenpv.cli", "xenpv.iface",
    "xenpv.migration", "xenpv.net", "xenpv.testing", "xenpv.vbd", "xenpv.vif", "xenpv.view",
    # What few platforms ever ask for.
    "xenpv.abi.pci", "xenpv.host.coredump", "xenpv.host.domsuspend", "xenpv.host.packet",
    "xenpv.store.conflict", "xenpv.store.control", "xenpv.store.snapshot", "xenpv.xen.domctl",
    "xenpv.xen.version",
}  # fmt: skip


def imported_by(statement):
    """Modules that a fresh interpreter has after a statement, without the editable install's own
    hook, which imports some before us (-S: no site, so the path is given).
    """
    script = f"import sys; sys.path[:0] = {sys.path!r}\n{statement}\nprint(*sys.modules)"
    command = [sys.executable, "-S", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_xenpv_imports_the_errors_alone():
    new = imported_by("import xenpv") - imported_by("import __future__, typing, errno")
    assert new == {"xenpv", "xenpv.errors"}


def test_what_makes_a_platform_imports_nothing_heavy():
    assert imported_by("from xenpv import Platform") & HEAVY == set()
    everything = imported_by("from xenpv import *")
    assert everything & HEAVY == set()
    assert {"xenpv.platform", "xenpv.host.image", "attr", "_cffi_backend"} <= everything


@pytest.mark.soak
def test_any_module_can_be_imported_first():
    modules = [
        ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        for path in files()
        if path.parts[0] == "xenpv" and path.suffix == ".py"
        and path.name not in {"__main__.py", "build.py"}
    ]  # fmt: skip
    # What is no part of xenpv is imported once, and each module in a child of its own.
    script = """
import attrs, _cffi_backend, hypothesis, lark, pytest
import os, sys
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        try:
            __import__(name)
        except BaseException as error:
            print(f"{name}: {error!r}", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
    command = [sys.executable, "-c", script, *modules]
    environment = os.environ | {"HYPOTHESIS_NO_PLUGINS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert len(modules) > 500
    assert done.stdout == ""


def test_public_names_are_found_where_they_are_defined():
    for name in xenpv.__all__:
        assert getattr(xenpv, name).__name__ == name
        assert name in dir(xenpv)
    assert set(xenpv.__all__) == {*xenpv._HOME, *(
        name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, Exception)
    )}  # fmt: skip


def test_the_version_is_the_projects():
    assert xenpv.__version__ == PROJECT["project"]["version"] == version("xenpv")
    assert importlib.import_module("xenpv").__version__ == xenpv.__version__
    with pytest.raises(AttributeError, match="'xenpv' has no attribute '__versio__'"):
        _ = xenpv.__versio__


def test_a_checkout_on_the_path_has_no_version(monkeypatch):
    def nowhere(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", nowhere)
    assert xenpv.__version__ == "0+unknown"


def test_no_other_file_says_the_version():
    number = re.compile(rf"(?<![\w.]){re.escape(PROJECT['project']['version'])}(?![\w.])")
    says = {
        path.as_posix()
        for path in files()
        if path.suffix in {".py", ".toml", ".md", ".cfg", ".in", ".h"}
        and path.parts[0] not in {"tests", "docs"}
        and number.search((ROOT / path).read_text())
    }
    # The changelog says which versions there were.
    assert says - {"CHANGELOG.md"} == {"pyproject.toml"}


def test_no_file_names_a_machines_paths_or_a_registry():
    hosts = ("py" + "pi.org", "python" + "hosted.org", "deb." + "debian.org", "npm" + "js")
    paths = re.compile(r"(?<![\w.$}])/(root|home|work|opt|Users)/\w")
    binary = {".img", ".pcapng", ".png"}
    for path in files():
        if path.suffix in binary:
            continue
        text = (ROOT / path).read_bytes().decode("utf-8", "replace")
        assert not any(host in text for host in hosts), path
        found = paths.search(text)
        assert not found, f"{path}: {found and found[0]}"


def test_links_in_the_documents_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if "://" not in link:
                assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_the_keys_page_has_every_key_that_is_read_or_said_to_come():
    text = (ROOT / "docs/reference/config.md").read_text()
    missing = [key for key in (*xlkeys.READ, *xlkeys.BOOT) if f"`{key}`" not in text]
    assert missing == []


def test_ci_installs_every_package_that_a_test_asks_for():
    script = (ROOT / ".ci" / "run").read_text()
    installed = set(re.search(r"^build=\((.*?)\)$", script, re.MULTILINE | re.DOTALL)[1].split())
    peers = set(re.search(r"^peers=\((.*?)\)$", script, re.MULTILINE | re.DOTALL)[1].split())
    asked = set()
    for path in ROOT.glob("tests/**/*.py"):
        asked |= set(re.findall(r'need\(\s*"[^"]+",\s*"([^"]+)"', path.read_text()))
    assert asked
    assert asked <= installed | peers
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    (listed,) = re.findall(r"^\$ apt-get install ((?:.*\\\n)*.*)$", contributing, re.MULTILINE)
    assert set(listed.replace("\\", " ").split()) == peers


def test_ci_is_executable_and_reads_no_input():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "exec </dev/null" in script.read_text()
    done = subprocess.run(["bash", "-n", script], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(MAKE is None, reason="make is missing: apt-get install make")
@pytest.mark.parametrize(
    ("fails", "package"),
    [
        ("version_info", "apt-get install python3"),
        ("ensurepip", "apt-get install python3-venv"),
        ("Python.h", "apt-get install python3-dev"),
        ("cc", "apt-get install gcc libc6-dev"),
    ],
)
def test_make_names_the_package_that_is_missing(tmp_path, fails, package):
    shutil.copy(ROOT / "Makefile", tmp_path)
    # A Python that has all but one thing, and a cc that there is or is not.
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *{fails}*) exit 1;; *) exit 0;; esac\n')
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\nexit {int(fails == 'cc')}\n")
    for program in (python, compiler):
        program.chmod(0o755)
    done = subprocess.run(
        [MAKE, "-C", tmp_path, ".venv/bin/python", f"PYTHON={python}"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].endswith(package)
    assert not (tmp_path / ".venv").exists()
