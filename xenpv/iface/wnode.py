"""WNODE structures: how WMI requests lie in a buffer (wmistr.h), and the strings in them.

A string is a u16 of bytes and as many bytes of UTF-16, at an even offset. Offsets in a node
count from its start. Everything in a request is the caller's, so each offset is checked.
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

HEADER: Final = struct.Struct("<IIQQ16sII")  # WNODE_HEADER
HEADER_SIZE: Final = HEADER.size
METHOD_ITEM: Final = struct.Struct("<5I")  # after the header of a WNODE_METHOD_ITEM
METHOD_ITEM_SIZE: Final = 72
SINGLE_INSTANCE: Final = struct.Struct("<4I")
SINGLE_INSTANCE_SIZE: Final = 64
ALL_DATA: Final = struct.Struct("<3I")
ALL_DATA_SIZE: Final = 72
TOO_SMALL_SIZE: Final = 56
U16: Final = struct.Struct("<H")
U32: Final = struct.Struct("<I")

WNODE_FLAG_ALL_DATA: Final = 0x1
WNODE_FLAG_SINGLE_INSTANCE: Final = 0x2
WNODE_FLAG_TOO_SMALL: Final = 0x20
WNODE_FLAG_FIXED_INSTANCE_SIZE: Final = 0x10
WNODE_FLAG_METHOD_ITEM: Final = 0x80
WNODE_FLAG_PDO_INSTANCE_NAMES: Final = 0x100

STRING_BYTES_MAX: Final = 0xFFFE  # what the u16 before it can count of whole characters


class MalformedBuffer(Exception):  # noqa: N818 - it is what the status of it is called
    """A buffer in which something lies outside, or is no UTF-16."""


def utf16(text: str) -> bytes:
    """A counted string. Raises MalformedBuffer for what a u16 cannot count."""
    data = text.encode("utf-16-le", "surrogatepass")
    if len(data) > STRING_BYTES_MAX:
        raise MalformedBuffer(f"a string of {len(data)} bytes")
    return U16.pack(len(data)) + data


class Reader:
    """The values of a buffer, one after the other, each at its alignment."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    def _take(self, size: int, align: int) -> bytes:
        start = -(-self.at // align) * align
        end = start + size
        if start < 0 or end > len(self.data):
            raise MalformedBuffer(f"{size} bytes at {start} of {len(self.data)}")
        self.at = end
        return self.data[start:end]

    def u32(self) -> int:
        return int(U32.unpack(self._take(4, 4))[0])

    def string(self) -> str:
        """Up to its first NUL, where the driver's strings end."""
        (size,) = U16.unpack(self._take(2, 2))
        data = self._take(size, 1)
        try:
            return data.decode("utf-16-le").split("\0", 1)[0]
        except UnicodeDecodeError as error:
            raise MalformedBuffer(f"{size} bytes are no UTF-16") from error


class Writer:
    """Values one after the other, each at its alignment."""

    def __init__(self) -> None:
        self.data = bytearray()

    def _align(self, align: int) -> None:
        self.data += bytes(-len(self.data) % align)

    def u32(self, value: int) -> Writer:
        self._align(4)
        self.data += U32.pack(value)
        return self

    def string(self, text: str) -> Writer:
        self._align(2)
        self.data += utf16(text)
        return self


def header(size: int, guid: bytes, flags: int, time: int = 0) -> bytes:
    """WNODE_HEADER; `time` is a FILETIME, `guid` its 16 bytes."""
    return HEADER.pack(size, 0, 0, time, guid, 0, flags)


@attrs.frozen
class MethodItem:
    """WNODE_METHOD_ITEM: a call. `size` is of the buffer that it lies in and is answered in."""

    instance: str
    method: int
    block_offset: int
    block: bytes
    size: int

    @classmethod
    def parse(cls, buffer: bytes, size: int) -> MethodItem:
        """The call in `buffer`, which stands for `size` bytes. Raises MalformedBuffer."""
        if len(buffer) < METHOD_ITEM_SIZE or size < len(buffer):
            raise MalformedBuffer(f"a call in {len(buffer)} bytes")
        name, _index, method, offset, length = METHOD_ITEM.unpack_from(buffer, HEADER_SIZE)
        if offset < METHOD_ITEM_SIZE or offset + length > len(buffer):
            raise MalformedBuffer(f"{length} bytes of arguments at {offset} of {len(buffer)}")
        instance = Reader(buffer, name).string()
        return cls(instance, method, offset, buffer[offset : offset + length], size)

    def emit(self, guid: bytes) -> bytes:
        """The name of the instance lies before the arguments."""
        name = utf16(self.instance)
        offset = -(-(METHOD_ITEM_SIZE + len(name)) // 8) * 8
        size = offset + len(self.block)
        fields = METHOD_ITEM.pack(METHOD_ITEM_SIZE, 0, self.method, offset, len(self.block))
        data = bytearray(header(size, guid, WNODE_FLAG_METHOD_ITEM) + fields)
        data += bytes(METHOD_ITEM_SIZE - len(data)) + name
        data += bytes(offset - len(data))
        return bytes(data + self.block)


def answer(buffer: bytes, item: MethodItem, block: bytes) -> bytes:
    """The node of a call, with the results in the place of its arguments."""
    data = bytearray(buffer[: item.block_offset] + block)
    U32.pack_into(data, 0, len(data))
    U32.pack_into(data, HEADER_SIZE + 16, len(block))
    return bytes(data)


def too_small(needed: int, time: int) -> bytes:
    """WNODE_TOO_SMALL: how many bytes the answer has."""
    data = header(TOO_SMALL_SIZE, bytes(16), WNODE_FLAG_TOO_SMALL, time) + U32.pack(needed)
    return data + bytes(TOO_SMALL_SIZE - len(data))


def flags_of(node: bytes) -> int:
    return int(HEADER.unpack_from(node)[6])


def size_needed(node: bytes) -> int:
    """Of a WNODE_TOO_SMALL."""
    return int(U32.unpack_from(node, HEADER_SIZE)[0])


def all_data(guid: bytes, instances: list[tuple[str, bytes]], time: int) -> bytes:
    """WNODE_ALL_DATA of dynamic instances: (name, data) each."""
    count = len(instances)
    names_at = ALL_DATA_SIZE + 8 * count
    data_at = names_at + 4 * count
    blocks, places = bytearray(), bytearray()
    for _name, data in instances:
        blocks += bytes(-len(blocks) % 4)
        places += struct.pack("<II", data_at + len(blocks), len(data))
        blocks += data
    names, offsets = bytearray(), bytearray()
    for name, _data in instances:
        offsets += U32.pack(data_at + len(blocks) + len(names))
        names += utf16(name)
    size = data_at + len(blocks) + len(names)
    node = bytearray(header(size, guid, WNODE_FLAG_ALL_DATA, time))
    node += ALL_DATA.pack(data_at, count, names_at) + places
    node += bytes(names_at - len(node)) + offsets
    return bytes(node + blocks + names)


def parse_all_data(node: bytes) -> list[tuple[str, bytes]]:
    """What `all_data` made."""
    _at, count, names_at = ALL_DATA.unpack_from(node, HEADER_SIZE)
    result = []
    for index in range(count):
        at, size = struct.unpack_from("<II", node, HEADER_SIZE + ALL_DATA.size + 8 * index)
        (name_at,) = U32.unpack_from(node, names_at + 4 * index)
        result.append((Reader(node, name_at).string(), node[at : at + size]))
    return result
