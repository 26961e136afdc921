from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpv.errors import ConfigError
from xenpv.host import vdev
from xenpv.host.position import Position

NUMBERS = {
    "xvda": 51712,
    "xvda1": 51713,
    "d0p0": 51712,
    "d0p1": 51713,
    "xvda15": 51727,
    "xvda16": 268435472,
    "xvda255": 268435711,
    "xvdb1": 51729,
    "xvdp": 51952,
    "xvdq": 268439552,
    "xvdaa": 268442112,
    "xvdtq37": 268572709,
    "d536p37": 268572709,
    "d1048575p255": (1 << 28) | (1048575 << 8) | 255,
    "hda": 768,
    "hdb": 832,
    "hdc": 5632,
    "hdd63": 5632 + 64 + 63,
    "sda": 2048,
    "sdb": 2064,
    "sdp": 2288,
    "sdp15": 2303,
    "0xca00": 51712,
    "0XCA00": 51712,
    "0145000": 51712,
    "51712": 51712,
    "0": 0,
    "2147483647": 2147483647,
    "": 0,
}
INVALID = [
    *(
        "hde",
        "sdq",
        "sda16",
        "hda64",
        "xvda01",
        "xvda0",
        "xvda256",
        "XVDA",
        "xvd",
        "xvd1",
        "hd",
        "d0",
    ),
    *(
        "d1048576p0",
        "d0p256",
        "d00p0",
        "d0p00",
        "2147483648",
        "08",
        "0x",
        "-1",
        "12x",
        "xvda ",
        " xvda",
    ),
    *("nonsense", "xvdzzzzz", "xvdzzzzzz", "/dev/xvda", "xvda\n", "9" * 5000, "\u0661"),
]


@pytest.mark.parametrize(("name", "number"), NUMBERS.items())
def test_number_of_a_name(name, number):
    assert vdev.number(name) == number


@pytest.mark.parametrize("name", INVALID, ids=lambda name: name[:12])
def test_no_number_for_other_names(name):
    with pytest.raises(ConfigError, match=r"^f:1: invalid or unsupported virtual disk identifier"):
        vdev.number(name, Position("f", 1))


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (51712, "xvda"),
        (51713, "xvda1"),
        (51952, "xvdp"),
        (268435472, "xvda16"),
        (268439552, "xvdq"),
        (268442112, "xvdaa"),
        (268572709, "xvdtq37"),
        (768, "xvda"),
        (832, "xvde"),
        (2064, "xvdb"),
        (0, "xvda"),
    ],
)
def test_name_of_a_number_is_an_xvd_name(number, name):
    assert vdev.name(number) == name


@given(st.integers(0, vdev.DISKS_MAX - 1), st.integers(0, 255))
def test_xvd_names_come_back(disk, part):
    number = vdev.number(f"d{disk}p{part}")
    name = vdev.name(number)
    assert name.startswith("xvd")
    assert vdev.number(name) == number


@pytest.mark.parametrize(
    ("number", "target"),
    [
        (51712, 0),
        (51713, 0),
        (768, 0),
        (2048, 0),
        (832, 1),
        (5632, 2),
        (5696, 3),
        (51952, 15),
        (268439552, 16),
        ((1 << 28) | (254 << 8) | 3, 254),
        ((1 << 28) | (255 << 8), None),
        ((1 << 28) | (4096 << 8), 0),
        (33 << 8, 4),
        (34 << 8 | 64, 7),
        (56 << 8, 8),
        (57 << 8, 10),
        (88 << 8, 12),
        (89 << 8 | 64, 15),
        (0, None),
        (7 << 8, None),
        (2 << 28, None),
        (vdev.NUMBER_MAX, None),
    ],
)
def test_target_of_the_windows_driver(number, target):
    assert vdev.windows_target(number) == target
