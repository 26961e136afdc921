"""NBD: the messages that a block device needs, and a client that waits for each answer.

The server is another process, so nothing that it sends is trusted: magics, lengths, cookies and
sizes are checked, and whoever breaks the protocol or is silent for too long is not talked to
again. All fields are big endian. Source: doc/proto.md of the NBD project.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from enum import IntEnum, IntFlag
from errno import EINVAL, ENOSPC
from typing import Final

import attrs

from xenpv.errors import PeerProtocolError

NBDMAGIC: Final = int.from_bytes(b"NBDMAGIC", "big")
IHAVEOPT: Final = int.from_bytes(b"IHAVEOPT", "big")
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698

GREETING: Final = struct.Struct(">QQH")  # NBDMAGIC, IHAVEOPT, handshake flags
CLIENT_FLAGS: Final = struct.Struct(">I")
OPTION: Final = struct.Struct(">QII")  # IHAVEOPT, option, length
OPTION_REPLY: Final = struct.Struct(">QIII")  # magic, option, type, length
EXPORT: Final = struct.Struct(">QH")  # size, transmission flags
INFO_EXPORT: Final = struct.Struct(">HQH")
INFO_BLOCK_SIZE: Final = struct.Struct(">HIII")  # type, minimum, preferred, maximum payload
REQUEST: Final = struct.Struct(">IHHQQI")  # magic, flags, type, cookie, offset, length
SIMPLE_REPLY: Final = struct.Struct(">IIQ")  # magic, error, cookie

FIXED_NEWSTYLE: Final = 1
NO_ZEROES: Final = 2
EXPORT_ZEROES: Final = 124

OPTION_DATA_MAX: Final = 4096  # the longest string of the protocol
OPTION_REPLIES_MAX: Final = 64
SIZE_MAX: Final = (1 << 63) - 1
BLOCK_MAX: Final = 1 << 16
PAYLOAD_DEFAULT: Final = 32 << 20  # where the server tells no maximum
ZEROES_MAX: Final = 1 << 30  # of one WRITE_ZEROES: its length has 32 bits
TEXT_MAX: Final = 200
TIMEVAL: Final = struct.Struct("@ll")


class Option(IntEnum):
    """NBD_OPT_*"""

    EXPORT_NAME = 1
    ABORT = 2
    GO = 7


class OptionReply(IntEnum):
    """NBD_REP_*"""

    ACK = 1
    INFO = 3
    ERR_UNSUP = 0x80000001
    ERR_POLICY = 0x80000002
    ERR_INVALID = 0x80000003
    ERR_TLS_REQD = 0x80000005
    ERR_UNKNOWN = 0x80000006
    ERR_SHUTDOWN = 0x80000007
    ERR_BLOCK_SIZE_REQD = 0x80000008
    ERR_TOO_BIG = 0x80000009


class Info(IntEnum):
    """NBD_INFO_*"""

    EXPORT = 0
    BLOCK_SIZE = 3


class Flag(IntFlag):
    """NBD_FLAG_*: what the server said of the export."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6


class Command(IntEnum):
    """NBD_CMD_*"""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6


# The errors of the protocol; any other number is EINVAL.
ERRORS: Final[Mapping[int, str]] = {
    1: "EPERM",
    5: "EIO",
    12: "ENOMEM",
    EINVAL: "EINVAL",
    ENOSPC: "ENOSPC",
    75: "EOVERFLOW",
    95: "ENOTSUP",
    108: "ESHUTDOWN",
}


class NbdError(PeerProtocolError):
    """The connection is of no use any more: the server broke the protocol, or is gone."""


class CommandError(PeerProtocolError):
    """The server could not do one command; `name` is the error's. The connection goes on."""

    def __init__(self, command: Command, number: int) -> None:
        self.name = ERRORS.get(number, "EINVAL")
        super().__init__(f"{command.name}: {self.name}")


@attrs.frozen(kw_only=True)
class Export:
    """What a server serves. `payload_max`: bytes of one READ or WRITE."""

    size_bytes: int
    flags: Flag
    block_min: int = 1
    payload_max: int = PAYLOAD_DEFAULT

    def check(self) -> Export:
        """Itself; NbdError for values that no export has."""
        if not 0 <= self.size_bytes <= SIZE_MAX:
            raise NbdError(f"an export of {self.size_bytes} bytes")
        if not self.flags & Flag.HAS_FLAGS:
            raise NbdError("an export without flags")
        block = self.block_min
        if not 0 < block <= BLOCK_MAX or block & (block - 1):
            raise NbdError(f"a smallest block of {block} bytes")
        if self.payload_max < max(block, BLOCK_MAX):
            raise NbdError(f"at most {self.payload_max} bytes at once")
        return self


class NbdClient:
    """One connection, on which one command at a time is under way.

    Every method but `disconnect` raises NbdError, and after that at once, since nothing is known
    of what is still under way; a command also CommandError. `timeout_s` is of the host's time:
    how long one message of the server may take.
    """

    def __init__(self, sock: socket.socket, timeout_s: int) -> None:
        self._socket = sock
        self._cookie = 0
        self._export: Export | None = None
        self.failed = ""  # why nothing is asked of it any more
        sock.settimeout(None)
        self.set_timeout(timeout_s)

    def set_timeout(self, timeout_s: int) -> None:
        """From now on."""
        # Not settimeout: here the kernel counts down over all pieces of a message.
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, TIMEVAL.pack(timeout_s, 0))

    @property
    def export(self) -> Export:
        """What is served, once it is negotiated."""
        assert self._export is not None
        return self._export

    def negotiate(self, name: bytes = b"") -> Export:
        """The handshake, for the export of that name."""
        try:
            self._export = self._handshake(name).check()
        except BaseException as error:
            self._fail(error)
            raise
        return self._export

    def _fail(self, error: BaseException) -> None:
        # What interrupts a message, Ctrl-C too, leaves the stream within it.
        self.failed = self.failed or str(error) or type(error).__name__

    # bytes

    def _send(self, *parts: bytes | memoryview) -> None:
        try:
            for part in parts:
                self._socket.sendall(part)
        except BlockingIOError:
            raise NbdError("it does not take what it is sent") from None
        except OSError as error:
            raise NbdError(f"the connection is gone: {error.strerror}") from None

    def _receive_into(self, buffer: memoryview) -> None:
        if not buffer:
            return
        try:
            got = self._socket.recv_into(buffer, buffer.nbytes, socket.MSG_WAITALL)
        except BlockingIOError:
            raise NbdError("it does not answer") from None
        except OSError as error:
            raise NbdError(f"the connection is gone: {error.strerror}") from None
        if got != buffer.nbytes:
            why = "it ended the connection" if not got else "the connection ends in a message"
            raise NbdError(why)

    def _receive(self, size: int) -> bytes:
        data = bytearray(size)
        self._receive_into(memoryview(data))
        return bytes(data)

    # handshake

    def _handshake(self, name: bytes) -> Export:
        magic, style, offered = GREETING.unpack(self._receive(GREETING.size))
        if (magic, style) != (NBDMAGIC, IHAVEOPT):
            raise NbdError(f"its greeting is {magic:016x} {style:016x}")
        if not offered & FIXED_NEWSTYLE:
            raise NbdError("it does not speak the fixed newstyle handshake")
        flags = offered & (FIXED_NEWSTYLE | NO_ZEROES)
        self._send(CLIENT_FLAGS.pack(flags))
        export = self._go(name)
        if export is None:
            export = self._export_name(name, zeroes=not flags & NO_ZEROES)
        return export

    def _go(self, name: bytes) -> Export | None:
        """NBD_OPT_GO; None if the server has no such option."""
        data = struct.pack(f">I{len(name)}sHH", len(name), name, 1, Info.BLOCK_SIZE)
        self._send(OPTION.pack(IHAVEOPT, Option.GO, len(data)), data)
        size_and_flags: tuple[int, int] | None = None
        blocks = (1, PAYLOAD_DEFAULT)
        for _ in range(OPTION_REPLIES_MAX):
            kind, body = self._option_reply(Option.GO)
            if kind == OptionReply.ACK:
                if size_and_flags is None:
                    raise NbdError("it acknowledges an export without telling of it")
                return Export(
                    size_bytes=size_and_flags[0],
                    flags=Flag(size_and_flags[1]),
                    block_min=blocks[0],
                    payload_max=blocks[1],
                )
            if kind == OptionReply.ERR_UNSUP:
                return None
            if kind & 0x80000000:
                raise NbdError(f"it refuses the export: {_refusal(kind, body)}")
            if kind != OptionReply.INFO or len(body) < 2:
                raise NbdError(f"its reply of type {kind} has {len(body)} bytes")
            if body[:2] == Info.EXPORT.to_bytes(2, "big"):
                _type, size, bits = _unpacked(INFO_EXPORT, body)
                size_and_flags = size, bits
            elif body[:2] == Info.BLOCK_SIZE.to_bytes(2, "big"):
                _type, least, _preferred, most = _unpacked(INFO_BLOCK_SIZE, body)
                blocks = least, most
        raise NbdError(f"more than {OPTION_REPLIES_MAX} replies to one option")

    def _option_reply(self, option: Option) -> tuple[int, bytes]:
        head = self._receive(OPTION_REPLY.size)
        magic, echoed, kind, length = OPTION_REPLY.unpack(head)
        if (magic, echoed) != (OPTION_REPLY_MAGIC, option):
            raise NbdError(f"its reply has magic {magic:016x} and option {echoed}")
        if length > OPTION_DATA_MAX:
            raise NbdError(f"its reply has {length} bytes, {OPTION_DATA_MAX} at most")
        return kind, self._receive(length)

    def _export_name(self, name: bytes, *, zeroes: bool) -> Export:
        """NBD_OPT_EXPORT_NAME: there is no refusal, the server disconnects."""
        self._send(OPTION.pack(IHAVEOPT, Option.EXPORT_NAME, len(name)), name)
        size, flags = EXPORT.unpack(self._receive(EXPORT.size))
        if zeroes:
            self._receive(EXPORT_ZEROES)
        return Export(size_bytes=size, flags=Flag(flags))

    # commands

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the whole buffer from `offset` on."""
        step = self.export.payload_max
        for at in range(0, buffer.nbytes, step):
            piece = buffer[at : at + step]
            self._command(Command.READ, offset + at, piece.nbytes, reply=piece)

    def write_from(self, buffer: memoryview, offset: int) -> None:
        """Write the whole buffer at `offset`."""
        step = self.export.payload_max
        for at in range(0, buffer.nbytes, step):
            piece = buffer[at : at + step]
            self._command(Command.WRITE, offset + at, piece.nbytes, data=piece)

    def flush(self) -> None:
        """What was written and answered is on stable storage when this returns."""
        self._command(Command.FLUSH, 0, 0)

    def write_zeroes(self, offset: int, length: int) -> None:
        """The range reads zero, and the server may free it."""
        while length:
            step = min(length, ZEROES_MAX)
            self._command(Command.WRITE_ZEROES, offset, step)
            offset += step
            length -= step

    def _command(
        self,
        command: Command,
        offset: int,
        length: int,
        *,
        data: memoryview | None = None,
        reply: memoryview | None = None,
    ) -> None:
        if self.failed:
            raise NbdError(self.failed)
        self._cookie += 1
        head = REQUEST.pack(REQUEST_MAGIC, 0, command, self._cookie, offset, length)
        try:
            self._send(head) if data is None else self._send(head, data)
            error = self._simple_reply()
            if reply is not None and not error:
                self._receive_into(reply)
        except BaseException as broken:
            self._fail(broken)
            raise
        if error:
            raise CommandError(command, error)

    def _simple_reply(self) -> int:
        """The error of the command under way."""
        magic, error, cookie = SIMPLE_REPLY.unpack(self._receive(SIMPLE_REPLY.size))
        if magic != SIMPLE_REPLY_MAGIC:
            raise NbdError(f"its reply has magic {magic:08x}")
        if cookie != self._cookie:
            raise NbdError(f"its reply is to {cookie}, and {self._cookie} was asked")
        return int(error)

    def disconnect(self) -> None:
        """Say goodbye if that can be, and close; a second call does nothing."""
        if not self.failed:
            self.failed = "it is closed"
            try:
                request = REQUEST.pack(REQUEST_MAGIC, 0, Command.DISC, 0, 0, 0)
                if self._export is not None:
                    self._send(request)
            except NbdError:
                pass  # it learns by the end of the connection
        self._socket.close()


def _refusal(kind: int, text: bytes) -> str:
    try:
        name = OptionReply(kind).name
    except ValueError:
        name = f"{kind:#x}"
    said = printable(text)
    return f"{name}: {said}" if said else name


def printable(text: bytes) -> str:
    """What another process said, fit for a message: one line of at most TEXT_MAX characters."""
    words = " ".join(text.decode("utf-8", "replace").split())
    return "".join(one if one.isprintable() else "?" for one in words)[:TEXT_MAX]


def _unpacked(layout: struct.Struct, body: bytes) -> tuple[int, ...]:
    if len(body) != layout.size:
        raise NbdError(f"its information has {len(body)} bytes, expected {layout.size}")
    return layout.unpack(body)
