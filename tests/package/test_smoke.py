"""An installed wheel at work where there is no compiler, and no other program at all."""

from __future__ import annotations

import json
import re
import shutil
import tomllib

import pytest

from tests.package.conftest import ROOT

pytestmark = pytest.mark.package

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
CONFIG = """\
name = "small"
type = "hvm"
memory = 64
disk = [ "format=raw, vdev=xvda, access=rw, target=small.img" ]
vif = [ "bridge=xenbr0" ]
"""


def test_there_is_no_compiler_to_be_found(installed, tmp_path):
    script = "import shutil; print(*map(shutil.which, ('cc', 'gcc', 'clang', 'ld', 'make')))"
    assert set(installed.run("python", "-c", script, where=tmp_path).split()) == {"None"}


def test_it_is_the_wheel_that_is_tested(installed, tmp_path):
    told = installed.run("python", "-c", "import xenpv; print(xenpv.__file__)", where=tmp_path)
    assert told.strip() == str(installed.site / "xenpv" / "__init__.py")


def test_nothing_has_unmet_or_contradictory_requirements(installed, tmp_path):
    assert "No broken requirements" in installed.run("pip", "check", where=tmp_path)


def test_the_command_knows_its_version(installed, tmp_path):
    assert installed.run("xenpv", "--version", where=tmp_path) == f"xenpv {VERSION}\n"
    script = "import xenpv; print(xenpv.__version__)"
    assert installed.run("python", "-c", script, where=tmp_path).strip() == VERSION


def test_every_module_can_be_imported(installed, tmp_path):
    # What an extra brings is imported where it is used.
    script = (
        "import pkgutil, importlib, xenpv\n"
        "for one in pkgutil.walk_packages(xenpv.__path__, 'xenpv.'):\n"
        "    if not one.name.endswith(('__main__', '.build')):\n"
        "        importlib.import_module(one.name)\n"
    )
    installed.run("python", "-W", "error", "-c", script, where=tmp_path)


def test_the_readmes_code_runs(installed, tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        installed.run("python", "-W", "error", "-c", block, where=tmp_path)


def test_guests_of_a_configuration_run(installed, tmp_path):
    (tmp_path / "small.cfg").write_text(CONFIG)
    (tmp_path / "small.img").write_bytes(bytes(range(256)) * 4096)
    text = installed.run("xenpv", "run", "small.cfg", where=tmp_path)
    assert "xvda: Connected, verified" in text
    report = json.loads(installed.run("xenpv", "run", "--json", "small.cfg", where=tmp_path))
    assert report["ok"] is True
    assert [one["state"] for one in report["guests"][0]["devices"]] == ["Connected", "Connected"]


def test_the_plugin_is_found_and_its_fixtures_work(installed, tmp_path):
    (tmp_path / "test_mine.py").write_text(
        "def test_a_sector(vbd):\n"
        "    assert vbd.read(0, 1) == bytes(512)\n"
        "\n"
        "def test_a_raw_ring(raw_vbd):\n"
        "    assert raw_vbd.backend.state.name == 'CONNECTED'\n"
        "\n"
        "def test_seeds(worlds):\n"
        "    with worlds(seed=3) as xen:\n"
        "        assert xen.seed == 3\n"
    )
    text = installed.run("pytest", "-q", "-W", "error", where=tmp_path)
    assert "3 passed" in text


def test_cases_are_played(installed, tmp_path):
    ids = ("BLKB-001", "BLKB-002", "STORE-001")
    told = json.loads(installed.run("xenpv", "cases", "--json", *ids, where=tmp_path))
    assert [(one["id"], one["result"]) for one in told] == [(one, "pass") for one in ids]


def test_the_layouts_are_printed(installed, tmp_path):
    told = json.loads(installed.run("python", "-m", "xenpv.abi", "--json", where=tmp_path))
    sizes = {name: told["structs"][name]["size"] for name in ("blkif_request", "netif_tx_request")}
    assert sizes == {"blkif_request": 112, "netif_tx_request": 12}
    assert told["constants"]["BLKIF_MAX_SEGMENTS_PER_REQUEST"] == 11


def test_the_c_limit_of_the_benches_is_in_it(installed, tmp_path):
    script = (
        "from xenpv.bench.limit import Limit\n"
        "print(Limit().blk(segments=1, batch=32, rounds=2).responses)\n"
    )
    assert installed.run("python", "-c", script, where=tmp_path).strip() == "64"


@pytest.mark.parametrize("command", [("hunt", "blk-backend"), ("cases", "--driver")])
def test_a_driver_in_c_asks_for_the_compiler_in_a_line(installed, tmp_path, command):
    shutil.copy(ROOT / "examples" / "c_backend" / "blkback.c", tmp_path)
    suite = () if command[0] == "hunt" else ("--suite", "blk-backend")
    text = installed.run("xenpv", *command, "blkback.c", *suite, where=tmp_path, status=2)
    assert text == "there is no gcc, which builds C drivers: apt-get install gcc\n"


def test_a_bench_beside_a_real_daemon_names_what_it_needs(installed, tmp_path):
    text = installed.run("xenpv", "bench", "store-read", where=tmp_path)
    assert re.search(r"apt-get install .*\bgcc\b", text)
