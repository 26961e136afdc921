"""Cores and saved guests: what is found in them, and files that are cut, odd or forged."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xenpv import Disk, MemoryImage, Platform, Vif, cli
from xenpv.errors import ConfigError, LocalProtocolError
from xenpv.host.coredump import core
from xenpv.view.dump.source import Place, Selection, dumps


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A core and a save file of one guest, made once; and where its rings were."""
    where = tmp_path_factory.mktemp("files")
    with Platform(seed=7) as xen:
        disk = Disk(MemoryImage(bytes(1 << 20)))
        guest = xen.create(name="web", disks=[disk], vifs=[Vif()])
        guest.start()
        guest.disks[0].read(0, 8)
        guest.disks[0].read(8, 8)
        guest.nets[0].send(bytes(60))
        from xenpv.view.rings import rings_of

        pfns = {one.kind.name: one.front.pfns for one in rings_of(xen)}
        (where / "web.core").write_bytes(core(guest.created.domain, hvm=True))
        guest.save(where / "web.save")
    return where, pfns


def found(path, **wanted):
    return dumps(path, Selection(**wanted))


def test_a_core_has_the_store_the_console_and_what_looks_like_rings(files):
    where, pfns = files
    names = [one.name for one in found(where / "web.core")]
    assert names[:2] == ["store ring", "console"]
    assert f"looks like netif_rx at pfn {pfns['netif_rx'][0]:#x}" in names
    assert f"looks like netif_tx at pfn {pfns['netif_tx'][0]:#x}" in names


def test_pages_of_a_core_by_their_numbers(files):
    where, pfns = files
    (dump,) = found(where / "web.core", kind="blkif", places=(Place(pfns=pfns["blkif"]),))
    assert dump.words["entries"] == 32 << (len(pfns["blkif"]) - 1)
    assert (dump.words["req_prod"], dump.words["rsp_prod"]) == (2, 2)
    assert dump.counts["unconsumed_requests"] == 0


def test_a_saved_guest_has_its_rings_by_device(files):
    where, pfns = files
    names = [one.name for one in found(where / "web.save")]
    assert names == [
        "store ring", "console", "vbd/51712 blkif", "vif/0 netif_rx", "vif/0 netif_tx",
        "vif/0 xen_netif_ctrl",
    ]  # fmt: skip
    (dump,) = found(where / "web.save", names=("vbd/51712",))
    assert dump.kind == "blkif"
    assert dump.words["entries"] == 32 << (len(pfns["blkif"]) - 1)
    (rx,) = found(where / "web.save", names=("netif_rx",))
    assert rx.counts["in_flight"] > 0
    assert all(not row["wrong"] for row in rx.tables[0].as_json()["rows"])


REFUSED = {
    "no such page": ({"kind": "blkif", "places": (Place(pfns=(1 << 40,)),)}, "there is no page 0x10000000000"),
    "three pages": ({"kind": "blkif", "places": (Place(pfns=(1, 2, 3)),)}, "--pfn has 3 pages"),
    "two of a store": ({"kind": "xenstore", "places": (Place(pfns=(1, 2)),)}, "--pfn has 2 pages: xenstore has one"),
    "no kind": ({"places": (Place(pfns=(1,)),)}, "--pfn: expected --as KIND too"),
    "a domain": ({"kind": "blkif", "places": (Place(pfns=(1,), domid=1),)}, "--pfn: a file has the pages of one"),
    "no name": ({"names": ("vbd/9",)}, "nothing is called 'vbd/9': there is "),
}  # fmt: skip


@pytest.mark.parametrize("name", ["web.core", "web.save"])
@pytest.mark.parametrize(("wanted", "line"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_there_is_said(files, name, wanted, line):
    with pytest.raises((ConfigError, LocalProtocolError), match=line.replace("(", r"\(")):
        found(files[0] / name, **wanted)


def test_the_command_prints_them(files, capsys):
    path = str(files[0] / "web.save")
    assert cli.main(["dump", path, "--list"]) == 0
    assert "blkif                vbd/51712 blkif\n" in capsys.readouterr().out
    assert cli.main(["dump", path, "--list", "--json"]) == 0
    assert {"kind": "blkif", "name": "vbd/51712 blkif"} in json.loads(capsys.readouterr().out)
    assert cli.main(["dump", path, "--ring", "vif/0", "--json"]) == 0
    kinds = [one["kind"] for one in json.loads(capsys.readouterr().out)]
    assert kinds == ["netif_rx", "netif_tx", "xen_netif_ctrl"]
    assert cli.main(["dump", path, "--ring", "nobody"]) == 2
    assert capsys.readouterr().err.startswith(f"{path}: nothing is called 'nobody': there is store")


def test_wrong_indices_are_status_1(tmp_path, capsys):
    page = tmp_path / "page.bin"
    page.write_bytes(struct.pack("<4I", 1, 2, 3, 4).ljust(4096, b"\0"))
    assert cli.main(["dump", str(page), "--as", "blkif"]) == 1
    assert "  WRONG: rsp_prod is 2 ahead of req_prod" in capsys.readouterr().out
    assert cli.main(["dump", str(page), "--as", "console"]) == 0


def elf(sections, names=None, *, ident=b"\x7fELF\x02\x01\x01", entry=64):
    """An ELF file of sections (name, bytes), offsets as they come."""
    names = "\0".join(["", *(name for name, _ in sections), ".shstrtab", ""]).encode()
    bodies, at, rows = [], 64, [bytes(64)]
    for name, body in [*sections, (".shstrtab", names)]:
        rows.append(struct.pack("<IIQQQQIIQQ", names.index(name.encode()), 1, 0, 0, at, len(body), 0, 0, 1, 0))  # fmt: skip
        bodies.append(body)
        at += len(body)
    head = struct.pack("<16sHHIQQQIHHHHHH", ident.ljust(16, b"\0"), 4, 62, 1, 0, 0, at, 0, 64, 0, 0, entry, len(rows), len(rows) - 1)  # fmt: skip
    return head + b"".join(bodies) + b"".join(rows)


PAGES = (".xen_pages", bytes(8192))
NUMBERS = (".xen_pfn", struct.pack("<QQ", 5, 6))
CORES = {
    "32 bits": (elf([PAGES, NUMBERS], ident=b"\x7fELF\x01\x01\x01"), "is an ELF file, and no core of a domain: expected 64"),
    "odd entries": (elf([PAGES, NUMBERS], entry=40), "is no core of a domain: 4 sections of 40 bytes"),
    "another program's": (elf([(".text", b"x")]), "is no core of a domain: it has no section .xen_pages"),
    "no numbers": (elf([PAGES]), "is no core of a domain: neither .xen_pfn nor .xen_p2m"),
    "cut in its header": (elf([PAGES, NUMBERS])[:30], "byte 30: truncated: an ELF header has 64 bytes"),
    "cut in its table": (elf([PAGES, NUMBERS])[:-10], "truncated in its table of sections"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "line"), CORES.values(), ids=CORES)
def test_files_that_are_no_core(tmp_path, data, line):
    path = tmp_path / "x.core"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as refused:
        found(path)
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_a_pv_guest_names_its_pages_in_its_start_info(tmp_path):
    start = bytearray(4096)
    start[:19] = b"xen-3.0-x86_64\0\0\0\0\0"
    # xen.h: magic[32], nr_pages, shared_info, flags (u32) and padding, store_mfn, store_evtchn, console.mfn
    struct.pack_into("<QQIxxxxQIxxxxQI", start, 32, 3, 0, 0, 0x902, 1, 0x903, 2)
    store = bytearray(4096)
    struct.pack_into("<4I", store, 2048, 3, 3, 8, 8)
    pairs = struct.pack("<6Q", 1, 0x901, 2, 0x902, 3, 0x903)
    path = tmp_path / "pv.core"
    path.write_bytes(
        elf([(".xen_pages", bytes(start) + bytes(store) + bytes(4096)), (".xen_p2m", pairs)])
    )
    ring, console = found(path)
    assert (ring.kind, ring.words["rsp_prod"], console.kind) == ("xenstore", 8, "console")


NOISE = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(at=st.integers(0, 5000), data=st.binary(min_size=1, max_size=12), end=st.integers(0, 12_000))
@NOISE
def test_any_elf_file_gives_dumps_or_one_line(tmp_path, at, data, end):
    whole = bytearray(elf([NUMBERS, PAGES]))
    at %= 200  # the header and the numbers; or, from the end, the table
    where = at if at < 100 else len(whole) - at
    whole[where : where + len(data)] = data
    path = tmp_path / "any.core"
    path.write_bytes(whole[: end or None] if end < len(whole) else whole)
    try:
        text = str(found(path))
    except ConfigError as error:
        text = str(error)
        assert "\n" not in text
    assert len(text) < 50_000


def forged(path, change):
    """A save file whose GUEST_CONTEXT is `change` of what it was, with checksums that fit."""
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 48)[0]
    at = 56 + length + -length % 8
    out = [data[:at]]
    number = 0
    while at < len(data):
        kind, size, _, _ = struct.unpack_from("<4I", data, at)
        body = data[at + 16 : at + 16 + size]
        at += 16 + size + -size % 8
        if kind == 0x102:
            body = json.dumps(change(json.loads(body))).encode()
        padded = body + bytes(-len(body) % 8)
        crc = zlib.crc32(struct.pack("<3I", kind, len(body), number))
        out.append(struct.pack("<4I", kind, len(body), crc, zlib.crc32(padded)) + padded)
        number += 1
    return b"".join(out)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["objects", "classes", "pfns"]), inner, max_size=3)
    ),
    max_leaves=12,
)
ODD = {
    "a number": 3,
    "nothing": {},
    "no list": {"objects": 3, "classes": []},
    "no class": {"objects": [["o", 0, []]], "classes": []},
    "a ring without pages": {"objects": [["s", 0, ["r", 1]], ["d", []]], "classes": [["xenpv.bus.ring", "FrontRing", []]]},
    "a ring of itself": {"objects": [["s", 0, ["r", 0]]], "classes": [["xenpv.bus.ring", "FrontRing", []]]},
}  # fmt: skip


@pytest.mark.parametrize("context", ODD.values(), ids=ODD)
def test_objects_of_another_version_are_one_line(files, tmp_path, context):
    path = tmp_path / "odd.save"
    path.write_bytes(forged(files[0] / "web.save", lambda _: context))
    try:
        assert [one.name for one in found(path)] == ["store ring", "console"]
    except ConfigError as error:
        assert "its objects are not what this version saves" in str(error)


@given(context=JSON)
@NOISE
def test_any_objects_give_dumps_or_one_line(files, tmp_path, context):
    path = tmp_path / "any.save"
    path.write_bytes(forged(files[0] / "web.save", lambda _: context))
    try:
        found(path)
    except ConfigError as error:
        assert "\n" not in str(error)


def test_a_saved_guest_that_is_cut_is_one_line(files, tmp_path):
    data = (files[0] / "web.save").read_bytes()
    path = tmp_path / "cut.save"
    for end in (31, 60, 1000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(ConfigError, match="truncated"):
            found(path)


def test_pages_are_read_as_they_are_whatever_they_look_like(tmp_path):
    path = Path(tmp_path / "elf.bin")
    path.write_bytes(b"\x7fELF".ljust(4096, b"\0"))
    (dump,) = found(path, kind="blkif")
    assert dump.words["req_prod"] == 0x464C457F
