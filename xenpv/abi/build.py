"""Builds `xenpv.abi._kernel`: the layouts of decl/*.h and the C kernel, as an abi3 extension.

One text serves twice. cffi's cdef reads decl/*.h with each constant's value replaced by
`...`; the compiled source includes the same files, so every size, offset and value in the
module is the C compiler's. cffi refuses `pack=4`: between `#pragma pack(push, 4)` and
`#pragma pack(pop)` each top-level struct is given to the cdef as partial (`...;`), and its
layout is then the compiler's alone.

`XENPV_SANITIZE=address,undefined` builds with those sanitizers (the interpreter then needs
libasan preloaded).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cffi import FFI

ABI = Path(__file__).parent
# Included as "decl/..." and "kernel/...": relative, since setuptools runs from the project.
INCLUDE_DIR = "xenpv/abi"

DECLARATIONS = (
    "xen.h",
    "grant_table.h",
    "event_channel.h",
    "netif.h",
    "blkif.h",
    "store.h",
    "domain.h",
    "hvm.h",
    "errno.h",
    "x86_32.h",
)

# cffi wraps each call in these; the kernel's calls are short, and giving up the GIL costs
# more than most of them take (with one busy thread, 300 times more). errno is not used.
KEEP_GIL = """
#undef Py_BEGIN_ALLOW_THREADS
#undef Py_END_ALLOW_THREADS
#define Py_BEGIN_ALLOW_THREADS {
#define Py_END_ALLOW_THREADS }
#undef _cffi_restore_errno
#undef _cffi_save_errno
#define _cffi_restore_errno() ((void)0)
#define _cffi_save_errno() ((void)0)
"""

_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_DEFINE = re.compile(r"#define (\w+) \S")
_TAG = re.compile(r"(struct|union) (\w+) \{")


def cdef(text: str) -> str:
    """The part of a declaration file that cffi parses."""
    lines = []
    packed = False
    for line in _COMMENT.sub("", text).splitlines():
        if line.startswith("#pragma pack"):
            packed = "push" in line
        elif match := _DEFINE.match(line):
            lines.append(f"#define {match[1]} ...")
        elif packed and line == "};":
            lines.append("...; };")
        else:
            lines.append(line)
    return "\n".join(lines)


def index(text: str) -> list[str]:
    """What a declaration file declares, in order: "struct x", "union y", "define Z"."""
    names = []
    for line in _COMMENT.sub("", text).splitlines():
        if match := _DEFINE.match(line):
            names.append(f"define {match[1]}")
        elif match := _TAG.match(line):
            names.append(f"{match[1]} {match[2]}")
    return names


def make_ffibuilder() -> FFI:
    builder = FFI()
    source = ["#include <stddef.h>", "#include <stdint.h>"]
    declared = []
    for name in DECLARATIONS:
        text = (ABI / "decl" / name).read_text()
        builder.cdef(cdef(text))
        declared += index(text)
        source.append(f'#include "decl/{name}"')
    source.append('#include "decl/spec.h"')
    lines = "\n".join(f'    "{entry}\\n"' for entry in declared)
    source.append(f"static const char *const abi_index =\n{lines};")
    builder.cdef("static const char *const abi_index;")
    builder.cdef(_COMMENT.sub("", (ABI / "kernel" / "kernel.h").read_text()))
    source.append('#include "kernel/kernel.c"')
    source.append(KEEP_GIL)
    sanitizers = os.environ.get("XENPV_SANITIZE", "")
    sanitize = [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer"] if sanitizers else []
    builder.set_source(
        "xenpv.abi._kernel",
        "\n".join(source),
        include_dirs=[INCLUDE_DIR],
        depends=[
            f"{INCLUDE_DIR}/build.py",
            *sorted(f"{INCLUDE_DIR}/decl/{path.name}" for path in ABI.glob("decl/*.h")),
            *sorted(f"{INCLUDE_DIR}/kernel/{path.name}" for path in ABI.glob("kernel/*.[ch]")),
        ],
        extra_compile_args=[
            "-std=gnu11",
            *(["-O1", "-g", *sanitize] if sanitize else ["-O2"]),
            # Pages are read through whichever struct they hold at the moment.
            "-fno-strict-aliasing",
            "-Wall",
            "-Wextra",
            "-Werror=implicit-function-declaration",
            "-Werror=incompatible-pointer-types",
            "-Werror=int-conversion",
            "-Werror=return-type",
            "-Werror=uninitialized",
            "-Werror=format",
        ],
        extra_link_args=sanitize,
        py_limited_api=True,
    )
    return builder


ffibuilder = make_ffibuilder()

if __name__ == "__main__":
    ffibuilder.compile(tmpdir=str(ABI.parent.parent), verbose=True)
