"""Live migration between two platforms that share a loop: `xl migrate`, with both ends in sight.

The source's toolstack and the destination's take turns, each a state machine of its own (send.py,
receive.py) that knows of the other what the channel brings. What they cannot decide is not
decided here either: who reads the error sees what both ends came to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenpv.errors import LocalProtocolError, XenpvError
from xenpv.host.libxl import LIBXL, STEP_NS, ToolstackError
from xenpv.migration.channel import Channel
from xenpv.migration.counterparts import Counterparts
from xenpv.migration.handover import BANDWIDTH, ReceiveStep, SendStep
from xenpv.migration.receive import Copy, Receiver
from xenpv.migration.send import Fate, Sender
from xenpv.xen.loop import NS_PER_S

if TYPE_CHECKING:
    from xenpv.guest import Guest
    from xenpv.platform import Platform

SETTLE_NS: Final = 10 * NS_PER_S

OnStep = Callable[[SendStep | ReceiveStep], object]


class MigrationFailed(ToolstackError):  # noqa: N818 - it says what happened, as Livelock
    """The guest is not at the destination, or not only there; the message says where it runs.

    `source`: the guest there, `destination`: its copy, if there is one. `by_hand`: where nobody
    goes on by itself, the calls that settle it, as Python with this exception as `error`; else
    empty. They are in the message too.
    """

    def __init__(
        self,
        message: str,
        code: LIBXL,
        *,
        source: Guest,
        destination: Guest | None,
        by_hand: str,
    ) -> None:
        super().__init__(message, code)
        self.source = source
        self.destination = destination
        self.by_hand = by_hand


class Migration:
    """One migration. `run` does all of it; the ends tell afterwards how it went.

    `channel`: one with faults; `on_step(step)` is called before each step of either end, and what
    it raises (XenpvError) is that step's failure.
    """

    def __init__(
        self,
        guest: Guest,
        platform: Platform,
        *,
        name: str | None = None,
        bandwidth: int = BANDWIDTH,
        trusted: tuple[str, ...] = (),
        share_images: bool = True,
        channel: Channel | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        loop = guest.platform.loop
        if platform.loop is not loop:
            raise LocalProtocolError(
                "a guest migrates between platforms of one loop: Platform(loop=other.loop)"
            )
        if platform.hypervisor.closed or bandwidth <= 0:
            raise LocalProtocolError("the destination is closed, or the bandwidth not above 0")
        self.guest = guest
        self.platform = platform
        self.share_images = share_images
        self.channel = Channel(loop) if channel is None else channel
        self.sender = Sender(
            guest, self.channel.source, bandwidth=bandwidth, trusted=trusted, on_step=on_step
        )
        self.receiver = Receiver(
            platform,
            self.channel.destination,
            self._source_turn,
            name=name,
            trusted=trusted,
            monitor=guest.monitor is not None,
            on_step=on_step,
        )

    def run(self) -> Guest:
        """The guest at the destination, running. Raises MigrationFailed."""
        source = self.guest.platform
        self._share_images()
        while not (self.sender.done and self.receiver.done):
            self._look_before_it_is_destroyed()
            if not (self.receiver.turn() or self.sender.turn()) and not self.channel.wait():
                self.channel.cut()  # both wait for bytes that nobody will send
        if self.sender.fate is Fate.MOVED and self.guest in source.guests:
            source.guests.remove(self.guest)
        self._settle()
        moved = self.receiver.guest
        if moved is not None:
            moved.counterparts = Counterparts(self.guest, moved)
        if self.sender.fate is Fate.MOVED:
            # Else each migration would keep alive what the guest was before all those before.
            self.guest.counterparts, self.guest.objects = None, []
        if moved is None or self.sender.error is not None or self.receiver.error is not None:
            raise self._failed()
        return moved

    def _share_images(self) -> None:
        """Let the destination have the source's storage; where it cannot, nothing is begun."""
        config = self.guest.created.config
        targets = [disk.target for disk in config.disks if disk.target] if self.share_images else []
        try:
            for target in targets:
                self.guest.platform.images.lend(target, self.platform.images)
        except XenpvError as error:
            self.sender.fail(error)

    def _settle(self) -> None:
        """Let what is due happen; a copy that runs gets up to 10 s to connect its devices."""
        loop = self.guest.platform.loop
        loop.advance(0)
        copy = self.receiver.guest
        deadline = loop.now + SETTLE_NS
        while copy is not None and copy.running and loop.now < deadline and copy.unconnected:
            loop.advance(STEP_NS)

    def _source_turn(self) -> None:
        """The destination waits for the stream: the source goes on, or time passes."""
        if not self.sender.turn() and not self.channel.wait():
            self.channel.cut()

    def _look_before_it_is_destroyed(self) -> None:
        """The status is a single byte without a check: do not destroy the only copy for it."""
        if self.sender.step is SendStep.DESTROY and self.receiver.copy is not Copy.RUNS:
            self.sender.step = SendStep.STATUS
            self.sender.fail(ToolstackError("the status says that it runs there; it does not"))

    # what went wrong, in words

    def _failed(self) -> MigrationFailed:
        sender, receiver = self.sender, self.receiver
        assert sender.fate is not None
        by_hand = self._by_hand()
        runs = receiver.copy is Copy.RUNS
        how = "is at the destination, but" if runs else "did not migrate"
        what = [
            f"guest {sender.name!r} {how}: {'; '.join(self._reasons())}.",
            f"Source: domain {self.guest.domid}, {self.guest.name!r}: {sender.fate.value}.",
            f"Destination: {self._copy_state()}.",
        ]
        if by_hand:
            why = "it was handed over" if runs else "nobody runs it"
            what.append(f"Neither side does more by itself; {why}: call {by_hand}")
        error = sender.error or receiver.error
        return MigrationFailed(
            " ".join(what),
            getattr(error, "code", LIBXL.FAIL),
            source=self.guest,
            destination=receiver.guest,
            by_hand=by_hand,
        )

    def _reasons(self) -> list[str]:
        """Of both ends: one often is the other's, seen through the channel."""
        ends: list[tuple[str, Sender | Receiver]] = [
            ("source", self.sender),
            ("destination", self.receiver),
        ]
        return [
            f"the {name} {end.failed.value}: {end.error}"
            for name, end in ends
            if end.error is not None and end.failed is not None
        ]

    def _copy_state(self) -> str:
        guest = self.receiver.guest
        if guest is None:
            return self.receiver.copy.value
        return f"domain {guest.domid}, {guest.name!r}: {self.receiver.copy.value}"

    def _by_hand(self) -> str:
        """What a person does who sees both hosts, which neither end of the protocol can."""
        if self.sender.fate is not Fate.AWAY:
            return ""
        if self.receiver.copy is Copy.RUNS:
            return "error.source.destroy()"
        name = self.sender.name
        rename = "" if self.guest.name == name else f"error.source.rename({name!r}); "
        return f"{rename}error.source.resume()"
