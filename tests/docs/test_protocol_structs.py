"""Layouts on the pages, against literals of the headers and against the headers themselves."""

from __future__ import annotations

import subprocess

import pytest
from protocol import rings, slots, structs, texts
from protocol.texts import UnknownError

from tests.peers import need

# struct: size, {field: (offset, size)}; as the headers' comments and the drivers have them.
LAYOUTS = {
    "netif_tx_request": (12, {"gref": (0, 4), "offset": (4, 2), "flags": (6, 2), "id": (8, 2), "size": (10, 2)}),
    "netif_tx_response": (4, {"id": (0, 2), "status": (2, 2)}),
    "netif_rx_request": (8, {"id": (0, 2), "pad": (2, 2), "gref": (4, 4)}),
    "netif_rx_response": (8, {"id": (0, 2), "offset": (2, 2), "flags": (4, 2), "status": (6, 2)}),
    "netif_extra_info": (8, {
        "type": (0, 1), "flags": (1, 1), "u.gso.size": (2, 2), "u.gso.type": (4, 1), "u.gso.pad": (5, 1),
        "u.gso.features": (6, 2), "u.mcast.addr": (2, 6), "u.hash.type": (2, 1), "u.hash.algorithm": (3, 1),
        "u.hash.value": (4, 4)}),
    "xen_netif_ctrl_request": (16, {"id": (0, 2), "type": (2, 2), "data": (4, 12)}),
    "xen_netif_ctrl_response": (12, {"id": (0, 2), "type": (2, 2), "status": (4, 4), "data": (8, 4)}),
    "xen_netif_gref": (8, {"ref": (0, 4), "flags": (4, 2), "status": (6, 2)}),
}  # fmt: skip


def _rows(name):
    table = structs.describe(name)
    return {
        field.strip("`"): (int(offset), int(size))
        for field, offset, size in zip(
            table.column("field"), table.column("offset"), table.column("size"), strict=True
        )
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_struct_has_the_fields_of_its_header(name):
    size, fields = LAYOUTS[name]
    assert _rows(name) == fields
    assert structs.size_line(name).startswith(f"{size} bytes")


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_pieces_of_a_picture_are_all_bytes_once(name):
    for variant in structs.variants(name):
        pieces = slots.pieces(variant, LAYOUTS[name][0])
        end = 0
        for piece in pieces:
            assert piece.offset == end
            end += piece.size
        assert end == LAYOUTS[name][0]


# ring: slots of 1, 2, 4, 8, 16 pages (io/ring.h, __RING_SIZE)
SLOTS = {
    "netif_tx": [256],
    "netif_rx": [256],
    "xen_netif_ctrl": [128],
    "blkif": [32, 64, 128, 256, 512],
}


@pytest.mark.parametrize("name", SLOTS)
def test_a_ring_has_the_slots_that_ring_h_gives_it(name):
    table = rings.sizes(name)
    narrow = {
        int(order): int(slots)
        for order, guest, slots in zip(
            table.column("page order"), table.column("guest"), table.column("slots"), strict=True
        )
        if guest != "64-bit"
    }
    wide = [
        int(slots)
        for guest, slots in zip(table.column("guest"), table.column("slots"), strict=True)
        if guest == "64-bit"
    ]
    assert wide == SLOTS[name]
    assert list(narrow.values()) in ([], SLOTS[name])


def test_the_words_of_a_ring_are_where_ring_h_has_them():
    table = rings.words("blkif")
    assert dict(zip(table.column("field"), table.column("offset"), strict=True)) == {
        "`req_prod`": "0", "`req_event`": "4", "`rsp_prod`": "8", "`rsp_event`": "12",
    }  # fmt: skip


def test_a_slot_of_a_32_bit_guest_is_smaller():
    table = rings.sizes("blkif")
    assert table.column("bytes of a slot")[:2] == ["112", "108"]
    assert table.column("unused bytes")[:2] == ["448", "576"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: structs.variants("netif_txrequest"), "unknown struct 'netif_txrequest'"),
        (lambda: rings.draw("netif"), "unknown ring 'netif': expected one of netif_tx"),
        (lambda: structs.constants("NETIFF_"), "unknown prefix of constants 'NETIFF_'"),
        (lambda: structs.value_of("NETIF_RSP_GOOD"), "unknown constant 'NETIF_RSP_GOOD'"),
        (lambda: texts.fields("netif_nothing"), "unknown struct text 'netif_nothing'"),
    ],
)
def test_a_name_that_the_code_does_not_know_is_refused(call, message):
    with pytest.raises(UnknownError, match=message):
        call()


def test_every_text_is_of_something():
    """A struct, field or constant that is gone leaves no words behind."""
    known = structs.layout.constants()
    for name in texts.sections()["constant"]:
        assert name in known, name
    for name, fields in texts.sections()["struct"].items():
        present = [field.name for _, field in structs.every_field(name)]
        for field in set(fields) - {"_"}:
            assert any(one == field or one.startswith(f"{field}.") for one in present), (
                name,
                field,
            )


HEADERS = ("xen.h", "event_channel.h", "grant_table.h", "io/ring.h", "io/blkif.h", "io/console.h", "io/netif.h",
           "io/xenbus.h", "io/xs_wire.h", "hvm/params.h")  # fmt: skip


@pytest.mark.peers
def test_what_the_pages_say_is_what_xens_headers_say(tmp_path):
    """Every struct and constant that has a text, asked of the compiler under libxen-dev."""
    need("/usr/include/xen/xen.h", "libxen-dev")
    need("gcc", "gcc")
    newer = structs.layout.NEWER_THAN_4_17
    lines, wanted = [], []
    for name in texts.sections()["struct"]:
        if name in newer:
            continue
        kind = f"{structs.ctype_of(name).kind} {name}"
        for _, field in structs.every_field(name):
            lines.append(
                f'printf("{name} {field.name} %zu %zu\\n", offsetof({kind}, {field.name}), sizeof((({kind} *)0)->{field.name}));'
            )
            wanted.append(f"{name} {field.name} {field.offset} {field.size}")
    for name in texts.sections()["constant"]:
        if name not in newer and not name.endswith("_x86_32"):
            lines.append(f'printf("{name} %lld\\n", (long long)({name}));')
            wanted.append(f"{name} {structs.value_of(name)}")
    source = [f"#include <{one}>" for one in ("stdio.h", "stddef.h", "stdint.h", "string.h")]
    source += [f"#include <xen/{one}>" for one in HEADERS]
    source += ["int main(void) {", *lines, "return 0; }"]
    (tmp_path / "ask.c").write_text("\n".join(source))
    subprocess.run(
        ["gcc", "-std=gnu11", "-w", "-D__XEN_TOOLS__", "-D__XEN_INTERFACE_VERSION__=0x00040e00",
         "-o", tmp_path / "ask", tmp_path / "ask.c"], check=True)  # fmt: skip
    said = subprocess.run([tmp_path / "ask"], check=True, capture_output=True, text=True).stdout
    assert said.splitlines() == wanted
