"""What a slot of a ring holds at one moment."""

from __future__ import annotations

import enum

import attrs


class Slot(enum.Enum):
    """How far what is in a slot has come."""

    EMPTY = "empty"  # nothing was published in it
    UNCONSUMED = "unconsumed"  # a request that the backend has not taken
    IN_FLIGHT = "in flight"  # a request that the backend has taken, or may have, without a response
    ANSWERED = "answered"  # a response that the frontend has not taken
    DONE = "done"  # a response that the frontend has taken, or may have


@attrs.frozen
class SlotState:
    """A slot with what was last published in it.

    `index` is free-running, modulo 2^32, and -1 of an empty one; `moment` is of the publication.
    """

    slot: int
    state: Slot
    index: int = -1
    data: bytes = b""
    moment: int = -1

    @property
    def is_response(self) -> bool:
        return self.state in (Slot.ANSWERED, Slot.DONE)
