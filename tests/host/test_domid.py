"""Which domid a new domain gets (libxl__domain_make and its domid history)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xenpv import Platform, ToolstackError
from xenpv.errors import ConfigError

FAIL = -3  # ERROR_FAIL


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=3) as platform:
        yield platform


def test_without_a_word_numbers_go_up_and_are_not_given_again(xen: Platform) -> None:
    first = xen.create(name="a")
    first.destroy()
    assert (first.domid, xen.create(name="b").domid, xen.create(name="c").domid) == (1, 2, 3)


def test_a_fixed_domid_is_the_domains(xen: Platform) -> None:
    assert xen.create(name="a", domid=77).domid == 77
    assert xen.toolstack.xs.read("/local/domain/77/name") == "a"


def test_a_fixed_domid_in_use_fails_and_leaves_the_other_domain(xen: Platform) -> None:
    xen.create(name="a", domid=77)
    with pytest.raises(ToolstackError, match="^domain creation failed: domid 77 is in use$") as e:
        xen.create(name="b", domid=77)
    assert e.value.code == FAIL
    assert xen.toolstack.xs.read("/local/domain/77/name") == "a"


@pytest.mark.parametrize(
    "domid",
    [0, -1, 0x7FF0, 0x7FF5, 0x8000, True, "random", 1.5],
)
def test_no_guest_has_such_a_domid(xen: Platform, domid: object) -> None:
    with pytest.raises(ConfigError, match="^domid of "):
        xen.create(name="a", domid=domid)  # type: ignore[arg-type]  # that is what is tested
    assert list(xen.hypervisor.domains) == [0]


@pytest.mark.parametrize("domid", [1, 0x7FEF])
def test_the_first_and_the_last_domid(xen: Platform, domid: int) -> None:
    assert xen.create(name="a", domid=domid).domid == domid


# Seconds of the destroyed domain's end, and how much later its domid is asked for, in ns.
RECENT = [
    ("at once", 0.0, 0, True),
    ("60 s later", 0.0, 60_000_000_000, True),
    ("in the 60th second still", 0.0, 60_999_999_999, True),
    ("in the 61st second", 0.0, 61_000_000_000, False),
    ("seconds are those of the clock: 0.9 s + 60.1 s", 0.9, 60_100_000_000, False),
    ("seconds are those of the clock: 0.9 s + 60.0 s", 0.9, 60_000_000_000, True),
]


@pytest.mark.parametrize(
    ("at", "after_ns", "recent"), [row[1:] for row in RECENT], ids=[row[0] for row in RECENT]
)
def test_a_domid_rests_for_60_whole_seconds(
    xen: Platform, at: float, after_ns: int, recent: bool
) -> None:
    guest = xen.create(name="a", domid=9)
    xen.loop.run()
    xen.loop.advance(-(-xen.loop.now // 10**9) * 10**9 - xen.loop.now + round(at * 1e9))
    guest.destroy()
    xen.loop.advance(after_ns)
    if not recent:
        assert xen.create(name="b", domid=9).domid == 9
        return
    with pytest.raises(ToolstackError, match="^domain id 9 recently used$") as caught:
        xen.create(name="b", domid=9)
    assert caught.value.code == FAIL
    assert list(xen.hypervisor.domains) == [0]  # the domain that had it for a moment is gone


def test_each_domid_rests_by_itself(xen: Platform) -> None:
    for domid in (9, 10):
        xen.create(name="a", domid=domid).destroy()
    for domid in (9, 10):
        with pytest.raises(ToolstackError, match=f"^domain id {domid} recently used$"):
            xen.create(name="b", domid=domid)
    xen.advance(30)
    xen.create(name="a", domid=11).destroy()
    xen.advance(31)
    assert xen.create(name="b", domid=9).domid == 9
    with pytest.raises(ToolstackError, match="^domain id 11 recently used$"):
        xen.create(name="c", domid=11)


def test_the_next_free_domid_passes_over_recent_ones(xen: Platform) -> None:
    last = xen.create(name="a", domid=0x7FEF)
    xen.create(name="b", domid=1)
    gone = xen.create(name="c", domid=2)
    gone.destroy()
    allocator = xen.hypervisor._domids
    allocator._last = 0x7FEE  # next comes the end of the numbers
    assert xen.create(name="d").domid == 3  # 0x7FEF and 1 are taken, 2 is recent
    last.destroy()


def test_random_domids_are_from_the_seed_and_all_over_the_range() -> None:
    def made(seed: int) -> list[int]:
        with Platform(seed=seed) as xen:
            return [xen.create(name=f"g{i}", domid="RANDOM").domid for i in range(20)]

    assert made(1) == made(1)
    assert made(1) != made(2)
    assert max(made(1)) > 0x4000
    assert all(0 < domid < 0x7FF0 for domid in made(1))


def test_a_random_domid_in_use_or_recent_is_picked_again(
    xen: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    picks = iter([5, 6, 0xFFFF, 0, 0x8007])  # in use; recent; masked 0x7FFF and 0: none; 7
    xen.create(name="a", domid=5)
    xen.create(name="b", domid=6).destroy()

    class Picks:
        def getrandbits(self, bits: int) -> int:
            return next(picks) if bits == 16 else 1

    monkeypatch.setattr(xen.toolstack.chance, "generator", Picks())
    assert xen.create(name="c", domid="RANDOM").domid == 7


def test_maxvcpus_are_made_and_vcpus_are_started(xen: Platform) -> None:
    from xenpv.host.domainconfig import DomainConfig

    guest = xen.create_from(DomainConfig(name="g", memory_mib=64, vcpus=2, maxvcpus=4)).start()
    info = xen.dom0.domctl.getdomaininfo(guest.domid)
    assert (info.max_vcpu_id, info.nr_online_vcpus) == (3, 2)
    read = xen.toolstack.xs.read
    states = [read(f"/local/domain/{guest.domid}/cpu/{cpu}/availability") for cpu in range(5)]
    assert states == ["online", "online", "offline", "offline", None]
