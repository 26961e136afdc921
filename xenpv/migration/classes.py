"""What a saved guest may be made of: the classes, functions and constants of its drivers.

They are named in the data by module and qualified name, and looked up only in the packages of
the guest and in modules that the caller trusts. A class has a shape: the fields that its code
can set. A saved one that has another shape was made by another version of xenpv.
"""

from __future__ import annotations

import dis
import enum
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from importlib import import_module
from types import CodeType, FunctionType, MemberDescriptorType, ModuleType
from typing import Any, Final

from xenpv.host.libxl import ToolstackError

# What runs in a guest; its errors may be kept where they were met.
PACKAGES: Final = (
    "xenpv.abi", "xenpv.bus", "xenpv.vif", "xenpv.vbd", "xenpv.net", "xenpv.iface", "xenpv.errors",
)  # fmt: skip
ANOTHER_VERSION: Final = "it was made by another version of xenpv"
NO_CONSTANTS: Final = (type(None), bool, int, float, str, bytes, type, FunctionType, ModuleType)
STORE_ATTR: Final = dis.opmap["STORE_ATTR"]
EXTENDED_ARG: Final = dis.opmap["EXTENDED_ARG"]
BRANCHES: Final = frozenset({*dis.hasjrel, *dis.hasjabs})
_NOTHING: Final = ()  # the one empty tuple is no constant of anybody's
INSTANCE_DICTS: Final = ("__dict__", "__weakref__")


def is_within(module: str, packages: Sequence[str]) -> bool:
    """Whether a module is one of these or below one."""
    return any(module == one or module.startswith(f"{one}.") for one in packages)


def _stored(code: CodeType) -> Iterator[str]:
    """Names of the attributes that a function assigns, of whatever object."""
    text = code.co_code
    high = 0
    for at in range(0, len(text), 2):
        if text[at] == EXTENDED_ARG:
            high = (high | text[at + 1]) << 8
            continue
        if text[at] == STORE_ATTR:
            yield code.co_names[high | text[at + 1]]
        high = 0


@lru_cache(1024)
def slots(kind: type) -> dict[str, MemberDescriptorType]:
    """The slots of a class and its bases, by the names of their attributes."""
    return {
        name: member
        for base in reversed(kind.__mro__)
        for name, member in vars(base).items()
        if isinstance(member, MemberDescriptorType) and name not in INSTANCE_DICTS
    }


@lru_cache(1024)
def shape(kind: type) -> frozenset[str]:
    """Every field that an instance may have, and some names that are fields of others.

    What the functions of the class and its bases assign, its slots, annotations and cached
    properties.
    """
    names = set(slots(kind))
    for base in kind.__mro__:
        if not is_within(base.__module__, PACKAGES):
            continue
        names.update(vars(base).get("__annotations__", ()))
        for name, value in vars(base).items():
            if isinstance(value, cached_property):
                names.add(name)
            for function in _functions(value):
                names.update(_stored(function.__code__))
    return frozenset(names)


def _functions(value: object) -> list[FunctionType]:
    found: list[object] = [value]
    if isinstance(value, property):
        found = [value.fget, value.fset]
    elif isinstance(value, classmethod | staticmethod):
        found = [value.__func__]
    return [one for one in found if isinstance(one, FunctionType)]


def fields(one: object) -> dict[str, Any]:
    """The fields of an instance: slots, then what is in its dict."""
    found = {}
    kind: Any = type(one)
    for name, member in slots(kind).items():
        try:
            found[name] = member.__get__(one)
        except AttributeError:
            continue
    return found | getattr(one, "__dict__", {})


def has_state(kind: type) -> bool:
    """Whether a class says itself what its state is; attrs gives one to those with slots."""
    function = method(kind, "__setstate__")
    return function is not None and function.__name__ == "__setstate__"


class Known:
    """Classes, functions and constants by name, of the guest's packages and of `trusted`."""

    def __init__(self, trusted: Sequence[str] = ()) -> None:
        self.trusted = tuple(trusted)
        self._names: dict[Any, tuple[str, str] | None] = {}  # by class, of those that were asked

    def allows(self, module: object) -> bool:
        """Whether what is defined in a module of that name may be in a guest."""
        return isinstance(module, str) and is_within(module, (*PACKAGES, *self.trusted))

    def is_own(self, kind: type) -> bool:
        """Whether it is of this package, so that its shape is a matter of xenpv's version."""
        return is_within(kind.__module__, PACKAGES)

    @cached_property
    def constants(self) -> dict[int, tuple[str, str]]:
        """(module, name) of every constant by its id: what is compared by identity."""
        found: dict[int, tuple[str, str]] = {}
        for module in sorted(sys.modules):
            if not self.allows(module):
                continue
            for name, value in vars(sys.modules[module]).items():
                if name.isupper() and not isinstance(value, NO_CONSTANTS) and value is not _NOTHING:
                    home = type(value).__module__ == module
                    if home or id(value) not in found:
                        found[id(value)] = module, name
        return found

    def names(self, value: Any) -> tuple[str, str] | None:
        """(module, qualified name) by which a class or function is found again, or None."""
        if not isinstance(value, type):
            return self._look_up(value)
        if value not in self._names:
            self._names[value] = self._look_up(value)
        return self._names[value]

    def _look_up(self, value: Any) -> tuple[str, str] | None:
        module, name = value.__module__, value.__qualname__
        if not self.allows(module):
            return None
        try:
            return (module, name) if self._find(module, name) is value else None
        except ToolstackError:
            return None

    def _find(self, module: object, name: object) -> Any:
        if not self.allows(module) or not isinstance(module, str) or not isinstance(name, str):
            wrong = "is neither of xenpv's guest packages nor of a module that the caller trusts"
            raise ToolstackError(f"{module}.{name} {wrong}")
        try:
            found: Any = sys.modules.get(module) or import_module(module)
        except (ImportError, ValueError, TypeError) as error:
            raise ToolstackError(f"there is no {module}: {ANOTHER_VERSION}") from error
        for part in name.split("."):
            found = vars(found).get(part) if hasattr(found, "__dict__") else None
        if found is None:
            raise ToolstackError(f"there is no {name} in {module}: {ANOTHER_VERSION}")
        return found

    def class_(self, module: object, name: object) -> type:
        """ToolstackError if there is no such class, or it is not allowed."""
        if (module, name) == ("builtins", "object"):
            return object
        found = self._find(module, name)
        if not isinstance(found, type) or (found.__module__, found.__qualname__) != (module, name):
            raise ToolstackError(f"{module}.{name} is no class here: {ANOTHER_VERSION}")
        return found

    def function(self, module: object, name: object) -> FunctionType:
        """ToolstackError if there is no such function, or it is not allowed."""
        found = self._find(module, name)
        if not isinstance(found, FunctionType) or found.__module__ != module:
            raise ToolstackError(f"{module}.{name} is no function here: {ANOTHER_VERSION}")
        return found

    def constant(self, module: object, name: object) -> Any:
        """ToolstackError if there is no such constant, or it is not allowed."""
        found = self._find(module, name)
        if not str(name).isupper() or isinstance(found, NO_CONSTANTS):
            raise ToolstackError(f"{module}.{name} is no constant here: {ANOTHER_VERSION}")
        return found

    def check_shape(self, kind: type, saved: object) -> None:
        """ToolstackError naming the first field that only one of the two versions has."""
        if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
            raise ToolstackError(f"the fields of {_title(kind)} are no list of names")
        now = shape(kind)
        unknown = [name for name in saved if name not in now]
        missing = sorted(now.difference(saved))
        for names, what in ((unknown, "has no"), (missing, "is saved without its")):
            if names:
                raise ToolstackError(f"{_title(kind)} {what} field {names[0]!r}: {ANOTHER_VERSION}")


def _title(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def title(kind: type) -> str:
    """A class by its whole name, for messages."""
    return _title(kind)


def method(kind: type, name: object) -> FunctionType | None:
    """A class' method of that name, as it is defined; None if it has none."""
    for base in kind.__mro__:
        found = vars(base).get(name) if isinstance(name, str) else None
        if found is not None:
            return found if isinstance(found, FunctionType) else None
    return None


def is_enum(kind: type) -> bool:
    return issubclass(kind, enum.Enum)


@lru_cache(1024)
def required(kind: type) -> frozenset[str]:
    """Fields that every instance has: what the constructor assigns before anything branches."""
    function = method(kind, "__init__")
    if function is None or not is_within(function.__module__, PACKAGES):
        return frozenset()
    names = set()
    owner: object = None  # whose attribute is assigned: the last that was loaded
    for instruction in dis.get_instructions(function):
        if instruction.opcode in BRANCHES or instruction.opname.startswith("RETURN"):
            break
        if instruction.opcode == STORE_ATTR and owner == "self":
            names.add(str(instruction.argval))
        # Newer versions of Python load two at once.
        loaded = instruction.argval
        owner = loaded[-1] if isinstance(loaded, tuple) and loaded else loaded
    return frozenset(names & shape(kind))
