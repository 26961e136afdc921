"""xen_version: command x caller -> what Xen answers (spec xen-core 7.6)."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from xenpv.errors import HypercallError
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop
from xenpv.xen.version import XenVersion

XEN = XenVersion(
    extraversion=".1-rc2-with-a-long-tail",
    compiler="gcc",
    compile_by="me",
    compile_domain="here",
    compile_date="today",
    capabilities="xen-3.0-x86_64 ",
    changeset="Wed Jan 1",
    commandline="dom0_mem=1G",
    build_id=bytes(range(20)),
)

# command, argument: result for dom0, for a guest (...: the same); text: the name of an errno
ANSWERS: list[tuple[int, int | None, Any, Any]] = [
    (0, None, 4 << 16 | 22, 4 << 16 | 22),
    (1, None, b".1-rc2-with-a-l\0", b".1-rc2-with-a-l\0"),
    (2, None, struct.pack("64s16s32s32s", b"gcc", b"me", b"here", b"today"), ...),
    (3, None, struct.pack("1024s", b"xen-3.0-x86_64 "), ...),
    (4, None, struct.pack("64s", b"Wed Jan 1"), ...),
    (5, None, bytes(8), ...),
    (6, 0, struct.pack("<II", 0, 0x1D2F05), struct.pack("<II", 0, 0x1D2705)),
    (6, 1, "EINVAL", "EINVAL"),
    (7, None, 4096, 4096),
    (7, 0, "EINVAL", "EINVAL"),
    (8, None, bytes(16), bytes(range(16))),
    (9, None, struct.pack("1024s", b"dom0_mem=1G"), struct.pack("1024s", b"<denied>")),
    (10, None, 20, "EPERM"),
    (10, 20, bytes(range(20)), "EPERM"),
    (10, 19, "ENOBUFS", "EPERM"),
    (10, 0, "EINVAL", "EPERM"),
    (11, None, 23, 23),
    (11, 100, b".1-rc2-with-a-long-tail", ...),
    (11, 22, "ENOBUFS", "ENOBUFS"),
    (11, 0, "EINVAL", "EINVAL"),
    (12, 15, b"xen-3.0-x86_64 ", ...),
    (13, 64, b"Wed Jan 1", ...),
    (14, None, 11, "EPERM"),
    (14, 64, b"dom0_mem=1G", "EPERM"),
    (15, None, "ENOSYS", "ENOSYS"),
    (-1, None, "ENOSYS", "ENOSYS"),
]


@pytest.fixture(scope="module")
def domains() -> Any:
    hypervisor = Hypervisor(Loop(), nr_frames=1 << 12, version=XEN)
    dom0 = hypervisor.create_domain(0, max_pages=16)
    yield dom0, hypervisor.create_domain(max_pages=16, handle=bytes(range(16)))
    hypervisor.close()


@pytest.mark.parametrize(("command", "argument", "control", "guest"), ANSWERS)
def test_answer(
    domains: tuple[Domain, Domain], command: int, argument: int | None, control: Any, guest: Any
) -> None:
    for domain, expected in zip(
        domains, (control, control if guest is ... else guest), strict=True
    ):
        if isinstance(expected, str):
            with pytest.raises(HypercallError) as caught:
                domain.xen_version(command, argument)
            assert caught.value.name == expected
            assert caught.value.operation
            assert caught.value.arguments == {"cmd": command, "arg": argument}
        else:
            assert domain.xen_version(command, argument) == expected


def test_a_xen_without_an_id(hypervisor: Hypervisor, dom0: Domain) -> None:
    assert hypervisor.version == XenVersion()
    with pytest.raises(HypercallError, match="ENODATA"):
        dom0.xen_version(10)
