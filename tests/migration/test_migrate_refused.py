"""What a destination lacks, and guests that do not suspend: the guest goes on at the source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.migration.hosts import DATA, Hosts, hosts, verify
from tests.migration.load import Load
from xenpv import Disk, MemoryImage, Platform, Vif
from xenpv.abi._kernel import lib
from xenpv.host.hotplugscript import ScriptCall, ScriptProcess, ScriptStore
from xenpv.host.image import RawImage
from xenpv.host.libxl import LIBXL, ToolstackError
from xenpv.migration.handover import ReceiveStep, SendStep
from xenpv.migration.migrate import Migration, MigrationFailed


class Failing:
    """Hotplug scripts of which those for one kind fail."""

    def __init__(self, kind: str, xen: Platform) -> None:
        self.kind = kind
        self.scripts = xen.toolstack.hotplug.scripts

    def start(self, call: ScriptCall, xs: ScriptStore) -> ScriptProcess:
        if bool(call.type_if) == (self.kind == "vif"):
            xs.write_all(call.xenbus_path, {"hotplug-error": "bridge xenbr0 not found"})
            return ScriptProcess(1)
        return self.scripts.start(call, xs)


def short_of_memory(two: Hosts) -> None:
    machine = two.there.hypervisor.machine
    free = lib.machine_free_pages(machine)
    eater = two.there.hypervisor.create_domain(max_pages=free)
    eater.populate(free - 10_000)


def scripts_fail(two: Hosts, kind: str) -> None:
    two.there.toolstack.hotplug.scripts = Failing(kind, two.there)


def another_image(two: Hosts) -> None:
    two.there.images.register(two.guest.created.config.disks[0].target, MemoryImage(bytes(512)))


# what the destination lacks, what the error says, and whether the guest was suspended for it
LACKS: list[tuple[str, Callable[[Hosts], object], str, bool]] = [
    ("memory", short_of_memory, "no memory at the destination", False),
    ("the incoming name", lambda two: two.there.create(name="web--incoming"),
     "web--incoming", False),
    ("the name", lambda two: two.there.create(name="web"), "'web'", True),
    ("the other name at the source", lambda two: two.here.create(name="web--migratedaway"),
     "web--migratedaway", True),
    ("a bridge", lambda two: scripts_fail(two, "vif"), "bridge xenbr0 not found", True),
    ("a block script", lambda two: scripts_fail(two, "vbd"), "vbd 51712|51712", True),
    ("the image", another_image, "another image is registered", False),
]  # fmt: skip


@pytest.mark.parametrize(("prepare", "says", "suspends"), [one[1:] for one in LACKS],
                         ids=[one[0] for one in LACKS])  # fmt: skip
def test_what_a_destination_lacks(
    prepare: Callable[[Hosts], object], says: str, suspends: bool
) -> None:
    with hosts() as two:
        prepare(two)
        others = [list(xen.hypervisor.domains) for xen in (two.here, two.there)]
        with pytest.raises(MigrationFailed, match=says) as caught:
            two.guest.migrate(two.there)
        assert caught.value.by_hand == ""
        assert caught.value.destination is None
        assert "'web': it runs on" in str(caught.value)
        assert [list(xen.hypervisor.domains) for xen in (two.here, two.there)] == others
        assert two.guest.running
        assert two.guest.name == "web"
        # Result 1 of the suspend: nothing was set up anew.
        assert two.guest.bus is not None
        assert two.guest.bus.suspend.get_count() == 0
        verify(two.guest, two.image)
        downs = [note.text for note in two.here.loop.trace.notes if note.text.startswith("vbd1")]
        assert downs[-1] == "vbd1.51712: connected"
        if suspends:
            return
        assert two.guest.created.domain.shutdown_code is None


@pytest.mark.parametrize("how", ["it was deleted", "it is not shared"])
def test_a_file_that_is_not_at_the_destination(how: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(65536))
    with Platform(seed=3) as here, Platform(seed=3, loop=here.loop) as there:
        guest = here.create(name="web", disks=[Disk(path)], vifs=[Vif()]).start()
        if how == "it was deleted":
            path.unlink()
            says = "does not exist"
        else:
            says = "is in use"
        with pytest.raises(MigrationFailed, match=says):
            guest.migrate(there, share_images=how == "it was deleted")
        guest.disks[0].write(0, DATA)
        assert guest.disks[0].read(0, 8) == DATA
        assert list(there.hypervisor.domains) == [0]
        if path.exists():
            assert path.read_bytes()[:4096] == DATA
            guest.destroy()
            RawImage(str(path), True).close()


def test_a_name_that_is_no_image_there() -> None:
    with hosts() as two:
        with pytest.raises(MigrationFailed, match="does not exist"):
            two.guest.migrate(two.there, share_images=False)
        verify(two.guest, two.image)
        two.check_no_leak(two.guest)


def test_a_paused_guest_is_left_paused() -> None:
    with hosts() as two:
        two.guest.pause()
        before = two.here.loop.now
        with pytest.raises(MigrationFailed, match="it is paused, as it was before") as caught:
            two.guest.migrate(two.there)
        assert caught.value.code is LIBXL.GUEST_TIMEDOUT
        assert two.here.loop.now - before >= 60_000_000_000
        domain = two.guest.created.domain
        assert (domain.pause_count, domain.is_shutting_down) == (1, False)
        two.guest.unpause()
        two.here.run()
        assert two.running == [two.guest], "the request was withdrawn"
        verify(two.guest, two.image)
        two.check_no_leak(two.guest)


def test_a_guest_that_acknowledges_and_never_suspends() -> None:
    with hosts() as two:

        def stand_still(step: SendStep | ReceiveStep) -> None:
            if step is SendStep.SUSPEND:
                two.here.toolstack.xs.write("/local/domain/1/control/shutdown", "suspend")
                two.guest.pause()

        migration = Migration(two.guest, two.there, on_step=stand_still)
        with pytest.raises(MigrationFailed) as caught:
            migration.run()
        assert caught.value.code is LIBXL.GUEST_TIMEDOUT
        assert caught.value.by_hand == ""
        assert list(two.there.hypervisor.domains) == [0]
        two.guest.unpause()
        two.here.run()
        verify(two.guest, two.image)


def test_a_guest_that_crashed_is_not_resumed() -> None:
    with hosts() as two:
        two.guest.crash()
        with pytest.raises(MigrationFailed, match="it has shut down, or is gone") as caught:
            two.guest.migrate(two.there)
        assert caught.value.by_hand == ""
        assert two.running == []
        assert two.guest.created.domain.shutdown_code == 3
        assert list(two.there.hypervisor.domains) == [0]


def test_a_guest_that_crashes_while_it_is_sent() -> None:
    with hosts() as two:

        def crash(step: SendStep | ReceiveStep) -> None:
            if step is SendStep.SUSPEND:
                two.guest.crash()

        with pytest.raises(MigrationFailed, match="it has shut down"):
            Migration(two.guest, two.there, on_step=crash).run()
        assert two.running == []
        assert list(two.there.hypervisor.domains) == [0]


@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_guest_that_is_destroyed_meanwhile(side: str) -> None:
    with hosts() as two:

        def destroy(step: SendStep | ReceiveStep) -> None:
            if side == "source" and step is SendStep.SUSPEND:
                two.guest.destroy()
            if side == "destination" and step is SendStep.RENAME:
                copy = migration.receiver.guest
                assert copy is not None
                copy.destroy()

        migration = Migration(two.guest, two.there, on_step=destroy)
        with pytest.raises(MigrationFailed) as caught:
            migration.run()
        assert caught.value.by_hand == ""
        assert list(two.there.hypervisor.domains) == [0]
        if side == "source":
            assert list(two.here.hypervisor.domains) == [0]
            assert two.running == []
        else:
            assert two.running == [two.guest]
            verify(two.guest, two.image)


def test_what_is_no_plain_data_is_named() -> None:
    with hosts() as two:
        Load(two.guest)  # of a module that is not trusted
        with pytest.raises(MigrationFailed, match=r"tests\.migration\.load\.Load"):
            two.guest.migrate(two.there)
        assert two.running == [two.guest]


def test_a_driver_domain_stays() -> None:
    with Platform(seed=3) as here, Platform(seed=3, loop=here.loop) as there:
        net = here.create(name="net", personality="linux", driver_domain=True).start()
        with pytest.raises(ToolstackError, match="migration of 'net': a driver domain"):
            net.migrate(there)
        assert net.running
        assert list(there.hypervisor.domains) == [0]
