"""xl's waiting process: what it does by reason and configuration (xl_vmcontrol.c)."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from xenpv import Disk, Guest, MemoryImage, Platform, ToolstackError, Vif
from xenpv.errors import Livelock, LocalProtocolError
from xenpv.host.domainconfig import Action, DomainConfig, Personality

POWEROFF, REBOOT, SUSPEND, CRASH, WATCHDOG, SOFT_RESET = range(6)
NAMES = {
    POWEROFF: "on_poweroff",
    REBOOT: "on_reboot",
    CRASH: "on_crash",
    WATCHDOG: "on_watchdog",
    SOFT_RESET: "on_soft_reset",
}


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=5) as platform:
        yield platform


def monitored(xen: Platform, **fields: Any) -> Guest:
    config = DomainConfig(name="g", memory_mib=64, personality=Personality.LINUX, **fields)
    return xen.create_from(config, monitor=True).start()


def down(guest: Guest, reason: int) -> None:
    """Its kernel calls SCHEDOP_shutdown, and the platform runs."""
    guest.created.domain.sched.shutdown(reason)
    guest.platform.run()


def live(xen: Platform) -> dict[str, tuple[int, bool]]:
    """{name: (domid, runs)} by the store and the hypervisor."""
    domains = xen.hypervisor.domains
    return {
        xen.toolstack.xs.read(f"/local/domain/{domid}/name") or "": (domid, not one.is_shutdown)
        for domid, one in domains.items()
        if domid
    }


KEPT = "g-20260101T0000Z"  # the wall clock of the model starts there

# What is there after a domain 1 named g went down.
AFTER: dict[Action, dict[str, tuple[int, bool]]] = {
    Action.DESTROY: {},
    Action.RESTART: {"g": (2, True)},
    Action.RENAME_RESTART: {KEPT: (1, False), "g": (2, True)},
    Action.PRESERVE: {"g": (1, False)},
    Action.COREDUMP_DESTROY: {},
    Action.COREDUMP_RESTART: {"g": (2, True)},
    Action.SOFT_RESET: {"g": (1, True)},
}
WAITS_ON = (Action.RESTART, Action.RENAME_RESTART, Action.COREDUMP_RESTART, Action.SOFT_RESET)


@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("reason", list(NAMES))
def test_each_action_for_each_reason(xen: Platform, reason: int, action: Action) -> None:
    guest = monitored(xen, **{NAMES[reason]: action})
    uuid = guest.created.uuid
    down(guest, reason)
    assert live(xen) == AFTER[action]
    monitor = guest.monitor
    assert monitor is not None
    assert monitor.phase.name == ("WAITING" if action in WAITS_ON else "OVER")
    assert (monitor in xen.toolstack.monitors.waiting) == (action in WAITS_ON)
    dumped = action in (Action.COREDUMP_DESTROY, Action.COREDUMP_RESTART)
    assert list(xen.core_dumps) == (["g"] if dumped else [])
    assert xen.loop.now == (2_000_000_000 if action in WAITS_ON else 0)
    if action in WAITS_ON:
        assert guest.running
        assert guest.created.uuid == uuid
        assert guest.bus is not None
    told = f"Action for shutdown reason code {reason} is {action.value}"
    assert told in monitor.log


# A configuration that says nothing: the reason, and what is there then.
DEFAULTS = [
    (POWEROFF, {}),
    (REBOOT, {"g": (2, True)}),
    (SUSPEND, {"g": (1, False)}),
    (CRASH, {}),
    (WATCHDOG, {}),
    (SOFT_RESET, {"g": (1, True)}),
    (6, {}),
    (99, {}),
    (255, {}),
]


@pytest.mark.parametrize(("reason", "after"), DEFAULTS)
def test_the_defaults(xen: Platform, reason: int, after: dict[str, tuple[int, bool]]) -> None:
    guest = monitored(xen)
    down(guest, reason)
    assert live(xen) == after


def test_an_unknown_reason_is_said(xen: Platform) -> None:
    guest = monitored(xen)
    down(guest, 9)
    assert guest.monitor is not None
    assert list(guest.monitor.log) == [
        "Waiting for domain g (domid 1) to die",
        "Domain 1 has shut down, reason code 9 0x9",
        "Unknown shutdown reason code 9. Destroying domain.",
        "Domain 1 needs to be cleaned up: destroying the domain",
        "Done. Exiting now",
    ]


def test_without_a_monitor_a_domain_stays_as_it_fell(xen: Platform) -> None:
    guest = xen.create(name="g", personality="linux").start()
    assert guest.monitor is None
    down(guest, CRASH)
    xen.advance(100)
    assert live(xen) == {"g": (1, False)}


# restarts


def test_a_restart_comes_after_2_s_and_not_before(xen: Platform) -> None:
    guest = monitored(xen)
    guest.created.domain.sched.shutdown(REBOOT)
    xen.advance(1.9)
    assert live(xen) == {}
    xen.advance(0.1)
    assert live(xen) == {"g": (2, True)}
    assert guest.running


def test_advance_lets_pass_what_it_was_told(xen: Platform) -> None:
    monitored(xen)
    before = xen.loop.now
    xen.advance(7.25)
    assert xen.loop.now - before == 7_250_000_000


def test_an_end_during_advance_is_acted_on_within_a_step(xen: Platform) -> None:
    guest = monitored(xen)
    domain = guest.created.domain
    task = domain.task("reboots", lambda: domain.sched.shutdown(REBOOT))
    domain.timer(task).arm(5_000_000_000)
    xen.advance(10)
    assert guest.domid == 2
    assert xen.loop.now == 10_000_000_000
    start = xen.toolstack.xs.read(f"/vm/{guest.created.uuid}/start_time")
    assert start is not None
    assert 7.0 <= float(start) - 1_767_225_600 <= 7.2  # 5 s, a step of 100 ms, 2 s


def test_a_restart_is_by_the_live_configuration(xen: Platform) -> None:
    guest = xen.create(name="g", vifs=[Vif(), Vif()], monitor=True).start()
    guest.attach(Disk(MemoryImage(bytearray(1 << 20))))
    guest.detach("vif", 0)
    guest.set_memory(32)
    guest.rename("h")
    guest.reboot()
    assert (guest.name, guest.domid) == ("h", 2)
    assert [(one.kind, one.devid) for one in guest.created.devices] == [("vbd", 51712), ("vif", 1)]
    assert guest.created.config.memory_mib == 32


def test_a_guest_that_reboots_reads_what_it_wrote_before(xen: Platform) -> None:
    image = MemoryImage(bytearray(1 << 20))
    guest = xen.create(name="g", disks=[Disk(image)], vifs=[Vif()], monitor=True).start()
    for round_ in range(1, 4):
        guest.disks[0].write(round_, bytes([round_]) * 512)
        guest.reboot()
        assert guest.disks[0].read(round_, 1) == bytes([round_]) * 512
    assert guest.domid == 4


def test_shutdown_and_reboot_of_a_guest_follow_the_configuration(xen: Platform) -> None:
    guest = monitored(xen, on_poweroff=Action.PRESERVE, on_reboot=Action.DESTROY)
    assert guest.shutdown() == POWEROFF
    assert live(xen) == {"g": (1, False)}
    guest.destroy()
    other = monitored(xen, on_reboot=Action.DESTROY)
    assert other.reboot() is other
    assert live(xen) == {}


def test_two_guests_restart_each_in_its_time(xen: Platform) -> None:
    first = monitored(xen)
    second = xen.create(name="b", personality="linux", monitor=True).start()
    first.created.domain.sched.shutdown(REBOOT)
    xen.advance(1)
    second.created.domain.sched.shutdown(REBOOT)
    xen.advance(1)
    assert (first.domid, second.domid) == (3, 2)
    xen.run()
    assert (first.domid, second.domid) == (3, 4)
    assert xen.loop.now == 3_000_000_000


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_a_guest_that_crashes_at_each_boot_does_not_loop_for_ever(
    xen: Platform, personality: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DomainConfig(
        name="g", memory_mib=64, personality=Personality(personality), on_crash=Action.RESTART
    )
    monkeypatch.setattr(Guest, "_boot", lambda one: one.created.domain.sched.shutdown(CRASH))
    guest = xen.create_from(config, monitor=True)
    words = "^guest 'g' went down after each of 10 restarts, the last time with reason code 3"
    with pytest.raises(Livelock, match=words):
        guest.start()
    assert live(xen) == {"g": (11, False)}
    assert xen.toolstack.monitors.waiting == []
    xen.run()  # nobody acts any more
    assert live(xen) == {"g": (11, False)}


def test_with_time_it_restarts_as_often_as_there_is_time(
    xen: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = monitored(xen, on_crash=Action.RESTART)
    monkeypatch.setattr(Guest, "_boot", lambda one: one.created.domain.sched.shutdown(CRASH))
    guest.created.domain.sched.shutdown(CRASH)
    xen.advance(41)
    assert guest.monitor is not None
    assert guest.monitor.restarts == 20


# what ends it


def test_a_destroyed_domain_ends_its_monitor(xen: Platform) -> None:
    guest = monitored(xen)
    guest.destroy()
    xen.run()
    assert guest.monitor is not None
    assert list(guest.monitor.log)[-1] == "Domain 1 has been destroyed."
    assert xen.toolstack.monitors.waiting == []


def test_a_domain_killed_behind_the_toolstacks_back_ends_it_too(xen: Platform) -> None:
    guest = monitored(xen)
    xen.dom0.domctl.destroydomain(1)
    xen.run()
    assert guest.monitor is not None
    assert guest.monitor.phase.name == "OVER"
    guest.destroy()
    assert "/1" not in xen.xenstored.ls_fp()


def test_it_waits_on_while_the_domain_is_suspended(xen: Platform) -> None:
    guest = monitored(xen)
    guest.suspend()
    xen.advance(10)
    assert guest.monitor is not None
    assert guest.monitor.phase.name == "SUSPENDED"
    assert list(guest.monitor.log)[-1] == "Domain has suspended."
    guest.resume()
    assert guest.monitor.phase.name == "WAITING"
    guest.suspend()
    xen.run()
    assert guest.monitor.phase.name == "SUSPENDED"
    guest.resume()
    down(guest, REBOOT)
    assert live(xen) == {"g": (2, True)}


def test_a_domain_that_cannot_be_made_again_ends_it(xen: Platform) -> None:
    image = MemoryImage(bytearray(1 << 20))
    guest = xen.create(name="g", disks=[Disk(image)], monitor=True).start()
    disk = guest.created.config.disks[0]
    gone = attrs.evolve(disk, target="/nowhere.img")
    guest.created.config = attrs.evolve(guest.created.config, disks=(gone,))
    down(guest, REBOOT)
    assert live(xen) == {}
    monitor = guest.monitor
    assert monitor is not None
    assert isinstance(monitor.failure, ToolstackError)
    assert list(monitor.log)[-1].startswith("it cannot be made again: vbd 51712: ")
    assert monitor.phase.name == "OVER"


# rename-restart


def test_the_kept_domain_has_another_name_uuid_and_vm_directory(xen: Platform) -> None:
    guest = monitored(xen, on_crash=Action.RENAME_RESTART)
    uuid = guest.created.uuid
    xen.advance(3 * 3600 + 4 * 60 + 59)
    down(guest, CRASH)
    kept = xen.guest("g-20260101T0304Z")
    assert (guest.domid, guest.created.uuid) == (2, uuid)
    assert kept.domid == 1
    assert kept.created.uuid != uuid
    vm = f"/vm/{kept.created.uuid}"
    read = xen.toolstack.xs.read
    assert read("/local/domain/1/vm") == vm
    assert read(f"{vm}/uuid") == kept.created.uuid
    assert read(f"{vm}/name") == "g-20260101T0304Z"
    assert read(f"/vm/{uuid}/name") == "g"
    permissions = [line for line in xen.xenstored.ls_fp().splitlines() if line.startswith(vm)]
    assert all(line.endswith("(n0,r1)") for line in permissions)
    info = xen.dom0.domctl.getdomaininfo(1)
    assert info.handle.hex() == kept.created.uuid.replace("-", "")
    assert kept.bus is not None  # what is left of its kernel can be looked at
    assert kept.created.domain.shutdown_code == CRASH
    with pytest.raises(LocalProtocolError, match="does not run"):
        kept.crash()
    kept.destroy()
    assert live(xen) == {"g": (2, True)}
    assert guest.running


def test_two_crashes_in_one_minute_cannot_both_be_kept(xen: Platform) -> None:
    guest = monitored(xen, on_crash=Action.RENAME_RESTART)
    down(guest, CRASH)
    down(guest, CRASH)
    assert live(xen) == {KEPT: (1, False), "g": (2, False)}
    assert guest.monitor is not None
    assert list(guest.monitor.log)[-1] == f"it cannot be renamed: a domain named '{KEPT}' exists"
    assert guest.monitor.phase.name == "OVER"


def test_a_name_taken_in_the_meantime_fails_the_restart(xen: Platform) -> None:
    guest = monitored(xen)
    guest.created.domain.sched.shutdown(REBOOT)
    xen.advance(1)
    xen.create(name="g")
    xen.run()
    assert guest.monitor is not None
    assert list(guest.monitor.log)[-1] == "it cannot be made again: a domain named 'g' exists"


# soft reset


@pytest.mark.parametrize("personality", ["windows", "linux"])
@pytest.mark.parametrize("vcpus", [1, 2])
def test_a_soft_reset_keeps_the_domain_and_its_memory(
    xen: Platform, personality: str, vcpus: int
) -> None:
    image = MemoryImage(bytearray(1 << 20))
    guest = xen.create(
        name="g", personality=personality, vcpus=vcpus,
        disks=[Disk(image)], vifs=[Vif()], monitor=True,
    ).start()  # fmt: skip
    domain, uuid = guest.created.domain, guest.created.uuid
    pfn = 8000  # neither kernel comes as far up
    domain.write(pfn, 0, b"still here")
    guest.disks[0].write(5, b"q" * 512)
    before = census(xen)
    printed = guest.console
    for _ in range(3):
        down(guest, SOFT_RESET)
        assert guest.running
        assert (guest.created.domain, guest.domid, guest.created.uuid) == (domain, 1, uuid)
        assert domain.read(pfn, 0, 10) == b"still here"
        assert guest.disks[0].read(5, 1) == b"q" * 512
        assert census(xen) == before
        assert xen.toolstack.xs.read("/local/domain/1/console/tty") == "/dev/pts/1"
    assert guest.console is printed
    assert guest.shutdown() == POWEROFF
    assert list(xen.hypervisor.domains) == [0]


def census(xen: Platform) -> dict[str, object]:
    """What is held: ports, maps and store nodes of every domain."""
    domains = xen.hypervisor.domains.values()
    return {
        "ports": [one.evtchn.bound() for one in domains],
        "maps": [len(one.gnttab.maptrack) for one in domains],
        "pages": [one.tot_pages for one in domains],
        "nodes": sorted(line.split(" = ")[0] for line in xen.xenstored.ls_fp().splitlines()),
    }


def test_a_soft_reset_that_fails_destroys_the_domain(xen: Platform) -> None:
    guest = xen.create(
        name="g", disks=[Disk(MemoryImage(bytearray(1 << 20)))], monitor=True
    ).start()
    xen.images.check = refuse  # type: ignore[method-assign]  # the image is gone meanwhile
    down(guest, SOFT_RESET)
    assert live(xen) == {}
    assert guest.monitor is not None
    assert list(guest.monitor.log)[-1] == "it cannot be made again: no such image"


def refuse(*_arguments: object, **_keywords: object) -> None:
    raise ToolstackError("no such image")


def test_what_a_guest_wrote_is_gone_after_a_soft_reset(xen: Platform) -> None:
    guest = monitored(xen)
    assert guest.bus is not None
    guest.bus.store.write("data/mine", "x")
    down(guest, SOFT_RESET)
    assert xen.toolstack.xs.read("/local/domain/1/data/mine") is None


# core files


def sections(data: bytes) -> dict[str, bytes]:
    """An ELF file's sections, by our own reading of the header."""
    assert data[:7] == b"\x7fELF\x02\x01\x01"
    kind, machine = struct.unpack_from("<HH", data, 16)
    assert (kind, machine) == (4, 62)  # ET_CORE, EM_X86_64
    (shoff,) = struct.unpack_from("<Q", data, 40)
    entry, count, names = struct.unpack_from("<HHH", data, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, shoff + n * entry) for n in range(count)]
    text = data[headers[names][4] :]
    found = {}
    for name, _kind, _flags, _address, offset, size, *_ in headers[1:]:
        found[text[name : text.index(b"\0", name)].decode()] = data[offset : offset + size]
    return found


def test_a_core_file_has_the_memory_of_the_domain(xen: Platform, tmp_path: Path) -> None:
    xen.dump_directory = tmp_path
    guest = monitored(xen, on_crash=Action.COREDUMP_DESTROY)
    domain = guest.created.domain
    pfn = domain.pages.alloc()
    domain.write(pfn, 0, b"look here")
    down(guest, CRASH)
    assert xen.core_dumps == {}
    data = (tmp_path / "g").read_bytes()
    parts = sections(data)
    assert list(parts) == [".shstrtab", ".note.Xen", ".xen_pages", ".xen_pfn"]
    pfns = [value for (value,) in struct.iter_unpack("<Q", parts[".xen_pfn"])]
    assert pfns == sorted(set(pfns))
    assert len(parts[".xen_pages"]) == 4096 * len(pfns)
    at = pfns.index(pfn) * 4096
    assert parts[".xen_pages"][at : at + 9] == b"look here"
    magic = struct.pack("<QQQQ", 0xF00FEBEE, 1, len(pfns), 4096)
    assert magic in parts[".note.Xen"]
    listed = subprocess.run(
        ["readelf", "-hSn", tmp_path / "g"], check=True, capture_output=True, text=True
    )
    assert "CORE (Core file)" in listed.stdout
    assert ".xen_pages" in listed.stdout
    assert not listed.stderr
    kinds = []
    notes = parts[".note.Xen"]
    while notes:
        name_size, size, kind = struct.unpack_from("<III", notes)
        assert notes[12 : 12 + name_size] == b"Xen\0"
        kinds.append(kind)
        notes = notes[12 + name_size + size :]
    assert kinds == [0x2000000, 0x2000001, 0x2000003]  # NONE, HEADER, FORMAT_VERSION


@pytest.mark.parametrize("name", ["../g", "a/b"])
def test_a_name_is_no_way_out_of_the_directory(xen: Platform, tmp_path: Path, name: str) -> None:
    xen.dump_directory = tmp_path / "in"
    (tmp_path / "in").mkdir()
    guest = monitored(xen, on_crash=Action.COREDUMP_DESTROY)
    guest.rename(name)
    down(guest, CRASH)
    assert guest.monitor is not None
    said = f"core dump failed: a domain named '{name}' cannot name its core file"
    assert said in guest.monitor.log
    assert [path.name for path in tmp_path.rglob("*")] == ["in"]
    assert live(xen) == {}


def test_a_dump_that_fails_is_only_said(xen: Platform, tmp_path: Path) -> None:
    xen.dump_directory = tmp_path / "missing"
    guest = monitored(xen, on_crash=Action.COREDUMP_RESTART)
    down(guest, CRASH)
    assert live(xen) == {"g": (2, True)}
    assert guest.monitor is not None
    assert any(line.startswith("core dump failed: ") for line in guest.monitor.log)


# hostile stores


@pytest.mark.parametrize("root", ["/local/domain/1", "/libxl/1", "vm"])
@pytest.mark.parametrize("action", [Action.RESTART, Action.DESTROY, Action.RENAME_RESTART])
def test_trees_that_somebody_deleted_early(xen: Platform, root: str, action: Action) -> None:
    guest = xen.create_from(
        DomainConfig(name="g", memory_mib=64, on_reboot=action), monitor=True
    ).start()
    xen.toolstack.xs.rm(f"/vm/{guest.created.uuid}" if root == "vm" else root)
    down(guest, REBOOT)
    assert guest.monitor is not None
    if action is Action.RENAME_RESTART and root == "/local/domain/1":
        said = "it cannot be renamed: /local/domain/1/name is missing, not 'g'"
        assert list(guest.monitor.log)[-1] == said
        guest.destroy()
    elif action is Action.DESTROY:
        assert live(xen) == {}
    else:
        assert live(xen)["g"] == (2, True)
    for one in xen.guests:
        one.destroy()
    assert list(xen.hypervisor.domains) == [0]
    left = xen.xenstored.ls_fp()
    assert "/vm/" not in left
    assert "/libxl/" not in left
    assert "/local/domain/1" not in left
