"""Protocols that are declared by their text, against gcc with Xen's own headers."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from examples.own_protocol import ECHO
from tests.peers import need
from tests.testing.ringkit.test_bytering import pair
from tests.testing.ringkit.test_protocol import PROTOCOL as KIT
from xenpv.testing.ringkit import RingProtocol
from xenpv.testing.ringkit.headers import NINEPFS, PVCALLS, PVCALLS_DATA

HEAD = """
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define mb() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define rmb() mb()
#define wmb() mb()
#include <xen/xen.h>
#include <xen/grant_table.h>
#include <xen/io/ring.h>
#include <xen/io/9pfs.h>
#include <xen/io/pvcalls.h>
#define PUT(name, value) printf("%s %lu\\n", name, (unsigned long)(value))
"""
PAGES = (1, 2, 4, 16)


def run(tmp_path: Path, body: str, stdin: str = "", declarations: str = "") -> list[str]:
    """The lines that a program with Xen's headers prints."""
    compiler = need("gcc", "gcc")
    need("/usr/include/xen/io/pvcalls.h", "libxen-dev")
    source = tmp_path / "program.c"
    source.write_text(f"{HEAD}{declarations}\nint main(void) {{ {body} return 0; }}\n")
    program = tmp_path / "program"
    subprocess.run([compiler, "-Wno-unused", "-o", program, source], check=True)
    done = subprocess.run([program], input=stdin, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def measured(protocol: RingProtocol, prefix: str) -> tuple[str, list[str]]:
    """C that prints sizes, offsets and ring sizes, and the same by the kit."""
    kind = protocol.kind
    body, mine = [], []

    def put(name: str, code: str, value: int) -> None:
        body.append(f'PUT("{name}", {code});')
        mine.append(f"{name} {value}")

    for struct, size in ((kind.request, kind.request_size), (kind.response, kind.response_size)):
        put(struct, f"sizeof(struct {struct})", size)
        for name, offset, bytes_ in dict(kind.structs)[struct]:
            put(f"{struct}.{name}", f"offsetof(struct {struct}, {name})", offset)
            put(f"{struct}.{name} size", f"sizeof(((struct {struct} *)0)->{name})", bytes_)
    put("entry", f"sizeof(union {prefix}_sring_entry)", protocol.entry_size)
    for pages in PAGES:
        put(
            f"ring of {pages}",
            f"__RING_SIZE((struct {prefix}_sring *)0, {pages} * 4096)",
            protocol.ring_size(pages),
        )
    return "".join(body), mine


def test_pvcalls_is_laid_out_as_in_its_header(tmp_path):
    body, mine = measured(PVCALLS, "xen_pvcalls")
    assert len(mine) > 100
    assert run(tmp_path, body) == mine
    names = [name for name in vars(PVCALLS.constants) if name.startswith("PVCALLS_")]
    lines = run(tmp_path, "".join(f'PUT("{name}", {name});' for name in names))
    assert lines == [f"{name} {getattr(PVCALLS.constants, name)}" for name in names]
    assert len(names) == 7


@pytest.mark.parametrize("protocol", [ECHO, KIT], ids=repr)
def test_a_struct_of_ones_own_is_laid_out_as_gcc_does(protocol, tmp_path):
    name, kind = protocol.name, protocol.kind
    types = f"{name}, struct {kind.request}, struct {kind.response}"
    declarations = f"{protocol.declaration.text}\nDEFINE_RING_TYPES({types});"
    body, mine = measured(protocol, name)
    assert run(tmp_path, body, declarations=declarations) == mine


@pytest.mark.parametrize("size", [1, 3, 4, 8, 12, 13, 63, 64, 65, 112, 128, 200, 255, 256])
def test_a_ring_of_any_slot_has_as_many_as_in_ring_h(size, tmp_path):
    text = f"struct any{size} {{ uint8_t b[{size}]; }};"
    protocol = RingProtocol.from_cdef(
        f"any{size}", text, request=f"any{size}", response=f"any{size}", device="any", id=""
    )
    declarations = f"{text}\nDEFINE_RING_TYPES(any{size}, struct any{size}, struct any{size});"
    body = "".join(
        f'PUT("{pages}", __RING_SIZE((struct any{size}_sring *)0, {pages} * 4096));'
        for pages in PAGES
    )
    lines = run(tmp_path, body, declarations=declarations)
    assert lines == [f"{pages} {protocol.ring_size(pages)}" for pages in PAGES]


@pytest.mark.parametrize(
    ("protocol", "struct", "words"),
    [
        (NINEPFS, "xen_9pfs_data_intf", ("in_cons", "in_prod", "out_cons", "out_prod")),
        (
            PVCALLS_DATA,
            "pvcalls_data_intf",
            ("in_cons", "in_prod", "in_error", "out_cons", "out_prod", "out_error"),
        ),
    ],
    ids=["9pfs", "pvcalls"],
)
def test_interfaces_of_byte_rings_are_laid_out_as_in_their_headers(
    protocol, struct, words, tmp_path
):
    named = [*words, "ring_order", "ref"]
    body = [f'PUT("{one}", offsetof(struct {struct}, {one}));' for one in named]
    body += [f'PUT("{order}", XEN_FLEX_RING_SIZE({order}));' for order in range(10)]
    mine = [f"{one} {protocol.offset(one)}" for one in named]
    mine += [f"{order} {protocol.ring_size(order)}" for order in range(10)]
    assert run(tmp_path, "".join(body)) == mine


ACTS = """
static unsigned char in[4096], out[4096], buffer[65536];
static uint32_t size;
"""
WALK = """
    uint32_t prod, cons, count, at;
    char what;
    if (scanf("%u %u", &size, &prod) != 2)
        return 1;
    cons = prod;
    while (scanf(" %c %u", &what, &count) == 2) {
        uint32_t queued = xen_9pfs_queued(prod, cons, size);
        uint32_t masked_prod = xen_9pfs_mask(prod, size), masked_cons = xen_9pfs_mask(cons, size);
        if (what == 'w') {
            uint32_t room = size - queued;
            if (count > room)
                count = room;
            for (at = 0; at < count; at++)
                buffer[at] = (unsigned char)((prod + at) * 7 % 251);
            xen_9pfs_write_packet(out, buffer, count, &masked_prod, masked_cons, size);
            prod += count;
            printf("w %u %u\\n", count, prod);
        } else {
            if (count > queued)
                count = queued;
            memset(buffer, 0, count);
            if (count)
                xen_9pfs_read_packet(buffer, out, count, masked_prod, &masked_cons, size);
            cons += count;
            printf("r %u %u ", count, cons);
            for (at = 0; at < count; at++)
                printf("%02x", buffer[at]);
            printf("\\n");
        }
    }
"""


@pytest.mark.parametrize("start", [0, 1, 4095, 0x7FFFFFF0, 0xFFFFFFFF, 0xFFFFF001])
def test_bytes_move_as_by_the_functions_of_ring_h(start, tmp_path):
    chance = random.Random(start)
    steps = [(chance.choice("wr"), chance.choice((0, 1, 7, 100, 4095, 4096))) for _ in range(60)]
    text = f"4096 {start}\n" + "\n".join(f"{what} {count}" for what, count in steps)
    theirs = run(tmp_path, WALK, stdin=text, declarations=ACTS)
    ours = []
    with pair(1, start, NINEPFS) as (front, back):
        for what, count in steps:
            if what == "w":
                first = front.outgoing.index
                data = bytes((first + at & 0xFFFFFFFF) * 7 % (1 << 32) % 251 for at in range(count))
                done = front.outgoing.write(data)
                ours.append(f"w {done} {front.outgoing.index}")
            else:
                data = back.incoming.read(count)
                ours.append(f"r {len(data)} {back.incoming.index} {data.hex()}")
    assert [one.strip() for one in theirs] == [one.strip() for one in ours]
