"""Every number of slots with every set of extras and both sides of a whole Ethernet header."""

from __future__ import annotations

import pytest

from tests.back.netfront import (
    CSUM_BLANK,
    DATA_VALIDATED,
    ERROR,
    EXTRA,
    GSO,
    HASH,
    MORE,
    NULL,
    OKAY,
    Net,
    extra,
    frame,
    gso,
    serve_by,
    slot,
)
from tests.back.test_nettx import tcp
from xenpv.back.txrules import LINUX_TX, LINUX_ZEROCOPY_TX, TxRules
from xenpv.testing.checkers import check_all
from xenpv.testing.raw_world import world_raw

DELIVERED, REFUSED, BROKEN = "delivered", "refused", "broken"
LATER = 100  # bytes of each slot but the first
START = 0xFFFFFFF0

# Slots: what becomes of the packet with a first fragment of 13 and of 14 bytes.
OUTCOMES = {
    1: (REFUSED, DELIVERED),
    2: (REFUSED, DELIVERED),
    18: (REFUSED, DELIVERED),
    19: (REFUSED, DELIVERED),
    20: (REFUSED, REFUSED),
    21: (REFUSED, REFUSED),
    22: (BROKEN, BROKEN),
}
HASHED = bytes((3, 1)) + (0xCAFEF00D).to_bytes(4, "little")
EXTRAS = {
    "none": [],
    "gso": [(GSO, gso(700, 1))],
    "gso+hash": [(GSO, gso(700, 1)), (HASH, HASHED)],
}


def request(
    net: Net, data: bytes, sizes: list[int], extras: list[tuple[int, bytes]]
) -> list[bytes]:
    flags = EXTRA | CSUM_BLANK | DATA_VALIDATED if extras else 0
    head, *later = net.chain(data, sizes, flags=flags)
    last = len(extras) - 1
    told = [extra(kind, body, more=at < last) for at, (kind, body) in enumerate(extras)]
    return [head, *told, *later]


@pytest.mark.parametrize("rules", [LINUX_TX, LINUX_ZEROCOPY_TX], ids=["copied", "mapped"])
@pytest.mark.parametrize("first", [13, 14])
@pytest.mark.parametrize("extras", EXTRAS)
@pytest.mark.parametrize("slots", OUTCOMES)
def test_a_packet_of_so_many_slots(slots: int, extras: str, first: int, rules: TxRules) -> None:
    outcome = OUTCOMES[slots][first - 13]
    told = EXTRAS[extras]
    sizes = [first] + [LATER] * (slots - 1)
    data = tcp(max(54, sum(sizes)))[: sum(sizes)]
    with world_raw(seed=slots) as world:
        net = Net(world)
        serve_by(net, rules, START)
        # Ahead of it, so that the counters wrap inside the packet, not before it.
        lead = frame(60)
        assert net.send([slot(net.page(lead), 0, 0, 7, 60)] * 10) == [(7, OKAY)] * 10
        answers = net.send(request(net, data, sizes, told))
        if outcome is BROKEN:
            assert (answers, net.back.disabled) == ([], True)
            return
        status = OKAY if outcome is DELIVERED else ERROR
        null = [(0, NULL)] * len(told)
        expected = [(100, status), *null, *((100 + n, status) for n in range(1, slots))]
        assert sorted(answers) == sorted(expected)
        at = answers.index((100, status))
        assert answers[at : at + 1 + len(null)] == [(100, status), *null]
        # A blank sum in 14 bytes is nobody's: its slot is good, the packet is lost.
        arrives = outcome is DELIVERED and not (told and slots == 1)
        assert net.sink.data == [lead] * 10 + [data] * arrives
        if arrives and told:
            got = net.sink.frames[-1]
            assert (got.gso_type, got.gso_size, got.csum_blank) == (1, 700, True)
            assert got.hash == ((3, 0xCAFEF00D) if len(told) == 2 else None)
        assert net.send([slot(net.page(lead), 0, 0, 8, 60)]) == [(8, OKAY)]
        assert net.world.vif.tx.ring.in_flight == 0
        check_all(world.platform)


# Around the sizes that a u16 can tell, with the first fragment wherever it then is.
@pytest.mark.parametrize(
    ("later", "total", "outcome"),
    [
        ([4096] * 15, 14 + 15 * 4096, DELIVERED),
        ([4096] * 15, 65535, DELIVERED),  # a first fragment of 4095 bytes
        ([4096] * 15, 13 + 15 * 4096, REFUSED),
        ([4096] * 15 + [4000], 14 + 15 * 4096 + 4000, DELIVERED),
        ([4096] * 16, 0, REFUSED),  # 65,536 bytes and none before them
        ([4096] * 16, 60, REFUSED),  # 65,596, cut to 16 bits
        ([0] * 18, 60, DELIVERED),
        ([0] * 19, 60, REFUSED),
        ([0] * 21, 60, BROKEN),
        ([4096] * 17, 14 + 17 * 4096 & 0xFFFF, REFUSED),
        ([60], 60, REFUSED),  # nothing left for the first slot
        ([61], 60, REFUSED),
    ],
)
@pytest.mark.parametrize("rules", [LINUX_TX, LINUX_ZEROCOPY_TX], ids=["copied", "mapped"])
def test_a_total_at_the_end_of_its_16_bits(
    later: list[int], total: int, outcome: str, rules: TxRules
) -> None:
    with world_raw(seed=9) as world:
        net = Net(world)
        serve_by(net, rules, START)
        page = frame(4096)
        ref = net.page(page)
        chain = [slot(ref, 0, MORE, 0, total)]
        chain += [slot(ref, 0, MORE, n, size) for n, size in enumerate(later, 1)]
        chain[-1] = slot(ref, 0, 0, len(later), later[-1])
        answers = net.send(chain)
        if outcome is BROKEN:
            assert (answers, net.back.disabled) == ([], True)
            return
        status = OKAY if outcome is DELIVERED else ERROR
        assert sorted(answers) == [(n, status) for n in range(len(chain))]
        data = page[: total - sum(later)] + b"".join(page[:size] for size in later)
        assert net.sink.data == ([data] if outcome is DELIVERED else [])
        assert not net.back.disabled


# Where in its page a fragment ends: the last byte, and one beyond.
@pytest.mark.parametrize("slots", [1, 2, 18])
@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("beyond", [0, 1])
def test_a_fragment_at_the_end_of_its_page(slots: int, place: str, beyond: int) -> None:
    with world_raw(seed=9) as world:
        net = Net(world)
        serve_by(net, LINUX_TX, START)
        data = frame(60 * slots)
        chain = net.chain(data, [60] * slots)
        index = 0 if place == "first" else slots - 1
        offset = 4096 - 60 + beyond
        ref = net.page(data[60 * index : 60 * index + 60 - beyond], offset)
        more = MORE if index < slots - 1 else 0
        chain[index] = slot(ref, offset, more, 100 + index, 60 if index else 60 * slots)
        answers = net.send(chain)
        if beyond:
            assert (answers, net.back.disabled) == ([], True)
        else:
            assert answers == [(100 + n, OKAY) for n in range(slots)]
            assert net.sink.data == [data]
