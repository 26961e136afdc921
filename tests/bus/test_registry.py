"""The registry: names without case, types that are checked when read, what a reboot leaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpv.bus.registry import Key, Registry, Value

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


PATHS = st.sampled_from(["A", "a\\B", "A\\b\\C", "D", "D\\E"])
NAMES = st.sampled_from(["v", "V", "w"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 3), PATHS, NAMES, st.integers(0, 5)),
        st.tuples(st.just("delete"), st.integers(0, 3), PATHS),
        st.tuples(st.just("delete_value"), st.integers(0, 3), PATHS, NAMES),
        st.tuples(st.just("volatile"), st.integers(0, 3), PATHS),
        st.tuples(st.just("reboot"), st.integers(0, 3)),
        st.tuples(st.just("copy"), st.integers(0, 3)),
    ),
    max_size=40,
)


def flat(key: Key, at: str = "") -> dict[str, dict[str, Value]]:
    found = {at: dict(key.values.values())}
    for below in key.subkeys.values():
        found |= flat(below, f"{at}\\{below.name}")
    return found


def step(registry: Registry, one: tuple[object, ...]) -> object:
    name, _which, *arguments = one
    if name == "volatile":
        return registry.create(*arguments, volatile=True).name
    return getattr(registry, name)(*arguments)


@given(STEPS)
def test_copies_go_ways_of_their_own(steps: list[tuple[object, ...]]) -> None:
    """Each copy is as a registry that did everything since the beginning by itself."""
    made, pasts = [Registry()], [[]]
    for one in steps:
        which = one[1] % len(made)
        if one[0] == "copy":
            made.append(made[which].copy())
            pasts.append(list(pasts[which]))
            continue
        step(made[which], one)
        pasts[which].append(one)
    for registry, past in zip(made, pasts, strict=True):
        alone = Registry()
        for one in past:
            step(alone, one)
        assert flat(registry.root) == flat(alone.root)
