"""The receive-side hash of a vif: what its guest configured, and what frames come to (hash.c).

It lives as long as a connection: a frontend that connects anew begins without. Linux keeps it
over a reconnection, with a table that may name queues which are gone.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

from xenpv.abi._kernel import lib
from xenpv.abi.netif import XEN_NETIF_CTRL_HASH_TYPE as HASH_TYPE
from xenpv.host.packet import TCP, parse_headers

NONE: Final[int] = lib.XEN_NETIF_CTRL_HASH_ALGORITHM_NONE
TOEPLITZ: Final[int] = lib.XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ
ALGORITHMS: Final = (NONE, TOEPLITZ)
TYPES: Final = int(HASH_TYPE.IPV4 | HASH_TYPE.IPV4_TCP | HASH_TYPE.IPV6 | HASH_TYPE.IPV6_TCP)
KEY_MAX: Final = 40  # XEN_NETBK_MAX_HASH_KEY_SIZE
MAPPING_MAX: Final = 128  # XEN_NETBK_MAX_HASH_MAPPING_SIZE

IPV4: Final[int] = lib._XEN_NETIF_CTRL_HASH_TYPE_IPV4
IPV4_TCP: Final[int] = lib._XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP
IPV6: Final[int] = lib._XEN_NETIF_CTRL_HASH_TYPE_IPV6
IPV6_TCP: Final[int] = lib._XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP

# By the version of IP: bit number with ports, bit number without, where the addresses begin
# in the IP header, how many bytes they are.
KINDS: Final = {4: (IPV4_TCP, IPV4, 12, 8), 6: (IPV6_TCP, IPV6, 8, 32)}
PORTS: Final = 4  # bytes


class NetHash:
    """`types` is a mask of XEN_NETIF_CTRL_HASH_TYPE; `mapping` has a queue for each entry.

    `key` has KEY_MAX bytes. An empty mapping stands for the hash modulo the queues.
    """

    __slots__ = ("algorithm", "key", "mapping", "types")

    def __init__(self) -> None:
        self.algorithm = NONE
        self.types = 0
        self.key = bytes(KEY_MAX)
        self.mapping: tuple[int, ...] = ()

    def of(self, data: bytes) -> tuple[int, int] | None:
        """What a HASH extra says of a frame: (bit number of the type, value).

        A type with ports wants an unfragmented TCP packet; others come under the type without.
        None: nothing is hashed, or no type that is on fits.
        """
        if self.algorithm == NONE:
            return None
        headers = parse_headers(data)
        if headers is None:
            return None
        with_ports, without, first, size = KINDS[headers.version]
        at = headers.network + first
        key = data[at : at + size]
        transport = headers.transport
        if (
            self.types >> with_ports & 1
            and headers.protocol == TCP
            and not headers.fragment
            and transport + PORTS <= headers.end
        ):
            return with_ports, self._value(key + data[transport : transport + PORTS])
        if self.types >> without & 1:
            return without, self._value(key)
        return None

    def _value(self, data: bytes) -> int:
        return int(lib.toeplitz(self.key, len(self.key), data, len(data)))

    def queue(self, data: bytes, queues: int) -> int:
        """Where a frame goes: without an algorithm the choice is ours, by flow."""
        if self.algorithm == NONE:
            return crc32(data[26:38]) % queues
        return self.queue_of(self.of(data), queues)

    def queue_of(self, found: tuple[int, int] | None, queues: int) -> int:
        """The queue of what `of` found; a frame without a hash counts as hash 0."""
        value = 0 if found is None else found[1]
        mapping = self.mapping
        return mapping[value % len(mapping)] if mapping else value % queues
