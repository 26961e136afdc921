"""What a user's object of a guest is in the guest that it became, within one process."""

from __future__ import annotations

import enum
from collections import deque
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from uuid import UUID

from xenpv.errors import LocalProtocolError
from xenpv.migration import classes
from xenpv.migration.classes import Known
from xenpv.migration.encoding import PARTS
from xenpv.xen.domain import Domain

if TYPE_CHECKING:
    from xenpv.guest import Guest

T = TypeVar("T")

GENERATIONS_MAX: Final = 4
SAME: Final = (type(None), bool, int, float, str, bytes, UUID, type, FunctionType, enum.Enum)


class _OtherGuestError(Exception):
    """An object leads to a domain that is not the source's."""


class Counterparts:
    """The objects of guest `source`, which was captured, in guest `target`, rebuilt from that.

    What the guest does not have itself, such as an open XenControl, is copied when it is first
    asked for: what it refers to is the counterpart of what it was, and what of it is the user's,
    such as a logger, is the same object.
    """

    def __init__(self, source: Guest, target: Guest) -> None:
        if len(source.objects) != len(target.objects):
            raise LocalProtocolError(f"{target.name!r} is not what became of {source.name!r}")
        self._known = Known((*source.platform.trusted, *target.platform.trusted))
        pairs: list[tuple[object, object]] = [(source, target)]
        pairs += zip(source.objects, target.objects, strict=True)
        old, new = source.created.domain, target.created.domain
        pairs += [(old, new), *((getattr(old, name), getattr(new, name)) for name in PARTS)]
        self._found: dict[int, Any] = {id(one): other for one, other in pairs}
        self._kept: list[object] = [one for one, _ in pairs]  # or others could get their ids
        self._before = source.counterparts
        self._forget_beyond(GENERATIONS_MAX)

    def _forget_beyond(self, generations: int) -> None:
        """Each holds a dead domain and all that ran in it."""
        oldest = self
        for _ in range(generations - 1):
            if oldest._before is None:
                return
            oldest = oldest._before
        oldest._before = None

    def of(self, old: T) -> T:
        """Also of what is from before an earlier migration, GENERATIONS_MAX of them.

        LocalProtocolError for what is no object of a guest's drivers, or of another guest.
        """
        if id(old) not in self._found and not self._known.allows(type(old).__module__):
            raise LocalProtocolError(f"a {type(old).__name__} is no object of a guest")
        known = len(self._kept)
        try:
            return cast("T", self._translated(old))
        except _OtherGuestError:
            for one in self._kept[known:]:
                del self._found[id(one)]
            del self._kept[known:]
        if self._before is None:
            raise LocalProtocolError(f"this {type(old).__name__} is of another guest")
        return self.of(self._before.of(old))

    def _translated(self, old: Any) -> Any:
        """What an object or a value is over there."""
        if id(old) in self._found:
            return self._found[id(old)]
        if isinstance(old, Domain):
            raise _OtherGuestError
        kind = type(old)
        if isinstance(old, SAME) or id(old) in self._known.constants:
            return old
        if isinstance(old, MethodType):
            return MethodType(old.__func__, self._translated(old.__self__))
        if isinstance(old, partial):
            named = {name: self._translated(one) for name, one in old.keywords.items()}
            return partial(self._translated(old.func), *map(self._translated, old.args), **named)
        if kind in (tuple, frozenset):
            return kind(map(self._translated, old))
        if kind in (list, set, dict, deque, bytearray):
            return self._container(old)
        return self._copy(old) if self._known.allows(kind.__module__) else old

    def _remember(self, old: object, new: object) -> None:
        self._found[id(old)] = new
        self._kept.append(old)

    def _container(self, old: Any) -> Any:
        new = deque(maxlen=old.maxlen) if isinstance(old, deque) else type(old)()
        self._remember(old, new)
        if isinstance(new, dict):
            pairs = ((self._translated(key), self._translated(one)) for key, one in old.items())
            new.update(pairs)
        elif isinstance(new, set):
            new.update(map(self._translated, old))
        else:
            new.extend(map(self._translated, old))
        return new

    def _copy(self, old: Any) -> Any:
        kind: Any = type(old)
        new = kind.__new__(kind)
        self._remember(old, new)
        if classes.has_state(kind):
            new.__setstate__(self._translated(old.__getstate__()))
            return new
        places = classes.slots(kind)
        for name, value in classes.fields(old).items():
            if name in places:
                places[name].__set__(new, self._translated(value))
            else:
                vars(new)[name] = self._translated(value)
        return new
