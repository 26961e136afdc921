"""A frontend whose requests fail one by one: to the store, and to Xen. It rests, leaks nothing, and
connects once they do not fail any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.vbd.rawback import SYNC10, read10, scene
from tests.vbd.test_frontend import writes
from xenpv.abi.xenbus import XenbusState as State
from xenpv.bus.devicetree import Irp
from xenpv.errors import HypercallError, StoreError
from xenpv.vbd.advertisement import COMMIT_RETRIES_MAX
from xenpv.vbd.frontend import FrontendState
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.srb import Srb, SrbStatus
from xenpv.vbd.units import SS2019

OFFERS = {"max-ring-page-order": "4", "multi-queue-max-queues": "4"}


@contextmanager
def failing(
    place: Any, names: tuple[str, ...], number: int, error: Exception
) -> Iterator[list[int]]:
    """The call of that number, of all those methods together, raises; how many there were."""
    calls = [0]

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == number + 1:
                raise error
            return original(*args, **kwargs)

        return call

    for name in names:
        setattr(place, name, wrapped(getattr(place, name)))
    try:
        yield calls
    finally:
        for name in names:
            delattr(place, name)


def steps_of(run: Callable[[int], int]) -> Iterator[int]:
    """Every number that is a call's."""
    number = 0
    while number < run(number):
        yield number
        number += 1
    assert number > 2, "there was something to fail"


STORE = ("get", "write", "remove", "directory", "watch_add", "transaction_start")


@pytest.mark.parametrize("personality", ["windows", "linux"])
@pytest.mark.parametrize("name", ["EQUOTA", "EACCES", "ENOENT", "EIO"])
def test_any_one_request_to_the_store_that_fails(personality: str, name: str) -> None:
    with scene(personality, early=OFFERS, vcpus=2) as on:
        ports, granted = on.domain.evtchn.bound(), on.frontend.granter.granted

        def run(number: int) -> int:
            target = on.target
            target.pnp.request(Irp.STOP_DEVICE)
            on.xen.run()
            with failing(on.adapter.bus.store, STORE, number, StoreError(name, "seeded")) as calls:
                target.pnp.request(Irp.START_DEVICE)
                on.xen.run()
            assert on.target.state in (
                FrontendState.ENABLED, FrontendState.CLOSED, FrontendState.INVALID,
            ) or target.frontend.handshake.goals  # fmt: skip
            if target.frontend.is_down:
                assert target.frontend.granter.granted == len(target.frontend.granter.quarantine)
                srb = Srb(cdb=SYNC10)
                target.submit(srb)
                gone = target.missing
                assert srb.srb_status is (SrbStatus.NO_DEVICE if gone else SrbStatus.ERROR)
            # Whatever it was, the disk is there after the driver's next start.
            on.adapter.stop()
            on.xen.run()
            on.adapter.start()
            on.xen.run()
            on.adapter.scan._again.append(target.devid)
            on.adapter.scan.task.wake()
            on.xen.run()
            assert on.target.state is FrontendState.ENABLED, f"after request {number}"
            assert (on.domain.evtchn.bound(), on.frontend.granter.granted) == (ports, granted)
            return calls[0]

        assert len(list(steps_of(run))) > 20


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_any_one_grant_or_port_that_is_not_to_be_had(personality: str) -> None:
    wanted = Parameters(ring_page_order=2, queues=2)
    with scene(personality, early=OFFERS, vcpus=2, vbd=wanted) as on:
        bus = on.adapter.bus
        ports, granted = on.domain.evtchn.bound(), on.frontend.granter.granted
        for place, name in ((bus.gnttab, "permit_foreign_access"), (bus.evtchn, "open_unbound")):
            for number in range(8 if place is bus.gnttab else 2):
                on.target.pnp.request(Irp.STOP_DEVICE)
                on.xen.run()
                with failing(place, (name,), number, HypercallError("ENOSPC", "seeded")):
                    on.target.pnp.request(Irp.START_DEVICE)
                    on.xen.run()
                assert on.target.state is FrontendState.CLOSED
                assert on.frontend.granter.granted == 0
                on.back.disconnect()
                on.target.pnp.request(Irp.START_DEVICE)
                on.xen.run()
                assert on.target.state is FrontendState.ENABLED
                assert (on.domain.evtchn.bound(), on.frontend.granter.granted) == (ports, granted)


# the transaction


def test_the_whole_transaction_of_two_queues_in_its_order() -> None:
    wanted = Parameters(queues=2, ring_page_order=1, units=SS2019, persistent=True)
    with scene(early=OFFERS, vcpus=2, vbd=wanted, start=False) as on:
        seen = writes(on)
        on.guest.start()
        one, two = on.frontend.rings
        assert [(key, value) for key, value, inside in seen if inside] == [
            ("queue-0/event-channel", str(one.port)),
            ("queue-0/ring-ref0", str(one.grefs[0])),
            ("queue-0/ring-ref1", str(one.grefs[1])),
            ("queue-1/event-channel", str(two.port)),
            ("queue-1/ring-ref0", str(two.grefs[0])),
            ("queue-1/ring-ref1", str(two.grefs[1])),
            ("multi-queue-num-queues", "2"),
            ("ring-page-order", "1"),
            ("protocol", "x86_64-abi"),
            ("target-id", "0"),
            ("feature-surprise-remove", "1"),
            ("feature-online-resize", "1"),
            ("feature-large-sector-size", "1"),
            ("feature-persistent", "1"),
        ]


@pytest.mark.parametrize(
    ("conflicts", "state"),
    [
        (1, FrontendState.ENABLED),
        (50, FrontendState.ENABLED),
        (COMMIT_RETRIES_MAX, FrontendState.CLOSED),
    ],
)
def test_a_conflict_is_tried_again(conflicts: int, state: FrontendState) -> None:
    with scene() as on:
        on.target.pnp.request(Irp.STOP_DEVICE)
        on.xen.run()
        store = on.adapter.bus.store
        original, left = store.transaction_end, [conflicts]

        def end(transaction: Any, *, commit: bool) -> bool:
            if commit and left[0]:
                left[0] -= 1
                original(transaction, commit=False)
                return False
            return original(transaction, commit=commit)

        store.transaction_end = end  # type: ignore[method-assign]  # a seeded conflict
        on.target.pnp.request(Irp.START_DEVICE)
        on.xen.run()
        del store.transaction_end
        assert on.target.state is state
        assert store.transactions() == []


# backends that never answer


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_an_adapter_that_is_removed_beside_a_mute_backend_keeps_nothing(personality: str) -> None:
    with scene(personality) as on:
        target, channels = on.target, len(on.adapter.bus.evtchn.channels())
        page = on.page()
        srbs = [on.submit(read10(n, 1), [(page, 0, 512)]) for n in range(3)]
        on.back.answers = dict.fromkeys(State, State.CONNECTED)
        on.adapter.stop()
        on.xen.advance(200)
        assert not on.adapter.stopped, "it waits for as long as it takes"
        on.adapter.remove()
        assert on.adapter.targets == {}
        assert target.frontend.rings == []
        assert [srb.srb_status for srb in srbs] == [SrbStatus.ERROR] * 3
        assert len(on.adapter.bus.evtchn.channels()) == channels - 1
        # The ring's page, which the backend maps: it is given back when that lets go of it.
        assert len(on.adapter.bus.gnttab.deferred) == target.frontend.granter.granted == 1


def test_what_announces_the_driver_goes_with_it() -> None:
    with scene() as on:
        xs, home = on.xen.toolstack.xs, f"/local/domain/{on.guest.domid}"
        assert xs.read(f"{home}/feature/hotplug/vbd") == "1"
        on.adapter.stop()
        on.xen.run()
        assert xs.read(f"{home}/feature/hotplug/vbd") is None
        texts = [xs.read(f"{home}/drivers/{n}") or "" for n in xs.directory(f"{home}/drivers")]
        assert not [text for text in texts if "XENVBD" in text]
        on.adapter.start()
        on.xen.run()
        assert xs.read(f"{home}/feature/hotplug/vbd") == "1"
