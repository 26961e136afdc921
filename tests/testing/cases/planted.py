"""What planted changes are made of: wrappers of functions of ours, for a test to put in their place.

Not a test module. Tables of changes are in planted_store, planted_machine and planted_bus: what is
changed, and which cases fail of it. None is a defect of the zoo that the same case finds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xenpv.errors import HypercallError, StoreError

Change = tuple[Any, str, Callable[[Any], Any]]  # whose attribute, its name, the new one of the old


def swallow(*errors: object) -> Callable[[Any], Any]:
    """Refusals of these names are taken for success."""

    def make(original: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return original(*arguments, **named)
            except (HypercallError, StoreError) as error:
                if error.name in errors:
                    return 0
                raise

        return call

    return make


def nothing(_original: Any) -> Any:
    """It does nothing, whatever it is given."""
    return lambda *_arguments, **_named: None


def always(value: Any) -> Callable[[Any], Any]:
    """It answers the same always."""
    return lambda _original: lambda *_arguments, **_named: value


def answers(old: int, new: int) -> Callable[[Any], Any]:
    """One answer is another."""

    def make(original: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            found = original(*arguments, **named)
            return new if found == old else found

        return call

    return make


def statuses(new: Callable[[int], int]) -> Callable[[Any], Any]:
    """Of a batch: each status is another."""

    def make(original: Any) -> Any:
        def call(table: Any, ops: Any, count: int) -> Any:
            done = original(table, ops, count)
            for index in range(count):
                ops[index].status = new(ops[index].status)
            return done

        return call

    return make
