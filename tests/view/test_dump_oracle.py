"""Dumps against Xen's own headers: a C program with io/ring.h of libxen-dev reads the same bytes."""

from __future__ import annotations

import random
import struct
import subprocess

import pytest

from tests.peers import need
from xenpv.view.dump import dump_page

pytestmark = pytest.mark.peers

# For each page of stdin: what ring.h makes of it as that ring. The consumers of both ends that
# sleep are where RING_FINAL_CHECK_FOR_* left them: an event before the index that it names.
PROGRAM = r"""
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#define xen_mb()
#define xen_rmb()
#define xen_wmb()
typedef uint32_t grant_ref_t;
#include <xen/xen.h>
#include <xen/io/ring.h>
#include <xen/io/blkif.h>
#include <xen/io/netif.h>
#include <xen/io/xs_wire.h>
#include <xen/io/console.h>
#include <xen/grant_table.h>

static uint8_t page[1 << 14];

#define LOOK(name) static void look_##name(unsigned size) { \
    struct name##_sring *s = (void *)page; \
    name##_back_ring_t back; name##_front_ring_t front; \
    int sleeps; \
    BACK_RING_INIT(&back, s, size); \
    back.rsp_prod_pvt = s->rsp_prod; back.req_cons = s->req_event - 1; \
    FRONT_RING_INIT(&front, ((struct name##_sring *)memcpy(page + 8192, page, 4096)), 4096); \
    front.sring = s; front.nr_ents = RING_SIZE(&back); \
    front.req_prod_pvt = s->req_prod; front.rsp_cons = s->rsp_event - 1; \
    printf("%u %u %u %u %u ", RING_SIZE(&back), RING_FULL(&front), \
           (unsigned)RING_HAS_UNCONSUMED_REQUESTS(&back), \
           (unsigned)RING_HAS_UNCONSUMED_RESPONSES(&front), \
           (unsigned)RING_REQUEST_PROD_OVERFLOW(&back, s->req_prod)); \
    for (unsigned i = s->rsp_prod; i != s->req_prod && i != s->rsp_prod + 4; i++) \
        printf("%lx,", (unsigned long)RING_GET_REQUEST(&back, i)->id); \
    printf("\n"); }
LOOK(blkif) LOOK(netif_tx) LOOK(netif_rx)

int main(int argc, char **argv)
{
    while (fread(page, 1, 4096, stdin) == 4096) {
        if (!strcmp(argv[1], "blkif")) look_blkif(4096);
        else if (!strcmp(argv[1], "netif_tx")) look_netif_tx(4096);
        else if (!strcmp(argv[1], "netif_rx")) look_netif_rx(4096);
        else if (!strcmp(argv[1], "xenstore")) {
            struct xenstore_domain_interface *x = (void *)page;
            printf("%u %u %u %u %u\n", x->req_prod - x->req_cons, x->rsp_prod - x->rsp_cons,
                   x->server_features, x->connection, x->error);
        } else if (!strcmp(argv[1], "console")) {
            struct xencons_interface *x = (void *)page;
            printf("%u %u\n", x->in_prod - x->in_cons, x->out_prod - x->out_cons);
        } else if (!strcmp(argv[1], "grant_v1")) {
            struct grant_entry_v1 *e = (void *)page;
            for (unsigned i = 0; i < 4096 / sizeof(*e); i++)
                if (e[i].flags & GTF_type_mask)
                    printf("%u:%u:%u:%u ", i, e[i].flags & GTF_type_mask, e[i].domid, e[i].frame);
            printf("\n");
        } else {
            union grant_entry_v2 *e = (void *)page;
            for (unsigned i = 0; i < 4096 / sizeof(*e); i++) {
                unsigned kind = e[i].hdr.flags & GTF_type_mask;
                if (!kind)
                    continue;
                if (kind == GTF_transitive)
                    printf("%u:t:%u:%u:%u ", i, e[i].hdr.domid, e[i].transitive.trans_domid,
                           e[i].transitive.gref);
                else if (kind == GTF_permit_access && e[i].hdr.flags & GTF_sub_page)
                    printf("%u:s:%u:%u:%u ", i, e[i].hdr.domid, e[i].sub_page.page_off,
                           e[i].sub_page.length);
                else
                    printf("%u:f:%u:%llu ", i, e[i].hdr.domid,
                           (unsigned long long)e[i].full_page.frame);
            }
            printf("\n");
        }
    }
    return 0;
}
"""


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """Lines of the program for pages of a kind."""
    need("/usr/include/xen/io/ring.h", "libxen-dev")
    need("gcc", "gcc")
    where = tmp_path_factory.mktemp("oracle")
    (where / "look.c").write_text(PROGRAM)
    command = ["gcc", "-std=gnu11", "-w", "-O1", "-D__XEN_INTERFACE_VERSION__=0x00040e00"]
    subprocess.run([*command, "look.c", "-o", "look"], cwd=where, check=True)

    def lines(kind, pages):
        done = subprocess.run(
            [where / "look", kind], input=b"".join(pages), capture_output=True, check=True
        )
        return done.stdout.decode().splitlines()

    return lines


def ring_pages(chance, size):
    """Pages of rings that can be: every index at once near a wrap, or anywhere."""
    for _ in range(300):
        base = chance.choice([0, 1, (1 << 31) - 2, (1 << 32) - 3, chance.getrandbits(32)])
        rsp_cons = base
        rsp_prod = rsp_cons + chance.randint(0, size)
        req_cons = rsp_prod + chance.randint(0, size - (rsp_prod - rsp_cons))
        req_prod = req_cons + chance.randint(0, size - (req_cons - rsp_cons))
        words = [req_prod, req_cons + 1, rsp_prod, rsp_cons + 1]
        head = struct.pack("<4I", *(word % (1 << 32) for word in words))
        yield head.ljust(64, b"\0") + chance.randbytes(4032)


@pytest.mark.parametrize(("kind", "size"), [("blkif", 32), ("netif_tx", 256), ("netif_rx", 256)])
def test_rings_as_ring_h_has_them(oracle, kind, size):
    pages = list(ring_pages(random.Random(size), size))
    found = oracle(kind, pages)
    assert len(found) == len(pages)
    for data, line in zip(pages, found, strict=True):
        dump = dump_page(data, kind, most=4)
        counts = dump.counts
        nr_entries, is_full, requests, responses, overflows, ids = [*line.split(), ""][:6]
        assert not dump.wrong
        assert dump.words["entries"] == int(nr_entries)
        # RING_HAS_UNCONSUMED_REQUESTS is at most what the ring has room for.
        room = size - (counts["in_flight"] - counts["unconsumed_requests"])
        assert min(counts["unconsumed_requests"], room) == int(requests)
        assert counts["unconsumed_responses"] == int(responses)
        assert not int(overflows)
        free = size - counts["in_flight"] - counts["unconsumed_responses"]
        assert (free == 0) == bool(int(is_full))
        shown = (
            [row["id"] for row in dump.tables[0].as_json()["rows"]] if counts["in_flight"] else []
        )
        if kind != "netif_tx":  # where a random entry can be an extra, which has no id
            assert shown[:4] == [int(one, 16) for one in ids.split(",") if one]


def test_overflows_as_ring_h_has_them(oracle):
    chance = random.Random(2)
    pages = []
    for _ in range(300):
        rsp = chance.getrandbits(32)
        far = chance.choice([31, 32, 33, 64, 1 << 20, (1 << 31) - 1, (1 << 32) - 1, (1 << 32) - 40])
        head = struct.pack(
            "<4I", (rsp + far) % (1 << 32), rsp + 1 & 0xFFFFFFFF, rsp, rsp + 1 & 0xFFFFFFFF
        )
        pages.append(head.ljust(4096, b"\0"))
    wrong = 0
    for data, line in zip(pages, oracle("blkif", pages), strict=True):
        overflows = bool(int(line.split()[4]))
        assert bool(dump_page(data, "blkif").wrong) == overflows
        wrong += overflows
    assert 100 < wrong < 290


@pytest.mark.parametrize("kind", ["xenstore", "console"])
def test_byte_rings_as_their_headers_have_them(oracle, kind):
    chance = random.Random(3)
    at = 2048 if kind == "xenstore" else 3072
    pages = []
    for _ in range(200):
        data = bytearray(chance.randbytes(4096))
        cons, second = chance.getrandbits(32), chance.getrandbits(32)
        words = [cons, cons + chance.randint(0, 1024), second, second + chance.randint(0, 1024)]
        struct.pack_into("<4I", data, at, *(word % (1 << 32) for word in words))
        pages.append(bytes(data))
    for data, line in zip(pages, oracle(kind, pages), strict=True):
        dump = dump_page(data, kind)
        numbers = [*dump.counts.values()]
        if kind == "xenstore":
            numbers += [dump.words[one] for one in ("server_features", "connection", "error")]
        assert numbers == [int(one) for one in line.split()]


def test_grant_entries_as_their_header_has_them(oracle):
    chance = random.Random(4)
    pages = [chance.randbytes(4096) for _ in range(8)]
    kinds = {"permit_access": 1, "accept_transfer": 2, "transitive": 3}
    for data, line in zip(pages, oracle("grant_v1", pages), strict=True):
        found = dump_page(data, "grant_v1", most=999).tables[0].as_json()["rows"]
        told = [f"{row['ref']}:{kinds[row['type']]}:{row['domid']}:{row['frame']}" for row in found]
        assert told == line.split()
    for data, line in zip(pages, oracle("grant_v2", pages), strict=True):
        found = dump_page(data, "grant_v2", most=999).tables[0].as_json()["rows"]
        assert [_as_c(row) for row in found] == line.split()


def _as_c(row):
    """A row of version 2 as the program prints it."""
    start = f"{row['ref']}:{{}}:{row['domid']}:"
    words = row["detail"].split()
    if row["type"] == "transitive":  # ref 6 of d5
        return f"{start.format('t')}{words[3][1:]}:{words[1]}"
    if row["type"] == "permit_access" and "sub_page" in row["flags"]:
        if row["detail"] == "no bytes":
            return f"{start.format('s')}?:0"
        first, last = int(words[1]), int(words[3])  # bytes 1 to 4
        return f"{start.format('s')}{first}:{last - first + 1}"
    return f"{start.format('f')}{row['frame']}"
