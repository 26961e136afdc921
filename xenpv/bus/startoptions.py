"""Boot options of the drivers: `XEN:` words of the registry's SystemStartOptions.

win-xenbus registry.c, RegistryQuerySystemStartOption: words between spaces, with their case;
the first that begins with an option's name counts. Windows puts there what `bcdedit /set
loadoptions` says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import attrs

from xenpv.bus.registry import Registry

KEY: Final = "Control"
VALUE: Final = "SystemStartOptions"

# Option: what its values mean.
SWITCHES: Final[Mapping[str, Mapping[str, bool]]] = {
    "XEN:BALLOON=": {"ON": True, "OFF": False},
    "XEN:BOOT_EMULATED=": {"TRUE": True, "FALSE": False},
    "XEN:DBG_PRINT=": {"ON": True, "OFF": False},
}
WATCHDOG: Final = "XEN:WATCHDOG="
# InitSafeBootMode of the kernel: 1 minimal, 2 with network, 3 directory services repair.
SAFE_BOOT: Final = {"SAFEBOOT:MINIMAL": 1, "SAFEBOOT:NETWORK": 2, "SAFEBOOT:DSREPAIR": 3}

ULONG_MAX: Final = 0xFFFF_FFFF


@attrs.frozen
class StartOptions:
    """What was said, or the defaults. `warnings` name values that mean nothing."""

    balloon: bool = True
    watchdog_seconds: int = 0  # 0: none
    boot_emulated: bool = False
    dbg_print: bool = True
    safe_mode: int = 0
    warnings: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> StartOptions:
        """Of SystemStartOptions; an option that is not there has its default."""
        if "XEN:" not in text and "SAFEBOOT:" not in text:
            return DEFAULT
        words = text.split(" ")
        warnings: list[str] = []

        def switch(option: str, *, default: bool) -> bool:
            value = _first(words, option)
            if value is None or value in SWITCHES[option]:
                return default if value is None else SWITCHES[option][value]
            warnings.append(f"UNRECOGNIZED VALUE OF {option}: {value}")
            return default

        return cls(
            balloon=switch("XEN:BALLOON=", default=True),
            watchdog_seconds=strtoul(_first(words, WATCHDOG) or ""),
            boot_emulated=switch("XEN:BOOT_EMULATED=", default=False),
            dbg_print=switch("XEN:DBG_PRINT=", default=True),
            safe_mode=next((SAFE_BOOT[word] for word in words if word in SAFE_BOOT), 0),
            warnings=tuple(warnings),
        )

    @classmethod
    def of(cls, registry: Registry) -> StartOptions:
        """As this boot's registry has them."""
        return cls.parse(registry.string(KEY, VALUE) or "")


DEFAULT: Final = StartOptions()


def _first(words: list[str], option: str) -> str | None:
    for word in words:
        if word.startswith(option):
            return word[len(option) :]
    return None


def strtoul(text: str) -> int:
    """C's, with base 0, into 32 bits: what stands in front, 0 if that is no number."""
    match = re.match(r"[ \t]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)", text)
    if match is None:
        return 0
    digits = match[2].lower()
    base = 16 if digits.startswith("0x") else 8 if digits.startswith("0") else 10
    # int() refuses thousands of decimal digits; any number this long is too large.
    number = min(int(digits[:64], base), ULONG_MAX)
    return -number & ULONG_MAX if match[1] == "-" else number
