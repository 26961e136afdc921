"""The daemon of a driver domain: which devices it knows, and when their scripts run."""

from __future__ import annotations

import attrs
import pytest

from tests.world import World, make
from xenpv.errors import StoreError
from xenpv.host.ddomain import DriverDomainDaemon
from xenpv.host.hotplugscript import ScriptCall, ScriptProcess, ScriptStore

BACK = "/local/domain/0/backend"
VIF, VBD = f"{BACK}/vif/1/0", f"{BACK}/vbd/1/51712"
S = 1_000_000_000


@attrs.define(eq=False)
class Scripts:
    """Writes down what runs; `status` is how it ends, None for one that does not."""

    status: int | None = 0
    runs: list[str] = attrs.field(factory=list)
    processes: list[ScriptProcess] = attrs.field(factory=list)

    def start(self, call: ScriptCall, xs: ScriptStore) -> ScriptProcess:
        what = xs.read(f"{call.xenbus_path}/params") or xs.read(f"{call.xenbus_path}/bridge")
        self.runs.append(f"{call.action.value} {call.xenbus_path} {what}")
        self.processes.append(ScriptProcess(self.status))
        return self.processes[-1]


@attrs.define(eq=False)
class Scene:
    world: World = attrs.field(factory=make)
    scripts: Scripts = attrs.field(factory=Scripts)
    daemon: DriverDomainDaemon | None = None

    def start(self) -> None:
        self.daemon = DriverDomainDaemon(self.world.dom0, self.world.back_store(), self.scripts)
        self.world.loop.run()

    def add(self, path: str, state: str) -> None:
        keys = {"script": "/etc/xen/scripts/x", "online": "1", "state": state}
        keys |= {"params": "/img"} if "/vbd/" in path else {"bridge": "br0"}
        for key, value in keys.items():
            self.world.write(f"{path}/{key}", value)
        self.world.loop.run()

    def step(self, text: str) -> None:
        """`start`, `PATH new STATE`, `PATH KEY=VALUE`, `PATH gone`, `after SECONDS`."""
        words = text.split()
        if words == ["start"]:
            self.start()
        elif words[0] == "after":
            self.world.loop.advance(int(words[1]) * S)
        elif words[1] == "new":
            self.add(words[0], words[2])
        elif words[1] == "gone":
            self.world.client.call(13, words[0].encode() + b"\0")
        else:
            key, _, value = words[1].partition("=")
            self.world.write(f"{words[0]}/{key}", value)
        self.world.loop.run()

    def there(self, path: str) -> bool:
        try:
            self.world.read(path)
        except StoreError:
            return False
        return True


ADD, REMOVE = "add backend/vbd/1/51712 /img", "remove backend/vbd/1/51712 /img"
ONLINE, OFFLINE = "online backend/vif/1/0 br0", "offline backend/vif/1/0 br0"
ROWS = [
    # situation, steps, what ran, is its directory there
    ("a disk that comes to 2", ["start", f"{VBD} new 1", f"{VBD} state=2"], [ADD], True),
    ("an interface that comes to 2", ["start", f"{VIF} new 1", f"{VIF} state=2"], [ONLINE], True),
    ("one that stays at 1", ["start", f"{VBD} new 1"], [], True),
    ("one that is at 2 when it is seen", ["start", f"{VBD} new 2"], [ADD], True),
    ("one at 2 when the daemon starts", [f"{VBD} new 2", "start"], [ADD], True),
    ("one at 1 when the daemon starts", [f"{VBD} new 1", "start"], [], True),
    ("the same, then 2", [f"{VBD} new 1", "start", f"{VBD} state=2"], [ADD], True),
    ("the same, then 2 after 11 s", [f"{VBD} new 1", "start", "after 11", f"{VBD} state=2"], [ADD], True),
    ("one at 4 when the daemon starts", [f"{VBD} new 4", "start"], [], True),
    ("the same, closed for good", [f"{VBD} new 4", "start", f"{VBD} online=0", f"{VBD} state=6"], [REMOVE], False),
    ("one at 6 when the daemon starts", [f"{VBD} new 6", "start", f"{VBD} online=0"], [], True),
    ("closed by its guest, online", ["start", f"{VBD} new 2", f"{VBD} state=5", f"{VBD} state=6"], [ADD], True),
    ("closed by its guest, and connected again", ["start", f"{VBD} new 2", f"{VBD} state=6", f"{VBD} state=2"], [ADD], True),
    ("offline, and not closed yet", ["start", f"{VIF} new 2", f"{VIF} online=0", f"{VIF} state=5"], [ONLINE], True),
    ("offline and closed", ["start", f"{VIF} new 2", f"{VIF} online=0", f"{VIF} state=6"], [ONLINE, OFFLINE], False),
    ("closed, then offline", ["start", f"{VIF} new 2", f"{VIF} state=6", f"{VIF} online=0"], [ONLINE, OFFLINE], False),
    ("removed and added again", ["start", f"{VIF} new 2", f"{VIF} online=0", f"{VIF} state=6", f"{VIF} new 2"], [ONLINE, OFFLINE, ONLINE], True),
    ("its directory taken away", ["start", f"{VIF} new 2", f"{VIF} gone", f"{VIF} new 2"], [ONLINE, ONLINE], True),
    ("all directories taken away", ["start", f"{VIF} new 2", f"{BACK} gone", f"{VIF} new 2"], [ONLINE, ONLINE], True),
    ("offline and closed before 2", ["start", f"{VBD} new 1", f"{VBD} online=0", f"{VBD} state=6"], [REMOVE], False),
    ("at 2 after 10 s", ["start", f"{VBD} new 1", "after 10", f"{VBD} state=2"], [ADD], True),
    ("at 2 after 11 s", ["start", f"{VBD} new 1", "after 11", f"{VBD} state=2"], [], True),
    ("another key", ["start", f"{VBD} new 2", f"{VBD} hotplug-status=error"], [ADD], True),
    ("a kind without scripts", ["start", f"{BACK}/vkbd/1/0 new 2"], [], True),
    ("a number with a zero before it", ["start", f"{BACK}/vif/01/0 new 2"], [], True),
    ("no number", ["start", f"{BACK}/vif/1/x new 2"], [], True),
    ("a state of a key of a device", ["start", f"{VBD} new 1", f"{VBD}/queue-0 state=2"], [], True),
    ("no state at all", ["start", f"{VBD} online=0"], [], True),
    ("garbage for a state", ["start", f"{VBD} new x", f"{VBD} state=22", f"{VBD} state=2"], [ADD], True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "ran", "there"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_scripts_run_as_the_states_say(steps: list[str], ran: list[str], there: bool) -> None:
    scene = Scene()
    for step in steps:
        scene.step(step)
    assert scene.scripts.runs == ran
    path = VIF if any("/vif/1/0" in step for step in steps) else VBD
    if any(path in step for step in steps):
        assert scene.there(path) is there
        assert scene.there(path.rpartition("/")[0]), "the parents are not the daemon's"
    scene.world.hypervisor.close()


def test_a_script_that_fails_is_not_run_again() -> None:
    scene = Scene(scripts=Scripts(status=1))
    for step in ("start", f"{VIF} new 2", f"{VIF} state=6", f"{VIF} state=2"):
        scene.step(step)
    assert scene.scripts.runs == [ONLINE]
    scene.step(f"{VIF} online=0")
    scene.step(f"{VIF} state=6")
    assert (scene.scripts.runs, scene.there(VIF)) == ([ONLINE, OFFLINE], False)


def test_a_script_that_takes_its_time_is_waited_for_and_killed_after_40_s() -> None:
    scene = Scene(scripts=Scripts(status=None))
    scene.daemon = DriverDomainDaemon(scene.world.dom0, scene.world.back_store(), scene.scripts)
    loop = scene.world.loop
    scene.world.write(f"{VIF}/script", "x")
    scene.world.write(f"{VIF}/bridge", "br0")
    scene.world.write(f"{VIF}/state", "2")
    loop.advance(39 * S)
    assert [one.status for one in scene.scripts.processes] == [None]
    loop.advance(2 * S)
    assert [one.status for one in scene.scripts.processes] == [137]


def test_a_device_that_goes_while_its_script_runs_is_not_waited_for() -> None:
    scene = Scene(scripts=Scripts(status=None))
    DriverDomainDaemon(scene.world.dom0, scene.world.back_store(), scene.scripts)
    scene.world.write(f"{VIF}/script", "x")
    scene.world.write(f"{VIF}/state", "2")
    scene.world.loop.advance(S)
    scene.scripts.status = 0
    scene.world.write(f"{VIF}/online", "0")
    scene.world.write(f"{VIF}/state", "6")
    scene.world.loop.advance(S)
    assert [one.status for one in scene.scripts.processes] == [137, 0]
    assert not scene.there(VIF)
