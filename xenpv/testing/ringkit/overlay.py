"""Overlays over an end of a protocol: bytes that become what its raw peer does.

As testing/overlays has them of disks and interfaces: words of the ring's header, bytes of its
slots, references, keys and states, and good requests among them. Whatever they are, the end under
test raises nothing, the laws hold, and its device can be taken away.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from xenpv.errors import LocalProtocolError, PeerProtocolError, StoreError
from xenpv.testing.checkers import check_all
from xenpv.testing.overlay import Target
from xenpv.testing.overlays.language import STATES, STEPS, TEXTS, Language, Operation, pick

if TYPE_CHECKING:
    from xenpv.testing.cases.suite import Factory
    from xenpv.testing.ringkit.suite import RingSuite

WORDS: Final = ("req_prod", "req_event", "rsp_prod", "rsp_event")
GRANTS_MAX: Final = 64


class RingOverlay:
    """One example. `peer` is the raw end."""

    def __init__(self, suite: RingSuite, factory: Factory | None) -> None:
        self.suite = suite
        self.world = suite.world(factory)
        try:
            self.world.connect()
        except BaseException:
            self.world.close()
            raise
        self.sent = 0

    @property
    def is_backend(self) -> bool:
        """Whether the end under test is a backend."""
        return self.suite.side == "backend"

    @property
    def peer(self) -> Any:
        """The raw end."""
        return self.world.front if self.is_backend else self.world.back

    @property
    def sring(self) -> Any:
        """Its ring; None while a raw backend has none mapped."""
        if not self.is_backend and not self.peer.connected:
            return None
        return self.peer.sring

    # operations

    def good(self, _args: bytes) -> None:
        """Good work: a request, or a call of a program."""
        traffic, number = self.suite.traffic, self.sent
        self.sent += 1
        with suppress(LocalProtocolError, PeerProtocolError):
            if self.is_backend and traffic.request is not None:
                self.peer.send(traffic.request(self.peer, number))
            elif not self.is_backend and traffic.start is not None:
                traffic.start(self.world, number)

    def run(self, _args: bytes) -> None:
        """Let everything happen that is due."""
        self.world.run()

    def notify(self, _args: bytes) -> None:
        """An event that nobody asked for."""
        if not self.is_backend or self.peer.port:
            self.peer.notify()

    def index(self, args: bytes) -> None:
        """A word of the header: away from where it is, or a ring away."""
        word, step, far = args
        sring, name = self.sring, pick(WORDS, word)
        if sring is not None:
            by = sring.size + pick((0, 1, -1), step) if far & 1 else pick(STEPS, step)
            setattr(sring, name, getattr(sring, name) + by)

    def slot(self, args: bytes) -> None:
        """Bytes over a slot near the producer."""
        back, offset, *data = args
        sring = self.sring
        if sring is not None:
            size = min(len(data), sring.entry_size)
            prod = sring.req_prod if self.is_backend else sring.rsp_prod
            at = prod - back % 8 & 0xFFFFFFFF
            sring.write_slot(at, bytes(data[:size]), offset % (sring.entry_size - size + 1))

    def hold(self, args: bytes) -> None:
        """A raw backend answers nothing by itself, or does again."""
        if not self.is_backend:
            self.peer.hold = bool(args[0] & 1)

    def grant(self, args: bytes) -> None:
        """An entry of the raw guest's table: revoked, or of another kind."""
        if self.is_backend:
            ref, flags = args
            with suppress(LocalProtocolError):
                self.world.front.guest.set_grant(8 + ref % GRANTS_MAX, flags=flags)

    def key(self, args: bytes) -> None:
        """A key of the raw end's directory, any text."""
        protocol = self.suite.protocol
        name = pick((protocol.ring_ref, protocol.event_channel, "ring-page-order"), args[0])
        with suppress(StoreError):
            self.peer.write_key(name, pick(TEXTS, args[1]).replace("\0", ""))

    def state(self, args: bytes) -> None:
        """The raw end's state, any text."""
        with suppress(StoreError):
            self.peer.write_key("state", pick(STATES, args[0]))

    # the end

    def end(self) -> None:
        """What must hold at the end of an example."""
        world = self.world
        world.run()
        hostile = world.domain.domid if self.is_backend else 0
        check_all(world.platform, hostile=[hostile])
        world.finish()


LANGUAGE: Final = Language(
    Operation("run", (), RingOverlay.run, 5),
    Operation("good", (), RingOverlay.good, 4),
    Operation("notify", (), RingOverlay.notify, 2),
    Operation("index", ("word", "step", "far"), RingOverlay.index, 2),
    Operation("slot", ("back", "offset", "b0", "b1", "b2", "b3"), RingOverlay.slot, 3),
    Operation("hold", ("on",), RingOverlay.hold),
    Operation("grant", ("ref", "flags"), RingOverlay.grant),
    Operation("key", ("name", "text"), RingOverlay.key),
    Operation("state", ("text",), RingOverlay.state),
)


def target_of(suite: RingSuite, factory: Factory | None = None) -> Target:
    """The end that `factory` makes, None: the suite's own, as a target of overlays."""

    def run(data: bytes) -> None:
        overlay = RingOverlay(suite, factory)
        try:
            for operation, args in LANGUAGE.read(data):
                operation.act(overlay, args)
            overlay.end()
        finally:
            overlay.world.close()

    return Target(
        name=suite.name,
        run=run,
        split=LANGUAGE.split,
        words=LANGUAGE.words,
        suite=suite,
        factory=factory,
    )
