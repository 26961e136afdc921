"""A domain's configuration as JSON, for a save file and for the other host of a migration.

Each field by its name, enums by theirs, bytes in hex. Where something stands in a user's file,
and warnings about it, are left out. What is read may be anybody's: it is checked against the
types that the fields are declared with, and then by the classes themselves.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

import attrs

from xenpv.abi.pci import IdeDrive, PciFunction
from xenpv.errors import ConfigError
from xenpv.host.domainconfig import DomainConfig
from xenpv.host.hardware import Hardware
from xenpv.host.libxl import ToolstackError

NAMES: Final = {"Hardware": Hardware}  # what the classes name only for type checkers
TAGGED: Final = {one.__name__: one for one in (PciFunction, IdeDrive)}
TAG: Final = "class"
# What createdomain takes as numbers of 32 bits, and a handle of 16 bytes.
U32: Final = ("max_event_channels", "max_grant_frames", "max_maptrack_frames", "max_grant_version")
HANDLE_BYTES: Final = 16


def config_json(config: DomainConfig) -> dict[str, Any]:
    """For json.dumps and `config_from`."""
    encoded: dict[str, Any] = _encode(config)
    return encoded


def _encode(value: Any) -> Any:
    if attrs.has(type(value)):
        fields = {one.name: _encode(getattr(value, one.name)) for one in _fields(type(value))}
        name = type(value).__name__
        return {TAG: name, **fields} if name in TAGGED else fields
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_encode(one) for one in value]
    return value


def _fields(kind: type[Any]) -> list[Any]:
    """Those that make two of the class differ."""
    return [one for one in attrs.fields(kind) if one.eq]


def config_from(value: object) -> DomainConfig:
    """What `config_json` gave. ToolstackError that names the field which is none of ours, or wrong.

    ConfigError where the fields do not go together.
    """
    config: DomainConfig = _decode(value, DomainConfig, "config")
    for name in U32:
        if not 0 <= getattr(config, name) < 1 << 32:
            raise _wrong(f"config.{name}", "a number of 32 bits")
    try:
        handle = bytes.fromhex((config.uuid or "0" * 32).replace("-", ""))
    except ValueError:
        handle = b""
    if len(handle) != HANDLE_BYTES:
        raise _wrong("config.uuid", "32 hexadecimal digits")
    return config


def _wrong(place: str, expected: str) -> ToolstackError:
    return ToolstackError(f"{place}: expected {expected}")


def _decode(value: Any, kind: Any, place: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return _decode_union(value, get_args(kind), place)
    if origin is tuple:
        return _decode_tuple(value, get_args(kind), place)
    if attrs.has(kind):
        return _decode_class(value, kind, place)
    if issubclass(kind, enum.Enum):
        if not isinstance(value, str) or value not in kind.__members__:
            raise _wrong(place, "one of " + ", ".join(kind.__members__))
        return kind[value]
    if kind is bytes:
        try:
            return bytes.fromhex(value)
        except (TypeError, ValueError):
            raise _wrong(place, "bytes in hex") from None
    if type(value) is not kind:
        raise _wrong(place, f"a value of type {kind.__name__}")
    return value


def _decode_union(value: Any, kinds: tuple[Any, ...], place: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    kinds = tuple(one for one in kinds if one is not NoneType)
    if len(kinds) == 1:
        return _decode(value, kinds[0], place)
    tag = value.get(TAG) if isinstance(value, Mapping) else None
    found = TAGGED.get(tag) if isinstance(tag, str) else None
    if found is None:
        raise _wrong(place, "one of " + ", ".join(TAGGED))
    return _decode(value, found, place)


def _decode_tuple(value: Any, kinds: tuple[Any, ...], place: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong(place, "a list")
    if kinds[-1] is not Ellipsis:
        if len(value) != len(kinds):
            raise _wrong(place, f"{len(kinds)} values")
        pairs = zip(value, kinds, strict=True)
    else:
        pairs = zip(value, kinds[:1] * len(value), strict=True)
    return tuple(_decode(one, kind, f"{place}[{at}]") for at, (one, kind) in enumerate(pairs))


def _decode_class(value: Any, kind: type[Any], place: str) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(place, "an object")
    hints = get_type_hints(kind, localns=NAMES)
    names = [one.name for one in _fields(kind)]
    tags = [TAG] if kind.__name__ in TAGGED else []
    for name in value:
        if name not in names and name not in tags:
            raise ToolstackError(f"{place}.{name} is not known here: another version wrote it")
    for name in names:
        if name not in value:
            raise ToolstackError(f"{place}.{name} is missing: another version wrote it")
    fields = {name: _decode(value[name], hints[name], f"{place}.{name}") for name in names}
    try:
        return kind(**fields)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error.message}") from None
