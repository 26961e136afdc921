"""Store files: what `ls -fp` prints is what is loaded."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpv.abi.xs import XS
from xenpv.errors import ConfigError
from xenpv.store import storefile
from xenpv.store.listing import Listed, parse
from xenpv.store.server import Xenstored
from xenpv.store.storefile import KnownDomains


def loaded(path: Path) -> Xenstored:
    domains = KnownDomains()
    server = domains.serve()
    storefile.load(server, domains, path)
    return server


NAMES = st.text("abzAZ09-_@", min_size=1, max_size=5).map(str.encode)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(lambda names: b"/" + b"/".join(names))
PERMS = st.lists(
    st.tuples(st.sampled_from(b"nrwb"), st.sampled_from((0, 1, 7, 300))), min_size=1, max_size=4
).map(lambda perms: tuple(b"%c%d" % perm for perm in perms))


@given(st.dictionaries(PATHS, st.tuples(st.binary(max_size=60), PERMS), max_size=12))
def test_what_is_dumped_is_loaded_again(
    tmp_path_factory: pytest.TempPathFactory, nodes: dict[bytes, tuple[bytes, tuple[bytes, ...]]]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    domains = KnownDomains((1, 7, 300))
    server = domains.serve()
    client = server.connect_local("test")
    for path, (value, perms) in nodes.items():
        client.call(XS.WRITE, path + b"\0" + value)
        client.call(XS.SET_PERMS, b"\0".join((path, *perms)) + b"\0")
    written = storefile.dump(server, folder / "dump")
    assert written == len(server.dump())
    again = loaded(folder / "dump")
    assert again.dump() == server.dump()
    assert [entry.name for entry in folder.iterdir()] == ["dump"]


@pytest.mark.parametrize(
    ("line", "node"),
    [
        (b'/a = ""   (n0)', Listed(b"/a", b"", (b"n0",))),
        (b'/a/b = "1"   (n0,r1,b32757)', Listed(b"/a/b", b"1", (b"n0", b"r1", b"b32757"))),
        (b'/a = "x"', Listed(b"/a", b"x", ())),
        (b'/a = "say "hi"   (n0)"   (r3)', Listed(b"/a", b'say "hi"   (n0)', (b"r3",))),
        (rb'/a = "\t\n\r\\\001\x7f\xff"   (n0)', Listed(b"/a", b"\t\n\r\\\1\x7f\xff", (b"n0",))),
    ],
)
def test_a_line_is_read_as_xenstore_ls_prints_it(line: bytes, node: Listed) -> None:
    assert list(parse(b"# a comment\n\n" + line + b"\n")) == [node]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"/a", "f:1:1: expected: /path"),
        (b'/a = "1"   (n0)\nnonsense', "f:2:1: expected"),
        (b'/a = "1"   (x0)', "f:1:1: expected"),
        (b'/a = "1" (n0)', "f:1:1: expected"),
        (b'/a b = "1"   (n0)', "f:1:1: expected"),
        (b'a = "1"   (n0)', "f:1:1: expected"),
        (rb'/a = "x\q"   (n0)', r"f:1:8: '\\\\q' is no escape"),
        (rb'/a = "x\x7"   (n0)', r"f:1:8: '\\\\x' is no escape"),
        (rb'/a = "\777"   (n0)', r"f:1:7: '\\\\777' is no escape"),
        (b'/a = "' + b"v" * 30_000 + b'"', "f:1:1: expected"),
    ],
)
def test_a_bad_line_is_named(text: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        list(parse(text, "f"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'//a = "1"', "f:1: //a: EINVAL"),
        (b'# a comment\n\n/a = "1"\n/a/ = "1"', "f:4: /a/: EINVAL"),
        (b'/a = "' + b"v" * 4100 + b'"', "E2BIG: 4103 bytes; a request has at most 4096"),
        (b'/a = ""   (n99999)', "f:1: /a: ENOENT"),
        (b'/a = ""   (n32752)', "f:1: /a: ENOENT"),
    ],
)
def test_a_node_that_no_store_holds_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    file = tmp_path / "f"
    file.write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        loaded(file)


def test_files_that_cannot_be_read_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="none: cannot be read: No such file"):
        loaded(tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        loaded(tmp_path)
    monkeypatch.setattr(storefile, "FILE_BYTES_MAX", 1000)
    for endless in (Path("/dev/zero"), tmp_path / "f"):
        (tmp_path / "f").write_bytes(b"\n" * 1001)
        with pytest.raises(ConfigError, match="too long; at most 1000 bytes are read"):
            loaded(endless)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none/dump", "its folder does not exist"),
        ("folder", "exists and is no file"),
        ("/dev/null", "exists and is no file"),
        ("/proc/dump", "cannot be written: No such file"),
    ],
)
def test_what_cannot_be_dumped_to_is_said_at_the_start(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=message):
        storefile.check_target(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be written"):
        storefile.dump(Xenstored(), tmp_path / ("none/dump" if name == "/dev/null" else name))
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]
    assert not Path("/dev/null").is_file()


def test_a_dump_replaces_a_file_only_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump, link = tmp_path / "dump", tmp_path / "link"
    link.symlink_to(dump)
    storefile.check_target(link)
    assert not dump.exists()
    storefile.dump(Xenstored(), link)
    text = dump.read_text()
    assert text == '/tool = ""   (n0)\n/tool/xenstored = ""   (n0)\n'
    assert link.is_symlink()
    monkeypatch.setattr(Xenstored, "ls_fp", lambda _self: "v" * 100_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(ConfigError, match="dump: cannot be written: File too large"):
            storefile.dump(Xenstored(), dump)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert dump.read_text() == text
    assert sorted(one.name for one in tmp_path.iterdir()) == ["dump", "link"]


def test_introduce_needs_no_ring(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b'/local/domain/3 = ""   (n3)\n')
    server = loaded(file)
    client = server.connect_local("test")
    assert client.call(XS.IS_DOMAIN_INTRODUCED, b"3\0") == b"F\0"
    client.call(XS.INTRODUCE, b"3\x001\x002\0")
    assert client.call(XS.IS_DOMAIN_INTRODUCED, b"3\0") == b"T\0"
    client.call(XS.RELEASE, b"3\0")
    assert server.dump(b"/local/domain") == []
