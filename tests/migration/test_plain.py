"""A guest's state is plain data: what is not is refused by name, and nothing of ours is not."""

from __future__ import annotations

import enum
import types
from collections import deque
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from tests.migration import copy, mydriver
from xenpv import Disk, Guest, Platform, Vif
from xenpv.errors import LocalProtocolError
from xenpv.guest import drivers
from xenpv.host.image import MemoryImage
from xenpv.host.libxl import ToolstackError
from xenpv.migration import classes
from xenpv.migration.context import capture
from xenpv.vbd.srb import Srb
from xenpv.xen.domain import Domain
from xenpv.xen.evtchn import EventChannels
from xenpv.xen.ioport import IoPorts
from xenpv.xen.loop import Task, Timer

IMAGE = bytes(range(256)) * 256
PLAIN = (type(None), bool, int, float, str, bytes, bytearray, UUID, enum.Enum)
GUEST = ("xenpv.abi", "xenpv.bus", "xenpv.vif", "xenpv.vbd", "xenpv.net", "xenpv.iface")
OF_XEN = (Domain, EventChannels, IoPorts, Task, Timer)


def made(xen: Platform, personality: str = "windows", fifo: bool = True) -> Guest:
    return xen.create(
        name="web",
        disks=[Disk(MemoryImage(bytearray(IMAGE)))],
        vifs=[Vif()],
        personality=personality,
        fifo=fifo,
        vcpus=2,
    ).start()


def fields_of(one: object) -> dict[str, Any]:
    state = getattr(type(one), "__getstate__", None)
    if isinstance(state, types.FunctionType) and state.__name__ == "__getstate__":
        return dict(state(one))
    found = dict(getattr(one, "__dict__", {}))
    for kind in type(one).__mro__:
        slots = vars(kind).get("__slots__", ())
        names = [slots] if isinstance(slots, str) else slots
        found |= {name: getattr(one, name) for name in names if hasattr(one, name)}
    found.pop("__weakref__", None)
    return found


def foreign(roots: dict[str, object]) -> list[str]:
    """Every place of a live guest where something is that is no plain data, with what it is."""
    todo = list(roots.items())
    seen: dict[int, object] = {}
    wrong = []
    while todo:
        path, one = todo.pop()
        if isinstance(one, PLAIN) or id(one) in seen:
            continue
        seen[id(one)] = one
        if isinstance(one, list | tuple | set | frozenset | deque):
            todo += [(f"{path}[{n}]", item) for n, item in enumerate(one)]
        elif isinstance(one, dict):
            todo += [(f"{path} key", key) for key in one]
            todo += [(f"{path}[{key!r:.40}]", item) for key, item in one.items()]
        elif isinstance(one, types.MethodType):
            todo.append((f"{path} of", one.__self__))
        elif isinstance(one, partial):
            todo += [(f"{path} of", one.func), (f"{path} args", one.args), (path, one.keywords)]
        elif isinstance(one, types.FunctionType):
            if one.__closure__ or "<" in one.__qualname__:
                wrong.append(f"{path}: a closure {one.__qualname__}")
        elif isinstance(one, Task):
            todo.append((f"{path}.run", one.run))
        elif isinstance(one, type) or type(one) is object or isinstance(one, OF_XEN):
            continue
        elif type(one).__module__.startswith(GUEST):
            todo += [(f"{path}.{name}", item) for name, item in fields_of(one).items()]
        else:
            wrong.append(f"{path}: {type(one).__module__}.{type(one).__qualname__}")
    return wrong


def roots_of(guest: Guest) -> dict[str, object]:
    tasks = {task.name: task for task in guest.created.domain.tasks if task.name != "boot"}
    return {"windows": guest.windows, "bus": guest.bus, "os": guest.os, **tasks}


@pytest.mark.parametrize("fifo", [True, False])
@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_nothing_in_a_guest_is_foreign(personality: str, fifo: bool) -> None:
    with Platform(seed=3) as xen:
        guest = made(xen, personality, fifo)
        kept: list[object] = [guest.disks[0].start_read(0, 8)]
        if personality == "windows":
            user = guest.xencontrol()
            user.store_add_watch("data", user.create_event())
            user.evtchn_open_unbound(0, user.create_event())
            user.gnttab_permit_foreign_access(0, 1)
            kept += [user, guest.wmi.add_session("me"), guest.wmi.watch_events()]
        assert guest.bus is not None
        assert foreign(roots_of(guest) | {"kept": kept}) == []
        # And the walk finds what is: on the way that a capture takes.
        guest.bus.suspend.unplug = lambda: None
        assert foreign(roots_of(guest))[0].endswith("a closure test_nothing_in_a_guest_is_foreign."
                                                    "<locals>.<lambda>")  # fmt: skip


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_every_field_is_one_that_its_class_sets(personality: str) -> None:
    with Platform(seed=3) as xen:
        guest = made(xen, personality)
        if personality == "windows":
            guest.xencontrol()
            guest.wmi.add_session("me")
        guest.suspend()
        data = capture(guest)
        for module, name, fields in data["classes"]:
            if fields and not module.startswith("tests"):
                shape = set(data["shapes"][f"{module}.{name}"])
                assert shape.issuperset(fields), f"{module}.{name}"
                kind = classes.Known().class_(module, name)
                assert classes.required(kind).issubset(fields), f"{module}.{name}"


def _sent(_completions: object) -> None:
    """A function of a test."""


class Listener:
    """An object of a user's."""

    def receive(self, frames: object) -> None:
        """A protocol's."""


def _wake() -> None:
    """As `_sent`."""


def watch(guest: Guest) -> None:
    assert guest.bus is not None
    guest.bus.store.watch("data/x", _sent)


def callback(guest: Guest) -> None:
    srb = Srb(on_complete=Listener())  # type: ignore[arg-type] # it is not woken here
    guest.bus.pdos["VBD"].driver.targets[0].frontend._kept.append(srb)  # type: ignore[union-attr]


def task(guest: Guest) -> None:
    guest.created.domain.task("mine", _wake)


def receiver(guest: Guest) -> None:
    guest.nets[0].receiver = Listener()


def generator(guest: Guest) -> None:
    guest.os.volumes = (n for n in range(3))  # type: ignore[assignment] # that is the point


def late(guest: Guest) -> None:
    guest.bus.suspend.register(2, lambda: None, "me")  # type: ignore[union-attr] # it has booted


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (watch, "the watch of data/x: _changed: function tests.migration.test_plain._sent"),
        (callback, "disk 51712: _kept[0].on_complete: an object of tests.migration.test_plain."),
        (task, "task 'mine': function tests.migration.test_plain._wake"),
        (receiver, "vif 0: miniport.receiver: an object of tests.migration.test_plain.Listener"),
        (generator, "guest.os.volumes: an open generator generator.<locals>.<genexpr>"),
        (late, "function tests.migration.test_plain.late.<locals>.<lambda>"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_what_is_the_callers_is_refused_where_it_is(what: Any, said: str) -> None:
    with Platform(seed=3) as xen:
        guest = made(xen)
        what(guest)
        guest.suspend()
        with pytest.raises(ToolstackError) as refused:
            capture(guest)
        text = str(refused.value)
        assert text.startswith("guest 'web': ")
        assert text.endswith(" of the caller cannot be saved")
        assert said in text
        guest.resume()
        assert guest.disks[0].read(0, 8) == IMAGE[:4096]


def test_only_a_suspended_guest_is_captured() -> None:
    with Platform(seed=3) as xen:
        guest = made(xen)
        with pytest.raises(ToolstackError, match="'web' is not suspended"):
            capture(guest)
        guest.crash()
        with pytest.raises(ToolstackError, match="'web' is not suspended"):
            capture(guest)


def test_a_class_driver_of_the_user_survives_if_it_is_trusted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "xenpv.guest.drivers", lambda _os: {**drivers(), "IFACE": mydriver.MyDriver}
    )
    with Platform(seed=3) as xen:
        guest = made(xen)
        guest.bus.store.write("data/mine", "1")  # type: ignore[union-attr] # it has booted
        xen.run()
        driver = guest._driver("IFACE")
        assert isinstance(driver, mydriver.MyDriver)
        count = driver.counter.value
        assert count >= 1
        guest.suspend()
        with pytest.raises(ToolstackError, match=r"tests\.migration\.mydriver"):
            capture(guest)
        saved = copy.save(guest, trusted=("tests.migration.mydriver",))
        guest.destroy()
        with pytest.raises(ToolstackError, match=r"mydriver\.\w+ is neither of xenpv's guest"):
            copy.load(xen, guest.created.config, saved)
        new = copy.load(xen, guest.created.config, saved, trusted=("tests.migration.mydriver",))
        new.start()
        driver = new._driver("IFACE")
        assert isinstance(driver, mydriver.MyDriver)
        assert (driver.resumes, driver.counter.scratch()) == (1, 2)
        assert driver.counter.value == count + 1, "the watch fired when it was added again"
        assert new.disks[0].read(0, 8) == IMAGE[:4096]


def test_counterparts_are_of_a_migrated_guest() -> None:
    with Platform(seed=3) as xen:
        guest = made(xen)
        with pytest.raises(LocalProtocolError, match="was not migrated"):
            guest.counterpart(guest.disks[0])
        user = guest.xencontrol()
        event = user.create_event()
        other = xen.create(name="other").start()
        new = copy.moved(xen, guest)
        with pytest.raises(LocalProtocolError, match="this XenControl is of another guest"):
            new.counterpart(other.xencontrol())
        again = copy.moved(xen, new)
        assert again.counterpart(user) is again.counterpart(new.counterpart(user))
        assert not again.counterpart(user).event(event).wait()
        assert again.counterpart(guest.disks[0]) is again.disks[0]
        with pytest.raises(LocalProtocolError, match="a Platform is no object of a guest"):
            new.counterpart(xen)
        assert new.counterpart(guest) is new
