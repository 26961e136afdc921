from __future__ import annotations

import contextlib

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.xl_vectors import DISKS_ACCEPTED, DISKS_REJECTED
from xenpv.errors import ConfigError
from xenpv.host.diskspec import DiskBackend, DiskFormat, DiskSpec, DiskSpecification
from xenpv.host.position import Position


@pytest.mark.parametrize("spec", DISKS_ACCEPTED)
def test_reads(spec):
    (target, disk_format, vdev, mode), others = DISKS_ACCEPTED[spec]
    enums = {"backendtype": DiskBackend, "specification": DiskSpecification}
    others = {key: enums.get(key, lambda value: value)(value) for key, value in others.items()}
    expected = DiskSpec(
        target=target, format=DiskFormat(disk_format), vdev=vdev, readwrite=mode == "w", **others
    )
    assert DiskSpec.parse(spec) == expected


@pytest.mark.parametrize(("spec", "message", "near"), DISKS_REJECTED)
def test_refuses_and_says_where(spec, message, near):
    with pytest.raises(ConfigError) as caught:
        DiskSpec.parse(spec, Position("f.cfg", 3, 9))
    where = "" if near is None else f": near `{near}'"
    start = f"f.cfg:3:9: config parsing error in disk specification: {message}{where} in `{spec}'"
    assert str(caught.value).startswith(start)


@pytest.mark.parametrize("spec", ["=", "/x,raw,xvda,w,=", "/x,raw,xvda,discard="])
def test_a_stray_equals_sign_at_the_end_is_refused(spec):
    with pytest.raises(ConfigError, match="bad disk syntax: near `='"):
        DiskSpec.parse(spec)


def test_a_line_feed_is_refused_on_one_line():
    with pytest.raises(ConfigError, match=r"line feed in `/x\\n,raw,xvda'$"):
        DiskSpec.parse("/x\n,raw,xvda")


@pytest.mark.parametrize(
    ("option", "changes"),
    [
        ("trusted", {"trusted": True}),
        ("untrusted", {"trusted": False}),
        ("untrusted,trusted", {"trusted": True}),
        ("grant_usage=0", {"grant_usage": False}),
        ("grant_usage=1", {"grant_usage": True}),
    ],
)
def test_reads_the_options_of_newer_trees(option, changes):
    plain = DiskSpec.parse("/x,raw,xvda")
    assert DiskSpec.parse(f"/x,raw,xvda,{option}") == attrs.evolve(plain, **changes)


def test_grant_usage_is_0_or_1():
    with pytest.raises(ConfigError, match="unknown value for grant_usage: near `2'"):
        DiskSpec.parse("/x,raw,xvda,grant_usage=2")


def test_replication_options_are_named_in_warnings():
    disk = DiskSpec.parse("/x,raw,xvda,colo,colo-host=h")
    assert disk.warnings == (
        "disk option colo has no effect",
        "disk option colo-host has no effect",
    )


def test_a_wrong_format_is_answered_with_the_positions():
    with pytest.raises(ConfigError, match=r"positions are target, format .* vdev, access$"):
        DiskSpec.parse("/x,xvda,w")


def test_the_number_is_that_of_the_vdev():
    assert DiskSpec.parse("/x,raw,xvdb").number == 51728


def test_an_unknown_vdev_is_refused_when_the_number_is_needed():
    disk = DiskSpec.parse("/x,raw,nonsense", Position("f", 1, 2))
    with pytest.raises(ConfigError, match=r"^f:1:2: .* virtual disk identifier 'nonsense'"):
        _ = disk.number


WORDS = st.sampled_from(
    [
        *("raw", "qcow2:", "phy:", "iscsi:", "foo:", "format=", "vdev=", "access=r", "cdrom"),
        *("devtype=cdrom", "discard", "backend=", "backendtype=", "script=", "specification="),
        *("target=", "colo-port=", "/x", "hdc:cdrom", ":", "=", ",", "w", "\u00e9", "\n"),
    ]
)


@given(st.one_of(st.text(), st.lists(WORDS).map("".join)))
def test_garbage_raises_nothing_but_a_config_error(spec):
    with contextlib.suppress(ConfigError):
        DiskSpec.parse(spec)
