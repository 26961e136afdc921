"""Commands on domains that are there (libxl_mem.c, libxl_domain.c)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from xenpv import Disk, Guest, MemoryImage, Platform, ToolstackError, Vif
from xenpv.errors import StoreError
from xenpv.host.domainconfig import DomainConfig, DomainType, Personality

INVAL, FAIL, TIMEDOUT, NOPARAVIRT, NOTFOUND = -6, -3, -9, -10, -21


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=1) as platform:
        yield platform


def home(xen: Platform, guest: Guest, key: str) -> str | None:
    return xen.toolstack.xs.read(f"/local/domain/{guest.domid}/{key}")


def hvm(xen: Platform, name: str = "g", memory: int = 64, maxmem: int = 128) -> Guest:
    return xen.create_from(
        DomainConfig(name=name, memory_mib=memory, maxmem_mib=maxmem, vcpus=2, maxvcpus=4)
    )


def linux(xen: Platform, name: str = "l") -> Guest:
    return xen.create_from(
        DomainConfig(
            name=name, type=DomainType.PV, personality=Personality.LINUX,
            memory_mib=64, maxmem_mib=128, vcpus=2, maxvcpus=4,
        )
    )  # fmt: skip


# memory

# Whose, MiB asked for: memory/target in KiB and /vm/UUID/memory in MiB, or the error's code.
MEMORY: list[tuple[str, Callable[[Platform], Guest], int, tuple[str, str] | int]] = [
    ("hvm: video memory is taken off", hvm, 64, ("57344", "56")),
    ("hvm: all of static-max", hvm, 128, ("122880", "120")),
    ("hvm: static-max and the video memory", hvm, 136, ("131072", "128")),
    ("hvm: more than static-max", hvm, 137, INVAL),
    ("hvm: nothing but the video memory", hvm, 8, ("0", "0")),
    ("hvm: less than the video memory", hvm, 7, INVAL),
    ("pv", linux, 100, ("102400", "100")),
    ("pv: static-max", linux, 128, ("131072", "128")),
    ("pv: more", linux, 129, INVAL),
    ("pv: nothing", linux, 0, ("0", "0")),
    ("pv: less than nothing", linux, -1, INVAL),
]


@pytest.mark.parametrize(
    ("make", "mib", "expected"), [row[1:] for row in MEMORY], ids=[row[0] for row in MEMORY]
)
def test_mem_set(
    xen: Platform, make: Callable[[Platform], Guest], mib: int, expected: tuple[str, str] | int
) -> None:
    guest = make(xen)
    before = home(xen, guest, "memory/target"), guest.created.config
    vm = f"/vm/{guest.created.uuid}/memory"
    if isinstance(expected, int):
        with pytest.raises(ToolstackError, match=f"^memory of domain 1: {mib} MiB: ") as caught:
            guest.set_memory(mib)
        assert caught.value.code == expected
        assert (home(xen, guest, "memory/target"), guest.created.config) == before
        assert xen.toolstack.xs.read(vm) is None
        return
    guest.set_memory(mib)
    assert (home(xen, guest, "memory/target"), xen.toolstack.xs.read(vm)) == expected
    # What it should have, 1 MiB, and its eight special pages.
    assert guest.created.domain.max_pages == mib * 256 + 256 + 8


# What is in a node, or that it is missing; the words of the error.
SPOILT = [
    ("target", None, "memory/target is None: expected a number of KiB"),
    ("target", "many", "memory/target is 'many': expected a number of KiB"),
    ("target", "", "memory/target is '': expected a number of KiB"),
    ("static-max", None, "memory/static-max is None: expected a number of KiB"),
    ("static-max", "-1", "memory/static-max is '-1': expected a number of KiB"),
    ("videoram", "x", "memory/videoram is 'x': expected a number of KiB"),
]


@pytest.mark.parametrize(("key", "value", "words"), SPOILT)
def test_mem_set_in_a_tree_that_somebody_spoilt(
    xen: Platform, key: str, value: str | None, words: str
) -> None:
    guest = hvm(xen)
    path = f"/local/domain/1/memory/{key}"
    if value is None:
        xen.toolstack.xs.rm(path)
    else:
        xen.toolstack.xs.write(path, value)
    with pytest.raises(ToolstackError, match=f"{words}$") as caught:
        guest.set_memory(64)
    assert caught.value.code == FAIL
    assert xen.toolstack.xs.read(f"/vm/{guest.created.uuid}/memory") is None


def test_no_videoram_node_is_no_video_memory(xen: Platform) -> None:
    guest = hvm(xen)
    xen.toolstack.xs.rm("/local/domain/1/memory/videoram")
    guest.set_memory(64)
    assert home(xen, guest, "memory/target") == "65536"


def test_the_balloon_follows_and_a_reboot_keeps_the_size(xen: Platform) -> None:
    guest = hvm(xen, memory=128, maxmem=128).start()
    before = guest.created.domain.tot_pages
    guest.set_memory(100)
    xen.advance(30)
    assert before - guest.created.domain.tot_pages == 28 * 256
    guest.set_memory(128)
    xen.advance(30)
    assert guest.created.domain.tot_pages == before
    guest.set_memory(100)
    guest.reboot()
    assert guest.created.config.memory_mib == 100
    assert home(xen, guest, "memory/static-max") == "131072"
    assert home(xen, guest, "memory/target") == str(100 * 1024 - 8192 - 1024)


def test_mem_set_is_one_transaction(xen: Platform) -> None:
    """A toolstack beside it changes the target before the commit: all of it is done again."""
    guest = hvm(xen)
    xs = xen.toolstack.xs
    other = xen.xenstored.connect_local("other")
    write, writes = xs.write, []

    def between(path: str, value: str, t: int = 0) -> None:
        writes.append(path)
        if len(writes) == 1:
            other.write(b"/local/domain/1/memory/target", b"1")
        write(path, value, t)

    xs.write = between  # type: ignore[method-assign]  # to be there between read and commit
    guest.set_memory(64)
    assert len(writes) == 4
    assert home(xen, guest, "memory/target") == "57344"


# vcpus

VCPUS: list[tuple[int, list[str] | int]] = [
    (1, ["online", "offline", "offline", "offline"]),
    (3, ["online", "online", "online", "offline"]),
    (4, ["online"] * 4),
    (0, INVAL),
    (-1, INVAL),
    (5, FAIL),
]


@pytest.mark.parametrize("make", [hvm, linux])
@pytest.mark.parametrize(("vcpus", "expected"), VCPUS)
def test_vcpu_set(
    xen: Platform, make: Callable[[Platform], Guest], vcpus: int, expected: list[str] | int
) -> None:
    guest = make(xen)

    def states() -> list[str | None]:
        return [home(xen, guest, f"cpu/{number}/availability") for number in range(4)]

    if isinstance(expected, int):
        with pytest.raises(ToolstackError, match=f"^{vcpus} vcpus: ") as caught:
            guest.set_vcpus(vcpus)
        assert caught.value.code == expected
        assert states() == ["online", "online", "offline", "offline"]
    else:
        guest.set_vcpus(vcpus)
        assert states() == expected
        assert guest.created.config.vcpus == vcpus


def test_a_reboot_keeps_the_vcpus(xen: Platform) -> None:
    guest = hvm(xen).start()
    guest.set_vcpus(3)
    guest.reboot()
    assert xen.dom0.domctl.getdomaininfo(guest.domid).nr_online_vcpus == 3


# sysrq, names, pauses


def test_sysrq_writes_one_character_and_linux_takes_it(xen: Platform) -> None:
    guest = linux(xen)
    guest.sysrq("h")
    assert home(xen, guest, "control/sysrq") == "h"
    guest.start()
    assert home(xen, guest, "control/sysrq") == ""


@pytest.mark.parametrize("letter", ["", "ab", "\xe9"])
def test_sysrq_of_anything_else(xen: Platform, letter: str) -> None:
    with pytest.raises(ToolstackError, match="^sysrq of .*: expected one character$") as caught:
        hvm(xen).sysrq(letter)
    assert caught.value.code == INVAL


def test_rename(xen: Platform) -> None:
    guest = hvm(xen).start()
    guest.rename("new")
    assert guest.name == "new"
    assert home(xen, guest, "name") == "new"
    assert xen.toolstack.xs.read(f"/vm/{guest.created.uuid}/name") == "new"
    assert xen.guest("new") is guest
    guest.rename("new")  # its own
    guest.reboot()
    assert guest.name == "new"


@pytest.mark.parametrize(
    ("name", "words"), [("l", "a domain named 'l' exists"), ("", "a domain needs a name")]
)
def test_rename_to_a_name_that_cannot_be(xen: Platform, name: str, words: str) -> None:
    guest, other = hvm(xen), linux(xen)
    with pytest.raises(ToolstackError, match=f"^{words}$") as caught:
        guest.rename(name)
    assert caught.value.code == INVAL
    assert (guest.name, home(xen, guest, "name")) == ("g", "g")
    other.destroy()
    guest.rename("l")  # it is free now


@pytest.mark.parametrize(("found", "words"), [("h", "is 'h'"), (None, "is missing")])
def test_rename_of_what_has_another_name_in_the_store(
    xen: Platform, found: str | None, words: str
) -> None:
    guest = hvm(xen)
    xen.toolstack.xs.rm("/local/domain/1/name")
    if found is not None:
        xen.toolstack.xs.write("/local/domain/1/name", found)
    expected = f"^/local/domain/1/name {words}, not 'g'$"
    with pytest.raises(ToolstackError, match=expected) as caught:
        guest.rename("new")
    assert caught.value.code == FAIL
    assert guest.name == "g"


def test_pauses_count_and_the_store_does_not_hear_of_them(xen: Platform) -> None:
    guest = hvm(xen).start()
    before = xen.xenstored.ls_fp()
    guest.pause()
    guest.pause()
    assert not guest.running
    guest.unpause()
    assert not guest.running
    guest.unpause()
    assert guest.running
    with pytest.raises(ToolstackError, match="^cannot unpause domain 1: it is not paused$") as e:
        guest.unpause()
    assert e.value.code == FAIL
    assert xen.xenstored.ls_fp() == before


def test_a_paused_guest_does_nothing_until_it_is_unpaused(xen: Platform) -> None:
    guest = hvm(xen).start()
    guest.pause()
    xen.toolstack.xs.write("/local/domain/1/control/shutdown", "poweroff")
    xen.run()
    assert home(xen, guest, "control/shutdown") == "poweroff"
    guest.unpause()
    assert guest.created.domain.shutdown_code == 0


COMMANDS: dict[str, Callable[[Guest], object]] = {
    "pause": Guest.pause,
    "unpause": Guest.unpause,
    "set_memory": lambda guest: guest.set_memory(64),
    "set_vcpus": lambda guest: guest.set_vcpus(1),
    "sysrq": lambda guest: guest.sysrq("h"),
    "rename": lambda guest: guest.rename("x"),
    "shutdown": Guest.shutdown,
    "reboot": Guest.reboot,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_of_a_domain_that_is_gone(xen: Platform, command: str) -> None:
    guest = hvm(xen)
    guest.destroy()
    before = xen.xenstored.ls_fp()
    with pytest.raises(ToolstackError, match="^domain 1 does not exist$") as caught:
        COMMANDS[command](guest)
    assert caught.value.code == NOTFOUND
    assert xen.xenstored.ls_fp() == before


# shutdown and reboot


@pytest.mark.parametrize("command", ["shutdown", "reboot"])
def test_a_guest_without_pv_drivers_is_not_asked(xen: Platform, command: str) -> None:
    guest = hvm(xen)  # it has not booted: no kernel has set a callback
    words = "^domain 1 has no PV drivers: it would not see a request to (poweroff|reboot)$"
    with pytest.raises(ToolstackError, match=words) as caught:
        COMMANDS[command](guest)
    assert caught.value.code == NOPARAVIRT
    assert home(xen, guest, "control/shutdown") == ""
    assert xen.loop.now == 0


def test_a_pv_guest_is_asked_whatever_it_runs(xen: Platform) -> None:
    guest = linux(xen)
    with pytest.raises(ToolstackError, match="^waited 60 s for domain 1 to acknowledge poweroff$"):
        guest.shutdown()
    assert home(xen, guest, "control/shutdown") == "poweroff"


def test_no_acknowledgement_within_60_s(xen: Platform) -> None:
    guest = hvm(xen).start()
    guest.pause()
    before = xen.loop.now
    with pytest.raises(ToolstackError, match="^waited 60 s ") as caught:
        guest.shutdown()
    assert caught.value.code == TIMEDOUT
    assert xen.loop.now - before == 60_000_000_000
    assert home(xen, guest, "control/shutdown") == "poweroff"  # not withdrawn
    guest.unpause()  # late, but it obeys
    assert guest.created.domain.shutdown_code == 0


def test_a_request_that_is_removed_is_acknowledged(xen: Platform) -> None:
    guest = hvm(xen).start()
    guest.pause()
    task = xen.dom0.task("remover", lambda: xen.toolstack.xs.rm("/local/domain/1/control/shutdown"))
    xen.dom0.timer(task).arm(30_000_000_000)
    xen.toolstack.runtime.request(guest.created, "poweroff")
    assert 30_000_000_000 <= xen.loop.now <= 30_100_000_000


def test_w_waits_for_the_end_and_ww_for_the_death(xen: Platform) -> None:
    guest = linux(xen).start()
    runtime, made = xen.toolstack.runtime, guest.created
    runtime.request(made, "poweroff")
    assert runtime.wait_shutdown(made) == 0
    with pytest.raises(ToolstackError, match="^waited 120 s for domain 1 to die$"):
        runtime.wait_death(made)
    xen.toolstack.destroy(made)
    runtime.wait_death(made)
    assert runtime.wait_shutdown(made) == 0


def test_a_reboot_keeps_name_uuid_and_macs_and_gives_a_domid(xen: Platform) -> None:
    image = MemoryImage(bytearray(1 << 20))
    guest = xen.create(name="web", disks=[Disk(image)], vifs=[Vif(), Vif()]).start()
    before = guest.created
    macs = [device.back["mac"] for device in before.devices if device.kind == "vif"]
    guest.disks[0].write(0, b"\x5a" * 512)
    assert guest.reboot() is guest
    after = guest.created
    assert (after.config.name, after.uuid) == ("web", before.uuid)
    assert (before.domid, after.domid) == (1, 2)
    assert [device.back["mac"] for device in after.devices if device.kind == "vif"] == macs
    assert guest.disks[0].read(0, 1) == b"\x5a" * 512
    assert "/local/domain/1" not in xen.xenstored.ls_fp()


def test_a_reboot_has_what_was_plugged_in_and_not_what_was_plugged_out(xen: Platform) -> None:
    guest = xen.create(name="web", vifs=[Vif(), Vif()]).start()
    guest.detach("vif", 0)
    guest.attach(Disk(MemoryImage(bytearray(1 << 20))))
    guest.reboot()
    assert [(one.kind, one.devid) for one in guest.created.devices] == [("vbd", 51712), ("vif", 1)]
    assert len(guest.disks) == len(guest.nets) == 1


# finding them


def test_guests_are_found_by_name_and_by_domid(xen: Platform) -> None:
    guest, other = hvm(xen), linux(xen)
    assert xen.guest("g") is xen.guest(1) is xen.guest("1") is guest
    assert xen.guest("l") is other
    guest.destroy()
    for gone in ("g", 1, "nobody", 99):
        with pytest.raises(ToolstackError, match="is no domain's name or domid$") as caught:
            xen.guest(gone)
        assert caught.value.code == INVAL


def test_the_store_refuses_what_a_guest_writes_meanwhile(xen: Platform) -> None:
    guest = linux(xen).start()
    assert guest.bus is not None
    for path in ("cpu/0/availability", "memory/target", "name"):
        with pytest.raises(StoreError, match="^EACCES"):
            guest.bus.store.write(path, "1")
