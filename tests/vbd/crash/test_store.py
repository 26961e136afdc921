"""The crash driver's store client, before xenstoreds that are late, wrong, hostile or dead."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vbd.crash.rawscene import CrashScene, crash_scene
from xenpv.abi.hvm import HVM_PARAM
from xenpv.errors import StoreError
from xenpv.vbd.crash.driver import Step
from xenpv.vbd.crash.failure import UnansweredError
from xenpv.vbd.crash.store import CrashStore
from xenpv.xen.domain import XENSTORE_PFN, Domain

MS = 1_000_000
S = 1000 * MS
READ, WRITE, TRANSACTION_START, WATCH_EVENT, ERROR = 2, 11, 6, 15, 16
RSP_CONS, RSP_PROD = 2056, 2060


class RawXenstored:
    """xenstored's end of the ring, in a test's hands: nobody answers but the test."""

    def __init__(self, scene: CrashScene) -> None:
        self.scene = scene
        self.store: CrashStore = scene.driver.store
        self.store.attach()
        daemon = scene.xen.store_daemon
        ring = daemon.rings[scene.domain.domid]
        ring.service = lambda: None  # type: ignore[method-assign]
        ring.task.run = lambda: None
        self.pfn: int = ring.pfn
        self.domain: Domain = ring.domain

    def asked(self) -> tuple[int, int, int, bytes]:
        """type, req_id, tx_id and payload of what is in the ring, which is then empty."""
        cons, prod = (self.domain.load32(self.pfn, at) for at in (2048, 2052))
        raw = bytes(self.domain.read(self.pfn, n % 1024, 1)[0] for n in range(cons, prod))
        self.domain.store32(self.pfn, 2048, prod)
        kind, req_id, tx_id, length = struct.unpack_from("<4I", raw)
        assert len(raw) == 16 + length
        return kind, req_id, tx_id, raw[16:]

    def say(self, data: bytes) -> None:
        """Bytes into the response ring, as many as it takes at once."""
        assert len(data) <= 1024
        prod = self.domain.load32(self.pfn, RSP_PROD)
        for n, byte in enumerate(data):
            self.domain.write(self.pfn, 1024 + (prod + n) % 1024, bytes((byte,)))
        self.domain.store32(self.pfn, RSP_PROD, (prod + len(data)) & 0xFFFFFFFF)

    def read(self, path: str = "a") -> str | None:
        """A step of the driver that is one read; UnansweredError as it is."""
        self.store.begin()
        value = self.store.read(path)
        self.store.settle()
        return value


@contextmanager
def raw_store() -> Iterator[RawXenstored]:
    with crash_scene() as scene:
        yield RawXenstored(scene)


def message(kind: int, req_id: int, payload: bytes, tx_id: int = 0) -> bytes:
    return struct.pack("<4I", kind, req_id, tx_id, len(payload)) + payload


def test_a_late_answer_is_taken_when_it_comes() -> None:
    with raw_store() as raw:
        with pytest.raises(UnansweredError):
            raw.read()
        kind, req_id, tx_id, payload = raw.asked()
        assert (kind, tx_id, payload) == (READ, 0, b"a\0")
        with pytest.raises(UnansweredError):
            raw.read()
        raw.say(message(READ, req_id, b"value")[:9])
        with pytest.raises(UnansweredError):
            raw.read()
        raw.say(message(READ, req_id, b"value")[9:])
        assert raw.read() == "value"
        assert raw.store.requests == 1


def test_a_step_that_is_repeated_asks_nothing_twice() -> None:
    with raw_store() as raw:

        def step() -> str:
            raw.store.begin()
            values = [raw.store.read(path) for path in "abc"]
            raw.store.settle()
            return ".".join(value or "-" for value in values)

        for path in "abc":
            with pytest.raises(UnansweredError):
                step()
            _kind, req_id, _tx_id, payload = raw.asked()
            assert payload == path.encode() + b"\0"
            raw.say(message(READ, req_id, path.upper().encode()))
        assert step() == "A.B.C"
        assert raw.store.requests == 3


BEFORE = [
    b"",
    message(WATCH_EVENT, 0, b"device/vbd\0token\0"),
    message(READ, 7, b"of the dead driver"),
    message(ERROR, 7, b"ENOENT\0"),
    message(WATCH_EVENT, 0, b"x" * 900)[-400:],  # cut off where the page was zeroed
    b"\xff" * 37,
    struct.pack("<I", READ) * 30,
]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("answer", [b"value", b""])
def test_what_is_said_before_the_answer_is_not_it(before: bytes, answer: bytes) -> None:
    with raw_store() as raw:
        with pytest.raises(UnansweredError):
            raw.read()
        _kind, req_id, _tx_id, _payload = raw.asked()
        raw.say(before + message(READ, req_id, answer))
        assert raw.read() == answer.decode()


REPLIES = [
    (lambda i: message(ERROR, i, b"ENOENT\0"), None), (lambda i: message(ERROR, i, b""), None),
    (lambda i: message(ERROR, i, b"\xff\xfe\0"), None), (lambda i: message(READ, i, b"a\0b"), "a"),
    (lambda i: message(READ, i, b"\xff"), "\ufffd"),
    (lambda i: struct.pack("<4I", READ, i, 0, 4097), StoreError),
    (lambda i: struct.pack("<4I", READ, i, 0, 0xFFFFFFFF), StoreError),
    (lambda i: struct.pack("<4I", ERROR, i, 0, 5000), StoreError),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "expected"), REPLIES)
def test_replies(reply, expected) -> None:  # type: ignore[no-untyped-def]
    with raw_store() as raw:
        with pytest.raises(UnansweredError):
            raw.read()
        raw.say(reply(raw.asked()[1]))
        if expected is StoreError:
            with pytest.raises(StoreError, match="EIO"):
                raw.read()
        else:
            assert raw.read() == expected


def test_an_answer_of_4096_bytes_comes_in_pieces() -> None:
    with raw_store() as raw:
        with pytest.raises(UnansweredError):
            raw.read()
        whole = message(READ, raw.asked()[1], b"v" * 4096)
        while whole:
            raw.say(whole[:1000])
            whole = whole[1000:]
            if whole:
                with pytest.raises(UnansweredError):
                    raw.read()
        assert raw.read() == "v" * 4096


@pytest.mark.parametrize("at", [2048, RSP_PROD])
def test_indices_that_cannot_be_end_in_a_failure(at: int) -> None:
    with raw_store() as raw:
        driver = raw.scene.driver
        driver.step = Step.LIST
        assert driver.poll() == 50 * MS
        raw.domain.store32(raw.pfn, at, 0x7000_0000)
        assert driver.poll() is None or at == 2048
        if at == RSP_PROD:
            assert driver.step is Step.FAILED
            assert "past the ring" in driver.failure


def test_a_dead_xenstored_is_waited_for_30_seconds() -> None:
    with raw_store() as raw:
        driver = raw.scene.driver
        driver.step = Step.LIST
        loop = raw.scene.xen.loop
        before, polls = loop.now, 0
        while (wait := driver.poll()) is not None:
            assert wait == 50 * MS
            loop.advance(wait)
            polls += 1
        assert loop.now - before == 30 * S
        assert polls == 600
        assert driver.step is Step.FAILED
        assert driver.failure == "device/vbd: ETIMEDOUT: DIRECTORY: xenstored does not answer"


def test_a_port_that_xenstored_closed_is_the_end() -> None:
    with crash_scene() as scene:
        daemon = scene.xen.store_daemon
        ring = daemon.rings[scene.domain.domid]
        daemon.dispatcher.unbind_port(ring.port)
        ring.domain.evtchn.close(ring.port)
        assert scene.walk() is Step.FAILED
        assert scene.driver.failure == "the port of xenstored is not bound"


def test_a_connection_that_was_frozen_stays_so_and_is_waited_for_30_seconds() -> None:
    # C xenstored does not revive one whose guest broke the ring.
    with crash_scene() as scene:
        scene.domain.store32(XENSTORE_PFN, 2052, 0x5000_0000)
        scene.domain.evtchn.send(scene.domain.hvm_param(HVM_PARAM.STORE_EVTCHN))
        scene.xen.loop.run()
        assert scene.xen.store_daemon.rings[scene.domain.domid].frozen
        before = scene.xen.loop.now
        assert scene.walk() is Step.FAILED
        assert "xenstored does not answer" in scene.driver.failure
        assert scene.xen.loop.now - before == 30 * S


def test_events_that_wait_at_the_crash_do_not_disturb_it() -> None:
    with crash_scene() as scene:
        ring = scene.xen.store_daemon.rings[scene.domain.domid]
        connection = ring.connection
        # Its backend changes while it stands still: events pile up, the ring overflows.
        for n in range(200):
            scene.write(f"/local/domain/0/backend/vbd/{scene.domain.domid}/51712/k{n:0200}", "1")
            scene.xen.loop.run()
        assert connection.output, "more than the ring has room for"
        scene.connect()
        assert scene.driver.failure == ""


def test_transactions_that_conflict_are_repeated() -> None:
    with raw_store() as raw:
        store, conflicts = raw.store, 0

        def step() -> bool:
            store.begin()
            try:
                store.write_all("p", {"k": "v"})
            except UnansweredError:
                return False
            return True

        while not step():
            kind, req_id, tx_id, payload = raw.asked()
            if kind == TRANSACTION_START:
                raw.say(message(kind, req_id, b"77\0"))
            elif kind == WRITE:
                assert (tx_id, payload) == (77, b"p/k\0v")
                raw.say(message(kind, req_id, b"OK\0", 77))
            else:
                conflicts += 1
                reply = (ERROR, b"EAGAIN\0") if conflicts < 4 else (kind, b"OK\0")
                raw.say(message(reply[0], req_id, reply[1], 77))
        assert conflicts == 4


@pytest.mark.parametrize(
    "text", [b"", b"0\0", b"x", b"-1", b"4294967296", b"9" * 4000, b"\xd9\xa7"]
)
def test_a_transaction_without_a_number_is_none(text: bytes) -> None:
    with raw_store() as raw:
        raw.store.begin()
        with pytest.raises(UnansweredError):
            raw.store.write_all("p", {"k": "v"})
        whole = message(TRANSACTION_START, raw.asked()[1], text)
        raw.store.begin()
        while len(whole) > 1000:
            raw.say(whole[:1000])
            whole = whole[1000:]
            with pytest.raises(UnansweredError):
                raw.store.write_all("p", {"k": "v"})
            raw.store.begin()
        raw.say(whole)
        with pytest.raises(StoreError, match="no transaction"):
            raw.store.write_all("p", {"k": "v"})


@given(st.lists(st.binary(max_size=300), max_size=12), st.integers(0, 2))
def test_no_bytes_that_xenstored_says_raise(pieces: list[bytes], aligned: int) -> None:
    with raw_store() as raw:
        driver, loop = raw.scene.driver, raw.scene.xen.loop
        driver.step = Step.LIST
        for piece in pieces:
            wait = driver.poll()
            if wait is None:
                break
            head = b""
            if aligned:
                asked = driver.store._asked
                kind, req_id = asked if asked is not None else (READ, 0)
                head = struct.pack("<4I", kind, req_id, 0, len(piece))
            raw.say((head + piece)[:1024])
            loop.advance(wait)
        while (wait := driver.poll()) is not None:
            loop.advance(5 * S)
        assert driver.step in (Step.FAILED, Step.READY)
