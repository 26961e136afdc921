"""One element of `disk = [...]`: xl-disk-configuration(5), read from left to right.

xenpv refuses two things that libxlutil 4.17 lets pass by accident: a stray `=` at the very end
and a line feed. It knows the parameters of newer trees: trusted, untrusted, grant_usage.
"""

from __future__ import annotations

import enum
import re
from typing import TypeVar

import attrs

from xenpv.errors import ConfigError
from xenpv.host import vdev
from xenpv.host.position import NOWHERE, Position, shown


class DiskFormat(enum.Enum):
    """libxl_disk_format: how the image is encoded; EMPTY is a drive without a medium."""

    RAW = "raw"
    QCOW = "qcow"
    QCOW2 = "qcow2"
    VHD = "vhd"
    QED = "qed"
    EMPTY = "empty"


class DiskBackend(enum.Enum):
    """libxl_disk_backend: who serves the disk."""

    PHY = "phy"
    QDISK = "qdisk"
    TAP = "tap"
    STANDALONE = "standalone"


class DiskSpecification(enum.Enum):
    """libxl_disk_specification: the transport."""

    XEN = "xen"
    VIRTIO = "virtio"


@attrs.frozen(kw_only=True)
class DiskSpec:
    """What the toolstack needs to make one block device (libxl_device_disk).

    `target` "": no medium. `backend` "": dom0. `backendtype` None: the toolstack chooses.
    `discard` None: as `readwrite`. `grant_usage` None: as `backend`. `vdev` is not checked.
    `profile`, `units`, `latency_ns`: of xenpv, what its backend is to be; "": the platform's.
    `sector_size`, `physical_sector_size`: of xenpv, bytes, those of a file; 0: its own.
    """

    target: str = ""
    format: DiskFormat = DiskFormat.RAW
    vdev: str
    readwrite: bool = True
    is_cdrom: bool = False
    removable: bool = False
    backend: str = ""
    backendtype: DiskBackend | None = None
    script: str = ""
    direct_io_safe: bool = False
    discard: bool | None = None
    specification: DiskSpecification = DiskSpecification.XEN
    trusted: bool = True
    grant_usage: bool | None = None
    profile: str = ""
    units: str = ""
    latency_ns: int = 0
    sector_size: int = 0
    physical_sector_size: int = 0
    warnings: tuple[str, ...] = attrs.field(default=(), eq=False)
    position: Position = attrs.field(default=NOWHERE, eq=False)

    @classmethod
    def parse(cls, spec: str, position: Position = NOWHERE) -> DiskSpec:
        """Read one specification that stands at `position`; raises ConfigError."""
        return _Reader(spec, position).read()

    @property
    def number(self) -> int:
        """The device number of `vdev`; raises ConfigError where there is no such disk."""
        return vdev.number(self.vdev, self.position)


E = TypeVar("E", bound=enum.Enum)

_BLANKS = " \t"
_ACCESS = {"": True, "w": True, "rw": True, "r": False, "ro": False}
_DEVTYPES = {"cdrom": True, "disk": False}

_PREFIX = r"([a-z][a-z0-9]*):"
_FORMAT_PREFIXES = {"raw", "qcow", "qcow2", "vhd"}
_SCRIPT_PREFIXES = {"iscsi", "nbd", "enbd", "drbd"}
_IDLE_PREFIXES = {"phy", "file", "tap", "tap2", "aio", "tapdisk", "ioemu"}
_FLAGS = {
    "cdrom": ("is_cdrom", True),
    "direct-io-safe": ("direct-io-safe", True),
    "discard": ("discard", True),
    "no-discard": ("discard", False),
    "trusted": ("trusted", True),
    "untrusted": ("trusted", False),
}
# Replication (COLO) is not modelled.
_COLO_FLAGS = {"colo", "no-colo"}
_COLO_TEXTS = {"colo-host", "colo-export", "active-disk", "hidden-disk"}
_TEXTS = {"vdev", "script", "backend"} | _COLO_TEXTS
_KEY = r"([a-z][-a-z0-9_]*)="
_UNKNOWN = r"[a-z][-a-z0-9]*=[^,],?"

_POSITIONS = "the positions are target, format (absent after a prefix such as file:), vdev, access"
_KNOWN = "access, backend, backendtype, devtype, format, script, specification, target, vdev"


@attrs.define(eq=False)
class _Reader:
    """What the parameters read so far have set."""

    _spec: str
    _position: Position
    _texts: dict[str, str] = attrs.Factory(dict)
    _flags: dict[str, bool] = attrs.Factory(dict)
    _format: DiskFormat | None = None
    _backendtype: DiskBackend | None = None
    _specification: DiskSpecification | None = None
    _readwrite: bool = True
    _prefixed: bool = False
    _access_placed: bool = False  # access= does not fill the position
    _warnings: list[str] = attrs.Factory(list)

    def read(self) -> DiskSpec:
        if "\n" in self._spec:
            raise self._error("line feed", None)
        rest = self._spec.lstrip(_BLANKS)
        while rest:
            rest = self._parameter(rest).lstrip(_BLANKS)
        target = self._texts.get("target")
        is_cdrom = self._flags.pop("is_cdrom", False)
        if "vdev" not in self._texts:
            raise self._error("no vdev specified", None, _POSITIONS)
        if target is None and not is_cdrom:
            raise self._error("no target specified (and device not removable)", None)
        return DiskSpec(
            target=target or "",
            format=DiskFormat.EMPTY if is_cdrom and not target else self._format or DiskFormat.RAW,
            vdev=self._texts["vdev"],
            readwrite=self._readwrite and not is_cdrom,
            is_cdrom=is_cdrom,
            removable=is_cdrom,
            backend=self._texts.get("backend", ""),
            backendtype=self._backendtype,
            script=self._texts.get("script", ""),
            direct_io_safe=self._flags.get("direct-io-safe", False),
            discard=self._flags.get("discard"),
            specification=self._specification or DiskSpecification.XEN,
            trusted=self._flags.get("trusted", True),
            grant_usage=self._flags.get("grant_usage"),
            warnings=tuple(self._warnings),
            position=self._position,
        )

    def _parameter(self, rest: str) -> str:
        """Take one parameter off the front of `rest` and return what follows."""
        if rest.startswith("target="):
            self._text("target", rest[7:].removesuffix(","))
            return ""
        if key := re.match(_KEY, rest):
            value, _, after = rest[key.end() :].partition(",")
            if self._assign(key[1], value):
                return after
        if (prefix := re.match(_PREFIX, rest)) and self._prefix(prefix[1], rest[prefix.end() :]):
            return rest[prefix.end() :]
        if unknown := re.match(_UNKNOWN, rest):
            raise self._error("unknown parameter", unknown[0], f"known are {_KNOWN}")
        word = re.split("[,=]", rest, maxsplit=1)[0]
        after = rest[len(word) :]
        if word in _FLAGS:
            flag, is_set = _FLAGS[word]
            self._flags[flag] = is_set
        elif word in _COLO_FLAGS:
            self._idle(word)
        elif word or after.startswith(","):
            self._positional(word)
        if after.startswith("="):
            raise self._error("bad disk syntax", after)
        return after[1:]

    def _assign(self, key: str, value: str) -> bool:
        """One `key=value`; False if there is no such key."""
        if key in _TEXTS:
            self._text(key, value)
        elif key == "format":
            self._set_format(value)
        elif key == "access":
            self._set_access(value)
        elif key == "devtype":
            if value not in _DEVTYPES:
                near = f"devtype={value}"
                raise self._error("unknown value for type", near, "expected cdrom or disk")
            self._flags["is_cdrom"] = _DEVTYPES[value]
        elif key == "backendtype":
            chosen = self._chosen(DiskBackend, key, value)
            if self._backendtype not in {None, chosen}:
                raise self._error("backend respecified", value)
            self._backendtype = chosen
        elif key == "specification":
            transport = self._chosen(DiskSpecification, key, value)
            if self._specification not in {None, transport}:
                raise self._error("specification respecified", value)
            self._specification = transport
        elif key == "grant_usage":
            if value not in {"0", "1"}:
                raise self._error("unknown value for grant_usage", value, "expected 0 or 1")
            self._flags[key] = value == "1"
        elif key == "colo-port":
            if not re.match(r"[ \t]*[-+]?0*[1-9]", value):
                raise self._error("unknown value for colo_port", value, "expected a number")
            self._idle(key)
        else:
            return False
        return True

    def _prefix(self, word: str, after: str) -> bool:
        """The `word:` of old configurations; False if it only begins a positional text."""
        if word in _FORMAT_PREFIXES:
            self._set_format(word)
        elif word in _SCRIPT_PREFIXES:
            self._text("script", f"block-{word}")
        elif word not in _IDLE_PREFIXES:
            if re.match("[a-z0-9]", after):
                return False
            raise self._error("unknown deprecated disk prefix", f"{word}:")
        self._prefixed = True
        return True

    def _positional(self, word: str) -> None:
        if "target" not in self._texts:
            self._texts["target"] = word
        elif not self._prefixed and self._format is None:
            # An empty CD-ROM drive may leave the format out: ",hdc:cdrom".
            if self._texts["target"] or ":" not in word:
                self._set_format(word)
            else:
                self._format = DiskFormat.EMPTY
                self._vdev_and_devtype(word)
        elif "vdev" not in self._texts:
            self._vdev_and_devtype(word)
        elif not self._access_placed:
            self._access_placed = True
            self._set_access(word)
        else:
            raise self._error("too many positional parameters", word, _POSITIONS)

    def _vdev_and_devtype(self, word: str) -> None:
        name, colon, devtype = word.rpartition(":")
        self._text("vdev", name if colon else word)
        if colon:
            if devtype not in _DEVTYPES:
                raise self._error("unknown deprecated type", devtype, "expected cdrom or disk")
            self._flags["is_cdrom"] = _DEVTYPES[devtype]

    def _set_format(self, word: str) -> None:
        chosen = DiskFormat.RAW if word == "" else self._chosen(DiskFormat, "format", word)
        if self._format not in {None, chosen}:
            raise self._error("format respecified", word)
        self._format = chosen

    def _set_access(self, word: str) -> None:
        if word not in _ACCESS:
            hint = f"expected r, ro, w or rw; {_POSITIONS}"
            raise self._error("unknown value for access", word, hint)
        self._readwrite = _ACCESS[word]

    def _text(self, key: str, value: str) -> None:
        # Once only, but an empty earlier value may be replaced.
        if self._texts.get(key):
            raise self._error(f"{key} respecified", value)
        self._texts[key] = value
        if key in _COLO_TEXTS:
            self._idle(key)

    def _chosen(self, known: type[E], key: str, word: str) -> E:
        try:
            return known(word)
        except ValueError:
            words = ", ".join(str(member.value) for member in known)
            hint = f"; {_POSITIONS}" if key == "format" else ""
            message = f"unknown value for {key}"
            raise self._error(message, word, f"expected one of {words}{hint}") from None

    def _idle(self, word: str) -> None:
        self._warnings.append(f"disk option {word} has no effect")

    def _error(self, message: str, near: str | None, hint: str = "") -> ConfigError:
        where = "" if near is None else f": near `{shown(near)}'"
        return self._position.error(
            f"config parsing error in disk specification: {message}{where} in"
            f" `{shown(self._spec)}'{hint and '; '}{hint}"
        )
