"""The socket of a run: who is answered, hostile clients, and that it goes when the run goes."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xenpv import Disk, MemoryImage, Platform
from xenpv.errors import ConfigError
from xenpv.view.dump import socket as dumping
from xenpv.view.dump.source import Place, Selection


@pytest.fixture(scope="module")
def xen():
    with Platform(seed=2) as made:
        made.create(name="g", disks=[Disk(MemoryImage(bytes(1 << 20)))]).start()
        yield made


@pytest.fixture
def served(tmp_path, monkeypatch, xen):
    monkeypatch.chdir(tmp_path)
    with dumping.DumpSocket("s") as one:
        one.join(xen)
        yield one


def exchange(served, request, *, close=True):
    """What a client gets that sends these bytes, served in between; None: nothing."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(served.path))
        client.sendall(request)
        if close:
            client.shutdown(socket.SHUT_WR)
        served.serve()
        data = b""
        while more := client.recv(1 << 16):
            data += more
        return data


def asked(served, wanted, form="text"):
    head, _, body = exchange(served, dumping.request_of(wanted, form=form)).partition(b"\n")
    return head.decode().removeprefix("xenpv-dump-1 "), body.decode()


def test_everything_or_a_part(served):
    status, text = asked(served, Selection())
    assert status == "ok"
    assert text.startswith("grant table of d0 (grants)\n")
    assert "d1 vbd/51712 ring-ref0 (blkif)\n" in text
    status, text = asked(served, Selection(names=("vbd/51712",)), "json")
    (document,) = json.loads(text)
    assert (status, document["kind"]) == ("ok", "blkif")
    status, text = asked(served, Selection(), "list")
    assert "blkif                d1 vbd/51712 ring-ref0\n" in text
    status, text = asked(served, Selection(), "list-json")
    assert {"kind": "blkif", "name": "d1 vbd/51712 ring-ref0"} in json.loads(text)


def test_pages_of_a_domain(served):
    place = Place(pfns=(0xFEFFC,), domid=1)
    status, text = asked(served, Selection(kind="xenstore", places=(place,)))
    assert (status, text.splitlines()[0]) == ("ok", "d1 pfn 0xfeffc (xenstore)")


REFUSED = {
    "a name": (Selection(names=("vif/0",)), "nothing is called 'vif/0': there is grant table of d0"),
    "no kind": (Selection(places=(Place(pfns=(1,)),)), "--pfn: expected --as KIND too"),
    "no page": (Selection(kind="blkif", places=(Place(pfns=(1 << 30,), domid=1),)), "pfn 0x40000000 of d1: no page"),
    "no domain": (Selection(kind="blkif", places=(Place(pfns=(1,), domid=7),)), "there is no domain 7"),
    "two of one": (Selection(kind="console", places=(Place(pfns=(0xFEFFC, 0xFEFFF), domid=1),)), "d1 pfn 0xfeffc has 2 pages: console has one"),
}  # fmt: skip


@pytest.mark.parametrize(("wanted", "line"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_there_is_said(served, wanted, line):
    status, text = asked(served, wanted)
    assert status == "error"
    assert text.startswith(line)


HOSTILE = {
    "nothing": b"",
    "no line": b"xenpv-dump-1 {",
    "another protocol": b"GET / HTTP/1.0\r\n\r\n",
    "no JSON": b"xenpv-dump-1 {\n",
    "deep": b"xenpv-dump-1 " + b"[" * 4000 + b"\n",
    "a list": b"xenpv-dump-1 []\n",
    "no form": b"xenpv-dump-1 {}\n",
    "forms": b'xenpv-dump-1 {"form": ["text"], "kind": "", "names": [], "places": []}\n',
    "kinds": b'xenpv-dump-1 {"form": "text", "kind": ["x"], "names": [], "places": []}\n',
    "names": b'xenpv-dump-1 {"form": "text", "kind": "", "names": [[]], "places": []}\n',
    "places": b'xenpv-dump-1 {"form": "text", "kind": "", "names": [], "places": [[1, ["x"]]]}\n',
    "no pages": b'xenpv-dump-1 {"form": "text", "kind": "blkif", "names": [], "places": [[1, []]]}\n',
    "below": b'xenpv-dump-1 {"form": "text", "kind": "blkif", "names": [], "places": [[1, [-5]]]}\n',
    "too long": b"xenpv-dump-1 " + b" " * 5000,
}  # fmt: skip


@pytest.mark.parametrize("request_", HOSTILE.values(), ids=HOSTILE)
def test_a_client_that_is_any_program(served, request_):
    assert exchange(served, request_).startswith(b"xenpv-dump-1 error\n")


WORD = st.one_of(st.none(), st.integers(), st.text(max_size=4), st.lists(st.integers(), max_size=2))


@given(
    asked=st.fixed_dictionaries(
        {},
        optional={
            "form": st.sampled_from(["text", "json", "list", "x", None, 1]),
            "kind": st.sampled_from(["", "blkif", "grant_v2", None, 3]),
            "names": st.lists(WORD, max_size=2) | WORD,
            "places": st.lists(st.tuples(WORD, st.lists(WORD, max_size=3)), max_size=2) | WORD,
            "all": WORD,
        },
    )
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_request_is_answered(served, asked):
    answer = exchange(served, f"xenpv-dump-1 {json.dumps(asked)}\n".encode())
    assert answer.startswith((b"xenpv-dump-1 ok\n", b"xenpv-dump-1 error\n"))


def test_a_client_that_says_nothing_is_not_waited_for_long(served, monkeypatch):
    monkeypatch.setattr(dumping, "CLIENT_S", 0.05)
    with socket.socket(socket.AF_UNIX) as quiet:
        quiet.connect("s")
        served.serve()
        assert asked(served, Selection(), "list")[0] == "ok"


def test_a_client_that_sends_in_pieces_is_waited_for_once(served, monkeypatch):
    """However long it could go on byte by byte."""
    monkeypatch.setattr(dumping, "CLIENT_S", 0.05)
    with socket.socket(socket.AF_UNIX) as drips:
        drips.connect("s")
        drips.sendall(dumping.MAGIC[:1].encode())
        served.serve()
        assert drips.recv(4096).startswith(f"{dumping.MAGIC} error".encode())


def test_a_client_that_is_gone_disturbs_nobody(served):
    for _ in range(5):
        with socket.socket(socket.AF_UNIX) as gone:
            gone.connect("s")
            gone.sendall(dumping.request_of(Selection(), form="text"))
    served.serve()
    assert asked(served, Selection(), "list")[0] == "ok"


def test_the_socket_is_the_owners_and_goes_with_its_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Platform(seed=2) as xen, dumping.DumpSocket("s") as served:
        assert asked(served, Selection())[1] == "there is no platform yet or any more\n"[:-1]
        served.join(xen)
        assert Path("s").lstat().st_mode & 0o777 == 0o600
        with pytest.raises(ConfigError, match="s: another run answers there"):
            dumping.DumpSocket("s")
        xen.close()
        assert asked(served, Selection())[0] == "error"
    assert not Path("s").exists()
    assert xen.loop.between is None
    served.close()


def test_a_socket_that_was_left_is_replaced_and_another_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    left = socket.socket(socket.AF_UNIX)
    left.bind("s")
    left.close()
    served = dumping.DumpSocket("s")
    Path("s").unlink()
    Path("s").write_text("mine")
    served.close()
    assert Path("s").read_text() == "mine"


PLACES = {
    "a file": ("file", "exists and is no socket"),
    "a folder": ("folder", "exists and is no socket"),
    "below a file": ("file/s", "the dump socket cannot be made: Not a directory"),
    "below nothing": ("no/s", "the dump socket cannot be made: No such file or directory"),
    "a long path": ("x" * 200, "a socket's path has at most 107 bytes"),
}


@pytest.mark.parametrize(("path", "line"), PLACES.values(), ids=PLACES)
def test_places_that_cannot_be_one(tmp_path, monkeypatch, path, line):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    before = sorted(Path().iterdir())
    with pytest.raises(ConfigError) as refused:
        dumping.DumpSocket(path)
    assert str(refused.value) == f"{path}: {line}"
    assert sorted(Path().iterdir()) == before


class Talker:
    """A server of another kind, which says `data` to whoever comes."""

    def __init__(self, data):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind("other")
        self.socket.listen()
        self.data = data

    def __call__(self, _sock):
        """In the place of what the client reads."""
        return self.data


OTHERS = {
    "says nothing": (b"", "other: is not the dump socket of a run"),
    "another program": (b"SSH-2.0\r\n", "other: is not the dump socket of a run"),
    "an error": (b"xenpv-dump-1 error\nno", "other: no"),
}


@pytest.mark.parametrize(("data", "line"), OTHERS.values(), ids=OTHERS)
def test_a_socket_of_another_program(tmp_path, monkeypatch, data, line):
    monkeypatch.chdir(tmp_path)
    talker = Talker(data)
    monkeypatch.setattr(dumping, "_received", talker)
    with pytest.raises(ConfigError) as refused:
        dumping.ask(Path("other"), Selection(), form="text")
    assert str(refused.value) == line
    talker.socket.close()


def test_a_server_that_does_not_answer_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dumping, "WAIT_S", 0.05)
    talker = Talker(b"")
    with pytest.raises(ConfigError, match=r"other: no answer in 0\.05 s: its run is inside of one"):
        dumping.ask(Path("other"), Selection(), form="text")
    talker.socket.close()
