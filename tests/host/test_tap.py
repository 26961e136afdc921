"""A TAP's descriptor without one of this host: what is asked of the kernel and what is made of its
answers. tests/peers has the real ones."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path

import pytest

from xenpv.errors import ConfigError
from xenpv.host import tap as taps
from xenpv.host.network import GSO_TCPV4, Frame
from xenpv.host.tap import Mode, Offload, Played, Tap, TapEnd, check_offload

FRAME = b"\xff" * 6 + bytes.fromhex("00163e000001") + b"\x88\xb5" + bytes(46)

# What Linux 6.18 answers TUNSETOFFLOAD with.
OFFLOADS = {
    0x00: "", 0x01: "", 0x03: "", 0x07: "", 0x0F: "", 0x61: "", 0x11: "",
    0x02: "offload TSO4 needs CSUM",
    0x04: "offload TSO6 needs CSUM",
    0x06: "offload TSO4|TSO6 needs CSUM",
    0x08: "offload TSO_ECN needs CSUM",
    0x09: "offload TSO_ECN needs TSO4 or TSO6",
    0x10: "offload UFO needs CSUM",
    0x21: "offload USO4 needs USO6",
    0x41: "offload USO6 needs USO4",
    0x60: "offload USO4|USO6 needs CSUM",
    0x81: "offload 0x81: unknown bits",
}  # fmt: skip


@pytest.mark.parametrize(("flags", "wrong"), OFFLOADS.items(), ids=map(hex, OFFLOADS))
def test_offloads_that_the_kernel_refuses_are_refused_in_words(flags, wrong):
    if not wrong:
        check_offload(Offload(flags))
        return
    with pytest.raises(ConfigError) as caught:
        check_offload(Offload(flags))
    assert str(caught.value) == wrong


def test_every_mode_asks_for_what_the_kernel_takes():
    assert taps.OFFLOADS == {Mode.TSO: 7, Mode.CSUM: 1, Mode.PLAIN: 0}


@pytest.mark.parametrize("name", ["", "a" * 16, "a/b", "a b", "a:b", "a\n", "ü" * 8])
def test_a_name_that_no_interface_can_have_is_refused(name):
    with pytest.raises(ConfigError, match="is no name of an interface: 1 to 15 bytes"):
        Tap.open(name)


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def failing(number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail


OPEN = {
    errno.ENOENT: "there is no /dev/net/tun: modprobe tun",
    errno.ENODEV: "there is no /dev/net/tun: modprobe tun",
    errno.EACCES: "no permission for /dev/net/tun",
    errno.EMFILE: "/dev/net/tun cannot be opened: Too many open files",
}
ATTACH = {
    errno.EBUSY: "it is busy: something else has it open",
    errno.EPERM: "no permission: be root or have CAP_NET_ADMIN, or let root make it with ip tuntap",
    errno.EINVAL: "there is an interface of that name, and it is no TAP",
    errno.ENOMEM: "it cannot be attached: Cannot allocate memory",
}


@pytest.mark.parametrize("number", OPEN, ids=errno.errorcode.get)
def test_why_the_device_cannot_be_opened(monkeypatch, number):
    monkeypatch.setattr(taps.os, "open", failing(number))
    with pytest.raises(ConfigError) as caught:
        Tap.open("tap9")
    assert str(caught.value).startswith(f"TAP tap9: {OPEN[number]}")


@pytest.mark.parametrize("number", ATTACH, ids=errno.errorcode.get)
def test_why_the_interface_cannot_be_attached(monkeypatch, tmp_path, number):
    (tmp_path / "tun").touch()
    monkeypatch.setattr(taps, "DEVICE", str(tmp_path / "tun"))
    monkeypatch.setattr(taps.fcntl, "ioctl", failing(number))
    before = descriptors()
    with pytest.raises(ConfigError) as caught:
        Tap.open("tap9")
    assert str(caught.value).startswith(f"TAP tap9: {ATTACH[number]}")
    assert descriptors() == before


class Kernel:
    """Answers ioctl as tun.c does for a descriptor that is attached."""

    def __init__(self, flags):
        self.flags = flags
        self.asked = []

    def __call__(self, _descriptor, request, argument=0):
        self.asked.append((hex(request), argument))
        if request == 0x800454D2:
            return struct.pack("16sH22x", b"tap7", self.flags)
        if request == 0x400454CA:
            return argument
        return 0


@pytest.mark.parametrize(
    ("mode", "flags", "asked"),
    [
        (Mode.TSO, 0x5002, [("0x400454d8", struct.pack("i", 10)), ("0x400454d0", 7)]),
        (Mode.CSUM, 0x5002, [("0x400454d8", struct.pack("i", 10)), ("0x400454d0", 1)]),
        (Mode.PLAIN, 0x1002, []),
    ],
)
def test_what_the_kernel_is_asked_for(monkeypatch, tmp_path, mode, flags, asked):
    (tmp_path / "tun").touch()
    monkeypatch.setattr(taps, "DEVICE", str(tmp_path / "tun"))
    kernel = Kernel(flags)
    monkeypatch.setattr(taps.fcntl, "ioctl", kernel)
    opened = Tap.open("tap7", mode)
    assert kernel.asked == [("0x400454ca", struct.pack("16sH22x", b"tap7", flags)), *asked]
    assert (opened.name, opened.headed) == ("tap7", mode is not Mode.PLAIN)
    assert not os.get_blocking(opened.descriptor)
    opened.close()
    given = os.open(tmp_path / "tun", os.O_RDWR)
    kernel.asked.clear()
    adopted = Tap.open(f"fd:{given}", mode)
    assert kernel.asked[1:] == asked
    assert not os.get_blocking(given)
    assert (adopted.name, adopted.headed, adopted.descriptor) == ("tap7", opened.headed, given)
    adopted.close()


@pytest.mark.parametrize(
    ("flags", "mode", "words"),
    [
        (0x5001, Mode.TSO, "it is a TUN, which carries no Ethernet frames"),
        (0x4002, Mode.TSO, "it was attached without IFF_NO_PI"),
        (0x1002, Mode.TSO, "it was attached without IFF_VNET_HDR, which does not go with tso"),
        (0x5002, Mode.PLAIN, "it was attached with IFF_VNET_HDR, which does not go with plain"),
    ],
)
def test_a_descriptor_that_was_attached_otherwise(monkeypatch, flags, mode, words):
    monkeypatch.setattr(taps.fcntl, "ioctl", Kernel(flags))
    with pytest.raises(ConfigError) as caught:
        Tap.open("fd:0", mode)
    assert str(caught.value) == f"TAP fd:0: {words}"


@pytest.mark.parametrize("text", ["fd:", "fd:x", "fd:-1", "fd:1x", "fd:²", "fd:99999999999"])
def test_what_is_no_descriptor(text):
    with pytest.raises(ConfigError, match="expected fd: and a number"):
        Tap.open(text)


def test_a_descriptor_that_is_not_open_or_something_else():
    with pytest.raises(ConfigError, match="TAP fd:999999: that descriptor is not open here"):
        Tap.open("fd:999999")
    end, other = os.pipe()
    with pytest.raises(ConfigError, match="that descriptor is no TAP"):
        Tap.open(f"fd:{end}")
    os.close(end)
    os.close(other)


def test_an_unattached_descriptor_says_so(monkeypatch):
    monkeypatch.setattr(taps.fcntl, "ioctl", failing(errno.EBADFD))
    with pytest.raises(ConfigError, match="with no interface: attach it by TUNSETIFF first"):
        Tap.open("fd:0")


@pytest.fixture
def pair():
    """A TAP whose kernel is the other end of a socket: one frame a packet, as there."""
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernel.setblocking(False)
    ours.setblocking(False)
    yield kernel, Tap(ours.fileno(), "tap7", Mode.PLAIN, headed=False)
    kernel.close()
    ours.close()


def test_reading_takes_what_waits_and_no_more_than_a_batch(pair):
    kernel, tap = pair
    kernel.send(FRAME)
    kernel.send(FRAME * 2)
    assert tap.read() == [FRAME, FRAME * 2]
    assert tap.read() == []
    big = bytes(60_000)
    kernel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    sent = 0
    while sent < 6:
        try:
            kernel.send(big)
        except BlockingIOError:
            break
        sent += 1
    assert len(tap.read()) == min(sent, 5)  # 256 KiB and little more


def test_writing_counts_what_the_kernel_took_and_why_it_did_not(pair, monkeypatch):
    kernel, tap = pair
    tap.write(Frame(FRAME))
    assert kernel.recv(100) == FRAME
    monkeypatch.setattr(taps.os, "writev", failing(errno.EIO))
    tap.write(Frame(FRAME))
    tap.write(Frame(FRAME))
    monkeypatch.setattr(taps.os, "writev", failing(errno.EINVAL))
    tap.write(Frame(FRAME))
    assert (tap.frames_out, tap.bytes_out) == (1, 60)
    assert tap.refused == {"EIO": 2, "EINVAL": 1}


@pytest.mark.parametrize("number", [errno.EBADFD, errno.ENODEV], ids=errno.errorcode.get)
def test_an_interface_that_was_removed_is_gone(pair, monkeypatch, number):
    _, tap = pair
    monkeypatch.setattr(taps.os, "read", failing(number))
    assert (tap.read(), tap.gone) == ([], True)


def test_a_tap_that_cannot_be_read_for_another_reason_says_so(pair, monkeypatch):
    _, tap = pair
    monkeypatch.setattr(taps.os, "read", failing(errno.EFAULT))
    with pytest.raises(OSError, match="Bad address"):
        tap.read()


def test_an_end_counts_and_bounds(monkeypatch):
    monkeypatch.setattr(TapEnd, "OUT_MAX", 3)
    device = Played("tap7", headed=False)
    end = TapEnd(device)
    assert end.take([FRAME, b"short", FRAME]) == [Frame(FRAME), Frame(FRAME)]
    assert (end.frames_in, end.bytes_in, end.malformed) == (2, 120, 1)
    unfinished = Frame(FRAME, csum_blank=True, gso_type=GSO_TCPV4, gso_size=9)
    end.give([Frame(FRAME), unfinished])
    end.give([Frame(FRAME)] * 3)
    end.flush()
    end.flush()
    assert (device.frames_out, end.unfinished, end.overflow) == (2, 1, 2)


def test_the_kernels_own_drops_are_read_from_the_right_column(monkeypatch, tmp_path):
    text = (
        "Inter-|   Receive                           |  Transmit\n"
        " face |bytes packets errs drop fifo frame compressed multicast|bytes packets ...\n"
        "    lo:  1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"
        "  tap7:21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36\n"
    )
    (tmp_path / "dev").write_text(text)
    monkeypatch.setattr(taps, "COUNTERS", tmp_path / "dev")
    assert Tap(0, "tap7", Mode.PLAIN, headed=False).tx_dropped() == 32
    assert Tap(0, "tap8", Mode.PLAIN, headed=False).tx_dropped() is None
