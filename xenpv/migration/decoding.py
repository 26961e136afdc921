"""A guest's objects from plain data (see encoding.py), over another domain.

The data is not believed: whatever it says, nothing of it is run, and what it cannot say is a
ToolstackError. Objects are made without their constructors and their fields are set; where a
class has a `__setstate__`, that is called when everything else is in place.
"""

from __future__ import annotations

import enum
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, Final, NoReturn
from uuid import UUID

from xenpv.host.libxl import ToolstackError
from xenpv.migration import classes
from xenpv.migration.classes import ANOTHER_VERSION, Known
from xenpv.migration.encoding import METHODS, PARTS
from xenpv.xen.life import no_upcall
from xenpv.xen.loop import Task, Timer

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain

DEPTH_MAX: Final = 100  # of values in values


class Decoder:
    """The objects of `data` for the guest whose domain is `domain`. Raises ToolstackError.

    `tasks` and `timers` are those of the new domain, by number.
    """

    def __init__(
        self,
        domain: Domain,
        guest: object,
        data: Mapping[str, Any],
        known: Known,
        tasks: Sequence[Task],
        timers: Sequence[Timer],
    ) -> None:
        self.known = known
        self.tasks = tasks
        self.timers = timers
        self._domain = domain
        self._parts = {"domain": domain, "guest": guest}
        self._parts |= {name: getattr(domain, name) for name in PARTS}
        self._at = "the tables"
        self._depth = 0
        self._classes = [self._class(entry) for entry in list_of(data, "classes")]
        self._check_shapes(data)
        self._entries = list_of(data, "objects")
        self.objects = [self._allocate(n, entry) for n, entry in enumerate(self._entries)]

    def fail(self, reason: str) -> NoReturn:
        raise ToolstackError(f"{self._at}: {reason}")

    def _class(self, entry: object) -> tuple[type, list[str]]:
        if not isinstance(entry, list) or len(entry) != 3 or not _are(str, entry[2]):
            self.fail("a class is [module, name, [fields]]")
        return self.known.class_(entry[0], entry[1]), entry[2]

    def _check_shapes(self, data: Mapping[str, Any]) -> None:
        shapes = data.get("shapes")
        if not isinstance(shapes, dict):
            self.fail("there are no shapes of classes")
        for kind, names in self._classes:
            if not names:
                continue
            if self.known.is_own(kind):
                self.known.check_shape(kind, shapes.get(classes.title(kind)))
            allowed = classes.shape(kind) if self.known.is_own(kind) else None
            for name in names:
                if name.startswith("__") or (allowed is not None and name not in allowed):
                    self.fail(f"{classes.title(kind)} has no field {name!r}: {ANOTHER_VERSION}")

    # objects

    def _allocate(self, number: int, entry: object) -> Any:
        self._at = f"object {number}"
        if not isinstance(entry, list) or not entry or not isinstance(entry[0], str):
            self.fail("it is not [tag, ...]")
        tag, length = entry[0], len(entry)
        if tag in _EMPTY and length == 2:
            return _EMPTY[tag]()
        if tag == "q" and length == 3 and _is_size(entry[1]):
            return deque(maxlen=entry[1])
        if tag not in ("o", "s", "E") or length != (4 if tag == "E" else 3):
            self.fail(f"there is no object [{tag!r}, ...] of {length}")
        kind, _ = self._kind(entry[1])
        if tag == "E":
            if not issubclass(kind, Exception):
                self.fail(f"{classes.title(kind)} is no exception")
            return kind.__new__(kind)
        if (tag == "s") is not classes.has_state(kind) or classes.is_enum(kind):
            self.fail(f"a {classes.title(kind)} is not saved so: {ANOTHER_VERSION}")
        return object.__new__(kind)

    def _kind(self, number: object) -> tuple[type, list[str]]:
        if type(number) is not int or not 0 <= number < len(self._classes):
            self.fail(f"there is no class {number!r}")
        return self._classes[number]

    def fill(self) -> None:
        """Give every object its contents: instances first, as others may hash them."""
        for tags in ("oE", "lBq", "dS", "s"):
            for number, entry in enumerate(self._entries):
                if entry[0] in tags:
                    self._at = f"object {number}"
                    _FILL[entry[0]](self, self.objects[number], entry)

    def _fill_instance(self, one: Any, entry: list[Any]) -> None:
        kind, names = self._kind(entry[1])
        self._at += f" ({classes.title(kind)})"
        values = self._list(entry[2])
        if len(values) != len(names):
            self.fail(f"{len(names)} fields and {len(values)} values")
        missing = classes.required(kind).difference(names) if self.known.is_own(kind) else ()
        for name in sorted(missing):
            self.fail(f"its field {name!r} is missing: {ANOTHER_VERSION}")
        self._set(one, zip(names, values, strict=True))

    def _set(self, one: Any, fields: Any) -> None:
        kind: Any = type(one)
        places = classes.slots(kind)
        for name, saved in fields:
            value = self.value(saved)
            if name in places:
                places[name].__set__(one, value)
            elif hasattr(one, "__dict__"):
                vars(one)[name] = value
            else:
                self.fail(f"it has no field {name!r}: {ANOTHER_VERSION}")

    def _fill_exception(self, one: Any, entry: list[Any]) -> None:
        one.args = tuple(self._values(entry[2]))
        for pair in self._list(entry[3]):
            if not isinstance(pair, list) or len(pair) != 2 or type(pair[0]) is not str:
                self.fail("a field is [name, value]")
            vars(one)[pair[0]] = self.value(pair[1])

    def _fill_state(self, one: Any, entry: list[Any]) -> None:
        self._at += f" ({classes.title(type(one))})"
        state = self.value(entry[2])
        if isinstance(state, dict):
            state = dict(state)
        one.__setstate__(state)

    def _fill_list(self, one: list[Any], entry: list[Any]) -> None:
        one += self._values(entry[1])

    def _fill_deque(self, one: deque[Any], entry: list[Any]) -> None:
        one += self._values(entry[2])

    def _fill_bytearray(self, one: bytearray, entry: list[Any]) -> None:
        one += self._bytes(entry[1])

    def _fill_dict(self, one: dict[Any, Any], entry: list[Any]) -> None:
        for pair in self._list(entry[1]):
            if not isinstance(pair, list) or len(pair) != 2:
                self.fail("an entry of a dict is [key, value]")
            one[self._key(pair[0])] = self.value(pair[1])

    def _fill_set(self, one: set[Any], entry: list[Any]) -> None:
        one.update(self._key(value) for value in self._list(entry[1]))

    def _key(self, saved: object) -> Hashable:
        key = self.value(saved)
        if not isinstance(key, Hashable):
            self.fail(f"a {type(key).__name__} is no key")
        return key

    # values

    def value(self, saved: object) -> Any:
        """What a value of the data stands for."""
        if saved is None or isinstance(saved, bool | int | float | str):
            return saved
        if not isinstance(saved, list) or not saved or not isinstance(saved[0], str):
            self.fail("a value is not [tag, ...]")
        tag = saved[0]
        decode, length = _VALUES.get(tag, (None, 0))
        if decode is None or len(saved) != length:
            self.fail(f"there is no value [{tag!r}, ...] of {len(saved)}")
        if self._depth == DEPTH_MAX:
            self.fail(f"values in values, over {DEPTH_MAX} deep")
        self._depth += 1
        try:
            return decode(self, *saved[1:])
        finally:
            self._depth -= 1

    def _list(self, saved: object) -> list[Any]:
        if not isinstance(saved, list):
            self.fail(f"expected a list, not {type(saved).__name__}")
        return saved

    def _values(self, saved: object) -> list[Any]:
        return [self.value(one) for one in self._list(saved)]

    def _of(self, table: Sequence[Any], number: object) -> Any:
        if type(number) is not int or not 0 <= number < len(table):
            self.fail(f"there is no number {number!r} of {len(table)}")
        return table[number]

    def _bytes(self, saved: object) -> bytes:
        if not isinstance(saved, str):
            self.fail("bytes are base64 text")
        return b64decode(saved, validate=True)

    def _reference(self, number: object) -> Any:
        return self._of(self.objects, number)

    def _tuple(self, saved: object) -> tuple[Any, ...]:
        return tuple(self._values(saved))

    def _frozenset(self, saved: object) -> frozenset[Any]:
        return frozenset(self._key(one) for one in self._list(saved))

    def _float(self, saved: object) -> float:
        if saved not in ("inf", "-inf", "nan"):
            self.fail(f"{saved!r} is no such float")
        return float(str(saved))

    def _uuid(self, saved: object) -> UUID:
        if not isinstance(saved, str):
            self.fail("a UUID is hexadecimal text")
        return UUID(hex=saved)

    def _enum(self, number: object, names: object) -> Any:
        kind, _ = self._kind(number)
        if not issubclass(kind, enum.Enum) or not _are(str, names):
            self.fail(f"{classes.title(kind)} is no enum")
        members = []
        for name in self._list(names):
            if name not in kind.__members__:
                self.fail(f"{classes.title(kind)} has no {name}: {ANOTHER_VERSION}")
            members.append(kind.__members__[name])
        if issubclass(kind, enum.Flag):
            flags: Any = kind(0)
            for member in members:
                flags |= member
            return flags
        if len(members) != 1:
            self.fail(f"{len(members)} members of {classes.title(kind)}")
        return members[0]

    def _method(self, saved: object, name: object) -> Any:
        owner = self.value(saved)
        if isinstance(saved, list) and saved[0] == "x":
            if f"{saved[1]}.{name}" not in METHODS:
                self.fail(f"{saved[1]}.{name} is no callback of a guest")
        elif isinstance(owner, Task):
            if name != "wake":
                self.fail(f"Task.{name} is no callback of a guest")
        elif not self.known.allows(type(owner).__module__):
            self.fail(f"a {type(owner).__name__} has no methods here")
        function = classes.method(type(owner), name)
        if function is None:
            self.fail(f"{classes.title(type(owner))} has no method {name!r}: {ANOTHER_VERSION}")
        return MethodType(function, owner)

    def _function(self, module: object, name: object) -> Any:
        return self.known.function(module, name)

    def _class_value(self, module: object, name: object) -> type:
        return self.known.class_(module, name)

    def _constant(self, module: object, name: object) -> Any:
        return self.known.constant(module, name)

    def _partial(self, saved: object, arguments: object, keywords: object) -> partial[Any]:
        function = self.value(saved)
        if not callable(function):
            self.fail("a partial of nothing that can be called")
        named = {}
        for pair in self._list(keywords):
            if not isinstance(pair, list) or len(pair) != 2 or type(pair[0]) is not str:
                self.fail("a keyword is [name, value]")
            named[pair[0]] = self.value(pair[1])
        return partial(function, *self._values(arguments), **named)

    def _named_tuple(self, number: object, saved: object) -> Any:
        kind, _ = self._kind(number)
        if not issubclass(kind, tuple):
            self.fail(f"{classes.title(kind)} is no tuple")
        return tuple.__new__(kind, self._values(saved))

    def _task(self, number: object) -> Task:
        task: Task = self._of(self.tasks, number)
        return task

    def _timer(self, number: object) -> Timer:
        timer: Timer = self._of(self.timers, number)
        return timer

    def _part(self, name: object) -> Any:
        if name == "no_upcall":
            return no_upcall
        if not isinstance(name, str) or name not in self._parts:
            self.fail(f"a domain has no {name!r}")
        return self._parts[name]

    def _vcpu(self, number: object) -> Any:
        return self._of(self._domain.vcpu, number)


def list_of(data: Mapping[str, Any], name: str) -> list[Any]:
    """A list of the data by its name. ToolstackError if there is none."""
    found = data.get(name)
    if not isinstance(found, list):
        raise ToolstackError(f"expected a list of {name}")
    return found


def _are(kind: type, values: object) -> bool:
    return isinstance(values, list) and all(type(one) is kind for one in values)


def _is_size(value: object) -> bool:
    return value is None or (type(value) is int and 0 <= value < 1 << 31)


_EMPTY: Final[dict[str, Callable[[], Any]]] = {"l": list, "d": dict, "S": set, "B": bytearray}
_FILL: Final[dict[str, Callable[[Decoder, Any, list[Any]], None]]] = {
    "o": Decoder._fill_instance,
    "E": Decoder._fill_exception,
    "s": Decoder._fill_state,
    "l": Decoder._fill_list,
    "q": Decoder._fill_deque,
    "B": Decoder._fill_bytearray,
    "d": Decoder._fill_dict,
    "S": Decoder._fill_set,
}
# By tag, and the length of the list.
_VALUES: Final[dict[str, tuple[Callable[..., Any], int]]] = {
    "r": (Decoder._reference, 2),
    "t": (Decoder._tuple, 2),
    "F": (Decoder._frozenset, 2),
    "b": (Decoder._bytes, 2),
    "w": (Decoder._float, 2),
    "u": (Decoder._uuid, 2),
    "e": (Decoder._enum, 3),
    "m": (Decoder._method, 3),
    "f": (Decoder._function, 3),
    "c": (Decoder._class_value, 3),
    "C": (Decoder._constant, 3),
    "p": (Decoder._partial, 4),
    "n": (Decoder._named_tuple, 3),
    "k": (Decoder._task, 2),
    "i": (Decoder._timer, 2),
    "x": (Decoder._part, 2),
    "v": (Decoder._vcpu, 2),
}
