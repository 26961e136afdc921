"""Which netback a vif has: what a profile writes, and who chooses it."""

from __future__ import annotations

import pytest

from xenpv import Platform, Vif
from xenpv.back.netback import Netback
from xenpv.errors import LocalProtocolError


def netback(xen: Platform, domid: int, devid: int = 0) -> Netback:
    device = xen.backends.device("vif", domid, devid)
    assert device is not None
    assert isinstance(device.driver, Netback)
    return device.driver


def test_a_vif_has_the_platforms_profile_unless_it_names_one() -> None:
    with Platform(netback="mirage") as xen:
        guest = xen.create(name="a", vifs=[Vif(), Vif(profile="qemu"), Vif(profile="linux")])
        names = [netback(xen, guest.domid, devid).profile.name for devid in range(3)]
    assert names == ["mirage", "qemu", "linux"]


def test_a_vif_that_is_attached_later_has_its_profile_too() -> None:
    with Platform() as xen:
        guest = xen.create(name="a", vifs=[Vif()])
        guest.start()
        guest.attach(Vif(profile="mirage"))
        assert netback(xen, guest.domid, 1).profile.name == "mirage"


def test_a_profile_that_is_none_is_refused_before_anything_is_made() -> None:
    with pytest.raises(
        LocalProtocolError, match="expected one of linux, linux-zerocopy, qemu, mirage"
    ):
        Platform(netback="windows")
    with Platform() as xen:
        with pytest.raises(LocalProtocolError, match="'tapdisk'"):
            xen.create(name="a", vifs=[Vif(profile="tapdisk")])
        assert xen.guests == []
