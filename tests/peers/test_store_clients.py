"""Real clients against `xenpv store` in a process of its own: tools, test-xenstore, pyxs."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pyxs
from pyxs._internal import Op, Packet
from pyxs.exceptions import PyXSError

from tests.docs.console import commands
from tests.docs.fences import fences
from tests.peers import need
from tests.peers.xenstored import SocketClient
from xenpv.abi.xs import XS
from xenpv.bench.daemon import OurServer

pytestmark = pytest.mark.peers

TOOLS = "/usr/lib/xen-4.17/bin"
TEST_XENSTORE_ROWS = 12
PROFILES = ("c", "ox", "legacy")


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[OurServer]:
    server = OurServer(folder, *options)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[OurServer]:
    """A store of the profile that the test names, else of c, with the home of domain 0."""
    profile = getattr(request, "param", "c")
    with serving(tmp_path, "--profile", profile) as started:
        client = SocketClient(started.socket)
        client.send(XS.MKDIR, b"/local/domain/0\0")
        assert client.receive()[0] == XS.MKDIR
        client.close()
        yield started


def run(server: OurServer, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = need(program, "xen-utils-4.17" if program.startswith("/") else "xenstore-utils")
    return subprocess.run(
        [path, *arguments],
        env={"XENSTORED_PATH": os.fspath(server.socket)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def said(server: OurServer, program: str, *arguments: str) -> str:
    done = run(server, program, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


# the tools of xenstore-utils


@pytest.mark.parametrize("server", PROFILES, indirect=True)
def test_the_tools_write_read_list_and_remove(server: OurServer) -> None:
    said(server, "xenstore-write", "/a/b", "value", "/a/c", "two words")
    assert said(server, "xenstore-read", "/a/b", "/a/c") == "value\ntwo words\n"
    assert said(server, "xenstore-read", "-p", "/a/b") == "/a/b: value\n"
    assert said(server, "xenstore-list", "/a") == "b\nc\n"
    assert said(server, "xenstore-exists", "/a/b") == ""
    said(server, "xenstore-rm", "/a/b")
    assert run(server, "xenstore-exists", "/a/b").returncode == 1
    assert "couldn't read" in run(server, "xenstore-read", "/a/b").stderr
    # Removed without the parents that are empty then, unless -t asks for it.
    said(server, "xenstore-rm", "-t", "/a/c")
    assert run(server, "xenstore-exists", "/a").returncode == 1


def test_xenstore_chmod_and_ls_show_permissions(server: OurServer) -> None:
    said(server, "xenstore-write", "/a/b", "1")
    said(server, "xenstore-chmod", "-r", "/a", "n0", "r0")
    assert said(server, "xenstore-ls", "-fp", "/a") == '/a/b = "1"   (n0,r0)\n'
    line = said(server, "xenstore-ls", "-p", "/a").rstrip()
    assert line.startswith('b = "1"')
    assert line.endswith("(n0,r0)")


def test_xenstore_watch_sees_what_another_tool_writes(server: OurServer) -> None:
    program = need("xenstore-watch", "xenstore-utils")
    watcher = subprocess.Popen(
        [program, "-n", "3", "/a"],
        env={"XENSTORED_PATH": os.fspath(server.socket)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watcher.stdout is not None
    lines = [watcher.stdout.readline()]  # the first event says that it watches
    said(server, "xenstore-write", "/a/b", "1")
    lines.append(watcher.stdout.readline())
    said(server, "xenstore-rm", "/a")
    lines.append(watcher.stdout.readline())
    watcher.communicate(timeout=20)
    assert lines[0] == "/a\n"
    assert lines[1] == "/a/b\n"
    assert lines[2] in {"/a\n", "/a/b\n"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(("check",), "OK\n"), (("log", "on"), "OK\n"), (("quota",), "nodes"), (("help",), "check")],
)
def test_xenstore_control(server: OurServer, arguments: tuple[str, ...], expected: str) -> None:
    assert expected in said(server, f"{TOOLS}/xenstore-control", *arguments)


def control(server: OurServer, *arguments: str) -> tuple[str, str, int]:
    done = run(server, f"{TOOLS}/xenstore-control", *arguments)
    return done.stdout, done.stderr, done.returncode


def test_xenstore_control_log_and_memreport(server: OurServer, tmp_path: Path) -> None:
    switches = "Log switch settings:\nobj     : on\nio      : on\nwrl     : on\nacc     : off\n"
    assert said(server, f"{TOOLS}/xenstore-control", "log").startswith(switches)
    for word in ("on", "+acc", "-obj", "off"):
        assert control(server, "log", word) == ("OK\n", "", 0)
    assert "obj     : off\n" in said(server, f"{TOOLS}/xenstore-control", "log")
    log, report = tmp_path / "log", tmp_path / "report"
    assert control(server, "memreport")[2] == 3  # there is no log file for it yet
    assert control(server, "logfile", os.fspath(log)) == ("OK\n", "", 0)
    assert control(server, "memreport") == ("OK\n", "", 0)
    assert control(server, "print", "words") == ("OK\n", "", 0)
    assert control(server, "memreport", os.fspath(report)) == ("OK\n", "", 0)
    assert report.read_text().startswith("nodes ")
    assert log.read_text() == report.read_text() + "control: words\n"
    assert control(server, "memreport", os.fspath(tmp_path / "none" / "report"))[2] == 3


def test_xenstore_control_quota(server: OurServer) -> None:
    assert control(server, "quota", "set", "nodes", "5") == ("OK\n", "", 0)
    listed = said(server, f"{TOOLS}/xenstore-control", "quota").splitlines()
    assert listed[:2] == ["Quota settings:", "nodes            :        5 nodes of a domain"]
    counts = said(server, f"{TOOLS}/xenstore-control", "quota", "0").splitlines()
    assert counts[0] == "Domain 0:"
    assert counts[2] == "watches          :        0 (max        0)"
    assert control(server, "quota", "77")[2] == 3
    assert said(server, f"{TOOLS}/xenstore-control", "quota", "max").startswith("Max. seen")
    soft = said(server, f"{TOOLS}/xenstore-control", "quota-soft").splitlines()
    assert soft[1].startswith("memory           :  2097152 ")


def test_xenstore_control_refuses_what_there_is_not(server: OurServer) -> None:
    # As of an xenstored that was built without it.
    update = ("", "Setting update binary failed:\nInvalid argument\n", 3)
    for arguments in (["-s"], ["-a"], ["-c", "x", "-f", "/bin/true"]):
        assert control(server, "live-update", *arguments) == update
    out, err, status = control(server, "frobnicate")
    assert (out, status) == ("", 3)
    assert err.startswith("Command not supported. Valid commands are:\ncheck ")
    assert "live-update" not in err


@pytest.mark.parametrize("server", PROFILES, indirect=True)
def test_test_xenstore_passes_all_rows(server: OurServer) -> None:
    done = run(server, f"{TOOLS}/test-xenstore", "-i", "200")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("avg:") == TEST_XENSTORE_ROWS


# pyxs: the tests of its own suite that xen-core 4 lists as must, by their names


@pytest.fixture
def client(server: OurServer) -> Iterator[pyxs.Client]:
    with connected(server) as made:
        yield made


def connected(server: OurServer) -> pyxs.Client:
    return pyxs.Client(unix_socket_path=os.fspath(server.socket))


def refused(name: int, call: Callable[[], object]) -> None:
    with pytest.raises(PyXSError) as caught:
        call()
    assert caught.value.args[0] == name


def test_pyxs_execute_command_error(client: pyxs.Client) -> None:
    refused(errno.ENOENT, lambda: client.execute_command(Op.READ, b"/unexisting\0"))
    with pytest.raises(ValueError):
        client.execute_command(Op.READ, b"/foo\xff\0")


def test_pyxs_read(client: pyxs.Client) -> None:
    assert client.read(b"/local") == b""
    assert client[b"/local"] == b""
    refused(errno.ENOENT, lambda: client.read(b"/unexisting"))
    assert client.read(b"/unexisting", b"default") == b"default"


def test_pyxs_write_mkdir_delete(client: pyxs.Client) -> None:
    client.write(b"/foo/bar", b"baz")
    assert client.read(b"/foo/bar") == b"baz"
    client[b"/foo/bar"] = b"boo"
    assert client[b"/foo/bar"] == b"boo"
    client.mkdir(b"/foo/dir")
    assert client.list(b"/foo") == [b"bar", b"dir"]
    client.delete(b"/foo/bar")
    client.delete(b"/foo/bar")  # its parent is there
    refused(errno.ENOENT, lambda: client.read(b"/foo/bar"))
    refused(errno.ENOENT, lambda: client.delete(b"/none/bar"))


def test_pyxs_list_and_exists(client: pyxs.Client) -> None:
    client.mkdir(b"/foo/bar")
    assert client.list(b"/foo") == [b"bar"]
    assert client.list(b"/foo/bar") == []
    refused(errno.ENOENT, lambda: client.list(b"/path/to/something"))
    assert client.exists(b"/foo/bar")
    assert not client.exists(b"/path/to/something")
    assert [top for top, _, _ in client.walk(b"/foo")] == [b"/foo", b"/foo/bar"]


def test_pyxs_perms(tmp_path: Path) -> None:
    with serving(tmp_path, "--domain", "1", "--domain", "2") as server, connected(server) as client:
        client.write(b"/foo/bar", b"1")
        assert client.get_perms(b"/foo/bar") == [b"n0"]
        client.set_perms(b"/foo/bar", [b"b0"])
        assert client.get_perms(b"/foo/bar") == [b"b0"]
        client.set_perms(b"/foo/bar", [b"b0", b"n1", b"r2"])
        assert client.get_perms(b"/foo/bar") == [b"b0", b"n1", b"r2"]


def test_pyxs_get_domain_path(client: pyxs.Client) -> None:
    assert client.get_domain_path(0) == b"/local/domain/0"
    assert client.get_domain_path(999) == b"/local/domain/999"


def test_pyxs_is_domain_introduced(client: pyxs.Client) -> None:
    for domid in client.list(b"/local/domain"):
        assert client.is_domain_introduced(int(domid))
    assert not client.is_domain_introduced(999)


def test_pyxs_transaction_commit_ok(client: pyxs.Client) -> None:
    client.transaction()
    client[b"/foo/bar"] = b"boo"
    assert client.commit()
    assert client[b"/foo/bar"] == b"boo"


def test_pyxs_transaction_rollback(client: pyxs.Client) -> None:
    client[b"/foo/bar"] = b"before"
    client.transaction()
    client[b"/foo/bar"] = b"boo"
    client.rollback()
    assert client[b"/foo/bar"] == b"before"


def test_pyxs_transaction_exception(server: OurServer) -> None:
    def fails() -> None:
        with connected(server) as client:
            client.transaction()
            client[b"/foo/bar"] = b"boo"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    with connected(server) as client:
        assert not client.exists(b"/foo/bar")


def test_pyxs_uncommitted_transaction(server: OurServer) -> None:
    with pytest.raises(PyXSError, match="uncommitted"), connected(server) as client:
        client.transaction()


@pytest.mark.parametrize(
    ("server", "committed"), [("c", True), ("ox", True), ("legacy", False)], indirect=["server"]
)
def test_pyxs_transaction_commit_retry(server: OurServer, committed: bool) -> None:
    # A write of another client before the transaction touched anything.
    with connected(server) as one, connected(server) as other:
        one.transaction()
        other[b"/foo/bar"] = b"unexpected write"
        one[b"/foo/baz"] = b"boo"
        assert one.commit() is committed


def test_pyxs_nested_transaction(client: pyxs.Client) -> None:
    client.transaction()
    with pytest.raises(PyXSError):
        client.transaction()
    client.rollback()


def test_pyxs_monitor(client: pyxs.Client) -> None:
    client.write(b"/foo/bar", b"1")
    with client.monitor() as monitor:
        monitor.watch(b"/foo/bar", b"boo")
        events = monitor.wait()
        assert next(events) == (b"/foo/bar", b"boo")  # at once
        client[b"/foo/bar"] = b"2"
        assert next(events) == (b"/foo/bar", b"boo")
        client[b"/foo/bar/child"] = b"3"
        assert next(events) == (b"/foo/bar/child", b"boo")
        monitor.unwatch(b"/foo/bar", b"boo")


def test_pyxs_monitor_leftover_events(client: pyxs.Client) -> None:
    with client.monitor() as monitor:
        monitor.watch(b"/foo/bar", b"boo")
        for number in range(3):
            client[b"/foo/bar"] = b"%d" % number
        monitor.unwatch(b"/foo/bar", b"boo")
        # Not by wait(): of an event that nothing watches it never comes back.
        left = [monitor.events.get(timeout=20) for _ in range(4)]
    assert left == [(b"/foo/bar", b"boo")] * 4


def test_pyxs_monitor_different_tokens(client: pyxs.Client) -> None:
    with client.monitor() as monitor:
        monitor.watch(b"/foo/bar", b"foo")
        monitor.watch(b"/foo/bar", b"boo")
        events = monitor.wait()
        assert [next(events).token for _ in range(2)] == [b"foo", b"boo"]
        client[b"/foo/bar"] = b"1"
        assert sorted(next(events).token for _ in range(2)) == [b"boo", b"foo"]


def test_pyxs_multiple_monitors(client: pyxs.Client) -> None:
    with client.monitor() as one, client.monitor() as two:
        one.watch(b"/foo/bar", b"boo")
        two.watch(b"/foo/baz", b"hoo")
        for number in range(4):
            client[b"/foo/bar"] = client[b"/foo/baz"] = b"%d" % number
        for monitor, event in ((one, (b"/foo/bar", b"boo")), (two, (b"/foo/baz", b"hoo"))):
            events = monitor.wait()
            assert [next(events) for _ in range(5)] == [event] * 5


def test_pyxs_header_decode_error(server: OurServer, client: pyxs.Client) -> None:
    # A transaction that there is not is answered, and the connection goes on.
    rvar = client.router.send(Packet(Op.READ, b"/local\0", rq_id=1, tx_id=128))
    assert rvar.get().payload == b"ENOENT\0"
    assert client[b"/local"] == b""
    refused(errno.ENOSYS, lambda: client.execute_command(Op.RESTRICT, b"1\0"))


# many at once


CLIENTS = 20
ROUNDS = int(os.environ.get("XENPV_STORE_ROUNDS", "800"))  # about 3 s
SOAK_ROUNDS = 6000  # more than 10 s
SHARED = b"/many/shared"


class Player:
    """One of many clients. Each request has a number, and the answers come in that order."""

    def __init__(self, number: int, server: OurServer) -> None:
        self.node = b"/many/%d" % number
        self.watched = b"/many/%d" % (number - 1)
        self.heard = 0
        self.commits = 0
        self.asked = 0
        self.answered = 0
        self._client = SocketClient(server.socket)
        self._tx_id = 0

    def send(self, op: XS, payload: bytes, tx_id: int = 0) -> None:
        self.asked += 1
        self._client.send(op, payload, tx_id=tx_id, req_id=self.asked)

    def receive(self) -> tuple[int, bytes]:
        """The answer to the oldest request that has none: type and payload."""
        self.answered += 1
        while True:
            kind, req_id, _, payload = self._client.receive()
            if kind != XS.WATCH_EVENT:
                assert req_id == self.answered, "lost, or out of its turn"
                return kind, payload
            assert payload == self.watched + b"\0t\0"
            self.heard += 1

    def expect(self, op: XS, payload: bytes) -> None:
        assert self.receive() == (op, payload)

    # Its own node, without a transaction: three requests under way at once.

    def ask_to_count(self, round_: int) -> None:
        self.send(XS.READ, self.node + b"\0")
        self.send(XS.WRITE, self.node + b"\0%d" % round_)
        self.send(XS.READ, self.node + b"\0")

    def count(self, round_: int) -> None:
        self.expect(XS.READ, b"%d" % (round_ - 1))
        self.expect(XS.WRITE, b"OK\0")
        self.expect(XS.READ, b"%d" % round_)

    # The same and a counter that all share, in a transaction.

    def start(self) -> None:
        self.send(XS.TRANSACTION_START, b"\0")

    def read(self) -> None:
        kind, payload = self.receive()
        assert kind == XS.TRANSACTION_START
        self._tx_id = int(payload[:-1])
        self.send(XS.READ, SHARED + b"\0", self._tx_id)

    def write(self, round_: int) -> None:
        kind, payload = self.receive()
        assert kind == XS.READ
        self.send(XS.WRITE, SHARED + b"\0%d" % (int(payload) + 1), self._tx_id)
        self.send(XS.WRITE, self.node + b"\0%d" % round_, self._tx_id)
        self.send(XS.TRANSACTION_END, b"T\0", self._tx_id)

    def committed(self) -> bool:
        self.expect(XS.WRITE, b"OK\0")
        self.expect(XS.WRITE, b"OK\0")
        answer = self.receive()
        assert answer in ((XS.TRANSACTION_END, b"OK\0"), (XS.ERROR, b"EAGAIN\0"))
        self.commits += answer[0] == XS.TRANSACTION_END
        return answer[0] == XS.TRANSACTION_END

    def close(self) -> None:
        self._client.close()


def play_round(round_: int, writers: list[Player], transactors: list[Player]) -> list[int]:
    """Everybody counts one up, the transactors until they have; how many had to try each time.

    A commit fails only if something else was written. The writers write while the first tries
    run; later only commits do, so of the tries that run at once one has to succeed.
    """
    tries = []
    waiting = transactors
    while waiting:
        tries.append(len(waiting))
        for player in waiting:
            player.start()
        if len(tries) == 1:
            for player in writers:
                player.ask_to_count(round_)
        for player in waiting:
            player.read()
        for player in waiting:
            player.write(round_)
        if len(tries) == 1:
            for player in writers:
                player.count(round_)
        waiting = [player for player in waiting if not player.committed()]
        assert len(tries) == 1 or len(waiting) < tries[-1], "somebody has to get on"
    return tries


def play(rounds: int, server: OurServer) -> None:
    """Twenty clients for so many rounds: writers, transactors, and watchers of the latter."""
    players = [Player(number, server) for number in range(CLIENTS)]
    for player in players:
        player.send(XS.WRITE, player.node + b"\x000")
        player.expect(XS.WRITE, b"OK\0")
    players[0].send(XS.WRITE, SHARED + b"\x000")
    players[0].expect(XS.WRITE, b"OK\0")
    watchers, transactors = players[3::4], players[2::4]
    for player in watchers:
        player.send(XS.WATCH, player.watched + b"\0t\0")
        player.expect(XS.WATCH, b"OK\0")
    writers = [player for player in players if player not in transactors]
    conflicts = 0
    for round_ in range(1, rounds + 1):
        conflicts += sum(play_round(round_, writers, transactors)[1:])
    assert [player.commits for player in transactors] == [rounds] * len(transactors)
    assert conflicts >= rounds  # they did meet, and no update of the shared node was lost
    players[0].send(XS.READ, SHARED + b"\0")
    players[0].expect(XS.READ, b"%d" % (rounds * len(transactors)))
    for player in players:
        player.send(XS.READ, player.node + b"\0")
        player.expect(XS.READ, b"%d" % rounds)
        assert player.asked == player.answered
        player.close()
    for player in watchers:
        # Each commit of the neighbour and the first: an event that waits swallows one like it,
        # so there may be fewer, and never more. What failed is not heard of.
        assert 1 < player.heard <= rounds + 1


@pytest.mark.parametrize("server", PROFILES, indirect=True)
def test_twenty_clients_at_once_lose_nothing_and_get_on(server: OurServer) -> None:
    play(ROUNDS, server)


@pytest.mark.soak
@pytest.mark.parametrize("server", PROFILES, indirect=True)
def test_twenty_clients_for_long(server: OurServer) -> None:
    play(max(ROUNDS, SOAK_ROUNDS), server)


# the command itself


def test_the_socket_is_private_and_goes_with_the_server(tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        server = OurServer(tmp_path)
        assert stat.S_IMODE(server.socket.stat().st_mode) == 0o600
        client = SocketClient(server.socket)
        client.send(XS.READ, b"/\0")
        client.receive()
        server.process.send_signal(number)
        _, rest = server.process.communicate(timeout=20)
        assert server.process.returncode == 0
        assert rest == "1 clients, 0 of them sent away\n"
        assert not server.socket.exists()
        with pytest.raises(ConnectionError):
            client.receive()
        client.close()


def test_a_killed_servers_socket_is_taken_over(tmp_path: Path) -> None:
    killed = OurServer(tmp_path)
    killed.process.kill()
    killed.process.communicate()
    assert killed.socket.is_socket()
    with serving(tmp_path) as server:
        assert said(server, "xenstore-list", "/") == "tool\n"


def test_a_dump_is_what_xenstore_ls_prints_and_can_be_loaded(tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    values = ('say "hi"', "tab\tline\nend", "", "é")
    with serving(tmp_path, "--dump", os.fspath(dump), "--domain", "3") as server:
        for number, value in enumerate(values):
            said(server, "xenstore-write", f"/v/{number}", value)
        said(server, "xenstore-chmod", "/v/1", "n3", "r0")
        listing = said(server, "xenstore-ls", "-fp")
        server.process.send_signal(signal.SIGUSR1)
        # The handler runs before the next request is answered.
        said(server, "xenstore-list", "/")
        assert dump.read_text() == listing
        said(server, "xenstore-write", "/late", "1")
    assert dump.read_text() == listing + '/late = "1"   (n0)\n'
    with serving(tmp_path, "--load", os.fspath(dump)) as server:
        assert said(server, "xenstore-ls", "-fp") == dump.read_text()
        for number, value in enumerate(values):
            assert said(server, "xenstore-read", "-R", f"/v/{number}") == value


def test_what_the_store_page_shows_of_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = fences("docs/reference/store.md")
    (command,), tools = (commands(one.text) for one in shown if one.language == "console")
    (dumped,) = (one.text for one in shown if one.language == "text")
    (of_pyxs,) = (one.text for one in shown if one.first == "import pyxs")
    need("xenstore-write", "xenstore-utils")
    program, *arguments = shlex.split(command.line)
    assert program == "xenpv"
    server = subprocess.Popen(
        [sys.executable, "-m", "xenpv", *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        assert " serves xs" in server.stderr.readline()
        done = subprocess.run(
            ["sh", "-e"], input="\n".join(one.line for one in tools), cwd=tmp_path,
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
        assert done.stdout.splitlines() == [line for one in tools for line in one.output]
        assert done.stderr == ""
        monkeypatch.chdir(tmp_path)
        exec(compile(of_pyxs, "store.md", "exec"), {})  # noqa: S102 - what a reader types
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=20)
    assert server.returncode == 0
    assert (tmp_path / "after.txt").read_text() == dumped


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "--socket"),
        (["--socket", "xs", "--profile", "cxx"], "'cxx'"),
        (["--socket", "none/xs"], "none/xs: cannot be made: No such file"),
        (["--socket", "/dev/null/xs"], "/dev/null/xs: cannot be made: Not a directory"),
        (["--socket", "/dev/null"], "/dev/null: exists and is no socket"),
        (["--socket", "x" * 108], "at most 107 bytes"),
        (["--socket", "xs", "--load", "missing"], "missing: cannot be read: No such file"),
        (["--socket", "xs", "--load", "/"], "/: cannot be read: Is a directory"),
        (["--socket", "xs", "--load", "bad"], "bad:2:1: expected: /path"),
        (["--socket", "xs", "--load", "bad node"], "bad node:3: /a//b: EINVAL"),
        (["--socket", "xs", "--dump", "none/dump"], "none/dump: its folder does not exist"),
        (["--socket", "xs", "--dump", "/dev/null"], "/dev/null: exists and is no file"),
        (["--socket", "xs", "--dump", "/proc/dump"], "/proc/dump: cannot be written"),
        (["--socket", "xs", "--domain", "x"], "domid"),
    ],
)
def test_bad_options_are_one_line_and_status_2(
    tmp_path: Path, options: list[str], complaint: str
) -> None:
    files = {"bad": b'/a = "1"\nnonsense\n', "bad node": b'# a comment\n/a = ""\n/a//b = "1"\n'}
    for name, text in files.items():
        (tmp_path / name).write_bytes(text)
    done = subprocess.run(
        [sys.executable, "-m", "xenpv", "store", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    *usage, line = done.stderr.splitlines()
    assert complaint in line
    assert all("usage:" in one or one.startswith(" ") for one in usage)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(files)


def test_a_dump_that_cannot_be_written_ends_no_store_and_is_told_by_the_status(
    tmp_path: Path,
) -> None:
    room = tmp_path / "room"
    room.mkdir()
    server = OurServer(tmp_path, "--dump", os.fspath(room / "dump"))
    room.rmdir()
    server.process.send_signal(signal.SIGUSR1)
    assert said(server, "xenstore-list", "/") == "tool\n"
    server.process.terminate()
    _, rest = server.process.communicate(timeout=20)
    assert server.process.returncode == 1
    complaint = f"{room}/dump: cannot be written: No such file or directory"
    assert rest.splitlines() == [complaint, complaint, "1 clients, 0 of them sent away"]
    assert list(tmp_path.iterdir()) == []


def test_a_second_server_leaves_the_first_alone(server: OurServer) -> None:
    again = subprocess.run(
        [sys.executable, "-m", "xenpv", "store", "--socket", os.fspath(server.socket)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert again.returncode == 2
    assert "served there already" in again.stderr
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(os.fspath(server.socket))
    assert said(server, "xenstore-list", "/local") == "domain\n"
