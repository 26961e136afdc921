"""I/O ports: whose they are, and what an access of each width does."""

from __future__ import annotations

import pytest

from tests.world import World, make
from xenpv.errors import LocalProtocolError
from xenpv.xen.domain import Domain


class Model:
    """Answers every read with 0x11223344 and records the rest."""

    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []

    def io_read(self, port: int, size: int) -> int:
        self.log.append(("in", port, size))
        return 0x11223344

    def io_write(self, port: int, size: int, value: int) -> None:
        self.log.append(("out", port, size, value))

    def io_write_string(self, port: int, data: bytes) -> None:
        self.log.append(("outs", port, data))

    def functions(self) -> list[object]:
        return [f"function of {id(self)}"]

    def drives(self) -> list[object]:
        return []


@pytest.fixture
def guest() -> Domain:
    world: World = make()
    yield world.guest
    world.hypervisor.close()


# what, size, value
READS = [
    ("first claimed port", 0x10, 1, 0x44),
    ("two bytes", 0x10, 2, 0x3344),
    ("four bytes", 0x10, 4, 0x11223344),
    ("last claimed port", 0x1F, 1, 0x44),
    ("one past it", 0x20, 1, 0xFF),
    ("one before it", 0x0F, 2, 0xFFFF),
    ("unclaimed, four bytes", 0xFFFF, 4, 0xFFFF_FFFF),
]


@pytest.mark.parametrize(("_case", "port", "size", "value"), READS, ids=[row[0] for row in READS])
def test_read(guest: Domain, _case: str, port: int, size: int, value: int) -> None:
    guest.ioport.claim(Model(), 0x10, 16)
    assert guest.io_read(port, size) == value


def test_writes_reach_the_model_that_has_the_port_and_only_it(guest: Domain) -> None:
    one, two = Model(), Model()
    guest.ioport.claim(one, 0x10, 16)
    guest.ioport.claim(two, 0x20, 1)
    guest.io_write(0x12, 1, 0x41)
    guest.io_write(0x20, 2, 0xBEEF)
    guest.io_write(0x21, 4, 0)
    guest.ioport.write_string(0x12, b"hello")
    guest.ioport.write_string(0x80, b"lost")
    assert one.log == [("out", 0x12, 1, 0x41), ("outs", 0x12, b"hello")]
    assert two.log == [("out", 0x20, 2, 0xBEEF)]


@pytest.mark.parametrize(
    ("port", "size"), [(0x10, 0), (0x10, 3), (0x10, 8), (-1, 1), (0x1_0000, 1)]
)
def test_an_access_that_no_processor_makes_is_refused(guest: Domain, port: int, size: int) -> None:
    with pytest.raises(LocalProtocolError, match="expected 1, 2 or 4"):
        guest.io_read(port, size)
    with pytest.raises(LocalProtocolError, match="expected 1, 2 or 4"):
        guest.io_write(port, size, 0)


@pytest.mark.parametrize(("size", "value"), [(1, 0x100), (2, 0x1_0000), (4, 1 << 32), (1, -1)])
def test_a_value_must_fit(guest: Domain, size: int, value: int) -> None:
    with pytest.raises(LocalProtocolError, match="does not fit"):
        guest.io_write(0x10, size, value)


@pytest.mark.parametrize(("first", "count"), [(0x1F, 1), (0x0F, 2), (0x00, 0x100), (0x10, 16)])
def test_a_port_has_one_owner(guest: Domain, first: int, count: int) -> None:
    guest.ioport.claim(Model(), 0x10, 16)
    with pytest.raises(LocalProtocolError, match="is taken"):
        guest.ioport.claim(Model(), first, count)


@pytest.mark.parametrize(("first", "count"), [(0xFFFF, 2), (-1, 1), (0x10, 0)])
def test_ports_are_sixteen_bits(guest: Domain, first: int, count: int) -> None:
    with pytest.raises(LocalProtocolError, match="expected ports up to"):
        guest.ioport.claim(Model(), first, count)


def test_buses_have_what_every_attached_model_has(guest: Domain) -> None:
    one, two = Model(), Model()
    guest.ioport.attach(one)
    guest.ioport.attach(two)
    assert guest.ioport.functions() == one.functions() + two.functions()
    assert guest.io_read(0x10, 1) == 0xFF, "attached is not claimed"


def test_port_0xe9_is_xens_own_console() -> None:
    world = make()
    domain, model = world.guest, Model()
    domain.ioport.claim(model, 0xE0, 16)
    for byte in b"hi\n":
        domain.io_write(0xE9, 1, byte)
    domain.ioport.write_string(0xE9, b"there\n")
    domain.io_write(0xE9, 2, 0x4141)
    assert world.hypervisor.console.of(domain.domid) == "hi\nthere\n"
    assert model.log == [("out", 0xE9, 2, 0x4141)], "only bytes are text"
    assert domain.io_read(0xE9, 1) == 0x44
    world.hypervisor.close()
