"""The Windows registry, as much of it as the drivers read and write.

Paths are below HKLM\\SYSTEM\\CurrentControlSet, their parts separated by backslashes. As in
Windows, names are compared without case and keep the case they were made with. A REG_DWORD or
REG_QWORD is an int, a REG_SZ a str, a REG_MULTI_SZ a tuple of str, a REG_BINARY bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

Value = int | str | tuple[str, ...] | bytes

QWORD_MAX: Final = (1 << 64) - 1


@attrs.define
class Key:
    """One key: its values and subkeys by the lower case of their names.

    Only to be read: a key may be of several registries, and of none alone.
    """

    name: str
    volatile: bool = False  # gone at the next boot
    values: dict[str, tuple[str, Value]] = attrs.field(factory=dict)
    subkeys: dict[str, Key] = attrs.field(factory=dict)
    owner: object = attrs.field(default=None, repr=False, eq=False)  # which registry may write it


class Registry:
    """It outlives a guest's domains: what a boot wrote, the next one reads.

    `values` are the initial ones: {path: {name: value}}.
    """

    def __init__(self, values: Mapping[str, Mapping[str, Value]] | None = None) -> None:
        self._owner = object()
        self.root = Key("", owner=self._owner)
        for path, named in (values or {}).items():
            self.create(path)
            for name, value in named.items():
                self.set(path, name, value)

    def copy(self) -> Registry:
        """Another with the same contents: a key is copied when one of the two writes it."""
        other = Registry()
        other.root = self.root
        self._owner = object()  # what was written so far is nobody's now
        return other

    def find(self, path: str) -> Key | None:
        key = self.root
        for part in path.lower().split("\\"):
            if part:
                below = key.subkeys.get(part)
                if below is None:
                    return None
                key = below
        return key

    def create(self, path: str, *, volatile: bool = False) -> Key:
        """The key, made with its parents if it is not there; `volatile` goes for what is made."""
        return self.find(path) or self._writable(path, volatile=volatile)

    def _writable(self, path: str, *, volatile: bool = False) -> Key:
        key = self.root = self._own(self.root)
        for part in _parts(path):
            name = part.lower()
            below = key.subkeys.get(name)
            if below is None:
                below = Key(part, volatile=volatile, owner=self._owner)
            key.subkeys[name] = below = self._own(below)
            key = below
        return key

    def _own(self, key: Key) -> Key:
        """A key that may be written: itself, or a copy of it."""
        if key.owner is self._owner:
            return key
        return Key(key.name, key.volatile, dict(key.values), dict(key.subkeys), self._owner)

    def delete(self, path: str) -> bool:
        """A key with everything below it; False if there is none."""
        if self.find(path) is None:
            return False
        parent, _, name = path.rpartition("\\")
        return self._writable(parent).subkeys.pop(name.lower(), None) is not None

    def subkeys(self, path: str) -> list[str] | None:
        """Names of the keys below, in the order of their making; None without that key."""
        key = self.find(path)
        return None if key is None else [below.name for below in key.subkeys.values()]

    def get(self, path: str, name: str) -> Value | None:
        key = self.find(path)
        found = None if key is None else key.values.get(name.lower())
        return None if found is None else found[1]

    def dword(self, path: str, name: str, default: int) -> int:
        """A number; `default` where the value is missing or of another type."""
        value = self.get(path, name)
        return value if isinstance(value, int) else default

    def string(self, path: str, name: str) -> str | None:
        value = self.get(path, name)
        return value if isinstance(value, str) else None

    def strings(self, path: str, name: str) -> tuple[str, ...] | None:
        """A REG_MULTI_SZ; None where the value is missing or of another type."""
        value = self.get(path, name)
        return value if isinstance(value, tuple) else None

    def set(self, path: str, name: str, value: Value) -> None:
        """Write a value, making its key. ValueError for a number that fits no REG_QWORD."""
        if isinstance(value, int) and not 0 <= value <= QWORD_MAX:
            raise ValueError(f"{path}\\{name}: {value} is no unsigned 64-bit number")
        key = self._writable(path)
        old = key.values.get(name.lower())
        key.values[name.lower()] = (old[0] if old else name), value

    def delete_value(self, path: str, name: str) -> bool:
        """False if there is none."""
        if self.get(path, name) is None:
            return False
        return self._writable(path).values.pop(name.lower(), None) is not None

    def values(self, path: str) -> dict[str, Value]:
        """All values of a key by their names; empty without that key."""
        key = self.find(path)
        return {} if key is None else dict(key.values.values())

    def reboot(self) -> None:
        """Volatile keys go."""
        self.root = self._without_volatile(self.root)

    def _without_volatile(self, key: Key) -> Key:
        kept = {
            name: self._without_volatile(below)
            for name, below in key.subkeys.items()
            if not below.volatile
        }
        changed = any(key.subkeys[name] is not below for name, below in kept.items())
        if not changed and len(kept) == len(key.subkeys):
            return key
        key = self._own(key)
        key.subkeys = kept
        return key


def _parts(path: str) -> list[str]:
    return [part for part in path.split("\\") if part]
