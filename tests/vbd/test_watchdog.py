"""Every 30 s each ring of a Windows frontend is looked at for answers that nobody took."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.vbd.rawback import OKAY, READ, Scene, read10, scene
from xenpv.vbd.srb import Srb, SrbStatus
from xenpv.vbd.watchdog import Watchdog


@pytest.fixture
def on() -> Iterator[Scene]:
    with scene() as made:
        yield made


def dog(on: Scene, ring: int = 0) -> Watchdog:
    found = on.frontend.rings[ring].watchdog
    assert found is not None
    return found


def silent(on: Scene) -> Srb:
    """A read that is answered, and no event said so."""
    srb = on.submit(read10(0, 8), [(on.page(), 0, 4096)])
    (slot,) = on.back.taken()
    on.back.rings[0].push(struct.pack("<QBxh4x", slot.id, READ, OKAY), 1)
    on.xen.run()
    assert srb.srb_status is SrbStatus.PENDING
    return srb


def test_an_answer_whose_event_was_lost_is_found_within_30_s(
    on: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring, lines, kicks = on.frontend.rings[0], [], []
    monkeypatch.setattr(on.frontend.bus, "log", lines.append)
    monkeypatch.setattr(ring, "kick", lambda: kicks.append(on.xen.loop.now))
    on.xen.advance(29.9)
    srb = silent(on)
    on.xen.advance(0.2)
    assert srb.srb_status is SrbStatus.SUCCESS
    assert (dog(on).barks, len(kicks)) == (1, 1)
    assert (
        "xenvbd: device/vbd/51712: ring 0: SRB parts waiting 0, prepared 0, submitted 1\n" in lines
    )
    assert any("rsp_prod = 00000001" in line for line in lines)


def test_a_ring_at_work_is_left_alone(on: Scene) -> None:
    for _ in range(4):
        srb = on.submit(read10(0, 8), [(on.page(), 0, 4096)])
        on.xen.advance(31)
        assert srb.srb_status is SrbStatus.PENDING
        on.back.answer((on.back.taken()[0].id, OKAY))
        assert srb.srb_status is SrbStatus.SUCCESS
        on.xen.advance(31)
    assert dog(on).barks == 0


def test_each_ring_has_its_own_and_none_stays_after_the_end() -> None:
    early = {"multi-queue-max-queues": "2"}
    with scene(early=early, vcpus=2) as on:
        names = [task.name for task in on.domain.tasks if task.name.endswith("watchdog")]
        assert [name for name in names if "vbd" in name] == [
            "device/vbd/51712 ring 0 watchdog",
            "device/vbd/51712 ring 1 watchdog",
        ]
        on.target.stop()
        on.xen.run()
        assert not [t for t in on.domain.tasks if t.name.startswith("device/vbd/51712 ring")]
        assert not [t for t in on.domain.timers if "vbd" in t.task.name and t.armed]


def test_an_index_that_cannot_be_breaks_the_disk_when_it_is_found(on: Scene) -> None:
    srb = on.submit(read10(0, 8), [(on.page(), 0, 4096)])
    on.back.store(8, 77)
    on.xen.advance(30)
    assert on.target.broken
    assert srb.srb_status is SrbStatus.ERROR
    on.xen.advance(90)
    assert on.frontend.rings[0].watchdog is None or dog(on).barks == 1


def test_a_linux_guest_has_none() -> None:
    with scene("linux") as on:
        assert on.frontend.rings[0].watchdog is None
        srb = silent(on)
        on.xen.advance(300)
        assert srb.srb_status is SrbStatus.PENDING
