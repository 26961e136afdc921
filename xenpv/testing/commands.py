"""What a toolstack may do to a guest at any moment: when it can, how, and what must come of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.abi.sched import SHUTDOWN
from xenpv.host import vdev
from xenpv.platform import Disk, Vif
from xenpv.testing.lifecycle import PERSONALITIES
from xenpv.testing.tenant import State, Tenant

if TYPE_CHECKING:
    from xenpv.testing.lifecycle import Lifecycle

When = Callable[["Lifecycle", Tenant], bool]
Act = Callable[["Lifecycle", Tenant, int], None]

DEVICES_MAX: Final = 5  # of a guest
PLUGGABLE: Final = (State.RUNNING, State.PAUSED)
GUEST_WRITTEN: Final = re.compile(rb"(data|attr|drivers|feature|error|control/feature-)(?!/?$).*")
MODES: Final = ("safe", "auto", "forced")
FIRST_DISK: Final = 202 << 8


def _running(_life: Lifecycle, one: Tenant) -> bool:
    return one.state is State.RUNNING


def _paused(_life: Lifecycle, one: Tenant) -> bool:
    return one.state is State.PAUSED


def _suspended(_life: Lifecycle, one: Tenant) -> bool:
    return one.state is State.SUSPENDED


def _has_room(_life: Lifecycle, one: Tenant) -> bool:
    # In the place of a device that it has not closed, neither XenVif nor Linux sees a new one.
    room = len(one.disks) + len(one.stations) < DEVICES_MAX
    return one.state in PLUGGABLE and room and not one.owes


def _has_device(_life: Lifecycle, one: Tenant) -> bool:
    return one.state is State.RUNNING and bool(one.disks or one.stations)


def _has_disk(_life: Lifecycle, one: Tenant) -> bool:
    return one.state in PLUGGABLE and bool(one.disks)


def _has_vif(_life: Lifecycle, one: Tenant) -> bool:
    return one.state in PLUGGABLE and bool(one.stations)


def _standing(_life: Lifecycle, one: Tenant) -> bool:
    return one.state is not State.DOWN


def _any(_life: Lifecycle, _one: Tenant) -> bool:
    return True


@attrs.frozen
class Command:
    """`act` does it to a guest for which `when` holds; `make` makes a guest. `disturbs`: its
    devices may lose what is under way.
    """

    act: Act | None = None
    when: When = _running
    make: Callable[[Lifecycle, int], None] | None = attrs.field(default=None, kw_only=True)
    disturbs: bool = attrs.field(default=True, kw_only=True)
    weight: int = attrs.field(default=4, kw_only=True)


# domains


def create(life: Lifecycle, draw: int) -> None:
    """A guest of either personality, with up to two disks and two interfaces."""
    host, personality = draw % len(life.hosts), PERSONALITIES[draw // 2 % 2]
    images = [life.image() for _ in range((draw // 4) % 3)]
    macs = [life.mac() for _ in range((draw // 16) % 3)]
    guest = life.hosts[host].create(
        name=life.name(),
        memory_mib=32,
        disks=[Disk(name) for name, _ in images],
        vifs=[Vif(mac=mac) for mac in macs],
        personality=personality,
    )
    tenant = life.tenant(guest, host, personality)
    for at, (_, traffic) in enumerate(images):
        tenant.disks[FIRST_DISK + 16 * at] = traffic
    for devid, mac in enumerate(macs):
        life.station(tenant, devid, mac)
    guest.start()


def destroy(life: Lifecycle, one: Tenant, _draw: int) -> None:
    one.guest.destroy()
    life.gone(one)


def shutdown(life: Lifecycle, one: Tenant, _draw: int) -> None:
    _acknowledged(life, one, SHUTDOWN.poweroff, one.guest.shutdown)
    life.gone(one)


def reboot(life: Lifecycle, one: Tenant, _draw: int) -> None:
    before = one.guest.domid
    acknowledged = life.acknowledged[one.host].domids
    one.guest.reboot()
    life.expect(before in acknowledged, f"d{before}: it rebooted without acknowledging that")
    life.expect(before != one.guest.domid, f"d{before}: it has its domid after a reboot")
    one.lose()
    one.memory_mib = one.guest.created.config.memory_mib


def _acknowledged(life: Lifecycle, one: Tenant, reason: int, act: Callable[[], int]) -> None:
    """Ack precedes action."""
    domid = one.guest.domid
    found = act()
    life.expect(found == reason, f"d{domid}: reason {found}, expected {reason}")
    said = life.acknowledged[one.host].domids
    life.expect(domid in said, f"d{domid}: it went without acknowledging the request")


def pause(_life: Lifecycle, one: Tenant, _draw: int) -> None:
    one.guest.pause()
    one.state = State.PAUSED


def unpause(life: Lifecycle, one: Tenant, draw: int) -> None:
    one.guest.unpause()
    one.state = State.RUNNING
    boot_for_nics(life, one, draw)


def crash(life: Lifecycle, one: Tenant, draw: int) -> None:
    """Without a monitor it is left to be looked at, until somebody destroys it."""
    found = one.guest.crash(0xE2, draw)
    life.expect(found == SHUTDOWN.crash, f"{one.guest.name}: reason {found} of a crash")
    one.state = State.DOWN


def rename(life: Lifecycle, one: Tenant, _draw: int) -> None:
    one.guest.rename(life.name())


# devices


def attach_disk(life: Lifecycle, one: Tenant, _draw: int) -> None:
    name, traffic = life.image()
    one.disks[one.guest.attach(Disk(name))] = traffic


def attach_vif(life: Lifecycle, one: Tenant, draw: int) -> None:
    mac = life.mac()
    devid = one.guest.attach(Vif(mac=mac))
    life.station(one, devid, mac)
    boot_for_nics(life, one, draw)


def boot_for_nics(life: Lifecycle, one: Tenant, draw: int) -> None:
    """A reboot, if Windows needs one: the last interface's removal took back the request to
    unplug emulated NICs, and where it has booted since XenVif starts none before the next boot.
    """
    one.platform.run()
    if one.personality == "windows" and one.awake:
        have = [each.number for each in one.guest.nets]
        if any(devid not in have for devid in one.stations):
            reboot(life, one, draw)


def detach_disk(_life: Lifecycle, one: Tenant, draw: int) -> None:
    devid = sorted(one.disks)[draw % len(one.disks)]
    one.guest.detach("vbd", devid, mode=MODES[draw % 3] if one.awake else "forced")
    one.leaving.append(one.disks.pop(devid))
    one.owes = True


def detach_vif(life: Lifecycle, one: Tenant, draw: int) -> None:
    devid = sorted(one.stations)[draw % len(one.stations)]
    one.guest.detach("vif", devid, mode=MODES[draw % 3] if one.awake else "forced")
    one.owes = True
    station = one.stations.pop(devid)
    life.net.serve(station, None)
    life.net.stations.remove(station)


def rebind(_life: Lifecycle, one: Tenant, draw: int) -> None:
    """A backend's driver goes and comes again under its frontend, with requests on the ring."""
    devices = [("vbd", devid) for devid in one.disks] + [("vif", devid) for devid in one.stations]
    kind, devid = devices[draw % len(devices)]
    one.platform.backends.rebind(kind, one.guest.domid, devid)


# requests


def nonsense(life: Lifecycle, one: Tenant, draw: int) -> None:
    """What is no request is left where it is, and nothing comes of it."""
    xs, path = one.platform.toolstack.xs, f"/local/domain/{one.guest.domid}/control/shutdown"
    value = ("", "POWEROFF", "frobnicate", "poweroff ")[draw % 4]
    xs.write(path, value)
    one.platform.run()
    life.expect(xs.read(path) == value, f"{path}: {value!r} was cleared")
    life.expect(one.awake, f"{one.guest.name}: it did something about {value!r}")
    xs.write(path, "")


def balloon(_life: Lifecycle, one: Tenant, draw: int) -> None:
    """mem-set, between a half and all of what it may have."""
    one.memory_mib = 16 + draw % 17
    one.guest.set_memory(one.memory_mib)
    one.platform.run()


def sysrq(life: Lifecycle, one: Tenant, draw: int) -> None:
    """A letter that ends nothing; Linux clears it, Windows does not look."""
    xs, path = one.platform.toolstack.xs, f"/local/domain/{one.guest.domid}/control/sysrq"
    one.guest.sysrq("sh"[draw % 2])
    one.platform.run()
    if one.personality == "linux":
        life.expect(not xs.read(path), f"{path} was not cleared")
    xs.write(path, "")


# suspend


def suspend(life: Lifecycle, one: Tenant, _draw: int) -> None:
    """What is under way waits; nobody's request fails by it."""
    guest = one.guest
    one.identity = _identity(one)
    guest.suspend()
    said = life.acknowledged[one.host].domids
    life.expect(guest.domid in said, f"{guest.name}: suspended without acknowledging the request")
    one.state = State.SUSPENDED


def resume(life: Lifecycle, one: Tenant, _draw: int) -> None:
    """The suspend is taken back: nothing of the guest is another afterwards."""
    one.guest.resume()
    one.state = State.RUNNING
    same = _identity(one) == one.identity
    life.expect(same, f"{one.guest.name}: a cancelled suspend changed domid, ports or watches")


def resume_slow(_life: Lifecycle, one: Tenant, _draw: int) -> None:
    """It believes that it is in another domain."""
    one.guest.resume(fast=False)
    one.state = State.RUNNING


def checkpoint(life: Lifecycle, one: Tenant, draw: int) -> None:
    """Saved into a file, and resumed, or left paused."""
    one.guest.save(life.path, checkpoint=True, pause=bool(draw % 2))
    one.state = State.PAUSED if draw % 2 else State.RUNNING


def restore(life: Lifecycle, one: Tenant, _draw: int) -> None:
    """Saved and destroyed; restored in another domain, where nothing is that it wrote before."""
    before, host = one.guest.domid, one.platform
    one.quiet = True
    one.guest.save(life.path)
    for traffic in one.disks.values():
        traffic.lose()  # what is under way is in the file, and nobody waits for it
    images = {vdev.name(devid): traffic.image for devid, traffic in one.disks.items()}
    one.guest = host.restore(life.path, paused=True, images=images)
    life.expect(one.guest.domid != before, f"{one.guest.name}: restored in its old domid")
    home = b"/local/domain/%d/" % one.guest.domid
    for path, node in host.xenstored.nodes.items():
        own = path.startswith(home) and GUEST_WRITTEN.fullmatch(path[len(home) :])
        life.expect(not (own and node.value), f"{path!r} is there before the agent ran")
    one.guest.unpause()
    host.run()
    one.follow({adapter.number: adapter for adapter in one.guest.nets})
    one.quiet = False


def migrate(life: Lifecycle, one: Tenant, _draw: int) -> None:
    """To the other host, with all that is under way."""
    old, one.host = one.guest, 1 - one.host
    one.guest = old.migrate(life.hosts[one.host])
    life.expect(old.created.domain.dead, f"{old.name}: it is still there after its migration")
    for traffic in one.disks.values():
        for io in traffic.under_way:
            io.pending = one.guest.counterpart(io.pending)
    for station in one.stations.values():
        station.network = one.host
    one.follow({adapter.number: adapter for adapter in one.guest.nets})


def _identity(one: Tenant) -> tuple[object, ...]:
    """Domid, ports and watches with their tokens."""
    guest = one.guest
    connections = one.platform.xenstored.connections.values()
    ports = [
        (port.number, port.state, port.remote_port) for port in guest.created.domain.evtchn.ports
    ]
    watches = [list(conn.watches) for conn in connections if conn.domid == guest.domid]
    return guest.domid, ports, watches


COMMANDS: Final[dict[str, Command]] = {
    "create": Command(make=create, weight=12),
    "destroy": Command(destroy, _any, weight=2),
    "shutdown": Command(shutdown, weight=2),
    "reboot": Command(reboot),
    "pause": Command(pause, disturbs=False),
    "unpause": Command(unpause, _paused),
    "attach-disk": Command(attach_disk, _has_room, disturbs=False),
    "attach-vif": Command(attach_vif, _has_room),
    "detach-disk": Command(detach_disk, _has_disk),
    "detach-vif": Command(detach_vif, _has_vif),
    "rebind": Command(rebind, _has_device),
    "crash": Command(crash, weight=1),
    "rename": Command(rename, _standing, disturbs=False, weight=2),
    "nonsense": Command(nonsense, disturbs=False, weight=2),
    "balloon": Command(balloon, disturbs=False),
    "sysrq": Command(sysrq, disturbs=False, weight=2),
    "suspend": Command(suspend, disturbs=False, weight=6),
    "resume": Command(resume, _suspended, disturbs=False, weight=6),
    "resume-slow": Command(resume_slow, _suspended, weight=3),
    "checkpoint": Command(checkpoint, disturbs=False, weight=2),
    "restore": Command(restore),
    "migrate": Command(migrate),
}
