"""Places in a configuration, and how its text is shown in a message."""

from __future__ import annotations

import attrs

from xenpv.errors import ConfigError

_SHOWN_MAX = 120


@attrs.frozen
class Position:
    """A place in a configuration; line and column count from 1, 0 means the file as a whole.

    As text FILE:LINE, which warnings begin with.
    """

    file: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return ":".join(part for part in (self.file, str(self.line or "")) if part)

    def error(self, message: str) -> ConfigError:
        return ConfigError(message, file=self.file, line=self.line, column=self.column)


NOWHERE = Position()


def shown(text: str) -> str:
    """`text` for a message of one line: nothing unprintable, at most 120 characters."""
    if len(text) > _SHOWN_MAX:
        text = text[: _SHOWN_MAX - 1] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
