"""The command ring of pvcalls, as io/pvcalls.h declares it, between two small ends."""

from __future__ import annotations

from errno import ENOTSUP

from xenpv.testing import explore, rings_of
from xenpv.testing.ringkit import RingBackend, RingFrontend, ring_world
from xenpv.testing.ringkit.headers import PVCALLS

SOCKET, BIND = PVCALLS.constants.PVCALLS_SOCKET, PVCALLS.constants.PVCALLS_BIND
AF_INET, SOCK_STREAM = 2, 1


class Calls(RingBackend):
    """Sockets can be made, and nothing can be done with them."""

    protocol = PVCALLS

    def serve(self, request):
        ret = 0 if request.cmd == SOCKET else -ENOTSUP
        named = {"socket": {"id": request.u.socket.id}}
        return PVCALLS.response(req_id=request.req_id, cmd=request.cmd, ret=ret, u=named)


class Program(RingFrontend):
    protocol = PVCALLS

    def __init__(self, end):
        super().__init__(end)
        self.came = []

    def ask(self, number):
        wanted = {"id": 1 << 40 | number, "domain": AF_INET, "type": SOCK_STREAM}
        self.send(PVCALLS.request(req_id=number, cmd=SOCKET, u={"socket": wanted}))

    def answered(self, response):
        self.came.append((response.req_id, response.ret, response.u.socket.id))


def calling(x):
    world = ring_world(PVCALLS, Program, Calls)
    x.adopt(world.platform)
    asked = []

    def step():
        asked.append(len(asked))
        world.call("ask", asked[-1])
        if len(asked) < 3:
            task.wake()

    task = world.domain.task("program", step)
    task.wake()
    x.run()
    assert world.frontend.came == [(at, 0, 1 << 40 | at) for at in range(3)]


def test_calls_are_answered_whatever_the_schedule():
    explore(calling, examples=40).check()


def test_a_call_on_the_wire():
    with ring_world(PVCALLS, None, Calls) as world:
        assert int(world.xs.read(f"{world.path}/port")) == world.front.port
        bind = {"id": 9, "addr": bytes([2, 0, 0x1F, 0x90]), "len": 16}
        raw = PVCALLS.request(req_id=5, cmd=BIND, u={"bind": bind})
        assert raw.hex() == "0500000003000000" + "0900000000000000" + "02001f90" + (
            "00" * 24 + "10000000" + "00" * 16
        )
        (answer,) = world.front.call(raw)
        assert (answer.req_id, answer.cmd, answer.ret) == (5, BIND, -ENOTSUP)
        (ring,) = rings_of(world.platform)
        assert (ring.kind.name, ring.size) == ("xen_pvcalls", 32)
        assert ring.where(ring.frames[0], 64 + 8 + 8) == "xen_pvcalls_request[0].u.socket.domain"
