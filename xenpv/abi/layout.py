"""Layouts and constants of Xen's public headers, as the C compiler laid them out.

Names are Xen's own without `struct` or `union`; a name with the suffix `_x86_32` is the
layout for a 32-bit guest where it differs, one with `_v2026` has fields newer than Xen
4.17. A field inside a member whose type has no tag is dotted: `u.gso.size`.

`struct` formats are derived here and written nowhere: a format beside a declaration is a
second layout, and in the end one of the two is wrong.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from typing import Any

from xenpv.abi._kernel import ffi, lib

# What the headers of 4.17 do not have: name, and the header of 2026 that does.
NEWER_THAN_4_17 = {
    "DOMID_ANY": "xen.h",
    "VCPUOP_register_runstate_phys_area": "vcpu.h",
    "VCPUOP_register_vcpu_time_phys_area": "vcpu.h",
    "XENCONSOLE_CONNECTED": "io/console.h",
    "XENCONSOLE_DISCONNECTED": "io/console.h",
    "XENFEAT_dm_msix_all_writes": "features.h",
    "XENFEAT_runstate_phys_area": "features.h",
    "XENFEAT_vcpu_time_phys_area": "features.h",
    "XENSTORE_SERVER_FEATURE_DOMID_ANY": "io/xs_wire.h",
    "XENSTORE_SERVER_FEATURE_WATCHDEPTH": "io/xs_wire.h",
    "XENVER_capabilities2": "version.h",
    "XENVER_changeset2": "version.h",
    "XENVER_commandline2": "version.h",
    "XENVER_extraversion2": "version.h",
    "XEN_ELFNOTE_PHYS32_RELOC": "elfnote.h",
    "XEN_NETIF_EXTRA_TYPE_XDP": "Linux' io/netif.h",
    "XEN_NETIF_MAX_XDP_HEADROOM": "Linux' io/netif.h",
    "XS_GET_FEATURE": "io/xs_wire.h",
    "XS_GET_QUOTA": "io/xs_wire.h",
    "XS_SET_FEATURE": "io/xs_wire.h",
    "XS_SET_QUOTA": "io/xs_wire.h",
    "netif_extra_info_v2026": "Linux' io/netif.h: u.xdp",
    "xencons_interface_v2026": "io/console.h: connection",
    "xenstore_domain_interface_v2026": "io/xs_wire.h: evtchn_port",
}

_CODES = {
    "char": "c",
    "int8_t": "b",
    "uint8_t": "B",
    "int16_t": "h",
    "uint16_t": "H",
    "int32_t": "i",
    "uint32_t": "I",
    "int64_t": "q",
    "uint64_t": "Q",
}


@cache
def ctype(name: str) -> Any:
    """The cffi type of a struct or union; KeyError where no header declares it."""
    for kind in ("struct", "union"):
        try:
            return ffi.typeof(f"{kind} {name}")
        except ffi.error:
            continue
    raise KeyError(name)


@cache
def sizeof(name: str) -> int:
    """Size of a struct or union in bytes."""
    return int(ffi.sizeof(ctype(name)))


@cache
def offsetof(name: str, field: str) -> int:
    """Offset of a field in bytes; `field` may be dotted: `u.gso.size`."""
    return int(ffi.offsetof(ctype(name), *field.split(".")))


@cache
def struct_format(name: str, *members: str) -> str:
    """Little-endian `struct` format of a struct or union, its padding explicit.

    Nested structs and arrays are flattened; an array of bytes is one `s`. A union is one
    `s` too, unless `members` says by a dotted path which member to read it as:
    `struct_format("gnttab_copy", "source.u.ref", "dest.u.gmfn")`. In an array of unions all
    elements are read alike. KeyError for a path that leads to no member of a union.
    """
    of = ctype(name)
    chosen = dict(_choice(of, path) for path in members)
    parts = ["<"]
    end = 0
    for offset, size, code in _pieces(of, 0, "", chosen):
        parts.append(_pad(offset - end) + code)
        end = offset + size
    parts.append(_pad(sizeof(name) - end))
    return "".join(parts)


@cache
def packer(name: str, *members: str) -> struct.Struct:
    """The compiled `struct_format` of the same arguments."""
    return struct.Struct(struct_format(name, *members))


def _pad(size: int) -> str:
    assert size >= 0, "a field begins before its predecessor ends"
    return f"{size}x" if size else ""


def _choice(of: Any, path: str) -> tuple[str, str]:
    """Split the path of a union's member in (path of the union, member)."""
    union, _, member = path.rpartition(".")
    for field in union.split(".") if union else ():
        if field not in _fields_of(of):
            raise KeyError(path)
        of = _fields_of(of)[field].type
        while of.kind == "array":
            of = of.item
    if of.kind != "union" or member not in _fields_of(of):
        raise KeyError(path)
    return union, member


def _pieces(
    of: Any, offset: int, path: str, chosen: dict[str, str]
) -> Iterator[tuple[int, int, str]]:
    """(offset, size, format code) of each scalar and byte string, in order of offset."""
    size = ffi.sizeof(of)
    if of.kind == "primitive":
        yield offset, size, _CODES[of.cname]
    elif of.kind == "array" and ffi.sizeof(of.item) > 1:
        for i in range(of.length):
            yield from _pieces(of.item, offset + i * ffi.sizeof(of.item), path, chosen)
    elif of.kind == "array" or (of.kind == "union" and path not in chosen):
        yield offset, size, f"{size}s"
    else:
        fields = _fields_of(of)
        for name in fields if of.kind == "struct" else [chosen[path]]:
            inner = f"{path}.{name}" if path else name
            yield from _pieces(fields[name].type, offset + fields[name].offset, inner, chosen)


def _fields_of(of: Any) -> dict[str, Any]:
    return dict(of.fields) if of.kind in ("struct", "union") else {}


def structs() -> dict[str, dict[str, Any]]:
    """Every struct and union: {name: {"size": bytes, "fields": {field: [offset, size]}}}."""
    return {
        name: {"size": sizeof(name), "fields": dict(_offsets(ctype(name), 0, ""))}
        for name in _declared("struct", "union")
    }


def constants() -> dict[str, int]:
    """Every constant of the headers: {name: value}."""
    return {name: int(getattr(lib, name)) for name in _declared("define")}


def _offsets(of: Any, offset: int, prefix: str) -> Iterator[tuple[str, list[int]]]:
    for name, field in _fields_of(of).items():
        at = offset + field.offset
        yield prefix + name, [at, ffi.sizeof(field.type)]
        if "$" in field.type.cname and field.type.kind != "array":  # it has no tag of its own
            yield from _offsets(field.type, at, f"{prefix}{name}.")


def _declared(*kinds: str) -> list[str]:
    lines = ffi.string(lib.abi_index).decode().splitlines()
    return [name for kind, name in (line.split() for line in lines) if kind in kinds]
