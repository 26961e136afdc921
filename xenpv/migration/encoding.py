"""A guest's objects as plain data.

A value is null, a bool, a number or a string, or a list that begins with a tag:

    ["r", i]                  object i
    ["t", [values]]           a tuple; "F" a frozenset
    ["b", base64]             bytes
    ["e", class, [names]]     an enum member, or flags
    ["m", value, name]        a bound method
    ["f", module, name]       a function; "c" a class, "C" a constant
    ["p", value, [values], [[name, value]]]   a functools.partial
    ["n", class, [values]]    a named tuple
    ["w", text], ["u", hex]   a float that JSON has not, a UUID
    ["k", i], ["i", i]        task i, timer i
    ["x", name], ["v", i]     a part of the domain, a vcpu

Objects have an identity, so they stand in a table of their own: `["o", class, [values]]` with
the fields that `classes` names, `["s", class, value]` where the class says what its state is,
`["E", class, [values], [[name, value]]]` an exception, "l" list, "d" dict, "S" set, "q" deque,
"B" bytearray.
"""

from __future__ import annotations

import enum
import json
import math
from base64 import b64encode
from collections import deque
from collections.abc import Callable
from functools import partial
from types import BuiltinMethodType, FunctionType, GeneratorType, MethodType
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from xenpv.host.libxl import ToolstackError
from xenpv.migration import classes
from xenpv.migration.classes import Known
from xenpv.xen.life import no_upcall
from xenpv.xen.loop import Task, Timer
from xenpv.xen.vcpu import Vcpu

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain

# Parts of a domain that its kernel may hold.
PARTS: Final = ("memory", "hvm", "vcpu_op", "sched", "evtchn", "gnttab", "ioport", "pages", "holes",
                "loop", "trace")  # fmt: skip
# Their methods that a kernel keeps as callbacks.
METHODS: Final = ("domain.debugcons", "evtchn.send", "ioport.write_string", "guest._boot")
# An object of these names what is below it, in the words of whoever made it.
LANDMARKS: Final = {
    "xenpv.vbd.target.Target": "disk {devid}",
    "xenpv.vbd.frontend.Frontend": "disk {devid}",
    "xenpv.vbd.disk.Disk": "disk {devid}",
    "xenpv.vif.adapter.Pdo": "vif {number}",
    "xenpv.vif.frontend.Frontend": "vif {number}",
    "xenpv.bus.store_transport.Watch": "the watch of {path}",
    "xenpv.bus.storewatch.CallbackWatch": "the watch of {path}",
    "xenpv.bus.channel.Channel": "event channel {port}",
    "xenpv.iface.process.Process": "process {name!r}",
}

Place = tuple[int, str]  # the object that has a value, and the step from there to it


class Encoder:
    """What is reached from some values of the guest whose domain is `domain`.

    Raises ToolstackError for what is no plain data; it changes nothing.
    """

    def __init__(self, domain: Domain, guest: object, known: Known) -> None:
        self.known = known
        self.originals: list[object] = []  # by number
        self.objects: list[list[Any]] = []
        self.classes: list[list[Any]] = []
        self.shapes: dict[str, list[str]] = {}
        self.tasks: list[Task] = []
        self.timers: list[Timer] = []
        self._numbers: dict[int, int] = {}
        self._places: list[Place] = []
        self._class_numbers: dict[tuple[type, tuple[str, ...]], int] = {}
        self._tasks: dict[Task, int] = {}
        self._timers: dict[Timer, int] = {}
        self._done = 0
        self._domain = domain
        parts = {"domain": domain, "guest": guest}
        parts |= {name: getattr(domain, name) for name in PARTS}
        self._parts = {id(part): name for name, part in parts.items()}

    # tables

    def task(self, task: Task) -> int:
        """Its number; it is described by whoever asks for `tasks`."""
        number = self._tasks.get(task)
        if number is None:
            number = self._tasks[task] = len(self.tasks)
            self.tasks.append(task)
        return number

    def timer(self, timer: Timer) -> int:
        number = self._timers.get(timer)
        if number is None:
            number = self._timers[timer] = len(self.timers)
            self.timers.append(timer)
        return number

    def finish(self) -> None:
        """Encode what was reached and is not yet in `objects`."""
        while self._done < len(self.originals):
            number = self._done
            self._done += 1
            self.objects[number] = self._object(self.originals[number], number)

    def _reference(self, value: object, at: Place) -> list[Any]:
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self.originals)
            self.originals.append(value)
            self.objects.append([])
            self._places.append(at)
        return ["r", number]

    def _class(self, kind: type, names: tuple[str, ...] = ()) -> int:
        found = self._class_numbers.get((kind, names))
        if found is None:
            found = self._class_numbers[kind, names] = len(self.classes)
            self.classes.append([kind.__module__, kind.__qualname__, list(names)])
            if names and self.known.is_own(kind):
                self.shapes[classes.title(kind)] = sorted(classes.shape(kind))
        return found

    # values

    def value(self, value: Any, at: Place) -> Any:
        """A value as JSON has it; `at` is where it was found."""
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        encode = _VALUES.get(kind)
        if encode is not None:
            return encode(self, value, at)
        if isinstance(value, enum.Enum):
            return self._enum(value, at)
        name = self._parts.get(id(value))
        if name is not None:
            return ["x", name]
        constant = self.known.constants.get(id(value))
        if constant is not None:
            return ["C", *constant]
        if isinstance(value, Task):
            return ["k", self.task(value)]
        if isinstance(value, type):
            return ["c", *self._named(value, at)]
        if isinstance(value, tuple) and self.known.allows(kind.__module__):
            return ["n", self._class(kind), self._items(value, at)]
        return self._reference(value, at)

    def _items(self, values: Any, at: Place) -> list[Any]:
        number, step = at
        return [self.value(one, (number, f"{step}[{n}]")) for n, one in enumerate(values)]

    def _tuple(self, value: tuple[Any, ...], at: Place) -> list[Any]:
        constant = self.known.constants.get(id(value))
        return ["t", self._items(value, at)] if constant is None else ["C", *constant]

    def _frozenset(self, value: frozenset[Any], at: Place) -> list[Any]:
        return ["F", _sorted(self._items(value, at))]

    def _bytes(self, value: bytes, _at: Place) -> list[Any]:
        return ["b", b64encode(value).decode()]

    def _float(self, value: float, _at: Place) -> Any:
        return value if math.isfinite(value) else ["w", repr(value)]

    def _uuid(self, value: UUID, _at: Place) -> list[Any]:
        return ["u", value.hex]

    def _container(self, value: object, at: Place) -> list[Any]:
        constant = self.known.constants.get(id(value))
        return self._reference(value, at) if constant is None else ["C", *constant]

    def _enum(self, value: enum.Enum, at: Place) -> list[Any]:
        kind = type(value)
        self._named(kind, at)
        names = [value.name] if value.name in kind.__members__ else []
        if not names and isinstance(value, enum.Flag):
            bits = int(value.value)
            names = [one.name for one in kind if one.value and one.value & bits == one.value]
        return ["e", self._class(kind), names]

    def _method(self, value: MethodType, at: Place) -> list[Any]:
        owner, name = value.__self__, value.__func__.__name__
        part = self._parts.get(id(owner))
        if part is not None:
            if f"{part}.{name}" not in METHODS:
                raise self._refused(f"{part}.{name}()", at)
        elif not isinstance(owner, Task):
            if classes.method(type(owner), name) is not value.__func__:
                raise self._refused(f"a method {value.__func__.__qualname__}", at)
        elif name != "wake":
            raise self._refused(f"Task.{name}()", at)
        number, step = at
        return ["m", self.value(owner, (number, f"{step} of")), name]

    def _function(self, value: FunctionType, at: Place) -> list[Any]:
        if value is no_upcall:
            return ["x", "no_upcall"]
        return ["f", *self._named(value, at)]

    def _named(self, value: Any, at: Place) -> tuple[str, str]:
        names = self.known.names(value)
        if names is None:
            what = "class" if isinstance(value, type) else "function"
            raise self._refused(f"{what} {value.__module__}.{value.__qualname__}", at)
        return names

    def _partial(self, value: partial[Any], at: Place) -> list[Any]:
        number, step = at
        keywords = [
            [name, self.value(one, (number, f"{step}({name}=)"))]
            for name, one in value.keywords.items()
        ]
        return ["p", self.value(value.func, at), self._items(value.args, at), keywords]

    def _timer_value(self, value: Timer, _at: Place) -> list[Any]:
        return ["i", self.timer(value)]

    def _vcpu(self, value: Vcpu, at: Place) -> list[Any]:
        if value.domain is not self._domain:
            raise self._refused("a vcpu of another domain", at)
        return ["v", value.id]

    # objects

    def _object(self, one: object, number: int) -> list[Any]:
        encode = _OBJECTS.get(type(one))
        if encode is not None:
            return encode(self, one, number)
        kind = type(one)
        at = self._places[number]
        if isinstance(one, GeneratorType):
            raise self._refused(f"an open generator {one.__qualname__}", at)
        if isinstance(one, BuiltinMethodType):
            raise self._refused(f"{one.__qualname__}()", at)
        if self.known.names(kind) is None:
            raise self._refused(f"an object of {classes.title(kind)}", at)
        if isinstance(one, BaseException):
            arguments = self._items(one.args, (number, ".args"))
            return ["E", self._class(kind), arguments, self._pairs(vars(one), number)]
        if classes.has_state(kind):
            state = one.__getstate__()
            return ["s", self._class(kind), self.value(state, (number, ""))]
        if issubclass(kind, _BUILT_IN):
            raise self._refused(f"an object of {classes.title(kind)}", at)
        fields = classes.fields(one)
        values = [self.value(value, (number, f".{name}")) for name, value in fields.items()]
        return ["o", self._class(kind, tuple(fields)), values]

    def _plain(self, _one: object, _number: int) -> list[Any]:
        return ["o", self._class(object), []]

    def _pairs(self, fields: dict[str, Any], number: int) -> list[Any]:
        return [[name, self.value(one, (number, f".{name}"))] for name, one in fields.items()]

    def _list(self, one: list[Any], number: int) -> list[Any]:
        return ["l", self._items(one, (number, ""))]

    def _dict(self, one: dict[Any, Any], number: int) -> list[Any]:
        pairs = [
            [self.value(key, (number, " key")), self.value(value, (number, f"[{_key(key)}]"))]
            for key, value in one.items()
        ]
        return ["d", pairs]

    def _set(self, one: set[Any], number: int) -> list[Any]:
        return ["S", _sorted(self._items(one, (number, "")))]

    def _deque(self, one: deque[Any], number: int) -> list[Any]:
        return ["q", one.maxlen, self._items(one, (number, ""))]

    def _bytearray(self, one: bytearray, _number: int) -> list[Any]:
        return ["B", b64encode(one).decode()]

    # what cannot be saved

    def _refused(self, what: str, at: Place) -> ToolstackError:
        return ToolstackError(f"{self.path(at)}: {what} of the caller cannot be saved")

    def path(self, at: Place) -> str:
        """Where a value is: the nearest thing that has a name, and the steps from there."""
        number, steps = at
        while number >= 0:
            owner = self.originals[number]
            words = LANDMARKS.get(classes.title(type(owner)))
            if words is not None:
                return f"{words.format(**_words(owner, words))}: {steps.lstrip('.')}"
            number, before = self._places[number]
            steps = f"{before}{steps}"
        return steps


def _words(owner: object, words: str) -> dict[str, object]:
    name = words.partition("{")[2].rstrip("}").partition("!")[0]
    return {name: getattr(owner, name)}


def _key(key: object) -> str:
    return repr(key) if isinstance(key, str | int) else type(key).__name__


def _sorted(values: list[Any]) -> list[Any]:
    """Sets have no order; their contents get one."""
    return sorted(values, key=json.dumps)


_BUILT_IN: Final = (int, str, bytes, float, list, dict, set, frozenset, deque, bytearray, tuple)
_VALUES: Final[dict[type, Callable[[Encoder, Any, Place], Any]]] = {
    float: Encoder._float,
    tuple: Encoder._tuple,
    frozenset: Encoder._frozenset,
    bytes: Encoder._bytes,
    UUID: Encoder._uuid,
    dict: Encoder._container,
    list: Encoder._container,
    MethodType: Encoder._method,
    FunctionType: Encoder._function,
    partial: Encoder._partial,
    Timer: Encoder._timer_value,
    Vcpu: Encoder._vcpu,
}
_OBJECTS: Final[dict[type, Callable[[Encoder, Any, int], list[Any]]]] = {
    object: Encoder._plain,
    list: Encoder._list,
    dict: Encoder._dict,
    set: Encoder._set,
    deque: Encoder._deque,
    bytearray: Encoder._bytearray,
}
