"""One element of `vif = [...]`: xl-network-configuration(5).

xl only prints a line about an item it does not know, a bad type and a bad mac, and goes on
without it: a misspelt `bridge` then gives a guest on another network. Here they are errors;
`strict=False` does as xl does.
"""

from __future__ import annotations

import enum
import re
from typing import Any

import attrs

from xenpv.errors import ConfigError
from xenpv.host.position import NOWHERE, Position, shown

DEFAULT_BRIDGE = "xenbr0"
DEVID_MAX = (1 << 16) - 1
MTU_MIN, MTU_MAX = 68, 65535  # IPv4's least (RFC 791) and what an mtu node can ask for

_UINT32_MAX = (1 << 32) - 1
_UINT64_MAX = (1 << 64) - 1
_INTERVAL_US = 50_000

# Patterns are compiled when first used: `import xenpv` reaches this module.
_RATE = r"([0-9]+)([GMK]?)([Bb])/s\Z"
_INTERVAL = r"([0-9]+)([mu]?)s?\Z"
_MULTIPLIERS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_UNITS_US = {"u": 1, "m": 10**3, "": 10**6}

_MAC = r"[0-9a-fA-F]{1,2}(?:[^0-9a-fA-F][0-9a-fA-F]{1,2}){5}\Z"
# strtoul(3) in base 16.
_HEX = r"[ \t\n\v\f\r]*([-+]?)(?:0[xX](?=[0-9a-fA-F]))?([0-9a-fA-F]+)"


class NicType(enum.Enum):
    """libxl_nic_type, as the backend's `type` node has it."""

    VIF = "vif"
    VIF_IOEMU = "vif_ioemu"


@attrs.frozen(kw_only=True)
class VifSpec:
    """What the toolstack needs to make one network interface (libxl_device_nic).

    `mac` None: one is made up. `type` None: by the kind of domain. `backend` "": dom0. `rate`:
    bytes per interval, interval in microseconds; None: unlimited. `devid` None: its place in the
    list. `mtu` in bytes, without the Ethernet header; None: not given. `profile`: which netback
    serves it, "" the host's own; no xl.cfg says so.
    """

    mac: bytes | None = None
    bridge: str = DEFAULT_BRIDGE
    type: NicType | None = None
    model: str = ""
    vifname: str = ""
    script: str = ""
    ip: str = ""
    backend: str = ""
    rate: tuple[int, int] | None = None
    devid: int | None = None
    mtu: int | None = None
    vlan: str = ""
    trusted: bool = True
    gatewaydev: str = ""
    forwarddev: str = ""
    profile: str = ""
    warnings: tuple[str, ...] = attrs.field(default=(), eq=False)
    position: Position = attrs.field(default=NOWHERE, eq=False)

    @classmethod
    def parse(cls, spec: str, position: Position = NOWHERE, *, strict: bool = True) -> VifSpec:
        """Read one specification that stands at `position`; raises ConfigError."""
        reader = _Reader(spec, position, strict)
        for item in spec.split(","):
            reader.item(item.lstrip(" "))
        return cls(**reader.fields, warnings=tuple(reader.warnings), position=position)


_TEXTS = (
    "backend",
    "bridge",
    "forwarddev",
    "gatewaydev",
    "ip",
    "model",
    "script",
    "vifname",
    "vlan",
)
_KNOWN = ", ".join((*_TEXTS, "mac", "type", "rate", "devid", "mtu", "trusted", "untrusted"))
_TYPES = {"vif": NicType.VIF, "ioemu": NicType.VIF_IOEMU}


@attrs.define(eq=False)
class _Reader:
    _spec: str
    _position: Position
    _strict: bool
    fields: dict[str, Any] = attrs.Factory(dict)
    warnings: list[str] = attrs.Factory(list)

    def item(self, item: str) -> None:
        key, equals, value = item.partition("=")
        if not equals:
            if item in {"trusted", "untrusted"}:
                self.fields["trusted"] = item == "trusted"
            elif item:
                self._complain(f"unknown vif option '{shown(item)}'", f"known are {_KNOWN}")
        elif key in _TEXTS:
            if key == "bridge" and not value:
                self._complain("empty vif bridge", f"expected a name such as {DEFAULT_BRIDGE}")
                return
            if self._strict and key in _CHECKS:
                _CHECKS[key](value, self._position)
            self.fields[key] = value
        elif key == "netdev":
            self.fields["gatewaydev"] = value
            self.warnings.append("the vif option netdev is now called gatewaydev")
        elif key == "mac":
            self._mac(value)
        elif key == "type":
            if value in _TYPES:
                self.fields["type"] = _TYPES[value]
            else:
                self._complain(f"unknown vif type '{shown(value)}'", "expected vif or ioemu")
        elif key == "rate":
            self.fields["rate"] = parse_rate(value, self._position)
        elif key == "devid":
            self.fields["devid"] = self._number(key, value, 0, DEVID_MAX)
        elif key == "mtu":
            self.fields["mtu"] = self._number(key, value, MTU_MIN, MTU_MAX)
        else:
            self._complain(f"unknown vif option '{shown(key)}'", f"known are {_KNOWN}")

    def _mac(self, value: str) -> None:
        if self._strict and not re.match(_MAC, value):
            hint = "expected six bytes in hexadecimal such as 00:16:3e:12:34:56"
            self._complain(f"bad mac '{shown(value)}'", hint)
        # Any one character separates two bytes and what follows the sixth is not read. A bad mac
        # replaces the bytes before its fault.
        mac, start = bytearray(self.fields.get("mac") or bytes(6)), 0
        hexadecimal = re.compile(_HEX)
        for index in range(6):
            match = hexadecimal.match(value, start)
            if match is None or int(match[1] + match[2], 16) not in range(256):
                self._complain(f"bad mac '{shown(value)}'", f"byte {index + 1} is not one")
                break
            mac[index] = int(match[2], 16)
            start = match.end() + 1
        if mac[0] & 1:
            self.warnings.append(f"mac {mac.hex(':')} is a group address, which no interface has")
        # libxl makes one up for an interface whose mac is zero.
        self.fields["mac"] = bytes(mac) if any(mac) else None

    def _number(self, key: str, value: str, low: int, high: int) -> int:
        if re.match(r"[0-9]{1,9}\Z", value) and low <= int(value) <= high:
            return int(value)
        raise self._position.error(
            f"bad vif {key} '{shown(value)}': expected a number from {low} to {high}"
        )

    def _complain(self, message: str, hint: str) -> None:
        if self._strict:
            raise self._position.error(f"{message} in '{shown(self._spec)}'; {hint}")
        self.warnings.append(f"{message} in '{shown(self._spec)}' is ignored")


def checked_ip(text: str, position: Position = NOWHERE) -> str:
    """Addresses with white space between them, a prefix length or none behind each; ConfigError."""
    if text:
        from ipaddress import ip_interface

        for one in text.split():
            try:
                ip_interface(one)
            except ValueError:
                raise position.error(
                    f"bad vif ip '{shown(one)}': expected IPv4 or IPv6 addresses with spaces "
                    "between them, such as 192.0.2.7/24"
                ) from None
    return text


def checked_vlan(text: str, position: Position = NOWHERE) -> str:
    """VLANs of a port of the bridge (host.vlan.parse_vlans); ConfigError."""
    if text:
        from xenpv.host.vlan import parse_vlans

        try:
            parse_vlans(text)
        except ValueError as error:
            raise position.error(f"bad vif vlan {error}") from None
    return text


_CHECKS = {"ip": checked_ip, "vlan": checked_vlan}


def parse_rate(rate: str, position: Position = NOWHERE) -> tuple[int, int]:
    """`10MB/s@20ms` as bytes per interval and the interval in microseconds; raises ConfigError.

    Decimal multipliers, bits rounded down to bytes; the interval is in seconds without a unit
    letter, 50 ms when absent (libxlu_vif.c). A number with a leading 0 is octal; `019KB/s`, which
    libxlutil reads as one byte a second, is refused.
    """
    speed, at, interval = rate.partition("@")

    def error(message: str, near: str) -> ConfigError:
        return position.error(
            f"config parsing error in vif: {message} in `{shown(near)}';"
            " expected a rate such as 10MB/s, 250Kb/s or 10MB/s@20ms"
        )

    if not speed:
        raise error("no rate specified", rate)
    match = re.match(_RATE, speed)
    if match is None:
        raise error("invalid rate", speed)
    digits, multiplier, unit = match.groups()
    amount = _c_number(digits)
    if amount is None:
        raise error("invalid rate", speed)
    if not 0 < amount <= _UINT32_MAX:
        raise error("rate overflow", speed)
    bytes_per_second = amount * _MULTIPLIERS[multiplier] // (8 if unit == "b" else 1)
    interval_us = _INTERVAL_US
    if at:
        match = re.match(_INTERVAL, interval)
        if match is None:
            raise error("invalid replenishment interval", interval)
        amount = _c_number(match[1])
        if amount is None:
            raise error("invalid replenishment interval", interval)
        interval_us = amount * _UNITS_US[match[2]]
        if amount == 0 or interval_us > _UINT32_MAX:
            raise error("replenishment interval overflow", interval)
    product = bytes_per_second * interval_us
    if product > _UINT64_MAX:
        raise error("rate overflow", rate)
    return product // 10**6, interval_us


def _c_number(digits: str) -> int | None:
    """Decimal digits as a C number, octal after a leading 0; None if that has an 8 or 9."""
    digits = digits.lstrip("0") if (octal := digits.startswith("0")) else digits
    if octal and re.search("[89]", digits):
        return None
    # int() refuses thousands of digits; any number this long is too large.
    return int(digits[:24] or "0", 8 if octal else 10)
