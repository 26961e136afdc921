"""`attr/vif/<n>`: what an interface tells the tools of the host about itself (frontend.c).

IP addresses are the guest's system's, which the driver hears of from its stack. They are told
while the interface is connected, all anew at each change, in one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from xenpv.errors import StoreError
from xenpv.vif.mac import address_text

if TYPE_CHECKING:
    from xenpv.bus.store import Transaction
    from xenpv.bus.xenbus import XenBus
    from xenpv.vif.mac import Mac

ADDRESSES_MAX: Final = 256  # of one kind; more are not told


class Configured(Protocol):
    """What a system's interface is configured with, as text."""

    @property
    def ipv4(self) -> Sequence[str]: ...
    @property
    def ipv6(self) -> Sequence[str]: ...


def packed(configured: Configured | None) -> list[bytes]:
    """IPv4 addresses of 4 bytes, then IPv6 ones of 16; each once, and what is none is left out."""
    if configured is None or not (configured.ipv4 or configured.ipv6):
        return []
    from ipaddress import ip_interface

    found: dict[bytes, None] = {}
    for listed, size in ((configured.ipv4, 4), (configured.ipv6, 16)):
        for text in listed[:ADDRESSES_MAX]:
            try:
                address = ip_interface(text).ip.packed
            except ValueError:
                continue
            if len(address) == size:
                found[address] = None
    return list(found)


def ip_text(address: bytes) -> str:
    """IPv4 dotted, IPv6 in eight groups of four digits."""
    if len(address) == 4:
        return ".".join(map(str, address))
    return address.hex(":", 2)


class Advertisement:
    """Of interface `number`. Nothing here raises: what is refused is logged."""

    def __init__(self, bus: XenBus, number: int) -> None:
        self.bus = bus
        self.base = f"attr/vif/{number}"
        self.name = "Ethernet" if not number else f"Ethernet {number + 1}"
        self._is_told = False  # there is a subtree
        self._told: list[bytes] = []  # addresses in it

    def connected(self, mac: Mac, addresses: Sequence[bytes]) -> None:
        """Name, MAC addresses and what the system is configured with."""
        self._is_told = True
        self._told = []
        keys: list[tuple[str, str | None]] = [
            (f"{self.base}/name", None),
            (f"{self.base}/name", self.name),
        ]
        self._write(keys + self._mac_keys(mac))
        self.addresses(addresses)

    def addresses(self, addresses: Sequence[bytes]) -> None:
        """Both subtrees, if they are others than what is there."""
        if list(addresses) == self._told:
            return
        try:
            self.bus.store.transaction(lambda one: self._replace(addresses, one))
            self._told = list(addresses)
        except StoreError as error:
            self._refused(error)

    def _replace(self, addresses: Sequence[bytes], transaction: Transaction) -> None:
        """(RM needs a node: what removes one that is not there aborts no transaction.)"""
        keys: list[tuple[str, str | None]] = []
        for family, size in (("ipv4", 4), ("ipv6", 16)):
            listed = [one for one in addresses if len(one) == size]
            keys.append((f"{self.base}/{family}", None))
            keys += [
                (f"{self.base}/{family}/{index}", ip_text(one)) for index, one in enumerate(listed)
            ]
        self.bus.store.write_many(keys, transaction)

    def mac(self, mac: Mac) -> None:
        """The current address, then the multicast list."""
        self._write(self._mac_keys(mac))

    def _mac_keys(self, mac: Mac) -> list[tuple[str, str | None]]:
        keys: list[tuple[str, str | None]] = [(f"{self.base}/mac", None)]
        for index, address in enumerate((mac.current, *mac.multicast)):
            keys.append((f"{self.base}/mac/{index}", address_text(address)))
        return keys

    def withdraw(self) -> None:
        """The whole subtree goes, if there is one."""
        if self._is_told:
            self._is_told = False
            self._told = []
            try:
                self.bus.store.discard(self.base)
            except StoreError as error:
                self._refused(error)

    def _write(self, keys: Sequence[tuple[str, str | None]]) -> None:
        try:
            self.bus.store.write_many(keys)
        except StoreError as error:
            self._refused(error)

    def _refused(self, error: StoreError) -> None:
        self.bus.log(f"xenvif: {self.base}: {error}\n")
