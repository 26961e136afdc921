"""A destination whose source is somebody else's: what it refuses, and that nothing is left of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from struct import pack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.migration.hosts import Hosts, hosts
from xenpv.migration.channel import Channel
from xenpv.migration.migrate import Migration
from xenpv.migration.receive import Copy, Receiver, fit
from xenpv.migration.stream import Reader, RecordType, Writer
from xenpv.testing import leaks, take_census
from xenpv.xen import domain_context
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop

Record = tuple[int, bytes]


@pytest.fixture(scope="module")
def whole() -> list[Record]:
    """The records of a guest that was migrated."""
    with hosts() as two:
        migration = Migration(two.guest, two.there)
        sent = bytearray()
        pipe = migration.channel.to_destination
        write = pipe.write

        def listen(name: str, data: bytes) -> None:
            if name != "go":
                sent.extend(data)
            write(name, data)

        pipe.write = listen  # type: ignore[method-assign]  # it is heard as well
        migration.run()
        return [(one.type, one.body) for one in Reader().feed(sent)]


@pytest.fixture
def two() -> Iterator[Hosts]:
    with hosts() as made:
        yield made


def receive(two: Hosts, records: list[Record]) -> Receiver:
    """A receiver that was sent these records, and then the end."""
    xen = two.there
    two.here.images.lend(two.guest.created.config.disks[0].target, xen.images)
    channel = Channel(xen.loop)
    writer = Writer(lambda data: channel.source.send("record", data))
    for kind, body in records:
        writer.write(kind, body)
    channel.source.close()
    receiver = Receiver(xen, channel.destination, lambda: None)
    while not receiver.done:
        assert receiver.turn()
    return receiver


def changed(records: list[Record], kind: int, change: Callable[[Any], Any]) -> list[Record]:
    """The JSON of each record of a kind, changed."""

    def one(record: Record) -> Record:
        if record[0] != kind:
            return record
        value = json.loads(record[1])
        return kind, json.dumps(change(value) or value).encode()

    return [one(record) for record in records]


def without(records: list[Record], kind: int) -> list[Record]:
    return [one for one in records if one[0] != kind]


def page(pfn: int, count: int = 1) -> Record:
    """Pages of zeros."""
    return RecordType.PAGE_DATA, pack("<IIII", 1, 0, pfn, 1 << 31 | count)


CONFIG, DOMAIN, GUEST = (
    RecordType.CONFIG,
    RecordType.DOMAIN_CONTEXT,
    RecordType.GUEST_CONTEXT,
)
STATIC_END, PAGES, END = RecordType.STATIC_DATA_END, RecordType.PAGE_DATA, RecordType.END
# what a hostile source sends of a guest's records, and what is said to it
HOSTILE: dict[str, tuple[Callable[[list[Record]], list[Record]], str]] = {
    "nothing": (lambda _: [], "the channel ended"),
    "END alone": (lambda _: [(END, b"")], "expected CONFIG"),
    "no configuration": (lambda r: without(r, CONFIG), "expected CONFIG"),
    "two configurations": (lambda r: [r[0], *r], "expected STATIC_DATA_END"),
    "a configuration that is no JSON": (lambda r: [(CONFIG, b"{"), *r[1:]], "expected JSON"),
    "a configuration without fields": (lambda r: [(CONFIG, b"{}"), *r[1:]], "config.name"),
    "an unknown field": (
        lambda r: changed(r, CONFIG, lambda v: {**v, "evil": 1}),
        "config.evil is not known here",
    ),
    "a name that is none": (lambda r: changed(r, CONFIG, lambda v: {**v, "name": 7}), "config.name"),
    "129 vcpus": (
        lambda r: changed(r, CONFIG, lambda v: {**v, "vcpus": 129, "maxvcpus": 129}),
        "at most 128",
    ),
    "memory of no size": (
        lambda r: changed(r, CONFIG, lambda v: {**v, "memory_mib": -1}),
        "memory of -1",
    ),
    "a disk that is not here": (
        lambda r: changed(r, CONFIG, lambda v: v["disks"][0].update(target="/nowhere")),
        "/nowhere",
    ),
    "pages before the domain": (
        lambda r: [*r[:2], page(0x100), *r[2:]],
        "expected DOMAIN_CONTEXT",
    ),
    "no domain": (lambda r: without(r, DOMAIN), "expected DOMAIN_CONTEXT"),
    "a domain that is a list": (lambda r: changed(r, DOMAIN, lambda _: [1]), "expected runs of RAM"),
    "RAM that is no list": (
        lambda r: changed(r, DOMAIN, lambda v: {**v, "ram": 5}),
        "expected runs of RAM",
    ),
    "RAM in disorder": (
        lambda r: changed(r, DOMAIN, lambda v: {**v, "ram": [[9, 9], [1, 1]]}),
        "no run of pfns behind",
    ),
    "RAM without end": (
        lambda r: changed(r, DOMAIN, lambda v: {**v, "ram": [[0, 1 << 40]]}),
        "no run of pfns",
    ),
    "a terabyte": (
        lambda r: changed(r, DOMAIN, lambda v: {**v, "ram": [[0, 1 << 28]]}),
        "no memory at the destination",
    ),
    "vcpus of another": (
        lambda r: changed(r, DOMAIN, lambda v: {**v, "vcpus": []}),
        "domain context: vcpus",
    ),
    "a page that it may not have": (
        lambda r: [*r[:3], page(0x200000 - 1, 1), *[page(0x200000 + n * 1024, 1024) for n in range(20)]],
        "no memory for",
    ),
    "a page beyond the last": (lambda r: [*r[:3], page((1 << 28) - 1, 2)], "is none"),
    "pages after the guest": (lambda r: [*r[:-1], page(0x100), r[-1]], "expected END"),
    "no guest": (lambda r: without(r, GUEST), "expected DOMAIN_CONTEXT or PAGE_DATA or GUEST_CONTEXT"),
    "a guest of another format": (
        lambda r: changed(r, GUEST, lambda v: {**v, "format": 99}),
        "expected format",
    ),
    "a guest that is nothing": (lambda r: changed(r, GUEST, lambda _: {"format": 1}), "guest context"),
    "a disk's contents": (
        lambda r: [*r[:-1], (RecordType.DISK, b"{}"), r[-1]],
        "expected END",
    ),
    "a record after END": (lambda r: [*r, (END, b"")], "expected nothing after END"),
    "a part": (lambda r: r[:-1], "the channel ended"),
    "an unknown record": (lambda r: [*r[:3], (0x7777, b""), *r[3:]], "a newer version wrote it"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_guest_is_refused(two: Hosts, whole: list[Record], case: str) -> None:
    change, says = HOSTILE[case]
    before = take_census(two.there)
    receiver = receive(two, change(whole))
    assert says in str(receiver.error)
    assert receiver.copy is Copy.NONE
    assert two.there.guests == []
    assert list(two.there.hypervisor.domains) == [0]
    assert leaks(before, take_census(two.there), lost=False) == []


def test_the_whole_is_taken_and_destroyed_without_go(two: Hosts, whole: list[Record]) -> None:
    optional = (1 << 31 | 5, b"of a newer version")
    receiver = receive(two, [*whole[:3], optional, *whole[3:]])
    assert "the channel ended before go" in str(receiver.error)
    assert receiver.copy is Copy.NONE
    assert list(two.there.hypervisor.domains) == [0]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bytes_that_are_changed_anywhere_start_nothing(
    two: Hosts, whole: list[Record], data: st.DataObject
) -> None:
    """Records with right checksums and wrong contents: refused, or a guest, but nothing else."""
    records = list(whole)
    index = data.draw(st.integers(0, len(records) - 1))
    kind, body = records[index]
    for _ in range(data.draw(st.integers(1, 3))):
        if not body:
            break
        at = data.draw(st.integers(0, len(body) - 1))
        new = data.draw(st.binary(min_size=0, max_size=4))
        body = body[:at] + new + body[at + len(new) + data.draw(st.integers(0, 2)) :]
    records[index] = kind, body
    receiver = receive(two, records)
    assert receiver.copy is Copy.NONE
    assert two.there.guests == []
    assert list(two.there.hypervisor.domains) == [0]


RUNS = st.lists(st.tuples(st.integers(0, 28), st.integers(1, 12)), max_size=6).map(
    lambda pairs: [[0x100 + 40 * n + gap, count] for n, (gap, count) in enumerate(pairs)]
)


@given(first=RUNS, second=RUNS)
def test_ram_is_made_to_fit(first: list[list[int]], second: list[list[int]]) -> None:
    hypervisor = Hypervisor(Loop(), nr_frames=1 << 12)
    domain = hypervisor.create_domain(max_pages=1000)
    for runs in (first, second):
        fit(domain, {"ram": runs})
        expected = [pfn for start, count in runs for pfn in range(start, start + count)]
        found = [pfn for start, count in domain_context.ram(domain)
                 for pfn in range(start, start + count)]  # fmt: skip
        assert found == expected
        assert domain.tot_pages == len(expected)
    hypervisor.close()
