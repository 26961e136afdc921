"""Whatever is written into any key, whenever: nothing raises, states agree, every SRB ends once."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vbd.rawback import DEVID, ERROR, OKAY, SYNC10, Scene, read10, scene, write10
from tests.vbd.test_frontend import FRONT
from xenpv.bus.devicetree import Irp
from xenpv.errors import Livelock, PeerProtocolError, StoreError
from xenpv.vbd.frontend import FrontendState
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.srb import Srb, SrbFunction
from xenpv.vbd.units import UNITS
from xenpv.vbd.usage import UsageType

BACK_KEYS = (
    "state", "online", "sectors", "sector-size", "physical-sector-size", "info", "removable",
    "feature-max-indirect-segments", "feature-persistent", "feature-barrier", "feature-flush-cache",
    "feature-discard", "discard-enable", "discard-secure", "discard-granularity",
    "discard-alignment", "multi-queue-max-queues", "max-ring-page-order", "sm-data/scsi/0x12/0x80",
    "sm-data/scsi/0x12/0x83", "junk",
)  # fmt: skip
FRONT_KEYS = (
    "state", "backend", "backend-id", "trusted", "device-type", "ejected", "ring-page-order",
    "queue-0/ring-ref", "virtual-device",
)  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from([
        "", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "-1", " 4", "4x", "x", "0x10", "512",
        "4096", "8192", "77", "1024", "4294967296", "18446744073709551615", "9" * 60, "disk",
        "AIAABEFCQ0Q=", "====", "/local/domain/0/backend/vbd/1/51712", "/nowhere", "a\u0663b",
    ]),
    st.text(max_size=8),
)  # fmt: skip
CDBS = (
    read10(0, 1), read10(1020, 4), write10(3, 2), SYNC10, bytes.fromhex("42000000000000001800"),
    bytes.fromhex("120100000000"), bytes.fromhex("9e10").ljust(16, b"\0"),
)  # fmt: skip
FUNCTIONS = (
    SrbFunction.SHUTDOWN, SrbFunction.FLUSH, SrbFunction.RESET_DEVICE, SrbFunction.RESET_BUS,
    SrbFunction.PNP,
)  # fmt: skip
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("back"), st.sampled_from(BACK_KEYS), TEXTS),
        st.tuples(st.just("back"), st.sampled_from(["state", "online"]), st.sampled_from("0123456789")),
        st.tuples(st.just("front"), st.sampled_from(FRONT_KEYS), TEXTS),
        st.tuples(st.just("lose"), st.sampled_from([*BACK_KEYS, "front", "backend", "again"])),
        st.tuples(st.just("srb"), st.sampled_from(CDBS)),
        st.tuples(st.just("srb"), st.sampled_from(CDBS)),
        st.tuples(st.just("function"), st.sampled_from(FUNCTIONS)),
        st.tuples(st.just("pnp"), st.sampled_from(list(Irp))),
        st.tuples(st.just("use"), st.sampled_from(list(UsageType)), st.booleans()),
        st.tuples(st.just("handles"), st.sampled_from([1, -1])),
        st.tuples(st.just("answer"), st.sampled_from([OKAY, ERROR, -2, 1, 77])),
        st.tuples(st.just("ring"), st.sampled_from([0, 4, 8, 12]), st.integers(0, 2**32 - 1)),
        st.tuples(st.just("power"), st.booleans()),
        st.tuples(st.just("resume")),
        st.tuples(st.just("rest"), st.integers(1, 9)),
        st.tuples(st.just("run")),
        st.tuples(st.just("run")),
        st.tuples(st.just("wait")),
    ),
    min_size=1,
    max_size=25,
)  # fmt: skip


@attrs.define(eq=False)
class Once:
    """Whoever is woken when an SRB is complete."""

    count: int = 0

    def wake(self) -> None:
        self.count += 1


@attrs.define(eq=False)
class Trial:
    """One world, and the SRBs that were sent in it."""

    on: Scene
    srbs: list[tuple[Srb, Once]] = attrs.field(factory=list)

    @property
    def home(self) -> str:
        return f"/local/domain/{self.on.guest.domid}/{FRONT}"

    def send(self, srb: Srb) -> None:
        once = Once()
        srb.on_complete = once
        self.srbs.append((srb, once))
        self.on.adapter.submit(srb)

    def step(self, what: str, *more: Any) -> None:
        getattr(self, what)(*more)

    def back(self, key: str, text: str) -> None:
        self.put(f"{self.on.back.device.path}/{key}", text)

    def front(self, key: str, text: str) -> None:
        self.put(f"{self.home}/{key}", text)

    def put(self, path: str, text: str) -> None:
        with suppress(StoreError):
            self.on.xen.toolstack.xs.write(path, text)

    def lose(self, what: str) -> None:
        xs, back = self.on.xen.toolstack.xs, self.on.back.device.path
        paths = {"front": self.home, "backend": back}
        if what == "again":
            (device,) = self.on.guest.created.devices
            with suppress(StoreError):
                device.add(xs)
            return
        with suppress(StoreError):
            xs.rm(paths.get(what, f"{back}/{what}"))

    def srb(self, cdb: bytes) -> None:
        self.send(Srb(cdb=cdb, data=[(self.on.page(), 0, 2048)]))

    def function(self, function: SrbFunction) -> None:
        self.send(Srb(function=function))

    def pnp(self, irp: Irp) -> None:
        for target in list(self.on.adapter.targets.values()):
            target.pnp.request(irp)

    def use(self, kind: UsageType, in_path: bool) -> None:
        for target in list(self.on.adapter.targets.values()):
            target.frontend.usage.notify(kind, in_path)

    def handles(self, more: int) -> None:
        for target in list(self.on.adapter.targets.values()):
            target.handles = max(0, target.handles + more)

    def answer(self, status: int) -> None:
        back = self.on.back
        for number in range(2):
            with suppress(PeerProtocolError):  # it spoiled the ring for itself before
                for slot in back.taken(number) if number < len(back.rings) else ():
                    if number < len(back.rings):  # an answer may have been the last
                        back.answer((slot.id, status), queue=number)

    def ring(self, at: int, value: int) -> None:
        if self.on.back.rings:
            self.on.back.store(at, value)
            self.on.back.notify()

    def power(self, up: bool) -> None:
        adapter = self.on.adapter
        if up and not adapter.started:
            adapter.start()
        elif not up:
            adapter.stop()

    def resume(self) -> None:
        if self.on.adapter.started:
            self.on.adapter._resumed()

    def rest(self, tasks: int) -> None:
        """Some tasks run, and then the next thing happens in the midst of it."""
        with suppress(Livelock):
            self.on.xen.loop.run(limit=tasks)

    def run(self) -> None:
        self.on.xen.run()
        for target in self.on.adapter.targets.values():
            self.agrees(target.frontend)

    def wait(self) -> None:
        self.on.xen.advance(31)

    @staticmethod
    def agrees(frontend: Any) -> None:
        """What a state promises."""
        state, backend = frontend.state, frontend.backend
        assert isinstance(state, FrontendState)
        if frontend.is_down:
            assert frontend.rings == []
            assert frontend.granter.granted == len(frontend.granter.quarantine)
        if frontend.is_up:
            assert frontend.rings
            assert all(ring.enabled is not bool(frontend.broken) for ring in frontend.rings)
        assert backend.sector_size in (512, 1024, 2048, 4096)
        assert 0 <= backend.capacity < 1 << 64
        assert 0 <= backend.indirect_segments <= 4096
        if not frontend.target.pnp.pending:
            assert frontend.target.missing is (frontend.target.pnp.state.value == "deleted")

    def end(self) -> None:
        """Everything goes; the backend has let go of what it had."""
        on, xs = self.on, self.on.xen.toolstack.xs
        on.xen.run()
        on.back.disconnect()
        for back in on.backs:
            back.disconnect()
            xs.rm(back.device.path)
        xs.rm(self.home)
        on.xen.run()
        on.adapter.stop()
        on.xen.advance(130)
        assert on.adapter.stopped
        assert [once.count for _srb, once in self.srbs] == [1] * len(self.srbs)
        assert all(srb.is_complete for srb, _once in self.srbs)
        targets = list(on.adapter.targets.values())
        on.adapter.remove()
        assert [one.frontend.granter.granted for one in targets] == [0] * len(targets)


@settings(max_examples=150, deadline=None)
@given(
    steps=STEPS,
    personality=st.sampled_from(["windows", "linux"]),
    parameters=st.builds(
        Parameters,
        ring_page_order=st.sampled_from([None, 0, 2]),
        queues=st.sampled_from([None, 1, 2]),
        units=st.sampled_from(list(UNITS.values())),
        persistent=st.booleans(),
        sense_data=st.booleans(),
    ),
    seed=st.integers(0, 7),
)
def test_whatever_is_written_whenever(
    steps: list[tuple[Any, ...]], personality: str, parameters: Parameters, seed: int
) -> None:
    early = {"max-ring-page-order": "2", "multi-queue-max-queues": "2"}
    with scene(personality, early=early, vcpus=2, vbd=parameters, seed=seed) as on:
        trial = Trial(on)
        assert on.target.devid == DEVID
        for step in steps:
            trial.step(*step)
        trial.end()
