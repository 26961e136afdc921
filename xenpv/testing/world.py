"""A world of the kit: a platform with a device of each kind, run and closed as one."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from xenpv.platform import Platform


class World:
    """Holds `platform`; `with` closes it."""

    platform: Platform

    def run(self) -> int:
        """Let everything happen that is due; tasks run."""
        return self.platform.run()

    def close(self) -> None:
        """Give everything back; a second call does nothing."""
        self.platform.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
