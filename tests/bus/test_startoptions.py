"""SystemStartOptions: which word counts, and what its value means."""

from __future__ import annotations

import pytest

from xenpv.bus.registry import Registry
from xenpv.bus.startoptions import StartOptions

# text, attribute, value, a warning
OPTIONS = [
    ("", "balloon", True, False),
    ("", "watchdog_seconds", 0, False),
    ("", "boot_emulated", False, False),
    ("", "dbg_print", True, False),
    ("", "safe_mode", 0, False),
    ("NOEXECUTE=OPTIN FVEBOOT=1", "balloon", True, False),
    ("XEN:BALLOON=OFF", "balloon", False, False),
    ("XEN:BALLOON=ON", "balloon", True, False),
    ("XEN:BALLOON=off", "balloon", True, True),
    ("XEN:BALLOON=", "balloon", True, True),
    ("XEN:BALLOON=OFFX", "balloon", True, True),
    ("xen:balloon=OFF", "balloon", True, False),
    ("XEN:BALLOON", "balloon", True, False),
    ("NOEXECUTE=OPTIN XEN:BALLOON=OFF X=1", "balloon", False, False),
    ("XEN:BALLOON=OFF XEN:BALLOON=ON", "balloon", False, False),
    ("XEN:BALLOON=? XEN:BALLOON=OFF", "balloon", True, True),
    ("XXEN:BALLOON=OFF", "balloon", True, False),
    ("XEN:BALLOON=OFF\tX", "balloon", True, True),
    ("XEN:BOOT_EMULATED=TRUE", "boot_emulated", True, False),
    ("XEN:BOOT_EMULATED=FALSE", "boot_emulated", False, False),
    ("XEN:BOOT_EMULATED=ON", "boot_emulated", False, True),
    ("XEN:DBG_PRINT=OFF", "dbg_print", False, False),
    ("XEN:DBG_PRINT=FALSE", "dbg_print", True, True),
    ("XEN:WATCHDOG=30", "watchdog_seconds", 30, False),
    ("XEN:WATCHDOG=0x1e", "watchdog_seconds", 30, False),
    ("XEN:WATCHDOG=036", "watchdog_seconds", 30, False),
    ("XEN:WATCHDOG=30s", "watchdog_seconds", 30, False),
    ("XEN:WATCHDOG=09", "watchdog_seconds", 0, False),
    ("XEN:WATCHDOG=", "watchdog_seconds", 0, False),
    ("XEN:WATCHDOG=ten", "watchdog_seconds", 0, False),
    ("XEN:WATCHDOG=-1", "watchdog_seconds", 0xFFFF_FFFF, False),
    ("XEN:WATCHDOG=4294967296", "watchdog_seconds", 0xFFFF_FFFF, False),
    ("XEN:WATCHDOG=" + "9" * 9000, "watchdog_seconds", 0xFFFF_FFFF, False),
    ("SAFEBOOT:MINIMAL", "safe_mode", 1, False),
    ("X SAFEBOOT:NETWORK", "safe_mode", 2, False),
    ("SAFEBOOT:DSREPAIR", "safe_mode", 3, False),
    ("SAFEBOOT:OTHER", "safe_mode", 0, False),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name", "value", "warns"), OPTIONS)
def test_option(text: str, name: str, value: object, warns: bool) -> None:
    options = StartOptions.parse(text)
    assert getattr(options, name) == value
    assert bool(options.warnings) is warns
    others = {"balloon", "watchdog_seconds", "boot_emulated", "dbg_print", "safe_mode"} - {name}
    assert all(getattr(options, one) == getattr(StartOptions(), one) for one in others)


def test_options_together() -> None:
    text = (
        "XEN:DBG_PRINT=OFF XEN:WATCHDOG=10 XEN:BALLOON=OFF XEN:BOOT_EMULATED=TRUE SAFEBOOT:MINIMAL"
    )
    assert StartOptions.parse(text) == StartOptions(False, 10, True, False, 1)


@pytest.mark.parametrize(
    ("value", "balloon"),
    [("XEN:BALLOON=OFF", False), (("XEN:BALLOON=OFF",), True), (1, True), (None, True)],
)
def test_only_a_string_of_the_registry_says_something(value, balloon: bool) -> None:
    registry = Registry()
    if value is not None:
        registry.set("Control", "SystemStartOptions", value)
    assert StartOptions.of(registry).balloon is balloon


def test_a_warning_names_option_and_value() -> None:
    assert StartOptions.parse("XEN:BALLOON=no").warnings == (
        "UNRECOGNIZED VALUE OF XEN:BALLOON=: no",
    )
