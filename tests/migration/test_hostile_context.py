"""Data that no capture gave: it is refused by one error, and nothing of it stays."""

from __future__ import annotations

import copy as copying
import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.migration import copy
from xenpv import Disk, Guest, Platform, Vif
from xenpv.host.domainconfig import DomainConfig
from xenpv.host.image import MemoryImage
from xenpv.host.libxl import ToolstackError
from xenpv.migration.context import populate_domain, rebuild

Saved = tuple[str, str, dict[int, bytes]]


@cache
def saved() -> tuple[DomainConfig, Saved]:
    with Platform(seed=3) as xen:
        guest = xen.create(
            name="web", disks=[Disk(MemoryImage(bytearray(1 << 16)))], vifs=[Vif()], vcpus=2
        ).start()
        user = guest.xencontrol()
        user.store_add_watch("data", user.create_event())
        guest.disks[0].start_read(0, 8)
        guest.suspend()
        return guest.created.config, copy.save(guest)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of JSON data and a key in it."""
    todo = [value]
    while todo:
        one = todo.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one))
        for key in keys:
            yield one, key
            if isinstance(one[key], dict | list):
                todo.append(one[key])


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 1 << 70),
    st.text(max_size=4),
    st.floats(allow_nan=False),
    st.sampled_from(["r", "m", "x", "domain", "guest", "_boot", "__class__", "os", "0"]),
    st.sampled_from([
        [], {}, ["r", 0], ["r", 10**9], ["m", ["x", "guest"], "destroy"], ["x", "domain"],
        ["f", "os", "system"], ["c", "subprocess", "Popen"], ["p", ["f", "os", "abort"], [], []],
        ["C", "xenpv.bus.dump", "SECTIONS"], ["k", 0], ["i", 0], ["e", 0, ["X"]], ["v", 7],
        ["m", ["x", "domain"], "shutdown"], ["t", [["t", [["t", []]]]]], ["b", "not base64"],
    ]),
)  # fmt: skip


def mutate(data: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
    every = list(places(data))
    for _ in range(draw(st.integers(1, 3))):
        owner, key = every[draw(st.integers(0, len(every) - 1))]
        how = draw(st.sampled_from(["junk", "delete", "other", "repeat"]))
        try:
            if how == "junk":
                owner[key] = draw(JUNK)
            elif how == "delete":
                del owner[key]
            elif how == "other":
                other, its = every[draw(st.integers(0, len(every) - 1))]
                owner[key] = copying.deepcopy(other[its])
            elif isinstance(owner, list):
                owner.insert(0, owner[key])
        except (IndexError, KeyError):
            continue  # another change took that place away


def census(guest: Guest) -> tuple[object, ...]:
    domain = guest.created.domain
    return len(domain.tasks), len(domain.timers), guest.windows, guest._bus, guest.bus


@settings(max_examples=60)
@given(data=st.data())
def test_mutated_objects_are_refused_or_are_a_guest(data: st.DataObject) -> None:
    config, (objects, domain, pages) = saved()
    hostile = json.loads(objects)
    mutate(hostile, data.draw)
    with Platform(seed=1) as xen:
        guest = restored(xen, config, domain, pages)
        before = census(guest)
        try:
            rebuild(guest, hostile)
        except ToolstackError as error:
            assert str(error).startswith("guest context: ")
            assert "\n" not in str(error)
            assert census(guest) == (before[0] - 1, *before[1:]), "all that is gone is its boot"
        assert guest.created.domain.pause_count == 1
        ran = xen.run()
        assert ran == 0 or guest.bus is None
        guest.destroy()
        assert list(xen.hypervisor.domains) == [0]


def restored(xen: Platform, config: DomainConfig, domain: str, pages: dict[int, bytes]) -> Guest:
    """A domain with its memory, and a guest without objects."""
    xen.images.register("image:1", MemoryImage(bytearray(1 << 16)))

    def populate(made: Any) -> None:
        populate_domain(made.domain, json.loads(domain))
        for pfn, page in pages.items():
            made.domain.write(pfn, 0, page)

    return Guest(xen, xen.toolstack.create(config, populate=populate))


@settings(max_examples=40)
@given(data=st.data())
def test_a_mutated_domain_is_refused_and_none_is_left(data: st.DataObject) -> None:
    config, (_, domain, _) = saved()
    hostile = json.loads(domain)
    mutate(hostile, data.draw)
    with Platform(seed=1) as xen:
        try:
            xen.toolstack.create(
                config, populate=lambda made: populate_domain(made.domain, hostile)
            )
        except ToolstackError:
            assert list(xen.hypervisor.domains) == [0]


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Of data: the value at a path of keys and numbers."""

    def do(data: dict[str, Any]) -> None:
        one: Any = data
        *steps, last = path.split("/")
        for step in steps:
            one = one[int(step) if isinstance(one, list) else step]
        one[int(last) if isinstance(one, list) else last] = value

    return do


def shape(kind: str, *, add: str = "", drop: str = "") -> Callable[[dict[str, Any]], None]:
    def do(data: dict[str, Any]) -> None:
        names = data["shapes"][kind]
        names += [add] if add else []
        if drop:
            names.remove(drop)

    return do


def rename(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def do(data: dict[str, Any]) -> None:
        next(one for one in data["classes"] if one[1] == old)[1] = new

    return do


def lose_field(kind: str, name: str) -> Callable[[dict[str, Any]], None]:
    def do(data: dict[str, Any]) -> None:
        for number, one in enumerate(data["classes"]):
            if one[1] == kind and name in one[2]:
                at = one[2].index(name)
                del one[2][at]
                for entry in data["objects"]:
                    if entry[:2] == ["o", number]:
                        del entry[2][at]

    return do


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (change("format", 2), "expected format 1"),
        (rename("Handshake", "Handclap"),
         "there is no Handclap in xenpv.bus.handshake: it was made by another version of xenpv"),
        (shape("xenpv.vif.mac.Mac", add="vlan"),
         "xenpv.vif.mac.Mac has no field 'vlan': it was made by another version of xenpv"),
        (shape("xenpv.vif.mac.Mac", drop="mtu"),
         "xenpv.vif.mac.Mac is saved without its field 'mtu': it was made by another version"),
        (lose_field("Power", "is_d0"),
         "(xenpv.bus.power.Power): its field 'is_d0' is missing: it was made by another version"),
        (change("roots/windows", ["f", "os", "system"]),
         "os.system is neither of xenpv's guest packages nor of a module that the caller trusts"),
        (change("roots/windows", ["c", "xenpv.xen.domain", "Domain"]),
         "xenpv.xen.domain.Domain is neither of xenpv's guest packages"),
        (change("roots/windows", ["r", 0, 0]), "there is no value ['r', ...] of 3"),
        (change("roots/windows", True), "the root windows is no xenpv.bus.windows.Windows"),
        (change("kernel/deliver", ["m", ["x", "domain"], "crash"]),
         "domain.crash is no callback of a guest"),
        (change("kernel/upcalls", []), "0 upcalls of 2 vcpus"),
        (change("tasks/2/held", 9), "is held 9 times"),
        (change("tasks/2/run", 7), "runs what cannot be called"),
        (change("tasks/0/vcpu", 2), "there is no vcpu 2"),
        (change("timers/0", [0, 0, -1, False]), "a timer with -1 ns left"),
        (change("objects/0", ["o", 0, []]), "fields and 0 values"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_another_version_or_an_attacker_wrote_is_named(
    edit: Callable[[dict[str, Any]], None], said: str
) -> None:
    config, (objects, domain, pages) = saved()
    data = json.loads(objects)
    edit(data)
    with Platform(seed=1) as xen:
        guest = restored(xen, config, domain, pages)
        with pytest.raises(ToolstackError) as refused:
            rebuild(guest, data)
        assert said in str(refused.value)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (change("vcpus", [[True, False]]), "vcpus: the domain has 2, not 1"),
        (change("processors", 3), "processors: 3 are none of 2 vcpus"),
        (change("is_32bit", True), "is_32bit"),
        (change("ram/0", [0, 1 << 30]), "beyond the last pfn"),
        (change("ram/0", [-1, 1]), "is no run of pfns"),
        (change("pages/next", 1), "pages: expected start"),
        (change("pages/free", [[0, [1]]]), "pages: expected start"),
        (change("hvm_params", {"STORE_PFN": 1}), "hvm_params: STORE_PFN is not carried over"),
        (change("tsc", -1), "tsc"),
        (change("time_offset_seconds", "1"), "time_offset_seconds"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_domain_can_be_is_named(edit: Callable[[dict[str, Any]], None], said: str) -> None:
    config, (_, domain, _) = saved()
    data = json.loads(domain)
    edit(data)
    with Platform(seed=1) as xen:
        with pytest.raises(ToolstackError) as refused:
            xen.toolstack.create(config, populate=lambda made: populate_domain(made.domain, data))
        assert said in str(refused.value)
        assert list(xen.hypervisor.domains) == [0]
