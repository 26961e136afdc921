"""The four examples of drivers of one's own: driven by hand, by the cases, and by each other."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from xenpv.host.network import Frame
from xenpv.testing import (
    cases,
    check_all,
    user_blk_backend,
    user_blk_frontend,
    user_net_backend,
    user_net_frontend,
)
from xenpv.testing.linux_blk import LinuxBlk
from xenpv.testing.linux_net import LinuxNet
from xenpv.testing.raw_world import DEVID_XVDA

EXAMPLES = Path(__file__).parents[3] / "examples"
FRAME = b"\xff" * 6 + bytes.fromhex("00163e000001") + b"\x88\xb5" + bytes(range(50))


def example(name):
    """examples/<name>.py as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BlkBackend = example("own_blk_backend").Backend
BlkFrontend = example("own_blk_frontend").Frontend
NetBackend = example("own_net_backend").Backend
NetFrontend = example("own_net_frontend").Frontend


@pytest.mark.parametrize("factory", [None, BlkBackend])
def test_linux_blkfront_writes_and_reads_through_the_backend(factory):
    with user_blk_backend(factory, connect=False) as world:
        disk = LinuxBlk(world.guest, DEVID_XVDA)
        world.run()
        data = bytes(range(256)) * 64
        disk.write(3, data)
        assert disk.read(3, len(data)) == data
        disk.flush()
        assert bytes(world.image.buffer[3 * 512 :][: len(data)]) == data
        check_all(world.platform)


@pytest.mark.parametrize("factory", [None, NetBackend])
def test_linux_netfront_sends_and_receives_through_the_backend(factory):
    with user_net_backend(factory, connect=False) as world:
        net = LinuxNet(world.guest, 0)
        world.run()
        other = world.platform.network.bridge("xenbr0")
        net.send(FRAME)
        world.run()
        assert list(other.frames) == [FRAME]
        station = Station()
        other.attach(station)
        other.transmit(station, [Frame(FRAME[6:12] + b"\x02" * 6 + FRAME[12:] * 20)], 0)
        world.run()
        assert [one.data for one in net.received] == [FRAME[6:12] + b"\x02" * 6 + FRAME[12:] * 20]
        check_all(world.platform)


class Station:
    name = "station"

    def receive(self, frames):
        pass


@pytest.mark.parametrize("factory", [None, BlkFrontend])
def test_a_block_frontend_writes_what_it_is_told_and_reads_what_comes(factory):
    with user_blk_frontend(factory) as world:
        world.vbd.hold = True
        writing = world.app.start_write(8, b"\x07" * 4096)
        world.run()
        (request,) = world.vbd.sring.take()
        assert world.vbd.is_write(request)
        ((ref, first, last),) = world.vbd.segments(request)
        assert (first, last) == (0, 7)
        assert world.vbd.read(ref) == b"\x07" * 4096
        assert not writing.done
        world.vbd.answer(request, 0)
        world.run()
        assert writing.okay
        reading = world.app.start_read(0, 1)
        world.run()
        (request,) = world.vbd.sring.take()
        world.vbd.answer(request, -1)
        world.run()
        assert reading.okay is False
        world.vbd.hold = False
        world.app.flush()


@pytest.mark.parametrize("factory", [None, NetFrontend])
def test_a_network_frontend_sends_what_it_is_told_and_hands_up_what_comes(factory):
    with user_net_frontend(factory) as world:
        world.app.send(FRAME)
        world.run()
        assert world.vif.frames == [FRAME]
        world.vif.send(FRAME[6:12] + FRAME[:6] + FRAME[12:])
        world.run()
        assert list(world.app.received) in ([], [FRAME[6:12] + FRAME[:6] + FRAME[12:]])
        check_all(world.platform)


@pytest.mark.parametrize(
    ("suite", "factory", "least"),
    [
        ("blk-backend", BlkBackend, 55),
        ("blk-frontend", BlkFrontend, 40),
        ("net-backend", NetBackend, 70),
        ("net-frontend", NetFrontend, 45),
    ],
)
def test_the_numbered_cases_hold_for_it(suite, factory, least):
    results = cases.suite(suite).check(factory)
    assert sum(one.outcome is cases.Outcome.PASS for one in results) >= least


@pytest.mark.parametrize(
    ("world", "factory"),
    [
        (user_blk_backend, BlkBackend),
        (user_net_backend, NetBackend),
        (user_blk_frontend, BlkFrontend),
        (user_net_frontend, NetFrontend),
    ],
)
def test_two_runs_of_one_seed_are_alike(world, factory):
    digests = []
    for _ in range(2):
        with world(factory, seed=11) as one:
            one.run()
            digests.append(one.platform.loop.trace.hexdigest())
    assert digests[0] == digests[1]
