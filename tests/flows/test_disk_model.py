"""Random SRBs against a table of what each sector may hold (diskmodel.py): the two stay equal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.flows.diskmodel import Scene, Shape, Step
from xenpv import Platform

SECTORS = 2048
SHAPES = {
    "plain": Shape(),
    "two pages": Shape(order=1),
}

small = st.integers(1, 24)
large = st.integers(25, 700)


@st.composite
def steps(draw: st.DrawFn, sector_size: int = 512) -> Step:
    kind = draw(
        st.sampled_from([*["read", "write"] * 3, "flush", "unmap", "drain", "reset", "suspend"])
    )
    count = draw(small | small | large) if kind in ("read", "write", "unmap") else 1
    edge = SECTORS - count
    lba = draw(st.integers(0, 64) | st.integers(0, edge) | st.just(edge) | st.just(edge + 1))
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


@pytest.mark.parametrize("name", SHAPES)
@given(program=st.lists(steps(), min_size=2, max_size=14), seed=st.integers(0, 3))
def test_the_disk_holds_what_was_written(name: str, program: list[Step], seed: int) -> None:
    with Platform(seed=seed) as xen:
        Scene.of(xen, SHAPES[name]).run(program)
