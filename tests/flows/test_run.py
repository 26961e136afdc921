"""The main job on real files: what it verifies, that it would notice, and what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers import need
from xenpv import cli
from xenpv.back.blkring import BlkRing
from xenpv.cli import disk as disk_check
from xenpv.cli.hostfile import HostFile
from xenpv.host.image import RawImage
from xenpv.host.responder import Answer, Outcome, Responder
from xenpv.vbd.disk import Disk

# An odd number of sectors, more than the scratch area.
IMAGE = random.Random(1).randbytes((1 << 20) + 1536)
SHARED = random.Random(2).randbytes(512)

FRONT = """\
name = "front"
memory = 64
disk = [ "front.img,raw,xvda,w", "shared.img,raw,xvdb,ro" ]
vif = [ "bridge=outer,mac=00:16:3e:00:00:01", "bridge=inner,mac=00:16:3e:00:00:02" ]
"""
STORE = """\
name = "store"
type = "pvh"
memory = 64
xenpv_personality = "linux"
disk = [ "shared.img,raw,xvda,ro", "store.img,raw,xvdb,w", "one.img,raw,xvdq,w" ]
vif = [ "bridge=inner,mtu=9000", "bridge=outer,rate=1MB/s" ]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Two guests on two bridges, a Windows and a Linux one, with a disk that both read."""
    monkeypatch.chdir(tmp_path)
    Path("front.img").write_bytes(IMAGE)
    Path("store.img").write_bytes(IMAGE[::-1])
    Path("shared.img").write_bytes(SHARED)
    Path("one.img").write_bytes(SHARED[::-1])
    Path("front.cfg").write_text(FRONT)
    Path("store.cfg").write_text(STORE)
    return tmp_path


def run(capsys, *arguments):
    """(exit status, the JSON document) of `xenpv run`, in this process."""
    status = cli.main(["run", "--json", *arguments])
    out, err = capsys.readouterr()
    assert err == ""
    return status, json.loads(out)


def devices(document):
    return {
        (guest["name"], device["name"]): device
        for guest in document["guests"]
        for device in guest["devices"]
    }


def test_everything_connects_and_every_byte_is_verified(here, capsys):
    status, document = run(capsys, "front.cfg", "store.cfg", "--seed", "7")
    assert status == 0
    assert (document["ok"], document["seed"], document["failures"]) == (True, 7, [])
    assert [(one["name"], one["domid"]) for one in document["guests"]] == [
        ("front", 1),
        ("store", 2),
    ]
    found = devices(document)
    assert [(*name, one["kind"], one["id"]) for name, one in found.items()] == [
        ("front", "xvda", "vbd", 51712),
        ("front", "xvdb", "vbd", 51728),
        ("front", "vif1.0", "vif", 0),
        ("front", "vif1.1", "vif", 1),
        ("store", "xvda", "vbd", 51712),
        ("store", "xvdb", "vbd", 51728),
        ("store", "xvdq", "vbd", 268439552),
        ("store", "vif2.0", "vif", 0),
        ("store", "vif2.1", "vif", 1),
    ]
    for one in found.values():
        assert (one["state"], one["backend_state"]) == ("Connected", "Connected")
        assert (one["verified"], one["failures"], one["idle"]) == (True, [], "")
    front = found["front", "xvda"]
    assert front["sha256"] == hashlib.sha256(IMAGE).hexdigest()
    assert front["bytes_read"] == front["size_bytes"] == len(IMAGE)
    assert front["bytes_written"] == 1 << 20
    assert found["store", "xvda"]["bytes_written"] == 0
    assert found["store", "xvdq"]["bytes_written"] == 512
    for guest in document["guests"]:
        assert guest["shutdown"] == "poweroff"
        assert f"domain {guest['domid']}, {guest['personality']} personality" in guest["console"]


def test_pings_fill_the_mtu_of_each_interface(here, capsys):
    _, document = run(capsys, "front.cfg", "store.cfg")
    found = devices(document)
    jumbo, plain = found["store", "vif2.0"], found["front", "vif1.1"]
    assert (jumbo["mtu"], plain["mtu"]) == (9000, 1500)
    for one, full in ((jumbo, 1 + 29), (plain, 1 + 64)):
        assert one["pings_answered"] == one["pings_sent"] == 7 + full
        # ARP, then 14 + 28 bytes of headers over payloads of 0, 1, 18, 56, 511, 1024 bytes,
        # one less than fits, and those that fill the MTU: at most 64, and 256 KiB, at once.
        mtu = one["mtu"]
        assert one["frames_sent"] == one["frames_received"] == 1 + 7 + full
        assert one["bytes_sent"] == 42 + 6 * 42 + 1610 + (mtu + 13) + full * (mtu + 14)


def test_the_document_has_the_keys_that_scripts_rely_on(here, capsys):
    _, document = run(capsys, "front.cfg")
    assert list(document)[:4] == ["ok", "digest", "seed", "guests"]
    assert len(bytes.fromhex(document["digest"])) == 16
    (guest,) = document["guests"]
    assert list(guest)[:2] == ["name", "domid"]
    for device in guest["devices"]:
        assert list(device)[:5] == ["kind", "id", "name", "state", "verified"]
    text = (Path(__file__).parents[2] / "docs/reference/run.md").read_text()
    for keyed in (document, guest, *guest["devices"], *document["bridges"], *document["timeline"]):
        for key in keyed:
            assert f"`{key}`" in text, key


def test_one_seed_gives_one_document_wherever_it_runs(here, tmp_path_factory, monkeypatch):
    def document(hash_seed):
        command = [sys.executable, "-m", "xenpv", "run", "--json", "front.cfg", "store.cfg"]
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        return subprocess.run(command, env=environment, capture_output=True, check=True).stdout

    first = document("1")
    other = tmp_path_factory.mktemp("elsewhere")
    for path in here.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(other)
    assert document("2") == first


def test_ten_seeds_are_ten_schedules_that_all_verify(here, capsys):
    digests = []
    for seed in range(10):
        status, document = run(capsys, "front.cfg", "store.cfg", "--seed", str(seed))
        assert status == 0
        digests.append(document["digest"])
    assert len(set(digests)) == 10


@pytest.mark.soak
def test_a_thousand_seeds_verify(here, capsys):
    for seed in range(1000):
        assert run(capsys, "front.cfg", "store.cfg", "--seed", str(seed))[0] == 0


def test_the_images_are_afterwards_as_they_were(here, capsys):
    before = {path: path.read_bytes() for path in here.glob("*.img")}
    assert run(capsys, "front.cfg", "store.cfg")[0] == 0
    assert {path: path.read_bytes() for path in here.glob("*.img")} == before


def test_no_write_does_not_touch_the_images(here, capsys):
    before = {path: path.stat().st_mtime_ns for path in here.glob("*.img")}
    status, document = run(capsys, "front.cfg", "store.cfg", "--no-write")
    assert status == 0
    assert {path: path.stat().st_mtime_ns for path in here.glob("*.img")} == before
    assert {one.get("bytes_written", 0) for one in devices(document).values()} == {0}


def test_the_text_report_says_what_the_document_does(here, capsys):
    assert cli.main(["run", "front.cfg"]) == 0
    report = capsys.readouterr().out
    _, document = run(capsys, "front.cfg")
    lines = report.splitlines()
    assert lines[0] == "front (domain 1, hvm, windows drivers, 64 MiB, 1 vcpu)"
    for expected in (
        "vbd 51712 xvda: Connected, verified, 1.0 MiB read (",
        "1.0 MiB written and restored",
        f"front.img  sha256 {hashlib.sha256(IMAGE).hexdigest()}",
        "vif 1 vif1.1: Connected, verified, 00:16:3e:00:00:02 on inner, mtu 1500, 72 of 72 pings",
        "shut down: poweroff",
        "console of front",
        "d1  agent: poweroff acknowledged",
        "ok: 1 guest, 4 of 4 devices connected and verified",
    ):
        assert expected in report
    assert lines[-1] == f"digest {document['digest']} seed 0"
    (guest,) = document["guests"]
    listings = {
        "xl list -v": document["list"],
        "xl vm-list": document["vm_list"],
        "xl block-list front": guest["block_list"],
        "xl network-list front": guest["network_list"],
    }
    for command, output in listings.items():
        shown = [f"  {line.rstrip()}" for line in output.splitlines()]
        at = lines.index(command)
        assert lines[at + 1 : at + 1 + len(shown)] == shown


def test_the_listings_show_the_guests_while_they_run(here, capsys):
    _, document = run(capsys, "front.cfg", "store.cfg")
    rows = document["list"].splitlines()[1:]
    assert [row.split()[:2] for row in rows] == [["Domain-0", "0"], ["front", "1"], ["store", "2"]]
    assert [row.split()[4] for row in rows] == ["r-----"] * 3
    for guest in document["guests"]:
        listed = guest["block_list"].splitlines()[1:] + guest["network_list"].splitlines()[1:]
        states = [row.split()[4 if "/vif/" in row else 3] for row in listed]
        assert states == ["4"] * len(guest["devices"])


@pytest.mark.filterwarnings("ignore:Field type should not be:DeprecationWarning")  # python-pcapng
def test_the_capture_has_every_ping_and_every_answer(here, capsys):
    from pcapng import FileScanner
    from pcapng.blocks import EnhancedPacket

    _, document = run(capsys, "front.cfg", "store.cfg", "--pcap", "frames.pcapng")
    with Path("frames.pcapng").open("rb") as file:
        frames = [one.packet_data for one in FileScanner(file) if isinstance(one, EnhancedPacket)]
    pings = sum(one.get("pings_sent", 0) for one in devices(document).values())
    icmp = [frame[34] for frame in frames if frame[12:14] == b"\x08\x00" and frame[23] == 1]
    assert pings == 3 * 72 + 37
    assert (icmp.count(8), icmp.count(0)) == (pings, pings)


@pytest.mark.filterwarnings("ignore:Field type should not be:DeprecationWarning")  # python-pcapng
def test_a_capture_of_one_interface_has_both_ways_and_the_slots(here, capsys):
    from pcapng import FileScanner
    from pcapng.blocks import EnhancedPacket, InterfaceDescription

    run(capsys, "front.cfg", "store.cfg", "--pcap", "front.1=one.pcapng", "--pcap", "all.pcapng")
    with Path("one.pcapng").open("rb") as file:
        read = list(FileScanner(file))
    (interface,) = [one for one in read if isinstance(one, InterfaceDescription)]
    assert interface.options["if_name"] == "vif1.1"
    assert interface.options["if_description"] == "front.1"
    packets = [one for one in read if isinstance(one, EnhancedPacket)]
    ways = [one.options["epb_flags"].inout for one in packets]
    # 72 pings, 72 answers, and an ARP each way; from elsewhere on its bridge come floods.
    assert ways.count("inbound") == 73
    assert ways.count("outbound") >= 73
    assert all(one.options["opt_comment"].startswith("queue 0 slot ") for one in packets)
    assert Path("all.pcapng").stat().st_size > Path("one.pcapng").stat().st_size


# It would notice: each seam broken once.


def broken_seam(monkeypatch, method, instead):
    """Every I/O by that method of the image; none past it, between the pages and the file."""
    monkeypatch.setattr(BlkRing, "_file", lambda *_: False)
    monkeypatch.setattr(RawImage, method, instead)


def test_a_byte_that_reads_wrong_fails_the_run(here, capsys, monkeypatch):
    read_into = RawImage.read_into

    def flip(self, buffer, offset):
        read_into(self, buffer, offset)
        if self.path == "front.img" and offset <= 700_000 < offset + len(buffer):
            buffer[700_000 - offset] ^= 1

    broken_seam(monkeypatch, "read_into", flip)
    status, document = run(capsys, "front.cfg", "--no-write")
    assert (status, document["ok"]) == (1, False)
    found = devices(document)
    assert not found["front", "xvda"]["verified"]
    assert found["front", "xvda"]["failures"] == [
        f"reads differently from the file, whose sha256 is {hashlib.sha256(IMAGE).hexdigest()}"
    ]
    assert found["front", "xvdb"]["verified"]


def test_a_write_that_is_lost_fails_the_run(here, capsys, monkeypatch):
    broken_seam(monkeypatch, "write_from", lambda *_: None)
    status, document = run(capsys, "front.cfg")
    assert status == 1
    assert devices(document)["front", "xvda"]["failures"] == [
        "the scratch area reads differently from what was written",
        "what was written and flushed is not in the file",
    ]


def test_a_write_that_goes_astray_is_noticed_and_the_scratch_area_put_back(
    here, capsys, monkeypatch
):
    write_from = RawImage.write_from
    writes = []

    def astray(self, buffer, offset):
        writes.append(offset)
        write_from(self, buffer, 0 if len(writes) == 3 else offset)

    broken_seam(monkeypatch, "write_from", astray)
    status, document = run(capsys, "front.cfg")
    assert status == 1
    assert devices(document)["front", "xvda"]["failures"][-1].startswith("the file was changed")
    assert Path("front.img").read_bytes()[-(1 << 20) :] == IMAGE[-(1 << 20) :]


def test_an_io_error_fails_the_device_and_not_the_others(here, capsys, monkeypatch):
    from xenpv.host.image import ImageError

    def broken(self, _buffer, offset):
        raise ImageError(f"read of {self.path} at {offset}: Input/output error")

    broken_seam(monkeypatch, "read_into", broken)
    status, document = run(capsys, "front.cfg")
    assert status == 1
    found = devices(document)
    (failure,) = found["front", "xvda"]["failures"]
    assert failure.startswith("read at sector 0: SRB status ")
    assert found["front", "vif1.0"]["verified"]
    assert document["guests"][0]["shutdown"] == "poweroff"


def test_a_host_that_does_not_answer_fails_the_run(here, capsys, monkeypatch):
    monkeypatch.setattr(Responder, "_answer_arp", lambda *_: Answer(Outcome.OTHER_ADDRESS))
    status, document = run(capsys, "front.cfg")
    assert status == 1
    assert devices(document)["front", "vif1.0"]["failures"] == ["no answer to ARP"]


def test_an_answer_with_a_wrong_byte_fails_the_run(here, capsys, monkeypatch):
    poll = Responder.poll

    def spoil(self, now_ns):
        for frame in self.pending:
            if len(frame.data) == 1514:
                frame.data = frame.data[:-1] + bytes([frame.data[-1] ^ 1])
        poll(self, now_ns)

    monkeypatch.setattr(Responder, "poll", spoil)
    status, document = run(capsys, "front.cfg")
    assert status == 1
    one = devices(document)["front", "vif1.0"]
    assert (one["pings_sent"], one["pings_answered"]) == (72, 7)
    assert one["failures"][-1] == "no answer to 64 of 64 pings with payloads of 1472 to 1472 bytes"


def test_a_device_that_does_not_connect_fails_the_run(here, capsys):
    # No station may have a group address, so XenVif leaves the device alone.
    Path("odd.cfg").write_text('name = "odd"\nvif = [ "mac=01:00:5e:00:00:01" ]\n')
    status = cli.main(["run", "--json", "odd.cfg"])
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert status == 1
    assert "is a group address" in err
    (device,) = document["guests"][0]["devices"]
    assert (device["verified"], device["state"]) == (False, "Initialising")
    assert document["guests"][0]["failures"] == ["guest 'odd': not connected: vif 0"]


def test_a_livelock_ends_the_run_with_a_report(here, capsys, monkeypatch):
    from xenpv.xen import loop

    run_loop = loop.Loop.run
    monkeypatch.setattr(loop.Loop, "run", lambda self, limit=50: run_loop(self, limit))
    status, document = run(capsys, "front.cfg", "--seed", "3")
    assert status == 1
    (failure,) = document["failures"]
    assert failure.startswith("50 tasks ran and more are due (seed 3)\n")
    assert Path("front.img").read_bytes() == IMAGE


@pytest.mark.parametrize("flush", [1, 2])
def test_an_interrupted_run_puts_the_scratch_area_back(here, capsys, monkeypatch, flush):
    flushes = []

    def interrupt(self):
        flushes.append(self)
        if len(flushes) == flush:
            # The pattern, or what was there before, is in the file by now.
            assert (HostFile("shared.img").read(0, 512) == SHARED) is True
            assert (Path("front.img").read_bytes() == IMAGE) is (flush == 2)
            raise KeyboardInterrupt

    monkeypatch.setattr(Disk, "flush", interrupt)
    assert cli.main(["run", "front.cfg"]) == 130
    out, err = capsys.readouterr()
    assert (out, err) == ("", "interrupted\n")
    assert Path("front.img").read_bytes() == IMAGE


def test_a_bug_says_that_it_is_one_and_puts_the_scratch_area_back(here, monkeypatch):
    def bug(self):
        raise ZeroDivisionError

    monkeypatch.setattr(Disk, "flush", bug)
    with pytest.raises(ZeroDivisionError) as raised:
        cli.main(["run", "front.cfg", "--seed", "9"])
    assert raised.value.__notes__ == ["This is a bug in xenpv; --seed 9 repeats it."]
    assert Path("front.img").read_bytes() == IMAGE


def test_the_pieces_written_cover_the_scratch_area_once(here, capsys, monkeypatch):
    written = []
    write = Disk.write

    def count(self, lba, data):
        written.append((self.devid, lba, len(data) // 512))
        write(self, lba, data)

    monkeypatch.setattr(Disk, "write", count)
    run(capsys, "front.cfg")
    there = [(lba, size) for devid, lba, size in written if devid == 51712]
    sectors = [lba + n for lba, size in there[: len(there) // 2] for n in range(size)]
    assert sectors == list(range(3, 2051))
    assert {size for _, size in there} >= set(disk_check.SCRATCH_PIECES)


# Real file systems


@pytest.mark.peers
def test_an_ext4_reads_back_identical_and_is_clean_after_writing(tmp_path, capsys, monkeypatch):
    mkfs, fsck = need("mkfs.ext4", "e2fsprogs"), need("e2fsck", "e2fsprogs")
    monkeypatch.chdir(tmp_path)
    files = Path("files")
    files.mkdir()
    for number in range(40):
        (files / f"{number}.bin").write_bytes(random.Random(number).randbytes(number * 10_000))
    command = [mkfs, "-q", "-F", "-d", "files", "disk.img", "64M"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    Path("a.cfg").write_text('name = "a"\ndisk = [ "disk.img,raw,xvda,w" ]\n')
    status, document = run(capsys, "a.cfg")
    assert status == 0
    (device,) = devices(document).values()
    assert device["bytes_read"] == 64 << 20
    assert device["bytes_written"] == 1 << 20
    with Path("disk.img").open("rb") as file:
        assert device["sha256"] == hashlib.file_digest(file, "sha256").hexdigest()
    done = subprocess.run([fsck, "-fn", "disk.img"], capture_output=True, text=True, check=False)
    assert (done.returncode, "clean" in done.stdout or "files" in done.stdout) == (0, True)


def test_interfaces_in_vlans_are_exercised_each_in_its_own(here, capsys):
    Path("vlan.cfg").write_text(
        'name = "vlan"\nmemory = 16\nvif = [ "vlan=10", "vlan=20p/30", "", "vlan=5/6" ]\n'
    )
    status, document = run(capsys, "vlan.cfg")
    assert status == 1
    (guest,) = document["guests"]
    devices = guest["devices"]
    assert [device["verified"] for device in devices] == [True, True, True, False]
    assert devices[3]["failures"] == ["vlan 5/6 takes tagged frames alone: nothing was sent"]


# formats of QEMU's


def qcow2(path, content):
    """An image that qemu-img makes of a raw one."""
    need("qemu-nbd", "qemu-utils")
    raw = Path(f"{path}.raw")
    raw.write_bytes(content)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True)


def raw_of(path):
    raw = Path(f"{path}.out")
    subprocess.run(["qemu-img", "convert", "-O", "raw", path, raw], check=True)
    return raw.read_bytes()


@pytest.mark.peers
def test_a_qcow2_is_verified_like_a_raw_image(here, capsys):
    qcow2("front.qcow2", IMAGE)
    qcow2("shared.qcow2", SHARED)
    Path("front.cfg").write_text(
        FRONT.replace("front.img,raw", "front.qcow2,qcow2").replace(
            "shared.img,raw", "shared.qcow2,qcow2"
        )
    )
    Path("store.cfg").write_text(
        STORE.replace("shared.img,raw,xvda,ro", "shared.qcow2,qcow2,xvda,ro").replace(
            "store.img,raw,xvdb,w", "vdev=xvdb,backendtype=qdisk,target=store.img"
        )
    )
    status, document = run(capsys, "front.cfg", "store.cfg", "--seed", "7")
    assert document["failures"] == []
    assert status == 0
    disk = devices(document)["front", "xvda"]
    assert (disk["image"], disk["size_bytes"]) == ("front.qcow2", len(IMAGE))
    assert disk["sha256"] == hashlib.sha256(IMAGE).hexdigest()
    assert disk["bytes_written"] == 1 << 20
    assert devices(document)["store", "xvdb"]["image"] == "store.img"
    assert raw_of("front.qcow2") == IMAGE
    assert raw_of("shared.qcow2") == SHARED


@pytest.mark.peers
def test_writes_that_do_not_reach_a_qcow2_are_found(here, capsys, monkeypatch):
    qcow2("front.qcow2", IMAGE)
    Path("front.cfg").write_text(FRONT.replace("front.img,raw", "front.qcow2,qcow2"))
    from xenpv.host.nbd import NbdClient

    write_from = NbdClient.write_from
    monkeypatch.setattr(NbdClient, "write_from", lambda *_: None)
    status, document = run(capsys, "front.cfg", "store.cfg")
    monkeypatch.setattr(NbdClient, "write_from", write_from)
    assert status == 1
    assert (
        "what was written and flushed is not in the file"
        in devices(document)["front", "xvda"]["failures"]
    )


@pytest.mark.peers
def test_a_qcow2_in_use_is_told_with_its_place(here, capsys):
    qcow2("front.qcow2", IMAGE)
    Path("front.cfg").write_text(FRONT.replace("front.img,raw", "front.qcow2,qcow2"))
    server = subprocess.Popen(
        ["qemu-nbd", "-t", "-k", str(here / "s"), "-f", "qcow2", "front.qcow2"]
    )
    try:
        while not (here / "s").exists():
            assert server.poll() is None
        assert cli.main(["run", "front.cfg", "store.cfg"]) == 2
        assert "front.cfg:3:10: disk image front.qcow2 is in use" in capsys.readouterr().err
    finally:
        server.terminate()
        server.wait()
