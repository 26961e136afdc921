from __future__ import annotations

from collections.abc import Iterator

import pytest

from xenpv import Disk, Guest, MemoryImage, Platform, Vif

SECTORS = 512


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=7) as platform:
        yield platform


@pytest.fixture
def image() -> MemoryImage:
    return MemoryImage(bytearray(n * 7 & 0xFF for n in range(SECTORS * 512)))


@pytest.fixture(params=["windows", "linux"])
def guest(xen: Platform, image: MemoryImage, request: pytest.FixtureRequest) -> Guest:
    return xen.create(
        name="web",
        disks=[Disk(image)],
        vifs=[Vif(bridge="xenbr0", mac="00:16:3e:00:00:01")],
        personality=request.param,
    ).start()
