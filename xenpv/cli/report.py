"""What a run found, and how it reads: as text for people, as one JSON document for scripts.

The document is a function of the inputs and the seed alone; what the host's clock measured
is only in the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import attrs

from xenpv.abi.xenbus import XenbusState
from xenpv.host.domainconfig import DomainConfig
from xenpv.xen.trace import Note

TIMELINE_LINES: Final = 80
MIB: Final = 1 << 20


@attrs.define(eq=False, kw_only=True)
class DeviceFound:
    """One device of a guest. `id` is its number in the store: `device/vbd/51712`.

    `failures` are sentences; a device without any that is Connected and was exercised is
    verified. `idle` says why one is not exercised at all, which is no failure.
    """

    kind: str
    id: int
    domid: int
    name: str
    state: XenbusState = XenbusState.UNKNOWN
    backend_state: XenbusState = XenbusState.UNKNOWN
    exercised: bool = False
    idle: str = ""
    failures: list[str] = attrs.field(factory=list)
    seconds: float = 0.0  # on the host's clock, of what the text gives a rate for

    @property
    def connected(self) -> bool:
        return self.state is self.backend_state is XenbusState.CONNECTED

    @property
    def verified(self) -> bool:
        return self.connected and self.exercised and not self.failures


@attrs.define(eq=False, kw_only=True)
class DiskFound(DeviceFound):
    """`sha256` is over what the guest read, `bytes_read` of `size_bytes`."""

    image: str
    readonly: bool
    size_bytes: int = 0
    sector_size: int = 0
    sha256: str = ""
    bytes_read: int = 0
    bytes_written: int = 0  # to the scratch area; restored afterwards


@attrs.define(eq=False, kw_only=True)
class VifFound(DeviceFound):
    mac: str
    bridge: str
    queues: int = 0  # that the frontend connected
    mtu: int = 0
    pings_sent: int = 0
    pings_answered: int = 0
    frames_sent: int = 0
    frames_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    lost: dict[str, int] = attrs.field(factory=dict)  # frames, by reason, while TAPs were served


@attrs.define(eq=False, kw_only=True)
class GuestFound:
    config: DomainConfig
    domid: int | None = None
    devices: list[DiskFound | VifFound] = attrs.field(factory=list)
    block_list: str = ""  # what xl prints, at that moment too
    network_list: str = ""
    console: str = ""
    shutdown: str = ""  # the reason that the domain gave
    restored: str = ""  # the file it came from
    saved: str = ""  # the file it went into
    failures: list[str] = attrs.field(factory=list)

    @property
    def ok(self) -> bool:
        return not self.failures and all(one.verified or one.idle for one in self.devices)


@attrs.define(eq=False, kw_only=True)
class BridgeFound:
    name: str
    ports: int
    forwarded: int
    flooded: int
    dropped: int


@attrs.define(eq=False, kw_only=True)
class TapFound:
    """A TAP while it was served. Counters are frames; `in` comes from the host's kernel.

    `lost`: inside xenpv, by reason. `refused`: by the kernel, by the error's name. `tx_dropped`:
    what the kernel had no room for in the TAP's queue, None where that cannot be seen.
    """

    name: str
    where: str
    headed: bool
    frames_in: int
    bytes_in: int
    frames_out: int
    bytes_out: int
    lost: dict[str, int]
    refused: dict[str, int]
    tx_dropped: int | None


@attrs.define(eq=False, kw_only=True)
class RunFound:
    seed: int
    digest: str = ""
    guests: list[GuestFound] = attrs.field(factory=list)
    bridges: list[BridgeFound] = attrs.field(factory=list)
    taps: list[TapFound] = attrs.field(factory=list)
    xl_list: str = ""  # with -v; as the run stood when every device had been exercised
    vm_list: str = ""
    timeline: list[Note] = attrs.field(factory=list)
    virtual_ns: int = 0
    seconds: float = 0.0  # on the host's clock
    failures: list[str] = attrs.field(factory=list)  # of no guest in particular

    @property
    def ok(self) -> bool:
        return not self.failures and all(guest.ok for guest in self.guests)


def as_json(run: RunFound) -> dict[str, Any]:
    """The document of `xenpv run --json`."""
    return {
        "ok": run.ok,
        "digest": run.digest,
        "seed": run.seed,
        "guests": [_guest_json(guest) for guest in run.guests],
        "bridges": [attrs.asdict(bridge) for bridge in run.bridges],
        "taps": [attrs.asdict(tap) for tap in run.taps],
        "list": run.xl_list,
        "vm_list": run.vm_list,
        "failures": run.failures,
        "timeline": [attrs.asdict(note) for note in run.timeline],
        "virtual_ns": run.virtual_ns,
    }


def _guest_json(guest: GuestFound) -> dict[str, Any]:
    config = guest.config
    return {
        "name": config.name,
        "domid": guest.domid,
        "ok": guest.ok,
        "personality": config.personality.value,
        "memory_mib": config.memory_mib,
        "vcpus": config.vcpus,
        "shutdown": guest.shutdown,
        "restored": guest.restored,
        "saved": guest.saved,
        "devices": [_device_json(device) for device in guest.devices],
        "block_list": guest.block_list,
        "network_list": guest.network_list,
        "console": guest.console,
        "failures": guest.failures,
    }


def _device_json(device: DeviceFound) -> dict[str, Any]:
    fields = attrs.asdict(device)
    for key in ("seconds", "exercised"):
        del fields[key]
    fields["state"] = state_name(device.state)
    fields["backend_state"] = state_name(device.backend_state)
    first = {key: fields.pop(key) for key in ("kind", "id", "name", "state")}
    return first | {"verified": device.verified} | fields


def state_name(state: XenbusState) -> str:
    """InitWait, Connected: the words of io/xenbus.h."""
    return state.name.title().replace("_", "")


def as_text(run: RunFound, *, unicode: bool = True) -> Iterator[str]:
    """The lines of the report. Without `unicode` the tree is drawn in ASCII."""
    tree = ("├─ ", "└─ ", "│  ") if unicode else ("|- ", "`- ", "|  ")
    for guest in run.guests:
        yield from _guest_text(guest, tree)
        yield ""
    if run.bridges:
        yield "bridges"
        for bridge in run.bridges:
            yield (
                f"  {bridge.name}: {_counted(bridge.ports, 'port')}, "
                f"{_counted(bridge.forwarded, 'frame')} forwarded, {bridge.flooded} flooded, "
                f"{bridge.dropped} dropped"
            )
        yield ""
    if run.taps:
        yield "taps"
        yield from (f"  {line}" for tap in run.taps for line in _tap_text(tap))
        yield ""
    yield from _listings(run)
    for guest in run.guests:
        if guest.console:
            yield f"console of {guest.config.name}"
            yield from (f"  {line}" for line in _printable(guest.console))
            yield ""
    yield from _timeline(run)
    yield ""
    yield from (f"FAILED: {line}" for failure in run.failures for line in failure.splitlines())
    yield from _closing(run)


def _tap_text(tap: TapFound) -> Iterator[str]:
    header = "with virtio-net headers" if tap.headed else "without headers"
    yield (
        f"{tap.where}={tap.name}, {header}: {_counted(tap.frames_in, 'frame')} "
        f"({_size(tap.bytes_in)}) in, {tap.frames_out} ({_size(tap.bytes_out)}) out, "
        f"{sum(tap.lost.values())} lost"
    )
    whys = [f"{count} {why}" for why, count in tap.lost.items() if count]
    whys += [f"{count} refused by the kernel: {why}" for why, count in tap.refused.items()]
    if tap.tx_dropped:
        whys.append(f"{tap.tx_dropped} dropped by the kernel: the queue was full")
    yield from (f"  {why}" for why in whys)


def _listings(run: RunFound) -> Iterator[str]:
    """What xl printed while the guests ran."""
    commands = [("xl list -v", run.xl_list), ("xl vm-list", run.vm_list)]
    for guest in run.guests:
        name = guest.config.name
        commands.append((f"xl block-list {name}", guest.block_list))
        commands.append((f"xl network-list {name}", guest.network_list))
    for command, output in commands:
        if output.count("\n") > 1:
            yield command
            yield from (f"  {line.rstrip()}" for line in output.splitlines())
            yield ""


def _guest_text(guest: GuestFound, tree: tuple[str, str, str]) -> Iterator[str]:
    tee, corner, bar = tree
    config = guest.config
    domain = f"domain {guest.domid}" if guest.domid is not None else "no domain"
    yield (
        f"{config.name} ({domain}, {config.type.value}, {config.personality.value} drivers, "
        f"{config.memory_mib} MiB, {_counted(config.vcpus, 'vcpu')})"
    )
    for device in guest.devices:
        last = device is guest.devices[-1]
        yield f"{corner if last else tee}{_device_text(device)}"
        indent = "   " if last else bar
        if isinstance(device, DiskFound):
            yield f"{indent}   {device.image}" + (
                f"  sha256 {device.sha256}" if device.sha256 else ""
            )
        yield from (f"{indent}   FAILED: {failure}" for failure in device.failures)
    yield from (f"   FAILED: {failure}" for failure in guest.failures)
    if guest.restored:
        yield f"   restored from {guest.restored}"
    if guest.saved:
        yield f"   saved to {guest.saved}"
    elif guest.shutdown:
        yield f"   shut down: {guest.shutdown}"


def _device_text(device: DiskFound | VifFound) -> str:
    head = f"{device.kind} {device.id} {device.name}: {state_name(device.state)}"
    if not device.connected:
        head += f", backend {state_name(device.backend_state)}"
    if device.idle:
        return f"{head}, not exercised: {device.idle}"
    parts = [head, "verified" if device.verified else "NOT VERIFIED"]
    if isinstance(device, DiskFound):
        parts.append(f"{_size(device.bytes_read)} read{_rate(device.bytes_read, device.seconds)}")
        if device.bytes_written:
            parts.append(f"{_size(device.bytes_written)} written and restored")
        elif device.readonly:
            parts.append("read-only")
    else:
        parts += [
            f"{device.mac} on {device.bridge}",
            f"mtu {device.mtu}",
            f"{device.pings_answered} of {device.pings_sent} pings answered",
            f"{_counted(device.frames_sent, 'frame')} out, {device.frames_received} in"
            + _rate(device.bytes_sent + device.bytes_received, device.seconds),
        ]
    return ", ".join(parts)


def _timeline(run: RunFound) -> Iterator[str]:
    yield "timeline (virtual seconds)"
    notes = run.timeline
    head, tail = notes, notes[:0]
    if len(notes) > TIMELINE_LINES:
        head, tail = notes[: TIMELINE_LINES // 2], notes[-TIMELINE_LINES // 2 :]
    yield from (_note(note) for note in head)
    if tail:
        yield f"  ... {len(notes) - TIMELINE_LINES} more; --json has them all"
        yield from (_note(note) for note in tail)


def _note(note: Note) -> str:
    return f"  {note.time_ns / 1e9:14.9f}  d{note.domid}  {' '.join(_printable(note.text))}"


def _closing(run: RunFound) -> Iterator[str]:
    devices = [device for guest in run.guests for device in guest.devices if not device.idle]
    disks = [device for device in devices if isinstance(device, DiskFound)]
    verified = sum(device.verified for device in devices)
    yield (
        f"{'ok' if run.ok else 'NOT OK'}: {_counted(len(run.guests), 'guest')}, "
        f"{verified} of {_counted(len(devices), 'device')} connected and verified, "
        f"{_size(sum(disk.bytes_read for disk in disks))} read; "
        f"{run.virtual_ns / 1e9:.3f} s of virtual time in {run.seconds:.2f} s"
    )
    yield f"digest {run.digest} seed {run.seed}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _size(count: int) -> str:
    """1.5 MiB; whole bytes below one KiB."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", MIB), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


def _rate(count: int, seconds: float) -> str:
    return f" ({count / MIB / seconds:.0f} MiB/s)" if seconds > 0 else ""


def _printable(text: str) -> Iterator[str]:
    """Lines that cannot upset a terminal: what a guest wrote is its own."""
    for line in text.splitlines():
        yield "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
