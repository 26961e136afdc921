"""Receive side scaling end to end: an OID, the control ring, netback's queue, the guest's packet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import pack

import attrs
import pytest

from tests.rss import KEY, VECTORS, Vector
from xenpv import Platform, Vif
from xenpv.guest import Guest
from xenpv.host.network import Frame
from xenpv.net.nbl import NetBufferList
from xenpv.net.oid import Oid
from xenpv.vif.interface import NTSTATUS, HashAlgorithm, HashType, PacketHash

MAC = bytes.fromhex("00163e000001")
CPUS = (2, 0, 3, 1, 1)
SCALE_SIZE = 44


@attrs.define(eq=False)
class Sink:
    """A station that says nothing; it keeps what a capture would show."""

    name: str = "sink"
    frames: list[Frame] = attrs.field(factory=list)

    def receive(self, frames: Sequence[Frame]) -> None:
        self.frames += frames


@attrs.define(eq=False)
class World:
    xen: Platform
    guest: Guest
    sink: Sink
    lists: list[NetBufferList] = attrs.field(factory=list)

    def receive_lists(self, lists: Sequence[NetBufferList]) -> None:
        self.lists += lists
        self.guest.nets[0].return_lists(list(lists))

    def deliver(self, data: bytes) -> None:
        self.xen.bridge("xenbr0").transmit(self.sink, [Frame(data)], self.xen.loop.now)
        self.xen.run()

    def posted(self) -> list[int]:
        """rx responses that each queue has had."""
        vif = self.guest._vif
        assert vif is not None
        counts = []
        for queue in vif.pdos[0].frontend.queues:
            assert queue.receiver is not None
            counts.append(queue.receiver.ring.rsp_cons)
        return counts


def scale(key: bytes, cpus: Sequence[int]) -> bytes:
    """RECEIVE_SCALE_PARAMETERS with every type."""
    table = b"".join(pack("<HBx", 0, cpu) for cpu in cpus)
    head = pack("<BBHHHIHxxIHxxI", 89, 2, SCALE_SIZE, 0, 0, 0x1701, len(table),
                SCALE_SIZE + len(key), len(key), SCALE_SIZE)  # fmt: skip
    return head.ljust(SCALE_SIZE, b"\0") + key + table


@pytest.fixture
def world() -> Iterator[World]:
    with Platform(seed=5, dom0_vcpus=4) as xen:
        guest = xen.create(name="g", vifs=[Vif(mac="00:16:3e:00:00:01")], vcpus=4).start()
        sink = Sink()
        xen.bridge("xenbr0").attach(sink)
        made = World(xen, guest, sink)
        guest.nets[0].list_receiver = made
        yield made


@pytest.mark.parametrize("vector", VECTORS, ids=lambda one: one.source)
def test_flow_comes_by_its_queue_with_microsoft_s_hash(world: World, vector: Vector) -> None:
    world.guest.nets[0].set(Oid.GEN_RECEIVE_SCALE_PARAMETERS, scale(KEY, CPUS))
    before = world.posted()
    world.deliver(vector.frame())
    (one,) = world.lists
    kind = HashType.IPV4_TCP if vector.version == 4 else HashType.IPV6_TCP
    assert one.hash == PacketHash(HashAlgorithm.TOEPLITZ, kind, vector.with_tcp)
    # CPUs get queues in the order of their naming.
    queue = (0, 1, 2, 3, 3)[vector.with_tcp % len(CPUS)]
    grown = [after - was for after, was in zip(world.posted(), before, strict=True)]
    assert grown == [2 * (at == queue) for at in range(4)]


def test_hash_off_again_tells_none(world: World) -> None:
    nic = world.guest.nets[0]
    nic.set(Oid.GEN_RECEIVE_SCALE_PARAMETERS, scale(KEY, CPUS))
    nic.set(Oid.GEN_RECEIVE_SCALE_PARAMETERS, scale(b"", ()))
    world.deliver(VECTORS[0].frame())
    assert world.lists[0].hash == PacketHash()


def test_hash_survives_a_suspend_in_a_new_domain(world: World) -> None:
    world.guest.nets[0].set(Oid.GEN_RECEIVE_SCALE_PARAMETERS, scale(KEY, CPUS))
    world.guest.suspend()
    world.guest.resume(fast=False)
    world.deliver(VECTORS[0].frame())
    assert world.lists[-1].hash.value == VECTORS[0].with_tcp


def test_packet_sent_with_a_hash_goes_by_the_mapping(world: World) -> None:
    nic = world.guest.nets[0]
    nic.set(Oid.GEN_RECEIVE_SCALE_PARAMETERS, scale(KEY, CPUS))
    frames = []
    for value in range(5):
        data = VECTORS[0].frame(destination=bytes.fromhex("00163e00ffff"))
        told = PacketHash(HashAlgorithm.TOEPLITZ, HashType.IPV4_TCP, value)
        nic.send_lists([NetBufferList((data[:6] + MAC + data[12:],), hash=told)])
        world.xen.run()
        frames.append(world.sink.frames[-1])
    assert [frame.queue for frame in frames] == [0, 1, 2, 3, 3]
    assert [frame.hash for frame in frames] == [(1, value) for value in range(5)]


@pytest.mark.parametrize(("queues", "mapping"), [(4, (0, 1, 2, 3, 3)), (2, (0, 1, 0, 1, 1))])
def test_hash_goes_with_a_migration_also_to_fewer_queues(
    queues: int, mapping: tuple[int, ...]
) -> None:
    with (
        Platform(seed=5, dom0_vcpus=4) as here,
        Platform(loop=here.loop, dom0_vcpus=queues) as there,
    ):
        guest = here.create(name="g", vifs=[Vif(mac="00:16:3e:00:00:01")], vcpus=4).start()
        guest.nets[0].set(Oid.GEN_RECEIVE_SCALE_PARAMETERS, scale(KEY, CPUS))
        new = guest.migrate(there)
        assert new.nets[0].link_up
        device = there.backends.device("vif", new.domid, 0)
        assert device is not None
        configured = device.driver.hash  # type: ignore[attr-defined]
        assert (configured.algorithm, configured.types, configured.key) == (1, 0xF, KEY)
        assert configured.mapping == mapping


def test_request_that_is_under_way_is_cancelled_by_a_suspend() -> None:
    with Platform(seed=5, dom0_vcpus=4) as xen:
        guest = xen.create(name="g", vifs=[Vif()], vcpus=4).start()
        nic = guest.nets[0]
        nic._vif.receiver_set_hash_algorithm(HashAlgorithm.NONE)
        request = nic._vif.receiver_set_hash_algorithm(HashAlgorithm.TOEPLITZ)
        request = nic._vif.receiver_update_hash_parameters(0b110, KEY)
        vif = guest._vif
        assert vif is not None
        vif.pdos[0].frontend.resume()
        assert request.status is NTSTATUS.CANCELLED
        xen.run()
        assert nic.link_up
