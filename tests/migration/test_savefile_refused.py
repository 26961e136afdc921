"""Files that are no save file of ours: one line says where, and nothing is made of them."""

from __future__ import annotations

import json
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.migration.guests import made, works
from xenpv import Platform, ToolstackError
from xenpv.errors import ConfigError, XenpvError
from xenpv.host.config import load_all
from xenpv.host.domainconfig import DomainConfig
from xenpv.migration.config import config_from, config_json
from xenpv.migration.savefile import open_file, write_head
from xenpv.migration.stream import RecordType, Writer

MAGIC = b"Saved domain in xenpv format\n\0\r\n"
XL = b"Xen saved domain, xl format\n \0 \r" + struct.pack("<IIII", 0x01020304, 3, 0, 100)


class Saved(bytes):
    """Its repr is short, for those who print what a test was given."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<a file of {len(self)} bytes>"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A file with a guest in it."""
    path = tmp_path_factory.mktemp("saved") / "web.save"
    with Platform(seed=3) as xen:
        made(xen).save(path)
    return Saved(path.read_bytes())


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=4) as platform:
        yield platform


def head(
    text: bytes | None = None,
    *,
    magic: bytes = MAGIC,
    order: bytes = b"\4\3\2\1",
    version: int = 1,
    mandatory: int = 3,
    length: int | None = None,
    crc: int | None = None,
) -> bytes:
    if text is None:
        config = config_json(DomainConfig(name="web", uuid="0" * 32))
        text = json.dumps({"xenpv": "0", "domid": 1, "config": config}).encode()
    numbers = order + struct.pack(
        "<IIII", version, mandatory, 0, len(text) if length is None else length
    )
    text += bytes(-len(text) % 8)
    crc = zlib.crc32(numbers + text) if crc is None else crc
    return magic + numbers + struct.pack("<I", crc) + text


def records(*pairs: tuple[int, bytes]) -> bytes:
    out = bytearray()
    writer = Writer(out.extend)
    for kind, body in pairs:
        writer.write(kind, body)
    return bytes(out)


WHOLE = [
    (RecordType.STATIC_DATA_END, b""),
    (RecordType.DOMAIN_CONTEXT, b"{}"),
    (RecordType.GUEST_CONTEXT, b"{}"),
    (RecordType.END, b""),
]


def test_the_head_is_as_documented() -> None:
    out = bytearray()
    config = DomainConfig(name="web", uuid="0" * 32)
    write_head(out.extend, config, 5)
    text = bytes(out[56:]).rstrip(b"\0")
    assert (out[:32], out[32:36]) == (MAGIC, b"\4\3\2\1")
    assert struct.unpack_from("<IIII", out, 36) == (1, 3, 0, len(text))
    assert struct.unpack_from("<I", out, 52) == (zlib.crc32(bytes(out[32:52] + out[56:])),)
    assert len(out) % 8 == 0
    document = json.loads(text)
    assert sorted(document) == ["config", "domid", "xenpv"]
    assert document["domid"] == 5
    assert document["config"]["name"] == "web"


# what the file is, and what is said of it after its name
REFUSED: list[Any] = [
    pytest.param(b"", "is empty: expected a file that was saved", id="empty"),
    pytest.param(XL, "byte 0: this is one of Xen's own, of xl", id="xl"),
    pytest.param(b"\x7fELF" * 20, "byte 0: expected 'Saved domain in xenpv format': this is no saved domain", id="elf"),
    pytest.param(b"S", "byte 1: truncated there: expected 56 bytes at least", id="one byte"),
    pytest.param(MAGIC, "byte 32: truncated there: expected 56 bytes", id="magic alone"),
    pytest.param(head(magic=MAGIC.replace(b"\n", b"\r\n")[:32]), "byte 28: its line ends were changed", id="text"),
    pytest.param(head(order=b"\1\2\3\4"), "byte 32: written in big-endian order: expected little-endian, 0x1020304", id="order"),
    pytest.param(head(order=b"\4\3\2\0"), "byte 32: byte order mark 0x20304: expected little-endian", id="mark"),
    pytest.param(head(version=2), "byte 36: format 2: a newer xenpv wrote it: expected 1", id="newer"),
    pytest.param(head(version=0), "byte 36: format 0: expected 1", id="older"),
    pytest.param(head(mandatory=7), "byte 40: mandatory flags 0x4 are not known here: a newer xenpv", id="flag"),
    pytest.param(head(mandatory=1), "byte 40: mandatory flags 0x1: expected 0x3", id="no stream"),
    pytest.param(head(length=(1 << 20) + 1), "byte 48: 1048577 bytes of configuration: expected at most", id="long"),
    pytest.param(head(crc=7), "byte 52: the head's checksum does not fit: the file is corrupted", id="crc"),
    pytest.param(head(b"{"), "byte 56: expected JSON", id="no JSON"),
    pytest.param(head(b"\xff"), "byte 56: expected JSON", id="no UTF-8"),
    pytest.param(head(b"[" * 50_000), "byte 56: expected JSON", id="deep"),
    pytest.param(head(b"[]"), "byte 56: expected an object", id="no object"),
    pytest.param(head(b"{}"), "byte 56: expected domid and xenpv in the JSON", id="nothing in it"),
    pytest.param(head(b'{"domid":1,"xenpv":"1"}'), "byte 56: config: expected an object", id="no config"),
    pytest.param(head(), "record 0 at byte \\d+: the stream ends at byte \\d+, before END: it is truncated", id="no stream at all"),
    pytest.param(head() + records(*WHOLE)[:-1], "it is truncated", id="last byte"),
    pytest.param(head() + records(*WHOLE) + b"x", "byte \\d+: expected nothing after END, but 1 bytes follow", id="more"),
    pytest.param(head() + records(*WHOLE[1:]), "record 0 \\(DOMAIN_CONTEXT\\) at byte \\d+: expected STATIC_DATA_END", id="order of records"),
    pytest.param(head() + records(WHOLE[0], WHOLE[2]), "record 1 \\(GUEST_CONTEXT\\) at byte \\d+: expected DOMAIN_CONTEXT", id="no domain"),
    pytest.param(head() + records(*WHOLE[:2], WHOLE[3]), "record 2 \\(END\\) at byte \\d+: expected PAGE_DATA or GUEST_CONTEXT", id="no guest"),
    pytest.param(head() + records(*WHOLE[:3], (1, b"x")), "record 3 \\(PAGE_DATA\\) at byte \\d+: expected DISK or END", id="late pages"),
    pytest.param(head() + records(*WHOLE[:2], (1, b"x")), "record 2 \\(PAGE_DATA\\) at byte \\d+: expected a count of runs", id="bad pages"),
    pytest.param(head() + records(*WHOLE[:3], (0x104, b"")), "record 3 \\(DISK_DATA\\) at byte \\d+: expected DISK or END", id="data of no disk"),
    pytest.param(head() + records(*WHOLE[:3], (0x103, b"[]")), "record 3 \\(DISK\\) at byte \\d+: expected an object", id="disk"),
    pytest.param(head() + records(*WHOLE[:3], (0x103, b'{"target":"a"}')), "expected a disk of the configuration", id="foreign disk"),
    pytest.param(head() + records(*WHOLE[:2], (0x102, b"{")), "record 2 \\(GUEST_CONTEXT\\) at byte \\d+: expected JSON", id="guest"),
    pytest.param(head() + records(WHOLE[0], (0x1234, b"")), "type 0x1234 is not known here: a newer version wrote it", id="unknown record"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "text"), REFUSED)
def test_what_is_no_save_file_is_refused(
    xen: Platform, tmp_path: Path, data: bytes, text: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    before = xen.digest
    with pytest.raises(ConfigError, match=f"^{path}: .*{text}") as caught:
        xen.restore(path)
    assert "\n" not in str(caught.value)
    assert (xen.digest, xen.toolstack.created, xen.guests) == (before, {}, [])


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"more": 1}, "config.more is not known here: another version wrote it"),
        ({"name": None}, "config.name: expected a value of type str"),
        ({"name": ""}, "config: the domain has no name"),
        ({"vcpus": True}, "config.vcpus: expected a value of type int"),
        ({"memory_mib": 0}, "config: memory of 0: expected the domain's size in MiB"),
        ({"type": "XEN"}, "config.type: expected one of HVM, PV, PVH"),
        ({"type": []}, "config.type: expected one of"),
        ({"uuid": "x"}, "config.uuid: expected 32 hexadecimal digits"),
        ({"uuid": "00"}, "config.uuid: expected 32 hexadecimal digits"),
        ({"max_grant_frames": 1 << 40}, "config.max_grant_frames: expected a number of 32 bits"),
        ({"max_event_channels": -1}, "config.max_event_channels: expected a number of 32 bits"),
        ({"disks": {}}, "config.disks: expected a list"),
        ({"disks": [1]}, r"config.disks\[0\]: expected an object"),
        ({"disks": [{"vdev": "xvda"}]}, r"config.disks\[0\].target is missing"),
        (
            {"hardware": [{"class": "Platform"}]},
            r"config.hardware\[0\]: expected one of PciFunction, IdeDrive",
        ),
        ({"hardware": [{"class": ["x"]}]}, r"config.hardware\[0\]: expected one of"),
        ({"vifs": [{}]}, r"config.vifs\[0\].mac is missing"),
    ],
)
def test_a_configuration_of_another_kind_is_refused(
    xen: Platform, tmp_path: Path, config: dict[str, Any], text: str
) -> None:
    whole = config_json(DomainConfig(name="web", uuid="0" * 32)) | config
    path = tmp_path / "file"
    path.write_bytes(head(json.dumps({"xenpv": "0", "domid": 1, "config": whole}).encode()))
    with pytest.raises(ConfigError, match=f"^{path}: byte 56: {text}"):
        xen.restore(path)


def test_a_file_that_cannot_be_read_is_refused(xen: Platform, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{tmp_path}: is a directory: expected a file"):
        xen.restore(tmp_path)
    with pytest.raises(ConfigError, match="none: cannot be read: No such file or directory"):
        xen.restore(tmp_path / "none")
    if os.getuid():
        secret = tmp_path / "secret"
        secret.write_bytes(head())
        secret.chmod(0)
        with pytest.raises(ConfigError, match="secret: cannot be read: Permission denied"):
            xen.restore(secret)


def test_every_prefix_of_a_small_file_is_refused(tmp_path: Path) -> None:
    data = head() + records(*WHOLE)
    path = tmp_path / "file"
    path.write_bytes(data)
    for size in reversed(range(len(data))):
        os.truncate(path, size)
        with pytest.raises(ConfigError, match="truncated|is empty") as caught:
            list(open_file(path).records())
        assert f"byte {size}" in str(caught.value) or not size
    path.write_bytes(data)
    assert len(list(open_file(path).records())) == 4


def boundaries(data: bytes) -> list[int]:
    """Where the head's fields and the records begin."""
    (length,) = struct.unpack_from("<I", data, 48)
    found = [0, 32, 36, 40, 44, 48, 52, 56, at := 56 + length + -length % 8]
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at + 4)
        at += 16 + size + -size % 8
        found.append(at)
    assert found.pop() == len(data)
    return found


def test_a_truncated_guest_is_not_started(xen: Platform, tmp_path: Path, saved: bytes) -> None:
    path = tmp_path / "file"
    sizes = [at + step for at in boundaries(saved) for step in (-1, 0, 1, 15, 16, 17)]
    chance = random.Random(7)
    sizes += [chance.randrange(len(saved)) for _ in range(100)]
    before = xen.digest
    for size in sizes:
        if 0 <= size < len(saved):
            path.write_bytes(saved[:size])
            with pytest.raises(ConfigError, match="truncated|is empty"):
                xen.restore(path)
    assert (xen.digest, xen.toolstack.created) == (before, {})


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spoilt") / "file"


@settings(max_examples=200)
@given(where=st.integers(0, 1 << 30), flip=st.integers(1, 255), in_head=st.booleans())
def test_a_corrupted_guest_is_not_started(
    spoilt: Path, saved: bytes, where: int, flip: int, in_head: bool
) -> None:
    """Anywhere, or in one of the first 24 bytes of a record or a field of the head."""
    starts = boundaries(saved)
    at = starts[where % len(starts)] + where % 24 if in_head else where
    wrong = bytearray(saved)
    wrong[at % len(saved)] ^= flip
    spoilt.write_bytes(wrong)
    with Platform(seed=4) as xen:
        before = xen.digest
        with pytest.raises(ConfigError, match=f"^{spoilt}: "):
            xen.restore(spoilt)
        assert (xen.toolstack.created, xen.guests, xen.digest) == ({}, [], before)


def changed(saved: bytes, edit: Callable[[RecordType, bytes], bytes]) -> bytes:
    """The file with other bodies in its records, and checksums that fit."""
    start = boundaries(saved)[8]
    out = bytearray(saved[:start])
    writer = Writer(out.extend)
    at = start
    while at < len(saved):
        kind, size = struct.unpack_from("<II", saved, at)
        writer.write(kind, edit(RecordType(kind), saved[at + 16 : at + 16 + size]))
        at += 16 + size + -size % 8
    return bytes(out)


def swap(wanted: RecordType, before: bytes, after: bytes) -> Callable[[RecordType, bytes], bytes]:
    def edit(kind: RecordType, body: bytes) -> bytes:
        if kind is not wanted:
            return body
        assert before in body
        return body.replace(before, after)

    return edit


DOMAIN, GUEST = RecordType.DOMAIN_CONTEXT, RecordType.GUEST_CONTEXT
# right in every checksum, and yet no guest: what the line says
HOSTILE = [
    pytest.param(swap(GUEST, b'"format":1', b'"format":2'), "expected format 1", id="version"),
    pytest.param(swap(GUEST, b'"xenpv.bus.xenbus.XenBus"', b'"xenpv.platform.Platform"'), "", id="class of ours, not the guest's"),
    pytest.param(swap(GUEST, b'"xenpv.bus.xenbus.XenBus"', b'"subprocess.Popen"'), "", id="foreign class"),
    pytest.param(swap(GUEST, b'"xenpv.bus.xenbus.XenBus"', b'"xenpv.bus.xenbus.No"'), "", id="unknown class"),
    pytest.param(swap(DOMAIN, b'"vcpus":[[', b'"vcpus":[[true,true],['), "vcpus: the domain has 1, not 2", id="vcpus"),
    pytest.param(swap(DOMAIN, b'"ram":[[', b'"ram":[[-1,1],['), "ram:", id="ram"),
    pytest.param(swap(DOMAIN, b'"ram":[[', b'"ram":[[0,1000000],['), "", id="more memory than it may have"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "text"), HOSTILE)
def test_a_guest_that_cannot_be_is_not_started(
    xen: Platform,
    tmp_path: Path,
    saved: bytes,
    edit: Callable[[RecordType, bytes], bytes],
    text: str,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(changed(saved, edit))
    with pytest.raises(XenpvError, match=f"{path}: .*{text}") as caught:
        xen.restore(path)
    assert isinstance(caught.value, ToolstackError | ConfigError)
    assert (xen.toolstack.created, xen.guests) == ({}, [])
    assert not xen.toolstack.xs.directory("/libxl")
    assert xen.images.registered("image:1") is None
    path.write_bytes(saved)
    works(xen, xen.restore(path))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there is something in JSON."""
    if path:
        yield path
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, one in pairs:
        yield from places(one, (*path, key))


GARBAGE = [None, True, -1, 0, 1, 127, 1 << 31, 1 << 70, 1.5, "", "x", "\0", "../x", [], {}, [0], [[]],
           ["o", 0], ["k", 0], ["o", 99_999]]  # fmt: skip


def spoil(value: Any, chance: random.Random) -> Any:
    """One place of it is another thing, or is not there."""
    path = chance.choice(list(places(value)))
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if chance.random() < 0.2:
        del inner[path[-1]]
    else:
        inner[path[-1]] = chance.choice(GARBAGE)
    return value


@settings(max_examples=60)
@given(seed=st.integers(0, 1 << 30), where=st.sampled_from(["config", DOMAIN, GUEST]))
def test_whatever_the_json_says_nothing_but_a_refusal_or_a_guest_comes_of_it(
    spoilt: Path, saved: bytes, seed: int, where: object
) -> None:
    """The checksums fit: somebody meant it."""
    chance = random.Random(seed)

    def edit(kind: RecordType, body: bytes) -> bytes:
        return json.dumps(spoil(json.loads(body), chance)).encode() if kind is where else body

    whole = changed(saved, edit)
    if where == "config":
        (length,) = struct.unpack_from("<I", saved, 48)
        document = spoil(json.loads(saved[56 : 56 + length]), chance)
        whole = head(json.dumps(document).encode()) + saved[boundaries(saved)[8] :]
    spoilt.write_bytes(whole)
    with Platform(seed=4) as xen:
        try:
            xen.restore(spoilt, paused=True)
        except (ConfigError, ToolstackError) as error:
            assert "\n" not in str(error)
            assert (xen.toolstack.created, xen.guests) == ({}, [])
            assert not xen.toolstack.xs.directory("/libxl")


def test_a_file_that_changes_while_it_is_read_is_noticed(
    xen: Platform, tmp_path: Path, saved: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(saved)
    create = xen.toolstack.create

    def late(*arguments: Any, **named: Any) -> Any:
        path.write_bytes(saved[: len(saved) // 2])
        return create(*arguments, **named)

    monkeypatch.setattr(xen.toolstack, "create", late)
    with pytest.raises(XenpvError, match="checksum|truncated"):
        xen.restore(path)
    assert xen.toolstack.created == {}


CONFIGS = sorted((Path(__file__).parents[2] / "examples").glob("*.cfg"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_comes_back_as_it_was(path: Path) -> None:
    (config,) = load_all([path])
    assert config_from(json.loads(json.dumps(config_json(config)))) == config
