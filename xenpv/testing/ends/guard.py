"""What stands between the loop and code under test: whatever that does, the error is its own.

A PeerProtocolError that it raises breaks its device, as in our own drivers. Everything else
that comes out of it is a UserEndError with its file and line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn

from xenpv.errors import GrantError, HypercallError, Livelock, PeerProtocolError, StoreError
from xenpv.testing.checkers import CheckFailed
from xenpv.testing.ends.blame import Place, UserEndError, caller, defined_at, raised_at
from xenpv.testing.ends.watchdog import SECONDS, Stuck, watchdog

NOWHERE: Final = Place("?", 0, "?")
CALLS_MAX: Final = 100_000  # of one run, before it counts as a loop without end

# What shuts a device when it comes out of what a driver does about a state: its peer's keys
# may lead nowhere. Out of what it does about events, the first alone.
UNFIT: Final = (PeerProtocolError, GrantError, HypercallError, StoreError)
PEER: Final = (PeerProtocolError,)
# What is no fault of the driver's, though it comes out of it: it came out of the kit.
OURS: Final = (UserEndError, CheckFailed, Livelock)


class Guard:
    """Calls of one driver under test. `failed` is its first misdeed: it is called no more then.

    `seconds` of wall clock may pass in one call.
    """

    calls_max = CALLS_MAX

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self.calls = 0
        self.failed: UserEndError | None = None

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        breaks: Callable[[str], object],
        unfit: tuple[type[Exception], ...] = UNFIT,
    ) -> Any:
        """What it returns; None once something failed. Of `unfit`, `breaks` hears instead."""
        if self.failed is not None:
            return None
        self.calls += 1
        if self.calls > self.calls_max:
            self.fail(defined_at(function), f"called {self.calls_max} times in one run")
        try:
            result = self._watched(function, arguments)
        except Stuck as stuck:
            place = stuck.place or raised_at(stuck.__traceback__) or defined_at(function)
            self.fail(place, f"did not return in {self.seconds:g} s", stuck)
        except OURS:
            raise
        except Exception as error:
            self._refused()
            if type(error).__module__ == "hypothesis.errors":
                raise
            if isinstance(error, unfit):
                breaks(str(error))
                return None
            place = raised_at(error.__traceback__) or defined_at(function)
            self.fail(place, f"{type(error).__name__}: {error}", error)
        self._refused()
        return result

    def method(
        self,
        driver: object,
        name: str,
        *arguments: Any,
        breaks: Callable[[str], object],
        unfit: tuple[type[Exception], ...] = UNFIT,
    ) -> Any:
        """`call` of a method that a driver has to have."""
        found: Any = getattr(driver, name, None)
        if found is None and self.failed is None:
            self.fail(defined_at(type(driver)), f"{type(driver).__name__} has no {name}()")
        return self.call(found, *arguments, breaks=breaks, unfit=unfit)

    def _watched(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        dog = watchdog()
        dog.enter(self.seconds)
        try:
            return function(*arguments)
        finally:
            dog.leave()

    def refuse(self, what: str) -> NoReturn:
        """The driver asks for what it must not have. It is its failure also if it is swallowed."""
        self.fail(caller(), what)

    def rest(self) -> None:
        """A run is over: what was refused and swallowed is raised, calls count anew."""
        self.calls = 0
        self._refused()

    def _refused(self) -> None:
        if self.failed is not None:
            raise self.failed

    def fail(self, place: Place | None, what: str, cause: BaseException | None = None) -> NoReturn:
        """The driver's misdeed, at that place of it."""
        error = UserEndError(place or NOWHERE, what)
        self.failed = self.failed or error
        raise error from cause
