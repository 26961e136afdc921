"""RECEIVE_SCALE_PARAMETERS and RECEIVE_HASH: what XenNet makes of each value, and of refusals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from struct import pack

import pytest

from tests.rss import KEY
from tests.vif.rawback import Scene, scene
from xenpv.net.oid import Oid, OidAnswer, OidError, RequestType
from xenpv.net.rss import Rss
from xenpv.vif.interface import HashAlgorithm
from xenpv.vif.receivehash import HashSettings

OFFER = {"feature-sg": "1", "feature-rx-copy": "1", "feature-ctrl-ring": "1",
         "multi-queue-max-queues": "4"}  # fmt: skip
SET_FLAGS, SET_KEY, SET_MAPPING, SET_ALGORITHM = 2, 3, 6, 7
NONE, TOEPLITZ = HashAlgorithm.NONE, HashAlgorithm.TOEPLITZ
ALL = 1 | 0x100 | 0x200 | 0x400 | 0x1000
INFO, TABLE, KEY_FLAG, DISABLE = 2, 4, 8, 16
CPUS = [0, 1, 2, 3, 0, 1]
SUCCESS = "SUCCESS"


@contextmanager
def hashing(**more: str) -> Iterator[Scene]:
    with scene(features={**OFFER, **more}, vcpus=4) as s:
        s.back.seen.clear()
        yield s


def rss(s: Scene) -> Rss:
    return s.nic._context.rss


def in_force(s: Scene) -> HashSettings:
    return s.pdo.frontend.receive_hash.settings


def scale(
    information: int = ALL, *, key: bytes = KEY, table: bytes | None = None, flags: int = 0
) -> bytes:
    """RECEIVE_SCALE_PARAMETERS of revision 2, key and table behind its 44 bytes."""
    if table is None:
        table = b"".join(pack("<HBx", 0, cpu) for cpu in CPUS)
    head = pack("<BBHHHIHxxIHxxI", 89, 2, 44, flags, 0, information, len(table), 44 + len(key),
                len(key), 44)  # fmt: skip
    return head.ljust(44, b"\0") + key + table


def hash_(information: int = ALL, *, key: bytes = KEY, flags: int = 1) -> bytes:
    """RECEIVE_HASH with its key."""
    return pack("<BBHIIHxxI", 0x80, 1, 20, flags, information, len(key), 20) + key


def put(s: Scene, oid: int, value: bytes) -> str:
    try:
        s.nic.set(oid, value)
    except OidError as error:
        return error.status.name
    return SUCCESS


def put_scale(s: Scene, value: bytes) -> str:
    return put(s, Oid.GEN_RECEIVE_SCALE_PARAMETERS, value)


def put_hash(s: Scene, value: bytes) -> str:
    return put(s, Oid.GEN_RECEIVE_HASH, value)


def test_interface_that_hashes_is_found_out_and_left_alone() -> None:
    with hashing() as s:
        assert rss(s).is_supported
        capability = rss(s).capability
        assert capability is not None
        assert (capability.queues, capability.entries, capability.key_bytes) == (4, 128, 40)
        assert capability.types == 0x1700
        assert s.nic.attributes.rss is capability
        assert in_force(s).algorithm is NONE
        assert s.nic.link_up


@pytest.mark.parametrize(
    ("features", "vcpus"),
    [({**OFFER, "feature-ctrl-ring": "0"}, 4), (OFFER, 1), ({"feature-ctrl-ring": "1"}, 4)],
    ids=["no control ring", "one CPU", "one queue"],
)
def test_without_a_hash_both_are_not_supported(features: dict[str, str], vcpus: int) -> None:
    with scene(features=features, vcpus=vcpus) as s:
        assert not rss(s).is_supported
        assert s.nic.attributes.rss is None
        assert put_scale(s, scale()) == "NOT_SUPPORTED"
        assert put_hash(s, hash_()) == "NOT_SUPPORTED"


# situation, value, status, is it on then
SCALE = [
    ("all types", scale(), SUCCESS, True),
    ("ipv4 alone", scale(0x101), SUCCESS, True),
    ("disable", scale(flags=DISABLE), SUCCESS, False),
    ("function 0", scale(0x100), SUCCESS, False),
    ("function 2", scale(0x102), "FAILURE", False),
    ("no type", scale(1), "FAILURE", False),
    ("an unknown type", scale(0x901), "FAILURE", False),
    ("no key", scale(key=b""), SUCCESS, False),
    ("a short key", scale(key=KEY[:8]), SUCCESS, True),
    ("a key of 41 bytes", scale(key=KEY + b"x"), "INVALID_DATA", False),
    ("no table", scale(table=b""), SUCCESS, False),
    ("a table of 128 entries", scale(table=bytes(512)), SUCCESS, True),
    ("a table of 513 bytes", scale(table=bytes(513)), "INVALID_DATA", False),
    ("more CPUs than queues", scale(table=pack("<5I", 0, 1 << 16, 2 << 16, 3 << 16, 4 << 16)),
     "INVALID_DATA", False),
    ("a key beyond the value", scale()[:60], "INVALID_DATA", False),
    ("everything unchanged", scale(0, key=b"", table=b"", flags=INFO | TABLE | KEY_FLAG),
     SUCCESS, True),
    ("an information of no use unchanged", scale(2, flags=INFO), SUCCESS, True),
]  # fmt: skip


@pytest.mark.parametrize(("value", "status", "on"), [row[1:] for row in SCALE],
                         ids=[row[0] for row in SCALE])  # fmt: skip
def test_scale_parameters(value: bytes, status: str, on: bool) -> None:
    with hashing() as s:
        assert put_scale(s, value) == status
        assert rss(s).scale_enabled is on
        assert not rss(s).hash_enabled
        s.run()
        if not on:
            assert in_force(s).algorithm is NONE


HASH = [
    ("all types", hash_(), SUCCESS, True),
    ("disable", hash_(flags=0), SUCCESS, False),
    ("function 0", hash_(0x100), SUCCESS, False),
    ("function 2", hash_(0x102), "FAILURE", False),
    ("no type", hash_(1), "FAILURE", False),
    ("no key", hash_(key=b""), SUCCESS, False),
    ("a key of 41 bytes", hash_(key=KEY + b"x"), "INVALID_DATA", False),
    ("a key beyond the value", hash_()[:30], "INVALID_DATA", False),
    ("everything unchanged", hash_(0, key=b"", flags=7), SUCCESS, True),
]


@pytest.mark.parametrize(("value", "status", "on"), [row[1:] for row in HASH],
                         ids=[row[0] for row in HASH])  # fmt: skip
def test_receive_hash(value: bytes, status: str, on: bool) -> None:
    with hashing() as s:
        assert put_hash(s, value) == status
        assert rss(s).hash_enabled is on
        assert not rss(s).scale_enabled


def test_what_the_backend_gets_of_scale_parameters() -> None:
    with hashing() as s:
        assert put_scale(s, scale(0x301)) == SUCCESS
        assert in_force(s) == HashSettings(
            algorithm=TOEPLITZ, types=0b110, key=KEY, mapping=(0, 1, 2, 3, 0, 1)
        )
        last = {kind: data for kind, *data in s.back.seen}
        assert last[SET_FLAGS][0] == 0b11
        assert last[SET_KEY][0] == KEY
        assert last[SET_MAPPING][0] == pack("<6I", *CPUS)
        order = [kind for kind, *_ in s.back.seen]
        assert order.count(SET_ALGORITHM) == 6  # algorithm, types and key twice, mapping


def test_they_exclude_each_other() -> None:
    with hashing() as s:
        assert put_scale(s, scale()) == SUCCESS
        assert put_hash(s, hash_()) == "NOT_SUPPORTED"
        assert put_scale(s, scale(flags=DISABLE)) == SUCCESS
        assert put_hash(s, hash_()) == SUCCESS
        assert put_scale(s, scale()) == "NOT_SUPPORTED"
        assert put_hash(s, hash_(flags=0)) == SUCCESS
        assert put_scale(s, scale()) == SUCCESS


# where the backend refuses, what the request ends with
REFUSALS = [
    (SET_ALGORITHM, "FAILURE"),
    (SET_KEY, "FAILURE"),
    (SET_FLAGS, "FAILURE"),
    (SET_MAPPING, "FAILURE"),
]


@pytest.mark.parametrize(("step", "status"), REFUSALS)
def test_backend_that_refuses_disables_the_hash(step: int, status: str) -> None:
    with hashing() as s:
        assert s.back.replies is not None
        s.back.replies[step] = (2, 0)
        assert put_scale(s, scale()) == status
        assert not rss(s).scale_enabled
        assert rss(s).types == 0
        assert rss(s).key == b""


def test_refusal_of_types_or_table_alone_is_invalid_data() -> None:
    with hashing() as s:
        assert put_scale(s, scale()) == SUCCESS
        assert s.back.replies is not None
        s.back.replies[SET_MAPPING] = (2, 0)
        table = scale(flags=INFO | KEY_FLAG)
        assert put_scale(s, table) == "INVALID_DATA"
        s.back.replies.clear()
        assert put_scale(s, scale()) == SUCCESS
        s.back.replies[SET_KEY] = (2, 0)
        assert put_scale(s, scale(flags=INFO | TABLE)) == "INVALID_DATA"


def test_silent_backend_fails_the_request_after_a_while() -> None:
    with hashing() as s:
        s.back.replies = None
        assert put_scale(s, scale()) == "FAILURE"
        assert s.nic.link_up


def test_query_tells_what_was_set() -> None:
    with hashing() as s:
        assert s.nic.query(Oid.GEN_RECEIVE_HASH) == hash_(1, key=b"", flags=0)
        put_hash(s, hash_(0x501, key=KEY[:16]))
        assert s.nic.query(Oid.GEN_RECEIVE_HASH) == hash_(0x501, key=KEY[:16], flags=1)


class Inside:
    """A protocol that asks from inside a handler."""

    def __init__(self, s: Scene) -> None:
        self.s = s
        self.status = ""

    def receive(self, _frames: object) -> None:
        self.status = put_scale(self.s, scale())


def test_request_inside_a_handler_is_pending() -> None:
    with hashing() as s:
        inside = Inside(s)
        s.nic.receiver = inside
        s.back.send(bytes.fromhex("00163e000001 00163e0000ee 88b5") + bytes(46))
        s.run()
        assert inside.status == SUCCESS
        assert rss(s).status.name == SUCCESS
        assert in_force(s).mapping == (0, 1, 2, 3, 0, 1)


class Asking:
    """A protocol that asks for a hash by a request of NDIS'."""

    def __init__(self, s: Scene) -> None:
        self.s = s
        self.answers: list[OidAnswer] = []

    def receive(self, _frames: object) -> None:
        answer = self.s.nic.oid_request(
            RequestType.SET_INFORMATION, Oid.GEN_RECEIVE_SCALE_PARAMETERS, scale()
        )
        self.answers.append(answer)


def test_answer_inside_a_handler_is_pending_and_says_no_length_read() -> None:
    with hashing() as s:
        s.nic.receiver = asking = Asking(s)
        frame = bytes.fromhex("00163e000001 00163e0000ee 88b5") + bytes(46)
        s.back.send(frame)
        s.run()
        (answer,) = asking.answers
        assert (answer.status, answer.bytes_needed, answer.bytes_read) == (0x103, 44, 0)
        assert rss(s).status.name == SUCCESS
        s.nic.receiver = None
        answer = s.nic.oid_request(
            RequestType.SET_INFORMATION, Oid.GEN_RECEIVE_SCALE_PARAMETERS, scale()
        )
        assert (answer.status, answer.bytes_needed, answer.bytes_read) == (0, 44, 44)
