"""examples/own_protocol.py, and mistakes in it that the kit must find."""

from __future__ import annotations

from examples import own_protocol as own
from xenpv.testing import explore, rings_of
from xenpv.testing.ringkit import ring_world, user_backend, user_frontend


def test_both_ends_of_the_example_talk():
    with ring_world(own.ECHO, own.EchoFrontend, own.EchoBackend, seed=7) as world:
        world.call("shout", b"one")
        world.call("shout", b"two")
        world.run()
        assert world.frontend.heard == [b"ONE", b"TWO"]


def test_rings_are_called_by_their_protocol_from_either_end():
    with ring_world(own.ECHO, own.EchoFrontend, own.EchoBackend) as world:
        world.call("shout", b"one")
        world.run()
        (ring,) = rings_of(world.platform)
        assert ring.kind is own.ECHO.kind
        assert ring.name == "vecho of d1 at pfn 0x100"
        assert any(one.strip().startswith("vecho_response[0] ") for one in ring.table())
        assert ring.where(ring.frames[0], 64 + 16 + 4) == "vecho_request[1].length"


def test_a_raw_frontend_stands_on_the_backend():
    with user_backend(own.ECHO, own.EchoBackend) as world:
        pfn = world.guest.page()
        world.domain.write(pfn, 100, b"hello")
        request = own.ECHO.request(id=9, offset=100, length=5, gref=world.guest.grant(pfn))
        (answer,) = world.front.call(request)
        assert (answer.id, answer.status) == (9, own.OKAY)
        assert world.domain.read(pfn, 100, 5) == b"HELLO"


def test_a_raw_backend_stands_under_the_frontend():
    with user_frontend(own.ECHO, own.EchoFrontend) as world:
        world.back.respond = lambda request: own.ECHO.response(id=request.id, status=own.ERROR)
        world.call("shout", b"hello")
        world.run()
        assert world.frontend.heard == [None]
        assert [one.length for one in world.back.taken] == [5]


def test_the_example_holds_whatever_the_schedule():
    explore(own.shouting, examples=60).check()


def test_a_missing_final_check_is_a_lost_wake_up():
    result = explore(own.asleep, examples=100)
    assert "vecho of d1 at pfn 0x100: lost wake-up: d0 sleeps with" in str(result.failure)
    assert len(result.steps) == 1
    assert explore(own.asleep, examples=100).run.digest == result.run.digest


class Wide(own.EchoFrontend):
    """On a ring of four pages."""

    order = 2


def test_rings_of_several_pages():
    with ring_world(own.ECHO, Wide, own.EchoBackend) as world:
        (ring,) = rings_of(world.platform)
        assert (len(ring.frames), ring.size) == (4, 512)
        for at in range(300):
            world.call("shout", b"%d" % at)
        world.run()
        assert world.frontend.heard == [b"%d" % at for at in range(300)]
    with ring_world(own.ECHO, None, own.EchoBackend, connect=False) as world:
        world.front.order = 4
        world.connect()
        assert world.front.sring.size == 2048
        assert world.front.call(own.a_request(world.front, 7))[0].id == 7
    with ring_world(own.ECHO, None, own.EchoBackend, connect=False) as world:
        world.run()
        world.front.attach()
        world.front.announce({"ring-page-order": "5"})
        world.run()
        assert "ring-page-order 5: more pages than 16" in world.broken
    with user_frontend(own.ECHO, Wide) as world:
        assert len(world.back.sring.pfns) == 4
