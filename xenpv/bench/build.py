"""Builds `xenpv.bench._limit`: limit.c and client.c over the layouts of abi/decl, and the limit
over Xen's io/ring.h if libxen-dev is installed.

The declarations are the compiler's only: Python sees the entry points and their result.
"""

from __future__ import annotations

import re
from pathlib import Path

from cffi import FFI

BENCH = Path(__file__).parent
# Relative, since setuptools runs from the project.
INCLUDE_DIRS = ("xenpv/abi", "xenpv/bench")
DECLARATIONS = ("xen.h", "grant_table.h", "netif.h", "blkif.h", "store.h")
HEADERS = ("limit.h", "client.h")

# A run is timed inside; other threads must not run in the middle of it. errno is not used.
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


def make_ffibuilder() -> FFI:
    builder = FFI()
    for name in HEADERS:
        builder.cdef(_COMMENT.sub("", (BENCH / name).read_text()))
    source = ["#include <stddef.h>", "#include <stdint.h>"]
    source += [f'#include "decl/{name}"' for name in DECLARATIONS]
    source += ['#include "limit.c"', '#include "client.c"', KEEP_GIL]
    builder.set_source(
        "xenpv.bench._limit",
        "\n".join(source),
        include_dirs=list(INCLUDE_DIRS),
        depends=[
            "xenpv/bench/build.py",
            "xenpv/bench/client.c",
            "xenpv/bench/limit.c",
            "xenpv/bench/limit_xen.c",
            *(f"xenpv/bench/{name}" for name in HEADERS),
            "xenpv/abi/kernel/access.h",
            *(f"xenpv/abi/decl/{name}" for name in DECLARATIONS),
        ],
        extra_compile_args=[
            "-std=gnu11",
            "-O2",
            "-fno-strict-aliasing",
            "-Wall",
            "-Wextra",
            "-Werror=implicit-function-declaration",
            "-Werror=incompatible-pointer-types",
            "-Werror=return-type",
        ],
        py_limited_api=True,
    )
    return builder


ffibuilder = make_ffibuilder()

if __name__ == "__main__":
    ffibuilder.compile(tmpdir=str(BENCH.parent.parent), verbose=True)
