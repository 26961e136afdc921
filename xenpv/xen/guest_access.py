"""copy_from_guest and copy_to_guest: a hypercall's arguments in its caller's memory.

A guest address is a physical one: the model has no page tables. Structures have the layout
of the caller's width; what is handed on has that of a 64-bit one (Xen's compat layer).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from errno import EFAULT
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from xenpv.abi._kernel import ffi
from xenpv.abi.layout import ctype
from xenpv.errors import HypercallError

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain
    from xenpv.xen.loop import Task

PAGE_SHIFT: Final = 12
ADDRESS_END: Final = 1 << 40  # no pfn at or above 2^28 (kernel/domain.h)
BATCH: Final = 1024  # structures or list entries that are copied at once


class GuestMemory:
    """What a hypercall reads and writes of `domain`. HypercallError(EFAULT): a bad pointer.

    `nr_bytes` of a pointer and of a list's entries follow the domain's width.
    """

    __slots__ = ("domain", "word")

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.word = "uint32_t" if domain.is_32bit else "uint64_t"  # xen_pfn_t, xen_ulong_t

    def read(self, address: int, size: int) -> bytes:
        self._check(address, size)
        return self.domain.read(address >> PAGE_SHIFT, address & 0xFFF, size) if size else b""

    def write(self, address: int, data: bytes) -> None:
        self._check(address, len(data))
        if data:
            self.domain.write(address >> PAGE_SHIFT, address & 0xFFF, data)

    def _check(self, address: int, size: int) -> None:
        if not 0 <= address <= ADDRESS_END - size:
            raise HypercallError(EFAULT, f"{size} bytes at {address:#x}")

    def load(self, name: str, address: int, count: int = 1) -> Any:
        """A cffi array of `count` structs `name`, in 64-bit layout."""
        theirs, ours = _types(name, self.domain.is_32bit)
        raw = ffi.new(f"{theirs}[]", count)
        ffi.memmove(raw, self.read(address, ffi.sizeof(raw)), ffi.sizeof(raw))
        if theirs == ours:
            return raw
        native = ffi.new(f"{ours}[]", count)
        for index in range(count):
            _assign(native[index], raw[index])
        return native

    def store(self, name: str, address: int, structs: Any) -> None:
        """Write them back; fields that a 32-bit layout has narrower are cut."""
        theirs, ours = _types(name, self.domain.is_32bit)
        if theirs != ours:
            native, count = structs, len(structs)
            structs = ffi.new(f"{theirs}[]", count)
            for index in range(count):
                _assign(structs[index], native[index])
        self.write(address, bytes(ffi.buffer(structs)))

    def sizeof(self, name: str) -> int:
        """Bytes of a struct in the caller's layout."""
        return int(ffi.sizeof(_types(name, self.domain.is_32bit)[0]))

    def words(self, address: int, count: int) -> list[int]:
        """`count` numbers of the caller's width: pfns, or indices."""
        return self._numbers(self.word, address, count)

    def u32s(self, address: int, count: int) -> list[int]:
        return self._numbers("uint32_t", address, count)

    def _numbers(self, kind: str, address: int, count: int) -> list[int]:
        if not count:
            return []
        raw = self.read(address, count * ffi.sizeof(kind))
        return list(ffi.unpack(ffi.from_buffer(f"{kind}[]", raw), count))

    def store_words(self, address: int, values: Sequence[int]) -> None:
        self._store(self.word, address, values)

    def store_s32s(self, address: int, values: Sequence[int]) -> None:
        self._store("int32_t", address, values)

    def _store(self, kind: str, address: int, values: Sequence[int]) -> None:
        self.write(address, bytes(ffi.buffer(ffi.new(f"{kind}[]", list(values)))))


class Call:
    """One hypercall under way: who makes it, on which vcpu, and what a sleep wakes."""

    __slots__ = ("domain", "memory", "vcpu", "wake")

    def __init__(self, domain: Domain, vcpu: int, wake: Task | None) -> None:
        self.domain = domain
        self.memory = GuestMemory(domain)
        self.vcpu = vcpu
        self.wake = wake


@cache
def _types(name: str, is_32bit: bool) -> tuple[str, str]:
    """C names of a struct in a guest's width, and in 64 bits."""
    native = str(ctype(name).cname)
    if is_32bit:
        try:
            return str(ctype(f"{name}_x86_32").cname), native
        except KeyError:
            pass  # laid out alike
    return native, native


def _assign(into: Any, source: Any) -> None:
    """Field by field between two layouts of one struct; the narrower one keeps the low bits."""
    for name, kind in _fields(ffi.typeof(into)):
        value = getattr(source, name)
        if kind.kind in ("struct", "union"):
            _assign(getattr(into, name), value)
        elif kind.kind == "array":
            for index in range(kind.length):
                getattr(into, name)[index] = value[index]
        else:
            setattr(into, name, int(ffi.cast(kind, value)))


def _fields(kind: Any) -> Iterator[tuple[str, Any]]:
    for name, field in kind.fields:
        yield name, field.type
