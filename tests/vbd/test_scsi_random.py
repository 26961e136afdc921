"""Random SRBs against random disks: the port never raises, and completes each exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vbd.rawback import ERROR, OKAY, Scene, scene
from xenpv import Disk, MemoryImage, Platform
from xenpv.vbd.cdb import OPERATIONS
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.quirks import QUIRKS, ZERO_LENGTH_HANG
from xenpv.vbd.srb import ScsiStatus, Srb, SrbFunction, SrbStatus

SECTORS = 1024
STATUSES = {
    SrbStatus.SUCCESS, SrbStatus.ERROR, SrbStatus.BUSY, SrbStatus.INVALID_REQUEST, SrbStatus.ABORT_FAILED,
    SrbStatus.INVALID_PATH_ID, SrbStatus.INVALID_LUN, SrbStatus.NO_DEVICE,
}  # fmt: skip

bytes_of_cdb = st.one_of(
    st.binary(max_size=20),
    # An opcode that is known, in the length that it has.
    st.tuples(st.sampled_from([*OPERATIONS]), st.binary(min_size=19, max_size=19)).map(
        lambda drawn: (bytes((drawn[0],)) + drawn[1])[: 6 if drawn[0] < 0x20 else 10 if drawn[0] < 0x80 else 12 if drawn[0] >= 0xA0 else 16]
    ),
    # And on the disk.
    st.tuples(st.sampled_from([0x28, 0x2A, 0x35, 0x25, 0x12, 0x1A, 0x42, 0x5A]), st.integers(0, SECTORS), st.integers(0, 40)).map(
        lambda drawn: bytes((drawn[0], 0)) + drawn[1].to_bytes(4, "big") + b"\0" + drawn[2].to_bytes(2, "big") + b"\0"
    ),
    st.tuples(st.sampled_from([0x08, 0x0A, 0x12, 0x1A, 0x03]), st.binary(min_size=5, max_size=5)).map(
        lambda drawn: bytes((drawn[0],)) + drawn[1]
    ),
)  # fmt: skip
# (page of the pool, offset, length); pieces overlap and repeat as they please
pieces = st.lists(
    st.tuples(
        st.integers(0, 7),
        st.sampled_from([0, 1, 12, 511, 512, 2048, 4095]),
        st.sampled_from([0, 1, 7, 8, 11, 12, 16, 18, 24, 32, 36, 255, 512, 1000, 4096, 8192]),
    ),
    max_size=5,
)
functions = st.one_of(
    st.just(int(SrbFunction.EXECUTE_SCSI)),
    st.just(int(SrbFunction.EXECUTE_SCSI)),
    st.sampled_from([int(one) for one in SrbFunction]),
    st.integers(0, 255),
)
requests = st.lists(
    st.fixed_dictionaries(
        {
            "function": functions,
            "cdb": bytes_of_cdb,
            "pieces": pieces,
            "path_id": st.sampled_from([0, 0, 0, 0, 1, 255]),
            "target_id": st.sampled_from([0, 0, 0, 0, 1, 255]),
            "lun": st.sampled_from([0, 0, 0, 0, 1, 255]),
            "queue_tag": st.integers(0, 255),
            "sense_info_length": st.sampled_from([-1, 0, 3, 18, 255]),
            "pnp_action": st.integers(0, 30),
        }
    ),
    min_size=1,
    max_size=12,
)
parameters = st.builds(
    Parameters,
    sense_data=st.booleans(),
    quirks=st.lists(st.sampled_from(sorted(QUIRKS)), unique=True).map(tuple),
)


class Counter:
    """Whoever sent an SRB, and is told of its end."""

    def __init__(self) -> None:
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1


def sent(adapter: object, pool: int, drawn: dict[str, object]) -> tuple[Srb, Counter]:
    fields = dict(drawn)
    data = [
        (pool + page, offset, length)
        for page, offset, length in fields.pop("pieces")  # type: ignore[attr-defined]  # a list
        if length
    ]
    waiter = Counter()
    srb = Srb(data=data, on_complete=waiter, **fields)  # type: ignore[arg-type]  # drawn fields
    adapter.submit(srb)  # type: ignore[attr-defined]  # Vbd
    return srb, waiter


def judge(srb: Srb, waiter: Counter, vbd: Parameters, size: int) -> None:
    if not srb.is_complete:
        assert ZERO_LENGTH_HANG in vbd.quirks
        assert waiter.woken == 0
        return
    assert waiter.woken == 1
    assert srb.srb_status in STATUSES
    assert srb.outstanding == 0
    assert srb.data_transfer_length <= size
    checked = srb.scsi_status is ScsiStatus.CHECK_CONDITION
    assert bool(srb.sense_info) <= checked <= vbd.sense_data
    assert srb.raw_status == srb.srb_status | (0x80 if srb.sense_info else 0)
    if checked:
        assert srb.srb_status is SrbStatus.ERROR
        assert len(srb.sense_info) <= max(0, srb.sense_info_length)
    if srb.function == SrbFunction.EXECUTE_SCSI and srb.srb_status is SrbStatus.SUCCESS:
        assert (srb.path_id, srb.target_id, srb.lun) == (0, 0, 0)


@settings(max_examples=120, deadline=None)
@given(drawn=requests, vbd=parameters, sector_size=st.sampled_from([512, 4096]),
       readonly=st.booleans(), together=st.booleans(), vcpus=st.sampled_from([1, 2]))  # fmt: skip
def test_every_srb_ends_once_on_a_real_backend(
    drawn: list[dict[str, object]],
    vbd: Parameters,
    sector_size: int,
    readonly: bool,
    together: bool,
    vcpus: int,
) -> None:
    image = MemoryImage(bytearray(SECTORS * 512), sector_size=sector_size, writable=not readonly)
    with Platform(seed=1) as xen:
        disks = [Disk(image, readonly=readonly)]
        guest = xen.create(name="g", disks=disks, vbd=vbd, vcpus=vcpus).start()
        adapter = guest._vbd
        assert adapter is not None
        domain = guest.created.domain
        pool = domain.pages.alloc(16)
        granted = adapter.targets[0].frontend.granter.granted
        every = []
        for one in drawn:
            size = sum(length for _page, _offset, length in one["pieces"])  # type: ignore[attr-defined]  # a list
            every.append((*sent(adapter, pool, one), size))
            if not together:
                xen.run()
        xen.run()
        for srb, waiter, size in every:
            judge(srb, waiter, vbd, size)
        assert adapter.targets[0].frontend.granter.granted == granted
        assert adapter.targets[0].queue.outstanding == 0
        if readonly:
            assert bytes(image.buffer) == bytes(SECTORS * 512)
        # And it is a disk still: a unit attention may come first.
        if adapter.targets[0].attentions:
            adapter.targets[0].attentions.clear()
        assert len(guest.disks[0].read(0, 1)) == sector_size


class Backend:
    """Answers as it was told, in turn; a verdict of None leaves the request where it is."""

    def __init__(self, on: Scene, verdicts: list[int | None]) -> None:
        self.on = on
        self.verdicts = verdicts
        self.at = 0

    def serve(self) -> None:
        while True:
            answers = []
            for slot in self.on.back.taken():
                verdict = self.verdicts[self.at % len(self.verdicts)]
                self.at += 1
                if verdict is not None:
                    answers.append((slot.id, verdict))
            if not answers:
                return
            self.on.back.answer(*answers)


@contextmanager
def discarding(vbd: Parameters) -> Iterator[Scene]:
    keys = {"feature-discard": "1", "feature-barrier": "1", "discard-granularity": "512"}
    with scene(keys=keys, early={"feature-max-indirect-segments": "64"}, vbd=vbd) as on:
        yield on


@settings(max_examples=120, deadline=None)
@given(
    drawn=requests,
    vbd=parameters,
    verdicts=st.lists(st.sampled_from([OKAY, OKAY, ERROR, -2, -99, None]), min_size=1, max_size=6),
)
def test_every_srb_ends_once_whatever_the_backend_answers(
    drawn: list[dict[str, object]], vbd: Parameters, verdicts: list[int | None]
) -> None:
    with discarding(vbd) as on:
        backend = Backend(on, verdicts)
        pool = on.domain.pages.alloc(16)
        every = []
        for one in drawn:
            size = sum(length for _page, _offset, length in one["pieces"])  # type: ignore[attr-defined]  # a list
            every.append((*sent(on.adapter, pool, one), size))
            on.xen.run()
            backend.serve()
        # What the backend keeps for itself ends with a reset.
        assert on.submit(b"", function=SrbFunction.RESET_DEVICE).srb_status is SrbStatus.SUCCESS
        while on.target.queue.outstanding:
            backend.verdicts = [OKAY]
            backend.serve()
            on.xen.run()
        for srb, waiter, size in every:
            judge(srb, waiter, vbd, size)


ALL_BUT_HANG = tuple(name for name in QUIRKS if name != ZERO_LENGTH_HANG)


@pytest.mark.parametrize(
    "vbd", [Parameters(), Parameters(sense_data=True, quirks=ALL_BUT_HANG)], ids=["plain", "odd"]
)
def test_every_opcode_in_every_length_ends(vbd: Parameters) -> None:
    with scene(vbd=vbd) as on:
        pfn = on.page()
        for opcode in range(256):
            for length in range(17):
                for fill in (0, 0xFF):
                    cdb = (bytes((opcode,)) + bytes((fill,)) * 31)[:length]
                    waiter = Counter()
                    srb = Srb(cdb=cdb, data=[(pfn, 0, 512)], on_complete=waiter)
                    on.adapter.submit(srb)
                    if not srb.is_complete:
                        on.xen.run()
                        Backend(on, [OKAY]).serve()
                    judge(srb, waiter, vbd, 512)
                    known = opcode in OPERATIONS and length == LENGTHS[opcode]
                    refused = srb.srb_status is SrbStatus.INVALID_REQUEST or (
                        srb.sense_info[12:13] == b"\x20"
                    )
                    assert refused is not known


# The opcodes of the table, and the length of CDB that each has.
LENGTHS = dict.fromkeys((0x00, 0x03, 0x08, 0x0A, 0x12, 0x16, 0x17, 0x1A, 0x1B, 0x1E), 6)
LENGTHS |= dict.fromkeys((0x25, 0x28, 0x2A, 0x2F, 0x35, 0x42, 0x56, 0x57, 0x5A), 10)
LENGTHS |= dict.fromkeys((0x88, 0x8A, 0x8F, 0x91, 0x9E), 16)
LENGTHS |= dict.fromkeys((0xA0, 0xA8, 0xAA), 12)


def test_the_table_of_opcodes() -> None:
    assert sorted(OPERATIONS) == sorted(LENGTHS)
