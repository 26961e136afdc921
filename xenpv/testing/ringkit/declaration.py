"""Structs of a protocol as its header declares them, laid out by cffi: no compiler is needed.

cffi lays structs out as the C compiler of x86-64 does; tests/peers/test_ringkit_layouts.py holds
it to gcc. The text is C without the preprocessor: structs, unions, enums, typedefs, and `#define`
of integers. Xen's own names of integers (grant_ref_t, evtchn_port_t, domid_t, RING_IDX) are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final

import cffi

from xenpv.errors import LocalProtocolError
from xenpv.view.rings import Fields, fields_of

PRELUDE: Final = """
typedef uint32_t grant_ref_t;
typedef uint32_t evtchn_port_t;
typedef uint16_t domid_t;
typedef uint32_t RING_IDX;
"""
BYTES: Final = ("char", "unsigned char", "signed char", "uint8_t", "int8_t")
SHARED: Final = ("primitive", "enum", "struct", "union", "array")


class Declaration:
    """The structs of a text. LocalProtocolError: cffi cannot read it."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self._ffi = cffi.FFI()
        try:
            self._ffi.cdef(PRELUDE)
            self._ffi.cdef(text)
            self.constants: SimpleNamespace = self._constants()
        except (cffi.CDefError, cffi.FFIError, NotImplementedError, AttributeError) as error:
            raise LocalProtocolError(f"declaration of {name}: {error}") from error

    def _constants(self) -> SimpleNamespace:
        library: Any = self._ffi.dlopen(None)
        known = [one for one in dir(library) if isinstance(getattr(library, one, None), int)]
        return SimpleNamespace(**{one: int(getattr(library, one)) for one in known})

    def struct(self, name: str) -> Any:
        """The cffi type of a struct or union that both ends can share.

        LocalProtocolError: there is none of that name, or it has pointers or bit fields.
        """
        for kind in ("struct ", "union ", ""):
            try:
                found = self._ffi.typeof(f"{kind}{name}")
            except (cffi.CDefError, cffi.FFIError):
                continue
            if found.kind in ("struct", "union") and found.fields:  # None: it was only named
                self._shareable(found, name)
                return found
        raise LocalProtocolError(f"{self.name} declares no struct {name}")

    def _shareable(self, of: Any, path: str) -> None:
        if of.kind == "array":
            self._shareable(of.item, path)
        if of.kind not in SHARED:
            raise LocalProtocolError(f"{path} is {of.cname}: expected what two domains can share")
        if of.kind in ("struct", "union"):
            for name, field in of.fields or ():
                if field.bitsize >= 0:
                    raise LocalProtocolError(f"{path}.{name} is a bit field, of no set place")
                self._shareable(field.type, f"{path}.{name}")

    def size(self, of: Any) -> int:
        """Bytes of a struct's type."""
        return int(self._ffi.sizeof(of))

    def offset(self, of: Any, field: str) -> int:
        """Offset in bytes of a field; it may be dotted. KeyError: there is none."""
        return int(self._ffi.offsetof(of, *field.split(".")))

    def fields(self, of: Any) -> Fields:
        """Every scalar of a struct."""
        return fields_of(of)

    def pack(self, of: Any, values: Mapping[str, Any]) -> bytes:
        """A struct with these fields, all else zero: nested ones are mappings, arrays are lists,
        those of bytes are bytes. LocalProtocolError: no such field, or a value does not fit.
        """
        try:
            made = self._ffi.new(self._ffi.getctype(of, "*"), _initializer(values))
        except KeyError as error:
            raise LocalProtocolError(f"{of.cname} has no field {error}") from error
        except (OverflowError, TypeError, ValueError, IndexError) as error:
            raise LocalProtocolError(f"{of.cname}: {error}") from error
        return bytes(self._ffi.buffer(made))

    def read(self, of: Any, raw: bytes | bytearray | memoryview) -> SimpleNamespace:
        """The fields of a struct as plain values: integers, bytes, tuples, namespaces.

        Of a union every member is read. LocalProtocolError: too few bytes.
        """
        if len(raw) < self.size(of):
            raise LocalProtocolError(f"{len(raw)} bytes are no {of.cname} of {self.size(of)}")
        made = self._ffi.new(self._ffi.getctype(of, "*"))
        self._ffi.memmove(made, bytes(raw[: self.size(of)]), self.size(of))
        plain = self._plain(made[0], of)
        assert isinstance(plain, SimpleNamespace)
        return plain

    def _plain(self, value: Any, of: Any) -> Any:
        if of.kind in ("struct", "union"):
            return SimpleNamespace(
                **{name: self._plain(getattr(value, name), field.type) for name, field in of.fields}
            )
        if of.kind == "array":
            if of.item.cname in BYTES:
                return bytes(self._ffi.buffer(value))
            return tuple(self._plain(one, of.item) for one in value)
        if of.cname == "char":
            return value
        return float(value) if isinstance(value, float) else int(value)


def _initializer(value: Any) -> Any:
    if isinstance(value, SimpleNamespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: _initializer(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_initializer(one) for one in value]
    return bytes(value) if isinstance(value, bytearray | memoryview) else value
