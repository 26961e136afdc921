"""The NBD client against servers that say what they like: a script of bytes is the server."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpv.host.nbd import CommandError, Flag, NbdClient, NbdError, printable

MIB = 1 << 20
HELLO = b"NBDMAGICIHAVEOPT\x00\x03"
GO, EXPORT_NAME = 7, 1
ACK, SERVER, INFO, UNSUP, POLICY, TLS = 1, 2, 3, 0x80000001, 0x80000002, 0x80000005


def option_reply(
    kind: int, body: bytes = b"", option: int = GO, magic: int = 0x0003E889045565A9
) -> bytes:
    return struct.pack(">QIII", magic, option, kind, len(body)) + body


def info_export(size: int = MIB, flags: int = 0x0C6D) -> bytes:
    return option_reply(INFO, struct.pack(">HQH", 0, size, flags))


def info_blocks(least: int = 1, preferred: int = 4096, most: int = 32 * MIB) -> bytes:
    return option_reply(INFO, struct.pack(">HIII", 3, least, preferred, most))


def reply(cookie: int, error: int = 0, data: bytes = b"", magic: int = 0x67446698) -> bytes:
    return struct.pack(">IIQ", magic, error, cookie) + data


GOOD = HELLO + info_export() + info_blocks() + option_reply(ACK)


@contextlib.contextmanager
def served(script: bytes, *, ends: bool = True) -> Iterator[tuple[NbdClient, socket.socket]]:
    """A client whose server has said all of `script` already. `ends`: and gone silent for good."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.sendall(script)
        if ends:
            theirs.shutdown(socket.SHUT_WR)
        client = NbdClient(ours, 1)
        try:
            yield client, theirs
        finally:
            client.disconnect()


def test_the_handshake_says_what_the_protocol_wants() -> None:
    with served(GOOD) as (client, server):
        export = client.negotiate(b"disk")
        assert (export.size_bytes, export.block_min, export.payload_max) == (MIB, 1, 32 * MIB)
        assert export.flags == Flag(0x0C6D)
        sent = server.recv(1000)
    flags = b"\0\0\0\3"
    data = b"\0\0\0\4disk" + b"\0\1" + b"\0\3"
    assert sent == flags + b"IHAVEOPT" + struct.pack(">II", 7, len(data)) + data


@pytest.mark.parametrize(
    ("offered", "answered", "zeroes"), [(1, 1, 124), (3, 3, 0), (0xFFFF, 3, 0)]
)
def test_a_server_without_go_is_asked_by_name(offered: int, answered: int, zeroes: int) -> None:
    hello = HELLO[:16] + struct.pack(">H", offered)
    script = hello + option_reply(UNSUP, b"what?") + struct.pack(">QH", MIB, 0x65) + bytes(zeroes)
    with served(script + reply(1)) as (client, server):
        assert client.negotiate().size_bytes == MIB
        client.flush()  # what it sent was read to its end
        sent = server.recv(1000)
    assert sent[:4] == struct.pack(">I", answered)
    assert b"IHAVEOPT" + struct.pack(">II", EXPORT_NAME, 0) in sent


BAD_HANDSHAKES = [
    ("nothing", b"", "it ended the connection"),
    ("half a greeting", HELLO[:9], "the connection ends in a message"),
    ("another greeting", b"HTTP/1.1 400 Bad R", "its greeting is 485454502f312e31"),
    ("oldstyle", b"NBDMAGIC" + bytes.fromhex("00420281861253") + bytes(9), "its greeting is"),
    ("no fixed newstyle", HELLO[:17] + b"\2", "does not speak the fixed newstyle"),
    (
        "another magic",
        HELLO + option_reply(ACK, magic=1),
        "its reply has magic 0000000000000001 and option 7",
    ),
    ("another option", HELLO + option_reply(ACK, option=6), "and option 6"),
    ("an ACK at once", HELLO + option_reply(ACK), "acknowledges an export without telling of it"),
    (
        "blocks alone",
        HELLO + info_blocks() + option_reply(ACK),
        "acknowledges an export without telling",
    ),
    (
        "a refusal",
        HELLO + option_reply(POLICY, b"not\nyou \x1b[31m"),
        r"refuses the export: ERR_POLICY: not you \?\[31m$",
    ),
    ("wants TLS", HELLO + option_reply(TLS), "refuses the export: ERR_TLS_REQD"),
    ("an unknown error", HELLO + option_reply(0x80001234), "refuses the export: 0x80001234"),
    ("an unknown type", HELLO + option_reply(SERVER, b"abc"), "its reply of type 2 has 3 bytes"),
    (
        "information of one byte",
        HELLO + option_reply(INFO, b"\0"),
        "its reply of type 3 has 1 bytes",
    ),
    (
        "a short export",
        HELLO + option_reply(INFO, bytes(11)),
        "its information has 11 bytes, expected 12",
    ),
    (
        "a long export",
        HELLO + option_reply(INFO, bytes(13)),
        "its information has 13 bytes, expected 12",
    ),
    ("short blocks", HELLO + option_reply(INFO, b"\0\3" + bytes(11)), "has 13 bytes, expected 14"),
    (
        "more than there is",
        HELLO + option_reply(INFO, bytes(12))[:-1],
        "the connection ends in a message",
    ),
    (
        "a long message",
        HELLO + option_reply(POLICY, bytes(4097)),
        "its reply has 4097 bytes, 4096 at most",
    ),
    (
        "4 GiB",
        HELLO + struct.pack(">QIII", 0x0003E889045565A9, GO, INFO, 0xFFFFFFFF),
        "has 4294967295 bytes",
    ),
    ("no end", HELLO + option_reply(INFO, b"\0\7x") * 100, "more than 64 replies to one option"),
    ("no flags", HELLO + info_export(flags=0x64) + option_reply(ACK), "an export without flags"),
    (
        "2^63 bytes",
        HELLO + info_export(size=1 << 63) + option_reply(ACK),
        "an export of 9223372036854775808 bytes",
    ),
    (
        "blocks of 0",
        HELLO + info_export() + info_blocks(least=0) + option_reply(ACK),
        "a smallest block of 0 bytes",
    ),
    (
        "blocks of 3",
        HELLO + info_export() + info_blocks(least=3) + option_reply(ACK),
        "a smallest block of 3 bytes",
    ),
    (
        "blocks of 128 KiB",
        HELLO + info_export() + info_blocks(least=1 << 17) + option_reply(ACK),
        "a smallest block of 131072",
    ),
    (
        "payloads of 4,096",
        HELLO + info_export() + info_blocks(most=4096) + option_reply(ACK),
        "at most 4096 bytes at once",
    ),
    ("disconnects on EXPORT_NAME", HELLO + option_reply(UNSUP), "it ended the connection"),
]


@pytest.mark.parametrize(
    ("script", "message"),
    [row[1:] for row in BAD_HANDSHAKES],
    ids=[row[0] for row in BAD_HANDSHAKES],
)
def test_a_handshake_that_is_none_is_the_end(script: bytes, message: str) -> None:
    with served(script) as (client, _):
        with pytest.raises(NbdError, match=message):
            client.negotiate()
        assert client.failed


def test_information_that_we_did_not_ask_for_is_left_alone() -> None:
    script = HELLO + option_reply(INFO, b"\0\2description") + info_export() + option_reply(ACK)
    with served(script) as (client, _):
        assert client.negotiate().payload_max == 32 * MIB


def test_commands_are_28_bytes_and_their_data() -> None:
    data = bytes(range(256)) * 2
    with served(GOOD + reply(1, data=data) + reply(2) + reply(3) + reply(4)) as (client, server):
        client.negotiate()
        server.recv(1000)
        out = bytearray(512)
        client.read_into(memoryview(out), 0x1234)
        assert out == data
        client.write_from(memoryview(data), 1 << 40)
        client.flush()
        client.write_zeroes(512, 1024)
        client.disconnect()
        sent = server.recv(10_000)
    head = struct.Struct(">IHHQQI")
    assert sent == (
        head.pack(0x25609513, 0, 0, 1, 0x1234, 512)
        + head.pack(0x25609513, 0, 1, 2, 1 << 40, 512) + data
        + head.pack(0x25609513, 0, 3, 3, 0, 0)
        + head.pack(0x25609513, 0, 6, 4, 512, 1024)
        + head.pack(0x25609513, 0, 2, 0, 0, 0)
    )  # fmt: skip


def test_what_is_larger_than_a_payload_goes_in_pieces() -> None:
    blocks = info_blocks(most=65536)
    script = HELLO + info_export() + blocks + option_reply(ACK)
    script += reply(1, data=b"a" * 65536) + reply(2, data=b"b" * 512)
    script += b"".join(reply(cookie) for cookie in (3, 4, 5, 6, 7))
    with served(script) as (client, server):
        client.negotiate()
        server.recv(1000)
        out = bytearray(65536 + 512)
        client.read_into(memoryview(out), 0)
        assert out == b"a" * 65536 + b"b" * 512
        client.write_from(memoryview(bytes(2 * 65536)), 4096)
        client.write_zeroes(0, (2 << 30) + 512)
        server.setblocking(False)
        sent = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += server.recv(1 << 20)
    at, seen = 0, []
    while at < len(sent):
        _magic, _flags, kind, _cookie, offset, length = struct.unpack_from(">IHHQQI", sent, at)
        seen.append((kind, offset, length))
        at += 28 + (length if kind == 1 else 0)
    assert seen == [
        (0, 0, 65536), (0, 65536, 512), (1, 4096, 65536), (1, 4096 + 65536, 65536),
        (6, 0, 1 << 30), (6, 1 << 30, 1 << 30), (6, 2 << 30, 512),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "name"),
    [(1, "EPERM"), (5, "EIO"), (12, "ENOMEM"), (22, "EINVAL"), (28, "ENOSPC"), (75, "EOVERFLOW"),
     (95, "ENOTSUP"), (108, "ESHUTDOWN"), (2, "EINVAL"), (0xFFFFFFFF, "EINVAL")],
)  # fmt: skip
def test_an_error_of_a_command_is_its_own(number: int, name: str) -> None:
    with served(GOOD + reply(1, number) + reply(2)) as (client, _):
        client.negotiate()
        with pytest.raises(CommandError, match=f"READ: {name}") as caught:
            client.read_into(memoryview(bytearray(512)), 0)  # without data: it is an error
        assert caught.value.name == name
        client.flush()


BAD_REPLIES = [
    ("none", b"", "it ended the connection"),
    ("half", reply(1)[:7], "the connection ends in a message"),
    ("another magic", reply(1, magic=0x668E33EF), "its reply has magic 668e33ef"),
    ("of another command", reply(2, data=bytes(512)), "its reply is to 2, and 1 was asked"),
    ("of none", reply(0, data=bytes(512)), "its reply is to 0"),
    ("short data", reply(1, data=bytes(511)), "the connection ends in a message"),
]


@pytest.mark.parametrize(
    ("script", "message"), [row[1:] for row in BAD_REPLIES], ids=[row[0] for row in BAD_REPLIES]
)
def test_after_a_bad_reply_nothing_is_asked_any_more(script: bytes, message: str) -> None:
    with served(GOOD + script) as (client, server):
        client.negotiate()
        with pytest.raises(NbdError, match=message):
            client.read_into(memoryview(bytearray(512)), 0)
        server.recv(10_000)
        for call in (client.flush, lambda: client.write_from(memoryview(bytes(512)), 0)):
            with pytest.raises(NbdError, match=message):
                call()
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.recv(1)


def test_a_server_that_is_silent_is_given_up() -> None:
    with served(GOOD + reply(1)[:3], ends=False) as (client, _):
        client.negotiate()
        with pytest.raises(NbdError, match="ends in a message|does not answer"):
            client.flush()
        assert client.failed


def test_a_server_that_takes_nothing_is_given_up() -> None:
    with served(GOOD, ends=False) as (client, _):
        client.negotiate()
        with pytest.raises(NbdError, match="does not take what it is sent"):
            client.write_from(memoryview(bytes(8 * MIB)), 0)
        with pytest.raises(NbdError, match="does not take"):
            client.flush()


def test_a_message_that_is_interrupted_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C within a message: what comes next on the stream is the rest of it."""

    def interrupt(*_args: object) -> int:
        raise KeyboardInterrupt

    with served(GOOD + reply(1) + reply(2)) as (client, _):
        client.negotiate()
        monkeypatch.setattr(NbdClient, "_receive_into", interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.flush()
        monkeypatch.undo()
        with pytest.raises(NbdError, match="KeyboardInterrupt"):
            client.flush()


@pytest.mark.parametrize(
    ("text", "line"),
    [(b"a\nb\tc", "a b c"), (b"\xff\x00\x1b", "\ufffd??"), (b"x" * 300, "x" * 200), (b" \n", "")],
)
def test_what_a_process_says_is_one_printable_line(text: bytes, line: str) -> None:
    assert printable(text) == line


SESSION = GOOD + reply(1, data=bytes(512)) + reply(2) + reply(3) + reply(4, 28)


@given(
    cuts=st.lists(st.tuples(st.integers(0, len(SESSION) - 1), st.binary(max_size=9)), max_size=4),
    length=st.integers(0, len(SESSION)),
)
def test_no_bytes_of_a_server_raise_anything_else(
    cuts: list[tuple[int, bytes]], length: int
) -> None:
    script = bytearray(SESSION)
    for at, patch in cuts:
        script[at : at + len(patch)] = patch
    with served(bytes(script[:length])) as (client, _), contextlib.suppress(NbdError, CommandError):
        export = client.negotiate()
        assert 0 <= export.size_bytes < 1 << 63
        client.read_into(memoryview(bytearray(512)), 0)
        client.write_from(memoryview(bytes(512)), 0)
        client.flush()
        client.write_zeroes(0, 512)
