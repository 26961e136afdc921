"""TAP interfaces of this host: a descriptor through which frames come from its kernel and go to it.

A process finds an interface by name in its own network namespace alone, so it opens the TAP
first and the interface is moved afterwards (the descriptor goes on to work), or somebody else
opens it and hands the descriptor over as `fd:N`. Source: linux/if_tun.h, drivers/net/tun.c.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from xenpv.errors import ConfigError, PeerProtocolError
from xenpv.host import vnet
from xenpv.host.network import Frame
from xenpv.host.offload import to_wire

DEVICE: Final = "/dev/net/tun"
COUNTERS: Final = Path("/proc/self/net/dev")  # of our namespace; /sys may be another's

TUNSETIFF: Final = 0x400454CA
TUNSETOFFLOAD: Final = 0x400454D0
TUNGETIFF: Final = 0x800454D2
TUNSETVNETHDRSZ: Final = 0x400454D8
SIOCSIFHWADDR: Final = 0x8924
ARPHRD_ETHER: Final = 1

IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000

IFREQ: Final = struct.Struct("16sH22x")
IFREQ_ADDRESS: Final = struct.Struct("16sH6s16x")
HEADER_SIZE: Final = struct.Struct("i")
NAME_MAX: Final = 15

READ_BYTES: Final = 65_563  # 10 of header, 14 + 4 of Ethernet and a tag, an IP packet
# Frames, and bytes, of one read: half of what netback keeps for a guest, so that none is lost.
BATCH_FRAMES: Final = 256
BATCH_BYTES: Final = 256 << 10

_DESCRIPTOR: Final = "fd:"
_GONE: Final = (errno.EBADFD, errno.ENODEV)
_TX_DROPPED: Final = 11  # of /proc/net/dev, behind the name: 8 columns of what is received


class Offload(enum.IntFlag):
    """TUN_F_*: what the kernel may leave to whoever reads the TAP."""

    CSUM = 0x01
    TSO4 = 0x02
    TSO6 = 0x04
    TSO_ECN = 0x08
    UFO = 0x10
    USO4 = 0x20
    USO6 = 0x40


class Mode(enum.Enum):
    """How frames cross the descriptor; the values are what a command line says."""

    TSO = "tso"  # with a header; large TCP packets and unfinished checksums
    CSUM = "csum"  # with a header; unfinished checksums
    PLAIN = "plain"  # no header; whole frames that need nothing


OFFLOADS: Final[Mapping[Mode, Offload]] = {
    Mode.TSO: Offload.CSUM | Offload.TSO4 | Offload.TSO6,
    Mode.CSUM: Offload.CSUM,
    Mode.PLAIN: Offload(0),
}

_TSO: Final = Offload.TSO4 | Offload.TSO6
_USO: Final = Offload.USO4 | Offload.USO6
# What is wanted, one of which it needs beside it, and how that reads.
_NEEDS: Final = (
    (_TSO | _USO | Offload.UFO | Offload.TSO_ECN, Offload.CSUM, "needs CSUM"),
    (Offload.TSO_ECN, _TSO, "needs TSO4 or TSO6"),
    (Offload.USO4, Offload.USO6, "needs USO6"),
    (Offload.USO6, Offload.USO4, "needs USO4"),
)


def check_offload(flags: Offload) -> None:
    """ConfigError for what TUNSETOFFLOAD answers with EINVAL (set_offload)."""
    for wanted, beside, words in _NEEDS:
        if flags & wanted and not flags & beside:
            named = "|".join(flag.name or "" for flag in Offload if flag & flags & wanted)
            raise ConfigError(f"offload {named} {words}")
    if int(flags) & ~int(sum(Offload)):
        raise ConfigError(f"offload {int(flags):#x}: unknown bits")


class Device(Protocol):
    """What frames are written to. `frames_out` and `bytes_out` count those that it took."""

    name: str
    headed: bool
    frames_out: int
    bytes_out: int

    def write(self, frame: Frame) -> None:
        """Raises PeerProtocolError for a frame that cannot be written."""


class Tap:
    """An open TAP. `frames_out` and `bytes_out` count what the kernel took, without headers;
    `refused` what it did not, by the name of the error: EIO while the interface is down.

    `headed`: whether frames have a header. `gone`: the interface was removed.
    """

    def __init__(self, descriptor: int, name: str, mode: Mode, *, headed: bool) -> None:
        self.descriptor = descriptor
        self.name = name
        self.mode = mode
        self.headed = headed
        self.gone = False
        self.frames_out = 0
        self.bytes_out = 0
        self.refused: dict[str, int] = {}

    @classmethod
    def open(cls, text: str, mode: Mode = Mode.TSO) -> Tap:
        """An interface by name, made if there is none; or `fd:N`, one that is open already.

        Raises ConfigError, which says what is missing.
        """
        if text.startswith(_DESCRIPTOR):
            return _adopt(text, mode)
        return _attach(text, mode)

    def fileno(self) -> int:
        return self.descriptor

    def read(self) -> list[bytes]:
        """What waits, headers and all; at most BATCH_FRAMES, and little more than BATCH_BYTES."""
        found: list[bytes] = []
        size = 0
        read, descriptor = os.read, self.descriptor
        while len(found) < BATCH_FRAMES and size < BATCH_BYTES:
            try:
                raw = read(descriptor, READ_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                self.gone = error.errno in _GONE
                if not self.gone:
                    raise
                break
            found.append(raw)
            size += len(raw)
        return found

    def write(self, frame: Frame) -> None:
        """To the kernel; what it does not take is counted. Raises PeerProtocolError."""
        if self.headed:
            self._put(vnet.emit(frame))
        else:
            for data in to_wire(frame):
                self._put((data,))

    def _put(self, parts: Sequence[bytes]) -> None:
        try:
            os.writev(self.descriptor, parts)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, str(error.errno))
            self.refused[name] = self.refused.get(name, 0) + 1
        else:
            self.frames_out += 1
            self.bytes_out += len(parts[-1])

    def set_mac(self, mac: bytes) -> bool:
        """Give the interface an address, in whatever namespace it is; False if it keeps its own."""
        request = IFREQ_ADDRESS.pack(self.name.encode(), ARPHRD_ETHER, mac)
        try:
            fcntl.ioctl(self.descriptor, SIOCSIFHWADDR, request)
        except OSError:
            return False
        return True

    def tx_dropped(self) -> int | None:
        """Frames that its queue had no room for; None where it is not in our namespace."""
        for line in COUNTERS.read_text(encoding="utf-8").splitlines():
            name, colon, counters = line.strip().rpartition(":")
            if colon and name == self.name:
                return int(counters.split()[_TX_DROPPED])
        return None

    def close(self) -> None:
        """The interface goes with it, unless it was made to stay."""
        os.close(self.descriptor)


def _attach(name: str, mode: Mode) -> Tap:
    raw = os.fsencode(name)
    if not 0 < len(raw) <= NAME_MAX or not name.isprintable() or set("/: ") & set(name):
        raise ConfigError(
            f"{name!r} is no name of an interface: 1 to {NAME_MAX} bytes without '/', ':' or blank"
        )
    try:
        descriptor = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"TAP {name}: {_opening(error)}") from None
    flags = IFF_TAP | IFF_NO_PI | (0 if mode is Mode.PLAIN else IFF_VNET_HDR)
    try:
        answer = fcntl.ioctl(descriptor, TUNSETIFF, IFREQ.pack(raw, flags))
        given = os.fsdecode(IFREQ.unpack(answer)[0].rstrip(b"\0"))
        return _ready(descriptor, given, mode, headed=bool(flags & IFF_VNET_HDR))
    except OSError as error:
        os.close(descriptor)
        raise ConfigError(f"TAP {name}: {_attaching(error)}") from None


def _ready(descriptor: int, name: str, mode: Mode, *, headed: bool) -> Tap:
    if headed:
        check_offload(OFFLOADS[mode])
        fcntl.ioctl(descriptor, TUNSETVNETHDRSZ, HEADER_SIZE.pack(vnet.HEADER.size))
        fcntl.ioctl(descriptor, TUNSETOFFLOAD, int(OFFLOADS[mode]))
    return Tap(descriptor, name, mode, headed=headed)


def _opening(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return f"there is no {DEVICE}: modprobe tun, or give the container that device"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"no permission for {DEVICE}"
    return f"{DEVICE} cannot be opened: {error.strerror}"


def _attaching(error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return "it is busy: something else has it open"
    if error.errno in (errno.EPERM, errno.EACCES):
        return (
            "no permission: be root or have CAP_NET_ADMIN, or let root make it with "
            "ip tuntap add dev NAME mode tap user NAME"
        )
    if error.errno == errno.EINVAL:
        return "there is an interface of that name, and it is no TAP"
    return f"it cannot be attached: {error.strerror}"


def _adopt(text: str, mode: Mode) -> Tap:
    number = text.removeprefix(_DESCRIPTOR)
    if not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise ConfigError(f"{text!r}: expected fd: and a number")
    descriptor = int(number)
    try:
        answer = fcntl.ioctl(descriptor, TUNGETIFF, bytes(IFREQ.size))
    except OSError as error:
        raise ConfigError(f"TAP {text}: {_adopting(error)}") from None
    raw, flags = IFREQ.unpack(answer)
    if not flags & IFF_TAP:
        raise ConfigError(f"TAP {text}: it is a TUN, which carries no Ethernet frames")
    if not flags & IFF_NO_PI:
        raise ConfigError(f"TAP {text}: it was attached without IFF_NO_PI")
    headed = bool(flags & IFF_VNET_HDR)
    if headed is (mode is Mode.PLAIN):
        has = "with" if headed else "without"
        raise ConfigError(
            f"TAP {text}: it was attached {has} IFF_VNET_HDR, which does not go with {mode.value}"
        )
    os.set_blocking(descriptor, False)
    try:
        return _ready(descriptor, os.fsdecode(raw.rstrip(b"\0")), mode, headed=headed)
    except OSError as error:
        raise ConfigError(f"TAP {text}: it cannot be set up: {error.strerror}") from None


def _adopting(error: OSError) -> str:
    if error.errno == errno.EBADF:
        return "that descriptor is not open here"
    if error.errno == errno.EBADFD:
        return f"it is {DEVICE} with no interface: attach it by TUNSETIFF first"
    return "that descriptor is no TAP"


class Played:
    """The place of a TAP in a run that is played back: takes frames, and nobody reads them."""

    def __init__(self, name: str, *, headed: bool) -> None:
        self.name = name
        self.headed = headed
        self.frames_out = 0
        self.bytes_out = 0

    def write(self, frame: Frame) -> None:
        """Counted as a TAP does, and refused as there."""
        parts = [vnet.emit(frame)[1]] if self.headed else to_wire(frame)
        self.frames_out += len(parts)
        self.bytes_out += sum(map(len, parts))


class TapEnd:
    """One end's frames on their way to a TAP and from it; the counters are frames.

    `malformed`: came from the TAP and are no frames. `unfinished`: a guest asked for what
    cannot be done to them. `overflow`: more than OUT_MAX waited to be written.
    """

    OUT_MAX: Final = 4096

    def __init__(self, device: Device) -> None:
        self.device = device
        self.out: list[Frame] = []
        self.frames_in = 0
        self.bytes_in = 0
        self.malformed = 0
        self.unfinished = 0
        self.overflow = 0

    @property
    def name(self) -> str:
        return self.device.name

    def take(self, raws: Sequence[bytes]) -> list[Frame]:
        """Frames that came from the TAP, checked."""
        parse = vnet.parse if self.device.headed else vnet.plain
        frames = []
        for raw in raws:
            try:
                frames.append(parse(raw))
            except PeerProtocolError:
                self.malformed += 1
        self.frames_in += len(frames)
        self.bytes_in += sum([len(frame.data) for frame in frames])
        return frames

    def give(self, frames: Sequence[Frame]) -> None:
        """Keep frames for the TAP until `flush`."""
        room = self.OUT_MAX - len(self.out)
        self.out.extend(frames[:room] if len(frames) > room else frames)
        self.overflow += max(0, len(frames) - room)

    def flush(self) -> None:
        """Write what waits."""
        frames, self.out = self.out, []
        write = self.device.write
        for frame in frames:
            try:
                write(frame)
            except PeerProtocolError:
                self.unfinished += 1
