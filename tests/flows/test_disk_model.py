"""Random SRBs against a table of what each sector may hold (diskmodel.py): the two stay equal."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.flows.diskmodel import Scene, Shape, Step
from xenpv import Platform

SMALL = 256  # sectors of a disk whose sectors are large
SHAPES = {
    "plain": Shape(),
    "resized": Shape(resizes=True),
    "slow and resized": Shape(resizes=True, latency_ns=100_000),
    "slow qemu, resized": Shape(resizes=True, profile="qemu", latency_ns=100_000),
    "four queues of sixteen pages": Shape(order=4, queues=4),
    "grants that stay": Shape(persistent=True),
    "a slow disk": Shape(latency_ns=200_000),
    "a slow disk, three queues, grants that stay": Shape(
        latency_ns=50_000, order=1, queues=3, persistent=True
    ),
    "qemu": Shape(profile="qemu", order=2),
    "slow qemu": Shape(profile="qemu", latency_ns=100_000),
    "tapdisk": Shape(profile="tapdisk", order=3, discard=False),
    "mirage": Shape(profile="mirage", discard=False),
    "slow mirage": Shape(profile="mirage", discard=False, latency_ns=100_000),
    "4Kn": Shape(sectors=SMALL, sector_size=4096),
    "4Kn as in 2019": Shape(
        sectors=SMALL, sector_size=4096, front_units="ss2019", back_units="ss2019"
    ),
    "4Kn, qemu": Shape(sectors=SMALL, sector_size=4096, profile="qemu", latency_ns=100_000),
    "2K, Linux' units": Shape(
        sectors=SMALL, sector_size=2048, front_units="linux", back_units="linux"
    ),
    "4Kn, FreeBSD's units": Shape(
        sectors=SMALL, sector_size=4096, front_units="freebsd", back_units="freebsd"
    ),
}

small = st.integers(1, 24)
large = st.integers(25, 700)


@st.composite
def steps(draw: st.DrawFn, shape: Shape) -> Step:
    sectors = shape.sectors
    kinds = [*["read", "write"] * 3, "flush", "unmap", "drain", "reset", "suspend"]
    kind = draw(st.sampled_from([*kinds, *["resize"] * 2 * shape.resizes]))
    count = min(draw(small | small | large), sectors) if kind in ("read", "write", "unmap") else 1
    if kind == "resize":
        count = draw(st.sampled_from([sectors, sectors // 2, sectors - 8, sectors + 64]))
    edge = max(sectors - count, 0)
    lba = draw(
        st.integers(0, min(64, edge)) | st.integers(0, edge) | st.just(edge) | st.just(edge + 1)
    )
    unit = draw(st.sampled_from([1, 16, 512, 4096]))
    return Step(
        kind=kind,
        gap=draw(st.integers(0, 12)),
        lba=lba,
        count=count,
        queue=draw(st.integers(0, 7)),
        cdb=draw(st.sampled_from([6, 10, 12, 16])),
        cuts=tuple(unit * cut for cut in draw(st.lists(st.integers(1, 200), max_size=4))),
        offsets=tuple(
            unit * offset % 4096
            for offset in draw(st.lists(st.integers(0, 4095), min_size=1, max_size=3))
        ),
    )


def check(name: str, data: st.DataObject, seed: int) -> None:
    shape = SHAPES[name]
    program = data.draw(st.lists(steps(shape), min_size=2, max_size=14))
    with Platform(seed=seed) as xen:
        Scene.of(xen, shape).run(program)


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=25)
@given(data=st.data(), seed=st.integers(0, 3))
def test_the_disk_holds_what_was_written(name: str, data: st.DataObject, seed: int) -> None:
    check(name, data, seed)


@pytest.mark.soak
@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=3000)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_the_disk_holds_it_for_longer(name: str, data: st.DataObject, seed: int) -> None:
    check(name, data, seed)


@pytest.mark.parametrize("profile", ["linux", "qemu"])
@pytest.mark.parametrize("sectors", [2048, 2040, 4096])
def test_what_is_written_after_a_resize_is_in_the_image(profile: str, sectors: int) -> None:
    """Also after one to the same size, when the image may lie elsewhere all the same."""
    with Platform(seed=1) as xen:
        scene = Scene.of(xen, Shape(profile=profile, resizes=True))
        for count in (sectors, sectors):
            xen.resize_disk(scene.guest, "xvda", count * 512)
            scene.guest.disks[0].write(8, b"w" * 512)
            assert bytes(scene.image.buffer[4096:4608]) == b"w" * 512
            assert scene.guest.disks[0].capacity == count
