"""The registry: names without case, types that are checked when read, what a reboot leaves."""

from __future__ import annotations

import pytest

from xenpv.bus.registry import Registry

PARAMETERS = "Services\\XENBUS\\Parameters"


def test_names_are_compared_without_case_and_keep_it() -> None:
    registry = Registry({PARAMETERS: {"Enumerate": 1}})
    registry.set("services\\xenbus\\PARAMETERS", "ENUMERATE", 0)
    assert registry.values(PARAMETERS) == {"Enumerate": 0}
    assert registry.subkeys("Services") == ["XENBUS"]
    assert registry.get("SERVICES\\XENBUS\\parameters", "enumerate") == 0


def test_a_value_of_another_type_reads_as_missing() -> None:
    registry = Registry({PARAMETERS: {"n": 3, "s": "text", "m": ("a", "b")}})
    assert registry.dword(PARAMETERS, "n", 7) == 3
    assert registry.dword(PARAMETERS, "s", 7) == 7
    assert registry.string(PARAMETERS, "m") is None
    assert registry.strings(PARAMETERS, "m") == ("a", "b")
    assert registry.strings(PARAMETERS, "absent") is None
    assert registry.string("no\\such\\key", "s") is None


def test_deleting() -> None:
    registry = Registry({PARAMETERS: {"n": 3}, PARAMETERS + "\\VIF": {"AllowPdoEject": 0}})
    assert registry.delete_value(PARAMETERS, "N")
    assert not registry.delete_value(PARAMETERS, "N")
    assert registry.delete(PARAMETERS)
    assert not registry.delete(PARAMETERS)
    assert registry.subkeys(PARAMETERS) is None
    assert registry.subkeys("Services\\XENBUS") == []


def test_a_reboot_takes_the_volatile_keys() -> None:
    registry = Registry({PARAMETERS: {"n": 1}})
    registry.create("Services\\xenbus_monitor\\Request\\XENVIF", volatile=True)
    registry.set("Services\\xenbus_monitor\\Request\\XENVIF", "Reboot", 1)
    registry.reboot()
    assert registry.subkeys("Services") == ["XENBUS"]


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_a_number_is_unsigned_and_of_64_bits(value: int) -> None:
    with pytest.raises(ValueError, match="no unsigned 64-bit number"):
        Registry().set(PARAMETERS, "n", value)
