"""A protocol of one's own in what looks at a platform: reports, dumps, tapes, pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import own_protocol as own
from xenpv import Platform, cli
from xenpv.testing import explore, reports, rings_of
from xenpv.testing.ringkit.world import RingWorld
from xenpv.view.dump import dump_page
from xenpv.view.dump.live import dump_ring
from xenpv.view.flights import Flights
from xenpv.view.rings import peek
from xenpv.view.tape import Tape

ROOT = Path(__file__).parents[3]
PAGE = 4096


@pytest.fixture
def world():
    """Two requests are answered, a third is on the ring."""
    tape = Tape()
    platform = Platform(seed=3, tape=tape)
    with RingWorld(platform, own.ECHO, own.EchoFrontend, None) as made:
        back = made.back
        back.respond = lambda request: own.an_answer(back, request)
        made.connect()
        for text in (b"one", b"three"):
            made.call("shout", text)
            made.run()
        made.back.hold = True
        made.call("shout", b"five5")
        made.run()
        made.tape = tape
        yield made


def test_reports_have_its_fields(world):
    text = "\n".join(reports.tables(world.platform))
    assert "vecho of d1 at pfn 0x100, 128 entries: req_prod 0x3" in text
    assert "vecho_request[2] id 0x2, length 0x5, gref" in text
    assert "vecho_response[1] id 0x1" in text


def test_a_dump_of_the_world_has_its_fields(world):
    (ring,) = rings_of(world.platform)
    assert "id 0x2, length 0x5" in str(dump_ring(ring))


def test_a_tape_has_its_structs_and_what_answers_what(world):
    (ring,) = world.tape.rings
    assert (ring.kind, ring.request, ring.response) == ("vecho", "vecho_request", "vecho_response")
    assert (ring.entry_size, ring.size, ring.device) == (16, 128, "device/vecho/0")
    flights = Flights(ring)
    sent = [one for one in world.tape.publications if not one.is_response]
    assert [own.ECHO.field(one.slots[0], "length") for one in sent] == [3, 5, 5]
    assert flights._ids == ("id", "id")


def test_pages_of_a_file_are_decoded_by_the_protocol_of_a_file(
    world, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    (ring,) = rings_of(world.platform)
    data = peek(world.platform.hypervisor, ring.frames[0], 0, PAGE)
    path = tmp_path / "page.bin"
    path.write_bytes(data)
    assert cli.main(["dump", str(path), "--as", "examples/own_protocol.py:ECHO"]) == 0
    assert "id 0x2, length 0x5" in capsys.readouterr().out
    assert "id 0x2, length 0x5" in "\n".join(dump_page(data, "vecho").lines())
    for wrong in ("examples/own_protocol.py:BACKEND", "nowhere.py:ECHO"):
        with pytest.raises(SystemExit) as done:
            cli.main(["dump", str(path), "--as", wrong])
        assert done.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2


def test_a_failed_exploration_tells_its_slots():
    result = explore(own.asleep, examples=60)
    assert any("vecho_request" in line for line in result.run.tables)
