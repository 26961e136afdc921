"""The headers of libxen-dev (Xen 4.17) against what `python -m xenpv.abi --json` prints.

One C program, made from that output, asks the compiler for each size, offset, value and
sign. For a 64-bit guest it runs; for a 32-bit guest it is compiled to assembly only
(-m32 -ffreestanding needs no 32-bit libraries) and the numbers are read from there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from tests.peers import need
from xenpv.abi import _kernel
from xenpv.abi.layout import NEWER_THAN_4_17

pytestmark = pytest.mark.peers

# As <xen/...>: with xen/ itself on the include path its features.h hides libc's.
HEADERS = (
    "xen.h",
    "callback.h",
    "elfnote.h",
    "errno.h",
    "event_channel.h",
    "features.h",
    "grant_table.h",
    "memory.h",
    "nmi.h",
    "sched.h",
    "vcpu.h",
    "version.h",
    "arch-x86/hvm/start_info.h",
    "hvm/e820.h",
    "hvm/hvm_info_table.h",
    "hvm/hvm_op.h",
    "hvm/hvm_vcpu.h",
    "hvm/params.h",
    "io/blkif.h",
    "io/console.h",
    "io/netif.h",
    "io/ring.h",
    "io/xenbus.h",
    "io/xs_wire.h",
)
# The toolstack's view (__XEN_TOOLS__) has what a guest does not see, as claim_pages.
GCC = ("gcc", "-std=gnu11", "-w", "-D__XEN_TOOLS__", "-D__XEN_INTERFACE_VERSION__=0x00040e00")
PREAMBLE = """
#include <stddef.h>
#include <stdint.h>
#define FIELD(type, field) (((type *)0)->field)
/* 1: a signed integer, 0: an unsigned one or no integer */
#define IS_SIGNED(e) \\
    ((__typeof__(__builtin_choose_expr(__builtin_classify_type(e) == 1, (e), 0u)))-1 < 0)
#define LOW(x) ((uint32_t)(uint64_t)(x))
#define HIGH(x) ((uint32_t)((uint64_t)(x) >> 32))
#define NEGATIVE(x) ((x) < 0)
"""

# arch-x86/xen-x86_64.h alone has these.
ONLY_X86_64 = re.compile(r"iret_context|FLAT_RING3_\w+|SEGBASE_\w+")
SUFFIX_32 = "_x86_32"


@pytest.fixture(scope="module")
def printed():
    need("/usr/include/xen/xen.h", "libxen-dev")
    need("gcc", "gcc")
    done = subprocess.run(
        [sys.executable, "-m", "xenpv.abi", "--json"], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def is_variant(name, table):
    """Of a 32-bit guest; vcpu_hvm_x86_32 is Xen's own name for something else."""
    return name.endswith(SUFFIX_32) and name.removesuffix(SUFFIX_32) in table


def known(table):
    """The names that 4.17 has."""
    return [name for name in table if name not in NEWER_THAN_4_17 and not is_variant(name, table)]


def tagged(name):
    # A variant is declared as what it is a variant of.
    unions = _kernel.ffi.list_types()[2]
    return f"union {name}" if name in unions else f"struct {name}"


def struct_questions(name, described):
    """{what: C expression} for one struct of the headers, in our words."""
    of = tagged(name)
    size = f"sizeof({of})"
    questions = {}
    for field in described["fields"]:
        questions[f"{name}.{field} offset"] = f"offsetof({of}, {field})"
        questions[f"{name}.{field} size"] = f"sizeof(FIELD({of}, {field}))"
    if name.endswith("_sring"):
        # Xen declares one slot of a ring that fills the page.
        slots = f"__CONST_RING_SIZE({name.removesuffix('_sring')}, 4096)"
        ring = f"({slots} * sizeof(FIELD({of}, ring[0])))"
        questions[f"{name}.ring size"] = ring
        size = f"offsetof({of}, ring) + {ring}"
    return {f"{name} size": size, **questions}


def struct_answers(name, described):
    answers = {f"{name} size": described["size"]}
    for field, (offset, size) in described["fields"].items():
        answers[f"{name}.{field} offset"] = offset
        answers[f"{name}.{field} size"] = size
    return answers


def sign_questions(name):
    """Whether each integer field is signed, which decides how its format reads it."""
    of = tagged(name)
    return {
        f"{name}.{field} signed": f"IS_SIGNED(FIELD({of}, {field}))"
        for field, described in _kernel.ffi.typeof(of).fields
        if described.type.kind == "primitive"
    }


def sign_answers(name):
    return {
        f"{name}.{field} signed": int(described.type.cname.startswith("int"))
        for field, described in _kernel.ffi.typeof(tagged(name)).fields
        if described.type.kind == "primitive"
    }


def c_source(expressions):
    includes = "".join(f"#include <xen/{header}>\n" for header in HEADERS)
    rows = "".join(f"    LOW({e}), HIGH({e}), NEGATIVE({e}),\n" for e in expressions)
    return f"{PREAMBLE}{includes}const uint32_t values[] = {{\n{rows}}};\n"


def numbers(words):
    """Join (low, high, negative) to integers."""
    assert len(words) % 3 == 0
    return [
        (low | high << 32) - (negative << 64)
        for low, high, negative in zip(words[::3], words[1::3], words[2::3], strict=True)
    ]


def ask_64(questions, tmp_path):
    main = """
#include <stdio.h>
int main(void)
{
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++)
        printf("%u\\n", (unsigned)values[i]);
    return 0;
}
"""
    source, program = tmp_path / "ask.c", tmp_path / "ask"
    source.write_text(c_source(questions.values()) + main)
    subprocess.run([*GCC, "-o", program, source], check=True)
    done = subprocess.run([program], check=True, capture_output=True, text=True)
    return dict(zip(questions, numbers([int(w) for w in done.stdout.split()]), strict=True))


def ask_32(questions, tmp_path):
    source, assembly = tmp_path / "ask32.c", tmp_path / "ask32.s"
    source.write_text(c_source(questions.values()))
    subprocess.run([*GCC, "-m32", "-ffreestanding", "-S", "-o", assembly, source], check=True)
    _, _, data = assembly.read_text().partition("\nvalues:\n")
    words = []
    for directive, argument in re.findall(r"\t\.(long|zero)\t(-?\d+)", data):
        words += [int(argument) % 2**32] if directive == "long" else [0] * (int(argument) // 4)
    return dict(zip(questions, numbers(words), strict=True))


def test_every_layout_for_a_64_bit_guest_is_that_of_4_17(printed, tmp_path):
    structs = printed["structs"]
    names = known(structs)
    questions, answers = {}, {}
    for name in names:
        questions |= struct_questions(name, structs[name]) | sign_questions(name)
        answers |= struct_answers(name, structs[name]) | sign_answers(name)
    assert answers == ask_64(questions, tmp_path)
    assert len(names) >= 60


def test_every_constant_is_that_of_4_17(printed, tmp_path):
    constants = printed["constants"]
    names = known(constants)
    assert {n: constants[n] for n in names} == ask_64({n: n for n in names}, tmp_path)
    assert len(names) >= 250


def test_every_layout_for_a_32_bit_guest_is_that_of_4_17(printed, tmp_path):
    # A struct without a variant of its own claims to be the same for both.
    structs = printed["structs"]
    names = [name for name in known(structs) if not ONLY_X86_64.fullmatch(name)]
    questions, answers = {}, {}
    for name in names:
        described = structs.get(name + SUFFIX_32, structs[name])
        questions |= struct_questions(name, described)
        answers |= struct_answers(name, described)
    assert answers == ask_32(questions, tmp_path)


def test_every_variant_for_a_32_bit_guest_differs_and_is_compared(printed):
    structs = printed["structs"]
    variants = [name for name in structs if is_variant(name, structs)]
    compared = known(structs)
    assert len(variants) >= 30
    for name in variants:
        assert name.removesuffix(SUFFIX_32) in compared
        assert structs[name] != structs[name.removesuffix(SUFFIX_32)]


def test_every_constant_for_a_32_bit_guest_is_that_of_4_17(printed, tmp_path):
    constants = printed["constants"]
    names = [name for name in known(constants) if not ONLY_X86_64.fullmatch(name)]
    answers = {name: constants.get(name + SUFFIX_32, constants[name]) for name in names}
    assert answers == ask_32({name: name for name in names}, tmp_path)


def test_what_is_not_compared_is_newer_than_4_17(printed, tmp_path):
    # The compiler must know none of these names, or they would be compared above.
    newer = [name for name in NEWER_THAN_4_17 if name in printed["constants"]]
    structs = [name for name in NEWER_THAN_4_17 if name in printed["structs"]]
    assert sorted(newer + structs) == sorted(NEWER_THAN_4_17)
    fields = {
        "netif_extra_info_v2026": "u.xdp",
        "xencons_interface_v2026": "connection",
        "xenstore_domain_interface_v2026": "evtchn_port",
    }
    uses = [f"enum {{ use_{name} = {name} }};" for name in newer]
    for name in structs:
        of = f"struct {name.removesuffix('_v2026')}"
        uses.append(f"enum {{ use_{name} = offsetof({of}, {fields[name]}) }};")
    source = tmp_path / "newer.c"
    source.write_text(c_source([]) + "\n".join(uses) + "\n")
    done = subprocess.run(
        [*GCC, "-fsyntax-only", source],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    undeclared = set(re.findall(r"error: '(\w+)' undeclared", done.stderr))
    missing = set(re.findall(r"error: '\S.*' has no member named '(\w+)'", done.stderr))
    assert undeclared == set(newer)
    assert missing == {"xdp", "connection", "evtchn_port"}
