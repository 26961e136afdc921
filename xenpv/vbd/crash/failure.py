"""Why the crash driver stops: for good, or until xenstored has answered."""

from __future__ import annotations

from xenpv.errors import XenpvError


class CrashError(XenpvError):
    """It cannot go on; the text says why. Caught by whoever drives it."""


class UnansweredError(XenpvError):
    """xenstored has not answered yet: the step ends, and begins again when it has."""
