from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.xl_vectors import RATES_ACCEPTED, RATES_REJECTED
from xenpv.errors import ConfigError
from xenpv.host.position import Position
from xenpv.host.vifspec import NicType, VifSpec, parse_rate

MAC = bytes.fromhex("00163e010203")


@pytest.mark.parametrize(
    ("spec", "vif"),
    [
        ("", VifSpec()),
        (",, ,", VifSpec()),
        ("mac=00:16:3e:01:02:03", VifSpec(mac=MAC)),
        ("mac=0:16:3E:1:2:3", VifSpec(mac=MAC)),
        ("mac=00-16-3e-01-02-03", VifSpec(mac=MAC)),
        ("mac=00:00:00:00:00:00", VifSpec()),
        ("bridge=br0", VifSpec(bridge="br0")),
        ("bridge=br0,bridge=br1", VifSpec(bridge="br1")),
        ("  bridge=br0 ", VifSpec(bridge="br0 ")),
        ("bridge=a=b", VifSpec(bridge="a=b")),
        ("type=vif", VifSpec(type=NicType.VIF)),
        ("type=ioemu,model=e1000", VifSpec(type=NicType.VIF_IOEMU, model="e1000")),
        ("vifname=v0,script=/s,ip=10.0.0.1", VifSpec(vifname="v0", script="/s", ip="10.0.0.1")),
        ("backend=net,vlan=7", VifSpec(backend="net", vlan="7")),
        ("rate=10MB/s@20u", VifSpec(rate=(200, 20))),
        ("devid=5,mtu=9000", VifSpec(devid=5, mtu=9000)),
        ("untrusted", VifSpec(trusted=False)),
        ("untrusted,trusted", VifSpec()),
        ("gatewaydev=eth0,forwarddev=fwd", VifSpec(gatewaydev="eth0", forwarddev="fwd")),
        ("netdev=eth0", VifSpec(gatewaydev="eth0")),
    ],
)
def test_reads(spec, vif):
    assert VifSpec.parse(spec) == vif
    assert VifSpec.parse(spec, strict=False) == vif


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("birdge=br0", "unknown vif option 'birdge' in 'birdge=br0'; known are"),
        ("bridge =br0", "unknown vif option 'bridge '"),
        ("foo", "unknown vif option 'foo'"),
        ("bridge=", "empty vif bridge in 'bridge='; expected a name such as xenbr0"),
        ("type=pv", "unknown vif type 'pv' in 'type=pv'; expected vif or ioemu"),
        ("mac=00:16:3e:01:02", "bad mac '00:16:3e:01:02'"),
        ("mac=00:16:3e:01:02:103", "bad mac '00:16:3e:01:02:103'"),
        ("mac=00163e010203", "bad mac '00163e010203'"),
        ("mac=", "bad mac ''"),
    ],
)
def test_refuses_what_xl_only_reports(spec, message):
    with pytest.raises(ConfigError) as caught:
        VifSpec.parse(spec, Position("f", 2, 8))
    assert str(caught.value).startswith(f"f:2:8: {message}")
    assert len(VifSpec.parse(spec, strict=False).warnings) >= 1


def test_refuses_a_mac_that_goes_on():
    with pytest.raises(ConfigError, match=r"^bad mac '00:16:3e:01:02:03:04'"):
        VifSpec.parse("mac=00:16:3e:01:02:03:04")


@pytest.mark.parametrize("spec", ["foo,bridge=br0", "bridge =x,bridge=br0", "bridge=br0,type=pv"])
def test_what_xl_does_not_know_changes_nothing(spec):
    assert VifSpec.parse(spec, strict=False) == VifSpec(bridge="br0")


@pytest.mark.parametrize(
    ("text", "mac"),
    [
        ("00:16:3e:zz", "00163e000000"),
        ("00:16:3e:100:02:03", "00163e000000"),
        ("00:16:3e:01:02:03 and more", "00163e010203"),
        ("0x0:0x16: +3e:1:2:3", "00163e010203"),
    ],
)
def test_a_bad_mac_keeps_the_bytes_read_so_far_in_xl(text, mac):
    assert VifSpec.parse(f"mac={text}", strict=False).mac == bytes.fromhex(mac)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "spec", ["devid=x", "devid=", "devid=-1", "devid=65536", "mtu=67", "mtu=65536", "mtu=1e3"]
)
def test_numbers_have_ranges(spec, strict):
    with pytest.raises(
        ConfigError, match=r"^f:1:1: bad vif (devid|mtu) '.*': expected a number from"
    ):
        VifSpec.parse(spec, Position("f", 1, 1), strict=strict)


def test_a_group_address_is_reported():
    vif = VifSpec.parse("mac=01:00:5e:00:00:01")
    assert vif.warnings == ("mac 01:00:5e:00:00:01 is a group address, which no interface has",)


@pytest.mark.parametrize(("rate", "expected"), RATES_ACCEPTED.items())
def test_reads_a_rate(rate, expected):
    assert parse_rate(rate) == expected


@pytest.mark.parametrize(("rate", "message"), RATES_REJECTED.items())
def test_refuses_a_rate(rate, message):
    with pytest.raises(ConfigError) as caught:
        parse_rate(rate, Position("f", 1, 1))
    assert str(caught.value).startswith(f"f:1:1: config parsing error in vif: {message} in `")


@pytest.mark.parametrize("rate", ["019KB/s", "10MB/s@018ms"])
def test_an_octal_number_with_a_9_is_refused(rate):
    with pytest.raises(ConfigError, match="invalid"):
        parse_rate(rate)


WORDS = st.sampled_from(
    [
        *("mac=", "00:", "type=", "bridge=", "rate=", "10MB/s", "devid=", "7", "mtu=", "foo"),
        *("=", ",", "@"),
    ]
)


@given(st.one_of(st.text(), st.lists(WORDS).map("".join)), st.booleans())
def test_garbage_raises_nothing_but_a_config_error(spec, strict):
    with contextlib.suppress(ConfigError):
        VifSpec.parse(spec, strict=strict)
