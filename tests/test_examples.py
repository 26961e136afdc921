"""The examples and the README's code do what they say."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import struct
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.peers import need
from xenpv import cli
from xenpv.abi._kernel import lib
from xenpv.host.config import load_all

ROOT = Path(__file__).parent.parent
GALLERY = {path.stem for path in (ROOT / "docs" / "gallery").glob("*.md")}  # run by test_gallery
SCRIPTS = sorted(
    path
    for path in (ROOT / "examples").glob("*.py")
    if path.stem != "make_image" and path.stem not in GALLERY
)
CONFIGS = sorted((ROOT / "examples").glob("*.cfg"))


@pytest.fixture(scope="module")
def make_image():
    """examples/make_image.py as a module."""
    path = ROOT / "examples" / "make_image.py"
    spec = importlib.util.spec_from_file_location("make_image", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A directory with examples/ and its images, as `make run` leaves them."""
    directory = tmp_path_factory.mktemp("copy")
    examples = directory / "examples"
    examples.mkdir()
    for path in [*CONFIGS, ROOT / "examples" / "make_image.py"]:
        shutil.copy(path, examples)
    made = subprocess.run(
        [sys.executable, "examples/make_image.py"],
        cwd=directory,
        check=True,
        capture_output=True,
        text=True,
    )
    assert made.stdout.count("\n") == 6
    return directory


def test_make_run_verifies_every_device(copy, capsys, monkeypatch):
    monkeypatch.chdir(copy)
    names = [f"examples/{path.name}" for path in CONFIGS]
    status = cli.main(["run", "--json", *names])
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (status, err) == (0, "")
    assert {guest["name"] for guest in document["guests"]} == {
        "db", "kiosk", "linux", "web", "windows"
    }  # fmt: skip
    verified = [device["verified"] for guest in document["guests"] for device in guest["devices"]]
    assert verified == [True] * 14


@pytest.mark.parametrize("name", ["windows", "readonly", "linux"])
def test_each_example_runs_alone(copy, capsys, monkeypatch, name):
    monkeypatch.chdir(copy)
    assert cli.main(["run", f"examples/{name}.cfg", "--no-write"]) == 0
    assert capsys.readouterr().out.splitlines()[-2].startswith("ok: 1 guest")


def test_two_of_the_examples_share_two_bridges(monkeypatch):
    monkeypatch.chdir(ROOT)
    web, db = load_all(["examples/web.cfg", "examples/db.cfg"])
    assert (
        [vif.bridge for vif in web.vifs]
        == [vif.bridge for vif in db.vifs]
        == [
            "xenbr0",
            "xenbr1",
        ]
    )
    assert len(web.disks) == 2
    assert len(db.disks) == 3


def test_images_that_are_there_are_left_alone(copy, make_image, capsys, monkeypatch):
    monkeypatch.chdir(copy)
    before = {path: path.stat().st_mtime_ns for path in Path("examples/images").iterdir()}
    make_image.main([])
    assert capsys.readouterr().out == ""
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path.name for path in before} == set(make_image.IMAGES)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_each_script_runs(script, tmp_path):
    if script.stem.startswith("test_"):
        plugin = () if entry_points(group="pytest11", name="xenpv") else ("-p", "_xenpv_pytest")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin]
        command += ["--rootdir", str(tmp_path), "--xenpv-seed", "7"]
    else:
        command = [sys.executable]
    done = subprocess.run(
        [*command, script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


def test_the_lost_wakeup_is_found_and_replayed(tmp_path, monkeypatch, capsys):
    script = ROOT / "examples" / "find_lost_wakeup.py"
    command = [sys.executable, script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "shrunk to 1 steps" in done.stdout
    (path,) = (tmp_path / "found").glob("*.replay")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["replay", str(path)]) == 1
    assert capsys.readouterr().out.endswith("fails: AssertionError: 2 of 3 frames arrived\n")


def test_the_handshakes_of_windows_are_those_of_their_page():
    command = [sys.executable, ROOT / "examples" / "windows_handshake.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.findall("-> (\\w+)", done.stdout) == [
        "connected", "connected", "wedged", "ejected", "connected"
    ]  # fmt: skip
    (shown,) = blocks("text", "docs/explanation/handshake.md")
    assert shown == done.stdout.rstrip() + "\n"


def test_ping_keeps_a_capture(tmp_path):
    command = [sys.executable, ROOT / "examples" / "ping.py", "frames.pcapng"]
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "frames.pcapng").read_bytes()[:4] == b"\x0a\x0d\x0d\x0a"


def test_a_network_passes_a_driver_domain_that_comes_back():
    command = [sys.executable, ROOT / "examples" / "driver_domain.py"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "net (domain 1) serves vif2.0",
        "through net: 00:16:3e:ff:ff:fe",
        "app after the death of net: 0 adapters, running: True",
        "through the new net (domain 3): 00:16:3e:ff:ff:fe",
    ]


def test_a_guest_moves_and_comes_back_by_hand():
    command = [sys.executable, ROOT / "examples" / "migrate.py"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "at Lyon, domain 1: begun in Paris",
        "by hand: error.source.destroy()",
        "at Paris, domain 2: begun in Paris",
    ]


def blocks(language, path="README.md"):
    text = (ROOT / path).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_readmes_python_runs(capsys):
    (block,) = blocks("python")
    assert 15 <= sum(bool(line.strip()) for line in block.splitlines()) <= 25
    exec(compile(block, "README.md", "exec"), {})  # noqa: S102 - what a reader would type
    assert re.fullmatch(r"[0-9a-f]{32}\n", capsys.readouterr().out)


def test_what_the_readme_was_checked_against_has_its_tests():
    """Each row of the table names the tests, which name the program; links lead somewhere."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)[1:]
    assert len(rows) == 9
    programs = {
        "libxen-dev": "libxen-dev", "ring.h": "ring.h", "oxenstored": "oxenstored",
        "test-xenstore": "test-xenstore", "pyxs": "pyxs", "libxlutil": "libxlutil",
        "e2fsck": "e2fsck", "fsck.vfat": "fsck.vfat", "mcopy": "mcopy", "qemu-img": "qemu-img",
        "iperf3": "iperf3", "tshark": "tshark",
    }  # fmt: skip
    told = ""
    for _, against, by in rows:
        folder = "tests/peers"
        tests = ""
        for name in re.findall(r"`([\w./]+\.py)`", by):
            path = ROOT / (name if "/" in name else f"{folder}/{name}")
            tests += path.read_text(encoding="utf-8")
        for word, in_test in programs.items():
            if word in against and tests:
                told += word
                assert in_test in tests, f"{by} says nothing of {in_test}"
    assert all(word in told for word in programs)
    for target in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (ROOT / target).exists(), target


def test_the_python_of_the_hypervisor_page_runs_from_its_top_to_its_end():
    names = {}
    for block in blocks("python", "docs/reference/hypervisor.md"):
        exec(compile(block, "hypervisor.md", "exec"), names)  # noqa: S102 - what a reader types
    names["hypervisor"].close()


def test_the_operations_in_the_table_of_the_hypervisor_page_exist():
    text = (ROOT / "docs/reference/hypervisor.md").read_text()
    named = re.findall(r"`((?:EVTCHNOP|GNTTABOP|XENMEM|VCPUOP|SCHEDOP|HVMOP|XENVER)_\w+)`", text)
    assert len(named) >= 7
    assert [name for name in named if not hasattr(lib, name)] == []


def test_the_python_of_the_pytest_page_runs(pytester):
    text = "\n\n".join(blocks("python", "docs/howto/pytest.md"))
    pytester.makepyfile(text)
    # With an editable install xenpv's modules count as the test's own, which Hypothesis reads
    # for constants in the first draw: a second or more, once.
    pytester.makeconftest(
        "from hypothesis import HealthCheck, settings\n"
        "settings.register_profile('once', suppress_health_check=[HealthCheck.too_slow])\n"
        "settings.load_profile('once')\n"
    )
    done = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider")
    done.assert_outcomes(passed=text.count("def test_"))


def test_the_readmes_commands_exist(copy, capsys, monkeypatch):
    makefile = (ROOT / "Makefile").read_text()
    monkeypatch.chdir(copy)
    for line in "\n".join(blocks("text") + blocks("console")).splitlines():
        match line.removeprefix("$ ").split():
            case ["make", target, *_]:
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), line
            case ["xenpv", "run", *_]:
                _, *words = line.removeprefix("$ ").split("  ")[0].split()
                assert cli.parser().parse_args(words).configs, line
            case ["xenpv", command, *_]:
                with pytest.raises(SystemExit) as caught:
                    cli.main([command, "--help"])
                assert caught.value.code == 0, line


# The FAT16 builder


def test_a_fat16_has_the_layout_that_its_boot_sector_says(make_image):
    files = {"A.TXT": b"a" * 5000, "B": b"", "C.BIN": bytes(range(256)) * 40}
    volume = make_image.fat16(8 << 20, files)
    assert len(volume) == 8 << 20
    assert volume[510:512] == b"\x55\xaa"
    sector, per_cluster, reserved, fats, entries, total = struct.unpack_from("<HBHBHH", volume, 11)
    (fat_sectors,) = struct.unpack_from("<H", volume, 22)
    assert (sector, reserved, fats, total) == (512, 1, 2, 16384)
    root = (reserved + fats * fat_sectors) * sector
    data = root + entries * 32
    assert 4085 <= (len(volume) - data) // (sector * per_cluster) <= 65524
    fat = struct.unpack_from(f"<{fat_sectors * 256}H", volume, reserved * sector)
    assert (
        volume[sector : sector * (1 + fat_sectors)]
        == volume[sector * (1 + fat_sectors) : sector * (1 + 2 * fat_sectors)]
    )
    found = {}
    for at in range(root + 32, data, 32):
        name, extension = volume[at : at + 8].strip(b" \0"), volume[at + 8 : at + 11].rstrip()
        first, size = struct.unpack_from("<HI", volume, at + 26)
        content, cluster = b"", first
        while size and cluster < 0xFFF8:
            where = data + (cluster - 2) * sector * per_cluster
            content += volume[where : where + sector * per_cluster]
            cluster = fat[cluster]
        if name:
            found[b".".join(part for part in (name, extension) if part).decode()] = content[:size]
    assert found == files


@pytest.mark.parametrize(
    ("size", "files"),
    [(1 << 20, {}), (1 << 32, {}), (4 << 20, {"BIG": bytes(4 << 20)})],
    ids=["too few clusters", "too many", "too much in it"],
)
def test_a_fat16_that_cannot_be_is_refused(make_image, size, files):
    with pytest.raises(ValueError, match="FAT16|do not fit"):
        make_image.fat16(size, files)


@pytest.mark.peers
def test_fsck_and_mtools_take_our_fat16(make_image, tmp_path):
    fsck, mcopy = need("fsck.fat", "dosfstools"), need("mcopy", "mtools")
    image = tmp_path / "fat.img"
    assert make_image.make(image, 16, "fat") == "fat"
    done = subprocess.run([fsck, "-n", image], capture_output=True, text=True, check=False)
    assert (done.returncode, "4 files" in done.stdout) == (0, True), done.stdout
    for name, content in make_image.contents(16, 4 << 20).items():
        subprocess.run([mcopy, "-n", "-i", image, f"::{name}", tmp_path / name], check=True)
        assert (tmp_path / name).read_bytes() == content


@pytest.mark.peers
def test_the_ext4_is_clean(make_image, tmp_path):
    need("mkfs.ext4", "e2fsprogs")
    fsck = need("e2fsck", "e2fsprogs")
    image = tmp_path / "ext4.img"
    assert make_image.make(image, 16, "ext4") == "ext4"
    assert subprocess.run([fsck, "-fn", image], capture_output=True, check=False).returncode == 0


def test_without_mkfs_the_image_is_a_fat16(make_image, tmp_path, monkeypatch):
    monkeypatch.setattr(make_image.shutil, "which", lambda *_, **__: None)
    image = tmp_path / "any.img"
    assert make_image.make(image, 16, "ext4") == "fat"
    assert image.read_bytes()[54:62] == b"FAT16   "
    assert [path.name for path in tmp_path.iterdir()] == ["any.img"]
