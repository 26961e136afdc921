"""xl.cfg(5): from the settings of a file to a DomainConfig.

As in xl, a value of the wrong type is reported and the default used, and a key that means nothing
here does no harm. Unlike there, a domain without `type` is hvm and keys that are ignored are named
in a warning.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs

from xenpv.host import vdev, xlcfg, xlkeys
from xenpv.host.diskspec import DiskSpec
from xenpv.host.domainconfig import Action, DomainConfig, DomainType, Personality, check_together
from xenpv.host.position import Position, shown
from xenpv.host.vifspec import VifSpec
from xenpv.host.xlcfg import Atom, Setting

__all__ = [
    "Action",
    "DomainConfig",
    "DomainType",
    "Personality",
    "check_together",
    "load",
    "load_all",
    "parse",
]

E = TypeVar("E", bound=enum.Enum)

_LONG_MAX = (1 << 63) - 1
_INT_MAX = (1 << 31) - 1
_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z"
_BUILDERS = {"hvm": DomainType.HVM, "generic": DomainType.PV}
_FLAGS = (
    "acpi",
    "acpi_laptop_slate",
    "acpi_s3",
    "acpi_s4",
    "driver_domain",
    "localtime",
    "nomigrate",
    "xend_suspend_evtchn_compat",
)
_ACTIONS = ("on_crash", "on_poweroff", "on_reboot", "on_soft_reset", "on_watchdog")
# Least and most of numbers whose range does not depend on other keys.
_RANGES = {
    "rtc_timeoffset": (-_INT_MAX - 1, _INT_MAX),
    "max_event_channels": (0, (1 << 17) - 1),  # the FIFO ABI's ports less port 0
    "max_grant_frames": (1, _INT_MAX),
    "max_maptrack_frames": (1, _INT_MAX),
    "max_grant_version": (1, 2),
}
# xl refuses these when they are no numbers at all; it has defaults for others.
_NUMBERS_ONLY = {"max_grant_frames", "max_maptrack_frames", "max_grant_version"}
# Video memory by card, MiB: least and default (libxl_create.c for qemu-xen).
_VIDEORAM_MIB = {"cirrus": 8, "stdvga": 16, "qxl": 128, "none": 0}


def load(path: str | Path, overrides: Sequence[str] = ()) -> DomainConfig:
    """The domain that the xl.cfg file at `path` describes; raises ConfigError.

    `overrides` are settings that follow the file's, as in `xl create FILE KEY=VALUE...`.
    """
    return _Reader(str(path), xlcfg.read(path, overrides)).config()


def parse(text: str, file: str = "", overrides: Sequence[str] = ()) -> DomainConfig:
    """As `load`, for a text that errors and warnings place in `file`."""
    return _Reader(file, xlcfg.parse(text, file, overrides)).config()


def load_all(paths: Iterable[str | Path]) -> tuple[DomainConfig, ...]:
    """Load the files of domains that are to run side by side; raises ConfigError."""
    configs = tuple(load(path) for path in paths)
    check_together(configs)
    return configs


@attrs.define(eq=False)
class _Reader:
    _file: str
    _settings: Mapping[str, Setting]
    _warnings: list[str] = attrs.Factory(list)

    def config(self) -> DomainConfig:
        disks = [DiskSpec.parse(atom.text, atom.position) for atom in self._texts("disk")]
        vifs = [VifSpec.parse(atom.text, atom.position) for atom in self._texts("vif")]
        fields: dict[str, Any] = {"name": self._text("name") or "", "disks": disks, "vifs": vifs}
        fields |= self._kind() | self._sizes()
        for key in _FLAGS:
            if (number := self._number(key)) is not None:
                fields[key] = number != 0
        for key in _ACTIONS:
            if (word := self._text(key)) is not None:
                fields[key] = self._chosen(Action, key, word)
        for key, (low, high) in _RANGES.items():
            if number := self._number(key, low, high):  # 0 stands for the default
                fields[key] = number
        specs: list[DiskSpec | VifSpec] = [*disks, *vifs]
        for spec in specs:
            self._warnings += [f"{spec.position}: {warning}" for warning in spec.warnings]
        self._unread()
        positions = {key: setting.position for key, setting in self._settings.items()}
        positions[""] = Position(self._file)
        config = DomainConfig(**fields, positions=positions)
        self._absent_targets(config)
        return attrs.evolve(config, warnings=tuple(self._warnings))

    def _kind(self) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if (uuid := self._text("uuid")) is not None:
            if not re.match(_UUID, uuid.lower()):
                raise self._at("uuid").error(
                    f"malformed uuid '{shown(uuid)}': expected 8-4-4-4-12 hexadecimal digits"
                )
            fields["uuid"] = uuid.lower()
        if (word := self._text("xenpv_personality")) is not None:
            fields["personality"] = self._chosen(Personality, "xenpv_personality", word)
        kinds = {kind.value: kind for kind in DomainType}
        kind = self._abbreviated("type", kinds)
        builder = self._abbreviated("builder", _BUILDERS)
        if kind and builder and kind is not builder:
            raise self._at("builder").error(f"builder contradicts the type, {kind.value}")
        fields["type"] = kind or builder or DomainType.HVM
        return fields | self._videoram(fields["type"])

    def _abbreviated(self, key: str, known: Mapping[str, DomainType]) -> DomainType | None:
        # xl compares as many characters as it is given; the first match wins.
        if (word := self._text(key)) is None:
            return None
        for name, kind in known.items():
            if name.startswith(word):
                return kind
        names = ", ".join(known)
        raise self._at(key).error(f"unknown {key} '{shown(word)}': expected one of {names}")

    def _videoram(self, kind: DomainType) -> dict[str, int]:
        card = "stdvga" if self._number("stdvga") else "cirrus"
        if (word := self._text("vga")) is not None:
            if word not in _VIDEORAM_MIB:
                known = ", ".join(_VIDEORAM_MIB)
                message = f"unknown vga '{shown(word)}': expected one of {known}"
                raise self._at("vga").error(message)
            card = word
        mebibytes = self._number("videoram")
        if kind is not DomainType.HVM:
            return {"videoram_kib": 0}
        least = _VIDEORAM_MIB[card]
        if mebibytes is None or card == "none":
            return {"videoram_kib": least * 1024}
        if mebibytes < least:
            raise self._at("videoram").error(
                f"videoram of {mebibytes} MiB: the {card} card needs {least}"
            )
        return {"videoram_kib": mebibytes * 1024}

    def _sizes(self) -> dict[str, int]:
        fields: dict[str, int] = {}
        memory, maxmem = self._number("memory"), self._number("maxmem")
        if memory is not None or maxmem is not None:
            # Each stands in for the other.
            fields["memory_mib"] = memory if memory is not None else maxmem or 0
            fields["maxmem_mib"] = maxmem if maxmem is not None else memory or 0
        vcpus = self._number("vcpus")
        if vcpus is not None and vcpus < 1:
            self._warn("vcpus", f"a domain has at least 1, not {vcpus}")
            vcpus = 1
        if vcpus is not None:
            fields["vcpus"] = vcpus
        if (maxvcpus := self._number("maxvcpus")) is not None:
            fields["maxvcpus"] = maxvcpus
        return fields

    def _absent_targets(self, config: DomainConfig) -> None:
        if config.personality is Personality.WINDOWS:
            for disk in config.disks:
                if vdev.windows_target(disk.number) is None:
                    self._warnings.append(
                        f"{disk.position}: the Windows driver does not present disk "
                        f"'{disk.vdev}', device {disk.number}: it has targets 0 to "
                        f"{vdev.WINDOWS_TARGET_MAX}"
                    )

    def _unread(self) -> None:
        keys = [key for key in self._settings if key not in xlkeys.READ]
        booting = [key for key in keys if key in xlkeys.BOOT]
        if booting:
            self._warn(booting[0], f"booting comes later: {', '.join(booting)} ignored")
        idle = [key for key in keys if key in xlkeys.IDLE]
        if idle:
            self._warn(idle[0], f"not modelled and ignored: {', '.join(idle)}")
        for key in keys:
            if key not in xlkeys.BOOT and key not in xlkeys.IDLE:
                import difflib

                known = (*xlkeys.READ, *xlkeys.BOOT, *xlkeys.IDLE)
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                self._warn(key, f"unknown key {shown(key)}{hint}")

    def _at(self, key: str) -> Position:
        return self._settings[key].position

    def _warn(self, key: str, message: str) -> None:
        self._warnings.append(f"{self._at(key)}: {message}")

    def _chosen(self, known: type[E], key: str, word: str) -> E:
        try:
            return known(word)
        except ValueError:
            words = ", ".join(str(member.value) for member in known)
            message = f"unknown {key} '{shown(word)}': expected one of {words}"
            raise self._at(key).error(message) from None

    def _text(self, key: str) -> str | None:
        if (setting := self._settings.get(key)) is None:
            return None
        if isinstance(setting.value, Atom):
            return setting.value.text
        self._warn(key, f"{key} is a list and should be one value; the default is used")
        return None

    def _texts(self, key: str) -> list[Atom]:
        if (setting := self._settings.get(key)) is None:
            return []
        if isinstance(setting.value, Atom):
            self._warn(key, f"{key} is one value and should be a [list]; it is ignored")
            return []
        atoms: list[Atom] = []
        for item in setting.value.items:
            if not isinstance(item, Atom):
                self._warnings.append(
                    f"{item.position}: a list inside {key}; it and what follows it are ignored"
                )
                break
            atoms.append(item)
        return atoms

    def _number(self, key: str, low: int = -_LONG_MAX - 1, high: int = _LONG_MAX) -> int | None:
        if (setting := self._settings.get(key)) is None:
            return None
        value, problem = setting.value, ""
        number = value.number() if isinstance(value, Atom) else None
        if not isinstance(value, Atom):
            problem = f"{key} is a list and should be a number"
        elif setting.added:
            problem = f"{key} is a number, which '+=' cannot give"
        elif number is None:
            problem = f"{key} is '{shown(value.text)}' and should be a number"
        elif low <= number <= high:
            return number
        else:
            raise self._at(key).error(f"{key} of {number}: expected {low} to {high}")
        if key in _NUMBERS_ONLY:
            raise self._at(key).error(problem)
        self._warn(key, f"{problem}; the default is used")
        return None
