"""Devices that come and go while their guest is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from xenpv import Disk, Guest, MemoryImage, Platform, ToolstackError, Vif
from xenpv.errors import ConfigError, LocalProtocolError
from xenpv.host.device import Device, DeviceKey, stored
from xenpv.host.hotplug import Mode
from xenpv.host.hotplugscript import Action, ScriptCall, ScriptProcess, ScriptStore
from xenpv.host.libxl import LIBXL
from xenpv.host.scripts import Scripts
from xenpv.testing.census import leaks, take_census
from xenpv.xen.loop import NS_PER_S

MIB = 1 << 20
PERSONALITIES = ["windows", "linux"]
DEVID = {"vbd": 51728, "vif": 1}  # the second of each


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=1) as platform:
        yield platform


def image() -> MemoryImage:
    return MemoryImage(bytearray(MIB))


def make(xen: Platform, personality: str = "windows") -> Guest:
    """Two disks and two interfaces, created and paused."""
    return xen.create(
        name="g",
        personality=personality,
        disks=[Disk(image()), Disk(image())],
        vifs=[Vif(), Vif()],
    )


@pytest.mark.parametrize("personality", PERSONALITIES)
def test_what_is_plugged_in_works_and_goes(xen: Platform, personality: str) -> None:
    guest = make(xen, personality).start()
    assert (guest.attach(Disk(image())), guest.attach(Vif())) == (51744, 2)
    guest.disks[2].write(3, b"x" * 512)
    assert guest.disks[2].read(3, 1) == b"x" * 512
    frame = b"\xff" * 6 + guest.nets[2].mac + bytes(48)
    guest.nets[2].send(frame)
    xen.run()
    assert xen.bridge("xenbr0").frames[-1] == frame
    guest.detach(guest.disks[2])
    guest.detach(guest.nets[2])
    assert [disk.devid for disk in guest.disks] == [51712, 51728]
    assert [net.number for net in guest.nets] == [0, 1]
    assert xen.loop.now == 0  # nobody had to be waited for


# What a guest is like, and how it becomes so.


def running(guest: Guest, kind: str) -> None:
    guest.start()


def created(guest: Guest, kind: str) -> None:
    """Paused from the beginning: half a boot, and no drivers yet."""


def paused(guest: Guest, kind: str) -> None:
    guest.start().pause()


def crashed(guest: Guest, kind: str) -> None:
    guest.start().created.domain.shutdown(3)
    guest.platform.run()


def in_use(guest: Guest, kind: str) -> None:
    """Somebody has the device open, so that the guest refuses."""
    guest.start()
    opened(guest, kind).handles += 1


def opened(guest: Guest, kind: str):
    if kind == "vbd":
        return guest.disks[1].target
    assert guest._vif is not None
    return guest._vif.pdos[1]


def deaf(guest: Guest, kind: str) -> None:
    """It runs, and nothing in it looks at the store: it never answers."""
    guest.start()
    domain = guest.created.domain
    for task in domain.tasks:
        task.retire()


def closed(guest: Guest, kind: str) -> None:
    """Its driver was unloaded: both ends are Closed."""
    guest.start()
    driver = guest._vbd if kind == "vbd" else guest._vif
    assert driver is not None
    driver.stop()
    guest.platform.run()


def backend_gone(guest: Guest, kind: str) -> None:
    guest.start()
    guest.platform.toolstack.xs.rm(f"/local/domain/0/backend/{kind}/1/{DEVID[kind]}")
    guest.platform.run()


def relinked(guest: Guest, kind: str) -> None:
    """It says that its backend is another."""
    guest.start()
    assert guest.bus is not None
    home = f"device/{kind}/{DEVID[kind]}"
    guest.bus.store.write(f"{home}/backend", "/local/domain/0/backend/vif/9/9")
    guest.bus.store.write(f"{home}/backend-id", "5")
    guest.platform.run()


def frontend_gone(guest: Guest, kind: str) -> None:
    """It removed its own directory."""
    guest.start()
    assert guest.bus is not None
    guest.bus.store.remove(f"device/{kind}/{DEVID[kind]}")
    guest.platform.run()


OK, LATE = "", "TIMEDOUT"
ALL, NONE = "FBL", ""  # directories that are left: frontend, backend, the toolstack's own

# (guest, kinds): for safe, auto and forced: error, virtual seconds, what is left
REMOVALS: list[tuple[Callable[[Guest, str], None], str, tuple[tuple[str, float, str], ...]]] = [
    (running,       "vbd vif", ((OK,   0,  NONE), (OK,   0,    NONE), (OK,   0,  NONE))),
    (created,       "vbd vif", ((LATE, 10, ALL),  (OK,   10.1, NONE), (OK,   0,  NONE))),
    (paused,        "vbd vif", ((LATE, 10, ALL),  (OK,   10.1, NONE), (OK,   0,  NONE))),
    (crashed,       "vbd vif", ((LATE, 10, ALL),  (OK,   10.1, NONE), (OK,   0,  NONE))),
    (in_use,        "vbd vif", ((LATE, 10, ALL),  (OK,   10.1, NONE), (OK,   0,  NONE))),
    (deaf,          "vbd vif", ((LATE, 10, ALL),  (OK,   10.1, NONE), (OK,   0,  NONE))),
    (closed,        "vbd vif", ((OK,   0,  NONE), (OK,   0,    NONE), (OK,   0,  NONE))),
    (backend_gone,  "vbd vif", ((OK,   0,  NONE), (OK,   0,    NONE), (OK,   0,  NONE))),
    (relinked,      "vbd vif", ((LATE, 10, ALL),  (OK,   10.1, NONE), (OK,   0,  NONE))),
    # Linux' netback closes when its frontend goes; blkback lets go of all and says nothing.
    (frontend_gone, "vif",     ((OK,   0,  NONE), (OK,   0,    NONE), (OK,   0,  NONE))),
    (frontend_gone, "vbd",     ((LATE, 10, "BL"), (LATE, 20,   NONE), (LATE, 10, NONE))),
]  # fmt: skip
CASES = [
    pytest.param(situation, kind, mode, *expected, id=f"{situation.__name__}-{kind}-{mode}")
    for situation, kinds, row in REMOVALS
    for kind in kinds.split()
    for mode, expected in zip(("safe", "auto", "forced"), row, strict=True)
]


def left(xen: Platform, kind: str, devid: int) -> str:
    """The letters of the directories that are there."""
    paths = {
        "F": f"/local/domain/1/device/{kind}/{devid}",
        "B": f"/local/domain/0/backend/{kind}/1/{devid}",
        "L": f"/libxl/1/device/{kind}/{devid}",
    }
    return "".join(one for one, path in paths.items() if xen.toolstack.xs.read(path) is not None)


@pytest.mark.parametrize("personality", PERSONALITIES)
@pytest.mark.parametrize(("situation", "kind", "mode", "error", "seconds", "stays"), CASES)
def test_removal(
    xen: Platform,
    personality: str,
    situation: Callable[[Guest, str], None],
    kind: str,
    mode: str,
    error: str,
    seconds: float,
    stays: str,
) -> None:
    if (personality, situation, kind) == ("linux", in_use, "vbd"):
        pytest.skip("blkfront closes whoever has the disk open")
    guest = make(xen, personality)
    situation(guest, kind)
    begin = xen.loop.now
    code = ""
    try:
        guest.detach(kind, DEVID[kind], mode=mode)
    except ToolstackError as raised:
        code = raised.code.name
    assert (code, (xen.loop.now - begin) / NS_PER_S) == (error, pytest.approx(seconds, abs=0.15))
    assert left(xen, kind, DEVID[kind]) == stays
    config = guest.created.config
    assert len(config.disks if kind == "vbd" else config.vifs) == (2 if stays else 1)
    # The others are as they were, and all of it goes with the domain.
    assert {left(xen, *one) for one in (("vbd", 51712), ("vif", 0))} == {ALL}
    guest.destroy()
    listed = xen.xenstored.ls_fp()
    assert "/backend/v" not in listed and "/libxl/1" not in listed


REFUSALS = [
    ("vbd", "/local/domain/1/device/vbd/51728/error", "Unplug failed due to open handle(s)!"),
    ("vif", "/local/domain/1/error/device/vif/1/error", "UNPLUG FAILED: device is still in use"),
]


@pytest.mark.parametrize(("kind", "path", "text"), REFUSALS, ids=["vbd", "vif"])
def test_a_guest_says_that_it_refuses_and_may_let_go_later(
    xen: Platform, kind: str, path: str, text: str
) -> None:
    guest = make(xen)
    in_use(guest, kind)
    with pytest.raises(ToolstackError, match=f"^waited 10 s for .*/{kind}/1/.* to reach state 6$"):
        guest.detach(kind, DEVID[kind], mode="safe")
    assert xen.toolstack.xs.read(path) == text
    opened(guest, kind).handles = 0
    guest.detach(kind, DEVID[kind], mode="auto")
    assert len(guest.disks if kind == "vbd" else guest.nets) == 1


@pytest.mark.parametrize("kind", ["vbd", "vif"])
@pytest.mark.parametrize("personality", PERSONALITIES)
def test_a_paused_guest_sees_it_when_it_runs_again(
    xen: Platform, personality: str, kind: str
) -> None:
    guest = make(xen, personality).start()
    guest.pause()
    guest.detach(kind, DEVID[kind], mode="forced")
    plugged = guest.attach(Disk(image()) if kind == "vbd" else Vif())
    assert plugged == DEVID[kind]  # which is free again
    other = guest.attach(Disk(image()) if kind == "vbd" else Vif())
    guest.unpause()
    xen.run()
    if kind == "vbd":
        assert [disk.devid for disk in guest.disks] == [51712, 51728, other]
    else:
        assert [net.number for net in guest.nets] == [0, 1, other]
    assert all(up for _kind, _devid, up in guest._connections())


@pytest.mark.parametrize("personality", PERSONALITIES)
def test_what_was_attached_and_detached_is_so_after_a_reboot(
    xen: Platform, personality: str
) -> None:
    guest = make(xen, personality).start()
    guest.detach("vbd", 51712)
    guest.detach("vif", 0)
    guest.attach(Disk(image(), "xvdq"))
    guest.attach(Vif(mac="00:16:3e:00:00:07"))
    guest.reboot()
    assert [disk.devid for disk in guest.disks] == [51728, 268439552]
    assert [net.number for net in guest.nets] == [1, 2]
    assert guest.nets[1].mac.hex() == "00163e000007"


@pytest.mark.parametrize("personality", PERSONALITIES)
def test_cycles_leave_nothing_behind(xen: Platform, personality: str) -> None:
    guest = make(xen, personality).start()
    disk = image()

    def cycle(number: int) -> None:
        devids = guest.attach(Disk(disk)), guest.attach(Vif())
        assert devids == (51744, 2)
        data = bytes([number & 0xFF]) * 512
        guest.disks[2].write(number, data)
        assert guest.disks[2].read(number, 1) == data
        guest.nets[2].send(b"\xff" * 6 + guest.nets[2].mac + bytes(48))
        mode = ("safe", "auto", "forced")[number % 3]
        guest.detach("vbd", 51744, mode=mode)
        guest.detach("vif", 2, mode=mode)

    for number in range(3):
        cycle(number)
    before = take_census(xen)
    config = guest.created.config
    for number in range(200):
        cycle(number)
    assert leaks(before, take_census(xen)) == []
    assert guest.created.config == config
    assert xen.loop.now == 0


def test_the_last_device_of_a_kind_takes_its_directories_with_it(xen: Platform) -> None:
    guest = make(xen).start()
    for devid in (51712, 51728):
        guest.detach("vbd", devid)
    for path in (
        "/local/domain/1/device/vbd",
        "/local/domain/0/backend/vbd",
        "/libxl/1/device/vbd",
    ):
        assert xen.toolstack.xs.read(path) is None
    assert guest.attach(Disk(image())) == 51712
    assert [disk.devid for disk in guest.disks] == [51712]


# attach: numbers and refusals


def test_the_next_devid_is_the_last_listed_and_one(xen: Platform) -> None:
    guest = make(xen).start()
    guest.detach("vif", 0)
    assert guest.attach(Vif()) == 2
    guest.detach("vif", 2)
    assert guest.attach(Vif()) == 2


def test_the_next_disk_is_the_first_free_name_that_is_no_others_target(xen: Platform) -> None:
    names = ["hda", "xvdc"]
    guest = xen.create(name="g", disks=[Disk(image(), name) for name in names]).start()
    # hda is target 0 of XenVbd, as xvda would be.
    assert [guest.attach(Disk(image())) for _ in range(2)] == [51728, 51760]


def test_a_device_that_exists_is_refused_and_stays(xen: Platform) -> None:
    guest = make(xen).start()
    config = guest.created.config
    with pytest.raises(ToolstackError, match="^vbd 51712 of domain 1 already exists") as raised:
        guest.attach(Disk(image(), "xvda"))
    assert raised.value.code is LIBXL.DEVICE_EXISTS
    assert guest.created.config == config
    assert guest.disks[0].read(0, 1)


def test_a_domain_that_is_gone_takes_no_device(xen: Platform) -> None:
    guest = make(xen).start()
    guest.destroy()
    for call in (lambda: guest.attach(Vif()), lambda: guest.detach("vif", 0)):
        with pytest.raises(ToolstackError) as raised:
            call()
        assert raised.value.code is LIBXL.DOMAIN_NOTFOUND
    assert "/vif" not in xen.xenstored.ls_fp()


def test_a_failed_hot_add_leaves_its_nodes_to_be_detached(xen: Platform) -> None:
    guest = make(xen).start()
    with pytest.raises(
        ToolstackError, match=r"^vbd 51744: disk image .*nowhere\.img does not exist"
    ):
        guest.attach(Disk("nowhere.img"))
    xs = xen.toolstack.xs
    path = "/local/domain/0/backend/vbd/1/51744"
    assert left(xen, "vbd", 51744) == ALL
    assert xs.read(f"{path}/hotplug-status") == "error"
    assert "nowhere.img" in (xs.read(f"{path}/hotplug-error") or "")
    guest.detach("vbd", 51744)
    assert left(xen, "vbd", 51744) == NONE
    assert len(guest.created.config.disks) == 2


def test_a_file_in_use_is_busy(xen: Platform, tmp_path) -> None:
    path = tmp_path / "shared.img"
    path.write_bytes(bytes(MIB))
    guest, other = make(xen).start(), xen.create(name="other").start()
    guest.attach(Disk(path))
    with pytest.raises(ToolstackError, match="is in use"):
        other.attach(Disk(path))
    xs = xen.toolstack.xs
    assert xs.read("/local/domain/0/backend/vbd/2/51712/hotplug-status") == "busy"
    assert xs.read("/local/domain/0/backend/vbd/1/51744/node") == "/dev/loop0"
    assert xs.read("/local/domain/0/backend/vbd/1/51744/physical-device") == "7:0"
    guest.detach("vbd", 51744)
    other.detach("vbd", 51712)
    assert other.attach(Disk(path)) == 51712


BAD_CALLS = [
    (lambda guest: guest.detach("vtpm", 0), "^detach 'vtpm' 0: expected vbd or vif, and a devid$"),
    (lambda guest: guest.detach("vbd"), "^detach 'vbd' None: expected vbd or vif, and a devid$"),
    (
        lambda guest: guest.detach("vbd", 51712, mode="hard"),
        "^mode 'hard': expected safe, auto or forced$",
    ),
]


@pytest.mark.parametrize(("call", "text"), BAD_CALLS)
def test_bad_calls(xen: Platform, call, text: str) -> None:
    guest = make(xen).start()
    with pytest.raises(LocalProtocolError, match=text):
        call(guest)
    with pytest.raises(ToolstackError, match="^domain 1 has no vif 7$") as raised:
        guest.detach("vif", 7)
    assert raised.value.code is LIBXL.INVAL
    with pytest.raises(ConfigError, match="disk sda is target 0"):
        guest.attach(Disk(image(), "sda"))  # which Windows could not tell from xvda
    assert len(guest.created.config.disks) == 2


# scripts


class Recorder(Scripts):
    """The host's scripts, with their calls; `slow` seconds pass before one ends."""

    def __init__(self, scripts: Scripts, xen: Platform, slow: float = 0.0) -> None:
        super().__init__(scripts.images, scripts.network)
        self.xen = xen
        self.slow = slow
        self.calls: list[ScriptCall] = []
        self.fails: tuple[Action, ...] = ()
        self.running: list[Running] = []

    def start(self, call: ScriptCall, xs: ScriptStore) -> ScriptProcess:
        self.calls.append(call)
        if call.action in self.fails:
            return ScriptProcess(7)
        if not self.slow:
            return super().start(call, xs)
        process = Running(super().start(call, xs), self.xen, self.slow)
        self.running.append(process)
        return process


class Running(ScriptProcess):
    """It ends as it would, but later."""

    def __init__(self, process: ScriptProcess, xen: Platform, seconds: float) -> None:
        self._process, self._xen = process, xen
        self._ends = xen.loop.now + round(seconds * NS_PER_S)
        self.killed = False

    @property
    def status(self) -> int | None:  # type: ignore[override] # of a process that takes time
        return self._process.status if self._xen.loop.now >= self._ends else None

    def kill(self) -> None:
        self.killed = True


def record(xen: Platform, slow: float = 0.0) -> Recorder:
    scripts = xen.toolstack.hotplug.scripts
    assert isinstance(scripts, Scripts)
    recorder = xen.toolstack.hotplug.scripts = Recorder(scripts, xen, slow)
    return recorder


def vif_environment(number: int, **more: str) -> dict[str, str]:
    return {
        "script": "/etc/xen/scripts/vif-bridge",
        "XENBUS_TYPE": "vif",
        "XENBUS_PATH": f"backend/vif/1/{number}",
        "XENBUS_BASE_PATH": "backend",
        "netdev": "",
        "vif": f"vif1.{number}",
        **more,
    }


BLOCK = {
    "script": "/etc/xen/scripts/block",
    "XENBUS_TYPE": "vbd",
    "XENBUS_PATH": "backend/vbd/1/51712",
    "XENBUS_BASE_PATH": "backend",
}
CALLS = {
    # A guest of Windows is HVM: what it has at creation has an emulated twin with a tap.
    "created": [
        (("add",), BLOCK),
        (("online", "type_if=vif"), vif_environment(0)),
        (("add", "type_if=tap"), vif_environment(0, INTERFACE="vif1.0-emu")),
    ],
    "attached": [(("online", "type_if=vif"), vif_environment(1))],
    "detached": [(("offline", "type_if=vif"), vif_environment(1))],
    "destroyed": [
        (("remove",), BLOCK),
        (("offline", "type_if=vif"), vif_environment(0)),
        (("remove", "type_if=tap"), vif_environment(0, INTERFACE="vif1.0-emu")),
    ],
}


def test_scripts_have_libxls_arguments_and_environment(xen: Platform) -> None:
    recorder = record(xen)
    guest = xen.create(name="g", disks=[Disk(image())], vifs=[Vif()])
    steps = {
        "created": guest.start,
        "attached": lambda: guest.attach(Vif()),
        "detached": lambda: guest.detach("vif", 1),
        "destroyed": guest.destroy,
    }
    for name, step in steps.items():
        step()
        found = [(call.arguments, call.environment) for call in recorder.calls]
        assert found == CALLS[name], name
        recorder.calls.clear()


def test_a_script_that_fails_is_ignored_on_the_way_out(xen: Platform) -> None:
    recorder = record(xen)
    guest = make(xen).start()
    recorder.fails = (Action.REMOVE, Action.OFFLINE)
    guest.detach("vbd", 51728)
    guest.detach("vif", 1)
    assert left(xen, "vbd", 51728) == left(xen, "vif", 1) == NONE
    recorder.fails = (Action.ONLINE,)
    with pytest.raises(ToolstackError, match="^vif 1: its hotplug script ended with status 7$"):
        guest.attach(Vif())


def test_a_script_has_40_s_and_is_killed_then(xen: Platform) -> None:
    guest = make(xen).start()
    recorder = record(xen, slow=39.5)
    assert guest.attach(Vif()) == 2
    assert xen.loop.now == pytest.approx(39.5 * NS_PER_S, rel=0.01)
    recorder.slow = 41
    begin = xen.loop.now
    with pytest.raises(ToolstackError, match="^vif 3: waited 40 s for its hotplug script$") as late:
        guest.attach(Vif())
    assert late.value.code is LIBXL.TIMEDOUT
    assert xen.loop.now - begin == pytest.approx(40 * NS_PER_S, rel=0.01)
    assert recorder.running[-1].killed
    assert left(xen, "vif", 3) == ALL


def test_devices_of_one_kind_come_and_go_side_by_side(xen: Platform) -> None:
    record(xen, slow=5)
    guest = make(xen)
    # Two disks: 5 s. Two interfaces with a second script for their taps: 10 s.
    assert xen.loop.now == pytest.approx(15 * NS_PER_S, rel=0.02)
    guest.start()
    begin = xen.loop.now
    guest.destroy()  # disks and interfaces: 10 s
    assert xen.loop.now - begin == pytest.approx(10 * NS_PER_S, rel=0.02)


# the wait for the backend, with backends that nobody serves


def odd(devid: int = 0, kind: str = "vodd", domid: int = 1, backend_domid: int = 0) -> Device:
    return Device(
        kind=kind, devid=devid, domid=domid, backend_domid=backend_domid,
        back={"state": "1", "online": "1", "frontend-id": str(domid), "mac": ""},
        front={"state": "1", "backend-id": "0"},
    )  # fmt: skip


def after(xen: Platform, seconds: float, act: Callable[[], object]) -> None:
    xen.dom0.timer(xen.dom0.task("test", act)).arm(round(seconds * NS_PER_S))


STATE = "/local/domain/0/backend/vodd/1/0/state"


def walk(xen: Platform, *states: str) -> Callable[[], None]:
    def act() -> None:
        for state in states:
            xen.toolstack.xs.write(STATE, state)

    return act


# What the backend does after a second: error, virtual seconds
WAITS = {
    "state 2": (lambda xen: walk(xen, "2"), "", 1.0),
    "nothing": (lambda xen: lambda: None, "TIMEDOUT", 10.0),
    "state 4 at once": (lambda xen: walk(xen, "4"), "TIMEDOUT", 10.0),
    "state 5": (lambda xen: walk(xen, "5"), "TIMEDOUT", 10.0),
    "02, no state": (lambda xen: walk(xen, "02"), "TIMEDOUT", 10.0),
    "vanishes": (lambda xen: lambda: xen.toolstack.xs.rm(STATE), "INVAL", 1.0),
}


@pytest.mark.parametrize("hot", [False, True], ids=["creation", "hot"])
@pytest.mark.parametrize("name", WAITS)
def test_a_backend_has_to_be_at_2_within_10_s(xen: Platform, name: str, hot: bool) -> None:
    act, error, seconds = WAITS[name]
    guest = make(xen).start()
    after(xen, 1, act(xen))
    # The timer is due when the toolstack first looks, so it counts as waiting.
    begin = xen.loop.now
    code = ""
    try:
        xen.toolstack.hotplug.add_all(guest.created, [odd()], hot=hot)
    except ToolstackError as raised:
        code = raised.code.name
    waited = (xen.loop.now - begin) / NS_PER_S
    assert code == error
    assert waited == pytest.approx(seconds, abs=1.1)
    assert left(xen, "vodd", 0)
    assert len(xen.toolstack.ctx.watches) == 0


def test_a_watch_sees_a_backend_that_passes_through_2(xen: Platform) -> None:
    guest = make(xen).start()
    after(xen, 1, walk(xen, "2"))
    after(xen, 1.01, walk(xen, "4"))  # before the toolstack would look by itself
    xen.toolstack.hotplug.add_all(guest.created, [odd()], hot=True)
    assert xen.toolstack.xs.read(STATE) == "4"


def test_the_first_error_of_several_is_raised_and_all_come_as_far_as_they_can(
    xen: Platform,
) -> None:
    guest = make(xen).start()
    after(xen, 1, walk(xen, "2"))
    before = xen.loop.now
    with pytest.raises(ToolstackError, match="vodd/1/1 to reach state 2"):
        xen.toolstack.hotplug.add_all(guest.created, [odd(0), odd(1), odd(2)], hot=True)
    assert xen.loop.now - before == pytest.approx(10 * NS_PER_S, rel=0.02)  # not 20
    assert any("vodd/1/2 to reach state 2" in note.text for note in xen.loop.trace.notes)


def test_qemus_backends_are_not_waited_for(xen: Platform) -> None:
    guest = make(xen).start()
    xen.toolstack.hotplug.add_all(guest.created, [odd(kind="qdisk")], hot=True)
    assert xen.loop.now == 0
    guest.pause()
    # Of a guest that stands, QEMU has 2 s to settle, and is closed then.
    xen.toolstack.hotplug.detach(guest.created, "qdisk", 0, Mode.SAFE)
    assert xen.loop.now == pytest.approx(2 * NS_PER_S, rel=0.1)
    assert left(xen, "qdisk", 0) == NONE


def test_a_driver_domain_runs_the_scripts_and_removes_its_directory(xen: Platform) -> None:
    guest = make(xen).start()
    other = xen.create(name="driver")
    recorder = record(xen)
    device = odd(kind="vif", devid=9, backend_domid=other.domid)
    path = device.backend_path
    after(xen, 1, lambda: xen.toolstack.xs.write(f"{path}/state", "2"))
    xen.toolstack.hotplug.add_all(guest.created, [device], hot=True)
    assert recorder.calls == []
    after(xen, 1, lambda: xen.toolstack.xs.write(f"{path}/state", "6"))
    after(xen, 3, lambda: xen.toolstack.xs.rm(path))
    begin = xen.loop.now
    xen.toolstack.hotplug.detach(guest.created, "vif", 9, Mode.SAFE)
    assert xen.loop.now - begin == pytest.approx(3 * NS_PER_S, rel=0.1)
    assert left(xen, "vif", 9) == NONE
    assert recorder.calls == []


def test_a_device_is_known_by_the_toolstacks_own_copy(xen: Platform) -> None:
    guest = make(xen).start()
    xs = xen.toolstack.xs
    # Rows that no toolstack of ours wrote, among those that it did.
    for path, value in (
        ("vbd/51728x/backend", "/local/domain/0/backend/vbd/1/51728"),
        ("vif/7/backend", "/local/domain/0/backend/../vif/1/7"),
        ("vif/8/backend", ""),
        ("vif/9/frontend", "x"),
    ):
        xs.write(f"/libxl/1/device/{path}", value)
    keys = sorted((key.kind, key.devid) for key in stored(xs, 1))
    assert keys == [("console", 0), ("vbd", 51712), ("vbd", 51728), ("vif", 0), ("vif", 1)]
    guest.destroy()
    assert "/backend/v" not in xen.xenstored.ls_fp()


def test_keys_of_a_device_say_where_its_directories_are() -> None:
    key = DeviceKey(kind="vif", devid=3, domid=5, backend_domid=2)
    assert key.frontend_path == "/local/domain/5/device/vif/3"
    assert key.backend_path == "/local/domain/2/backend/vif/5/3"
    assert key.libxl_path == "/libxl/5/device/vif/3"
