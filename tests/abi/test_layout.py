"""Layouts as the protocols' own tables give them, and formats that agree with memory."""

from __future__ import annotations

import json
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpv.abi import _kernel, layout
from xenpv.abi.layout import constants, offsetof, packer, sizeof, struct_format, structs

# A union's member to read, for each struct that has unions; arbitrary where Xen has no preference.
MEMBERS = {
    "gnttab_copy": ("source.u.ref", "dest.u.gmfn"),
    "gnttab_copy_x86_32": ("source.u.gmfn", "dest.u.ref"),
    "grant_entry_v2": ("sub_page",),
    "evtchn_status": ("u.interdomain",),
    "netif_extra_info": ("u.gso",),
    "netif_extra_info_v2026": ("u.xdp",),
    "start_info": ("console.domU",),
    "start_info_x86_32": ("console.domU",),
    "netif_tx_sring": ("pvt.netif", "ring.req"),
    "blkif_sring_x86_32": ("ring.rsp",),
}


def test_blkif_request_of_both_abis_has_the_documented_format():
    segments = "IBB2x" * 11
    assert struct_format("blkif_request") == "<BBH4xQQ" + segments
    assert struct_format("blkif_request_x86_32") == "<BBHQQ" + segments


def test_format_keeps_bytes_together_and_signs_apart():
    assert struct_format("netif_extra_info", "u.mcast") == "<BB6s"
    assert struct_format("netif_rx_response") == "<HHHh"
    assert struct_format("vcpu_time_info") == "<IIQQIbB2s"


def test_union_without_a_choice_is_one_byte_string_of_its_size():
    assert struct_format("netif_extra_info") == "<BB6s"
    assert struct_format("gnttab_copy") == "<8sHH4x8sHH4xHHh2x"
    assert struct_format("grant_entry_v2") == "<16s"


def test_chosen_member_is_padded_to_its_union():
    assert struct_format("gnttab_copy", "source.u.ref", "dest.u.gmfn") == "<I4xHH4xQHH4xHHh2x"
    assert struct_format("grant_entry_v2", "transitive") == "<HHHHI4x"
    assert struct_format("evtchn_status", "u.unbound") == "<H2xIIIH6x"


def test_one_choice_reads_every_element_of_an_array_of_unions():
    assert struct_format("netif_tx_sring", "ring.rsp") == "<IIII4s44s" + "Hh8x" * 256


@pytest.mark.parametrize("path", ["source.u.frame", "source.v.ref", "source", "nothing"])
def test_path_to_no_member_of_a_union_is_refused(path):
    with pytest.raises(KeyError, match=path):
        struct_format("gnttab_copy", path)


def test_unknown_name_is_refused():
    with pytest.raises(KeyError, match="netif_request"):
        sizeof("netif_request")


def test_every_format_has_the_size_of_its_struct():
    for name in structs():
        for members in ((), MEMBERS.get(name, ())):
            assert struct.calcsize(struct_format(name, *members)) == sizeof(name), name


@given(st.data())
def test_format_reads_the_fields_that_cffi_reads(data):
    name = data.draw(st.sampled_from(["blkif_request", "blkif_request_x86_32"]))
    page = data.draw(st.binary(min_size=sizeof(name), max_size=sizeof(name)))
    slot = _kernel.ffi.from_buffer(f"struct {name} *", page)
    fields = packer(name).unpack(page)
    segments = [value for s in slot.seg for value in (s.gref, s.first_sect, s.last_sect)]
    head = [slot.operation, slot.nr_segments, slot.handle, slot.id, slot.sector_number]
    assert list(fields) == head + segments


def test_packer_is_compiled_once():
    assert packer("xsd_sockmsg") is packer("xsd_sockmsg")


def test_offset_follows_a_dotted_path():
    assert offsetof("netif_extra_info", "u.gso.type") == 4
    assert offsetof("evtchn_status", "u.interdomain.port") == 20


def test_shared_info_puts_the_event_words_where_guests_look():
    assert offsetof("shared_info", "evtchn_pending") == 0x800
    assert offsetof("shared_info", "evtchn_mask") == 0xA00
    assert offsetof("shared_info", "wc_version") == 0xC00
    assert offsetof("shared_info_x86_32", "evtchn_mask") == 0x880
    assert offsetof("shared_info_x86_32", "wc_version") == 0x900
    assert offsetof("shared_info_x86_32", "arch.wc_sec_hi") == 0x924


@pytest.mark.parametrize(
    ("ring", "entry", "slots"),
    [
        ("netif_tx_sring", 12, 256),
        ("netif_rx_sring", 8, 256),
        ("xen_netif_ctrl_sring", 16, 128),
        ("blkif_sring", 112, 32),
        ("blkif_sring_x86_32", 108, 32),
    ],
)
def test_ring_has_the_slots_of_one_page(ring, entry, slots):
    field = dict(layout.ctype(ring).fields)["ring"].type
    assert (_kernel.ffi.sizeof(field.item), field.length) == (entry, slots)
    assert offsetof(ring, "ring") == 64


def test_cffi_refuses_an_index_past_the_last_slot():
    ring = _kernel.ffi.new("struct netif_tx_sring *")
    with pytest.raises(IndexError):
        ring.ring[256]


def test_newer_fields_stand_behind_the_size_of_4_17():
    assert sizeof("xenstore_domain_interface") == 2076
    assert offsetof("xenstore_domain_interface_v2026", "evtchn_port") == 2076
    assert sizeof("xencons_interface") == 3088
    assert offsetof("xencons_interface_v2026", "connection") == 3088
    assert sizeof("netif_extra_info") == sizeof("netif_extra_info_v2026") == 8


def test_every_newer_name_is_declared():
    declared = structs().keys() | constants().keys()
    assert set(layout.NEWER_THAN_4_17) <= declared
    assert {name for name in declared if name.endswith("_v2026")} <= set(layout.NEWER_THAN_4_17)


def test_no_struct_declares_a_field_beyond_its_size():
    for name, described in structs().items():
        for field, (offset, size) in described["fields"].items():
            assert 0 <= offset <= offset + size <= described["size"], f"{name}.{field}"


def test_fields_of_untagged_members_are_dotted():
    fields = structs()["grant_entry_v2"]["fields"]
    assert fields["sub_page"] == [0, 16]
    assert fields["sub_page.length"] == [6, 2]
    assert fields["sub_page.hdr"] == [0, 4]
    assert "sub_page.hdr.flags" not in fields


def test_index_holds_what_kernel_h_adds_out():
    names = structs().keys() | constants().keys()
    assert "blkif_request" in names
    assert "XS_READ" in names
    assert not names & {"machine", "domain", "KERNEL_E_FORKED", "ACCESS_READ"}


def run_module(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "xenpv.abi", *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.stdout


def test_json_of_the_command_is_the_module_s_tables():
    assert json.loads(run_module("--json")) == {"structs": structs(), "constants": constants()}


def test_text_of_the_command_has_a_line_per_field_and_constant():
    lines = run_module().splitlines()
    assert "netif_tx_request: 12 bytes" in lines
    assert "      4     2  offset" in lines
    assert "GNTST_bad_gntref = -3" in lines
    assert "DOMID_ANY = 32757 (0x7ff5); newer than 4.17: xen.h" in lines
    fields = sum(len(described["fields"]) for described in structs().values())
    assert len(lines) == 2 * len(structs()) + fields + len(constants())


def test_text_of_the_command_may_be_cut_off_by_its_reader():
    command = f"{sys.executable} -m xenpv.abi | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], check=True, capture_output=True, text=True
    )
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_call_into_the_kernel_keeps_the_gil():
    assert _kernel.lib.gil_held() == 1
