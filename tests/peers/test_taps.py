"""Linux' own stacks on both sides of XenNet, XenVif, the rings, netback and the bridge."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import textwrap

import pytest

from tests.peers.namespaces import (
    SECONDS,
    TALKER,
    Namespace,
    Run,
    in_private,
    lost_inside,
    need_namespaces,
    wait_for,
)
from tests.peers.talker import chunk
from xenpv.errors import ConfigError, PeerProtocolError
from xenpv.host import tap as taps
from xenpv.host import vnet
from xenpv.host.network import Frame
from xenpv.host.tap import Mode, Offload, Tap, check_offload

pytestmark = pytest.mark.peers

WEB = """\
name = "web"
memory = 64
vcpus = 4
vif = [ "bridge=xenbr0,mac=00:16:3e:00:00:01,ip=10.9.0.2/24 fd09::2" ]
"""
MODES = [mode.value for mode in Mode]


@pytest.fixture(scope="module", autouse=True)
def namespaces_are_there():
    need_namespaces("iperf3")


class Scene:
    """A run whose TAPs have been moved into namespaces of their own."""

    def __init__(self, folder, *arguments, taps, dom0_vcpus=1, made=(), mtu=1500):
        (folder / "web.cfg").write_text(WEB.replace("fd09::2", f"fd09::2,mtu={mtu}"))
        self.folder = folder
        self.ends = []
        vcpus = ("--dom0-vcpus", str(dom0_vcpus))
        self.run = Run(folder, "web.cfg", "--no-write", *vcpus, *taps, *arguments, made=made)
        try:
            for number, line in enumerate(self.run.lines[: len(taps) // 2]):
                name = line.split()[0]
                end = Namespace()
                self.ends.append((end, name))
                self.run.move(name, end)
                end.configure(name, number + 1)
                end.run("ip", "link", "set", name, "mtu", str(mtu))
        except BaseException:
            self.close()
            raise

    def close(self):
        self.run.abandon()
        for end, _ in self.ends:
            end.close()


@pytest.fixture
def scene(tmp_path):
    made = []

    def make(*arguments, **settings):
        made.append(Scene(tmp_path, *arguments, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def bridge(mode):
    return ("--tap", f"xenbr0=xpv0,{mode}")


def guest(mode):
    return ("--guest-tap", f"web.0=xpv1,{mode}")


def finish(scene):
    """Nothing was lost inside, and TCP sent no more again than the TAPs' queues could not hold."""
    retransmitted = sum(end.retransmitted() for end, _ in scene.ends)
    assert retransmitted <= sum(end.tx_dropped(name) for end, name in scene.ends)
    document = scene.run.finish()
    assert lost_inside(document) == {}
    return document


@pytest.mark.parametrize("mode", MODES)
def test_the_kernel_pings_a_guest_and_a_replay_has_the_same_digest(scene, tmp_path, mode):
    made = scene("--journal", "in.journal", taps=bridge(mode))
    ((here, name),) = made.ends
    assert here.talk("pings", "10.9.0.2", "1472") == {"answered": 1473}
    assert here.talk("pings", "fd09::2", "1452") == {"answered": 1453}
    for address in ("10.9.0.2", "fd09::2"):
        for size in ("0", "56", "1452"):
            said = here.run("ping", "-n", "-c", "2", "-i", "0.01", "-s", size, address)
            assert "2 packets transmitted, 2 received, 0% packet loss" in said
        said = here.run("ping", "-n", "-f", "-c", "1000", "-s", "1452", address)
        assert "1000 packets transmitted, 1000 received, 0% packet loss" in said
    assert here.tx_dropped(name) == 0
    document = made.run.finish()
    assert lost_inside(document) == {}
    command = [sys.executable, "-m", "xenpv", "run", "--json", "web.cfg", "--no-write"]
    replayed = subprocess.run(
        [*command, "--replay", "in.journal"], cwd=tmp_path, capture_output=True, text=True,
        timeout=SECONDS, check=False,
    )  # fmt: skip
    assert (replayed.returncode, replayed.stderr) == (0, "")
    again = json.loads(replayed.stdout)
    assert again["digest"] == document["digest"]
    counted = [{key: tap[key] for key in ("frames_in", "bytes_in")} for tap in document["taps"]]
    assert [{key: tap[key] for key in counted[0]} for tap in again["taps"]] == counted


@pytest.mark.parametrize("mode", MODES)
def test_the_kernel_pings_over_ipv6_up_to_1472_bytes_where_the_mtu_has_room(scene, mode):
    """IPv6's header has 20 bytes more: with an MTU of 1,500 the last 20 sizes would be fragments."""
    made = scene(taps=bridge(mode), mtu=1520)
    ((here, name),) = made.ends
    assert here.talk("pings", "fd09::2", "1472") == {"answered": 1473}
    said = here.run("ping", "-n", "-f", "-c", "1000", "-s", "1472", "fd09::2")
    assert "1000 packets transmitted, 1000 received, 0% packet loss" in said
    assert here.tx_dropped(name) == 0
    assert lost_inside(made.run.finish()) == {}


@pytest.mark.parametrize("address", ["10.9.0.2", "fd09::2"])
def test_a_guest_echoes_a_thousand_datagrams_byte_for_byte(scene, address):
    made = scene(taps=bridge("tso"))
    ((here, _),) = made.ends
    assert here.talk("datagrams", address, "1000", "1452") == {"echoed": 1000}
    assert lost_inside(made.run.finish()) == {}


@pytest.mark.parametrize("queues", [1, 4])
@pytest.mark.parametrize("mode", MODES)
def test_iperf3_loses_nothing(scene, mode, queues):
    made = scene(taps=(*bridge(mode), *guest(mode)), dom0_vcpus=queues)
    (here, _), (there, _) = made.ends
    for reverse in ((), ("--reverse",)):
        server = there.start("iperf3", "-s", "-1", "-B", "10.9.0.2", "--forceflush")
        for line in server.stdout:
            if "Server listening" in line:
                break
        streams = ("-P", str(queues))
        client = ("iperf3", "-J", "-c", "10.9.0.2", "-n", "12M", *streams, *reverse)
        report = json.loads(here.run(*client))
        assert "error" not in report
        server.communicate(timeout=SECONDS)
        # What is under way when the client has sent all is not in the server's count.
        assert report["end"]["sum_sent"]["bytes"] >= 12 << 20
        speed = report["end"]["sum_sent"]["bits_per_second"] / 1e6
        print(f"{mode}, {queues} queues, {len(reverse)}: {speed:.0f} Mbit/s")
    document = finish(made)
    (device,) = document["guests"][0]["devices"]
    assert device["queues"] == queues
    if mode == "tso":
        # The kernel did leave the cutting to us, and got large packets, at both ends.
        # In segments the data alone would be two frames for each 1,514 bytes, in and out.
        frames = sum(tap["frames_in"] + tap["frames_out"] for tap in document["taps"])
        data = sum(tap["bytes_in"] for tap in document["taps"])
        print(f"{data / frames:.0f} bytes a frame")
        assert frames < data / 757


def test_a_file_of_100_mb_arrives_with_its_sum(scene):
    made = scene(taps=(*bridge("tso"), *guest("tso")))
    (here, _), (there, _) = made.ends
    taker = there.start(sys.executable, "-I", str(TALKER), "receive", "10.9.0.2")
    assert taker.stdout.readline() == "listening\n"
    sent = here.talk("send", "10.9.0.2", "96", seconds=3 * SECONDS)
    out, _ = taker.communicate(timeout=SECONDS)
    expected = hashlib.sha256()
    for number in range(96):
        expected.update(chunk(number))
    assert sent["sha256"] == expected.hexdigest()
    assert json.loads(out) == {"bytes": 96 << 20, "sha256": expected.hexdigest()}
    finish(made)


def test_every_frame_of_a_burst_is_accounted_for(scene):
    """A queue too short for what comes: what the kernel dropped it counted, the rest arrived."""
    made = scene(taps=(*bridge("tso"), *guest("tso")), made=("xpv0", "xpv1"))
    (here, near), (there, far) = made.ends
    here.run("ping", "-c", "1", "10.9.0.2")
    here.run("ip", "link", "set", near, "txqueuelen", "64")
    there.run("ip", "link", "set", far, "txqueuelen", "20000")
    before = here.counted(near)["tx"]
    sent = here.talk("burst", "10.9.0.2", "20000")["sent"]

    def over():
        now = here.counted(near)["tx"]
        return now["packets"] + now["dropped"] - before["packets"] - before["dropped"] >= sent

    wait_for(over)
    document = made.run.finish()
    assert lost_inside(document) == {}
    # The interfaces stay, as they were there before, and what they counted.
    kernels = []
    for end, name in made.ends:
        now = end.counted(name)
        kernels.append([now[way][what] for way in ("tx", "rx") for what in ("packets", "bytes")])
    assert here.tx_dropped(near) > 0
    keys = ("frames_in", "bytes_in", "frames_out", "bytes_out")
    assert [[tap[key] for key in keys] for tap in document["taps"]] == kernels


ATTACH = textwrap.dedent("""
    import fcntl, os, struct, sys
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"mine", 0x5002))
    os.dup2(tun, 9)
    os.set_inheritable(9, True)
    os.execv(sys.argv[1], sys.argv[1:])
""")


def test_a_descriptor_that_somebody_opened(tmp_path):
    (tmp_path / "web.cfg").write_text(WEB)
    prefix = (sys.executable, "-c", ATTACH)
    run = Run(tmp_path, "web.cfg", "--tap", "xenbr0=fd:9", prefix=prefix)
    try:
        assert run.lines == ["mine is open, for xenbr0", "serving xenbr0=mine until a signal"]
        here = run.namespace
        here.configure("mine", 1)
        assert here.talk("pings", "10.9.0.2", "20") == {"answered": 21}
        (tap,) = run.finish()["taps"]
    finally:
        run.abandon()
    assert (tap["name"], tap["headed"], tap["tx_dropped"], tap["refused"]) == ("mine", True, 0, {})


def test_a_guests_frames_are_counted_while_the_interface_is_down(tmp_path):
    (tmp_path / "web.cfg").write_text(WEB)
    run = Run(tmp_path, "web.cfg", "--tap", "xenbr0=xpv0", "--guest-tap", "web.0=xpv1")
    try:
        here = run.namespace
        here.configure("xpv1", 1)
        wait_for(lambda: "UP" in here.run("ip", "link", "show", "xpv1"))
        done = subprocess.run(here.command("ping", "-c", "1", "-W", "1", "10.9.0.9"), check=False,
                              capture_output=True)  # fmt: skip
        assert done.returncode == 1
        first, second = run.finish()["taps"]
    finally:
        run.abandon()
    assert first["refused"]["EIO"] >= 1  # its ARP, at least
    assert first["frames_out"] == 0
    assert second["frames_in"] >= 1


def test_an_interface_that_is_deleted_ends_nothing(tmp_path):
    (tmp_path / "web.cfg").write_text(WEB)
    run = Run(tmp_path, "web.cfg", "--tap", "xenbr0=xpv0", "--tap", "xenbr0=xpv1")
    try:
        here = run.namespace
        here.run("ip", "link", "delete", "xpv0")
        here.configure("xpv1", 1)
        assert here.talk("pings", "10.9.0.2", "10") == {"answered": 11}
        assert set(run.finish()["taps"][0]["refused"]) <= {"EBADFD", "EIO"}
    finally:
        run.abandon()


# The kernel's own answers, beside the tables that were made of them.


def opened(*names, mode=Mode.TSO):
    def do():
        made = [Tap.open(name, mode) for name in names]
        return f"{[(one.name, one.headed) for one in made]}"

    return do


def test_what_the_kernel_says_to_names():
    assert in_private(opened("xpv0")) == "[('xpv0', True)]"
    assert (
        in_private(opened("xpv%d", "xpv%d", mode=Mode.PLAIN))
        == "[('xpv0', False), ('xpv1', False)]"
    )
    assert in_private(opened("xpv0", "xpv0")) == (
        "ConfigError: TAP xpv0: it is busy: something else has it open"
    )
    assert in_private(opened("lo")) == (
        "ConfigError: TAP lo: there is an interface of that name, and it is no TAP"
    )


def test_without_permission_it_says_who_may():
    def do():
        os.setgid(65534)
        os.setuid(65534)
        return opened("xpv0")()

    said = in_private(do)
    assert said.startswith("ConfigError: TAP xpv0: no permission"), said


def test_a_tap_that_root_made_is_there_for_its_user():
    def do():
        subprocess.run(
            ["ip", "tuntap", "add", "dev", "xpv0", "mode", "tap", "user", "65534"], check=True
        )
        os.setgid(65534)
        os.setuid(65534)
        return opened("xpv0")()

    said = in_private(do)
    # A host may keep /dev/net/tun from everybody but root.
    assert said in ("[('xpv0', True)]", "ConfigError: TAP xpv0: no permission for /dev/net/tun")


def test_an_unattached_descriptor_and_a_tun_are_told_from_a_tap():
    def do():
        bare = os.open("/dev/net/tun", os.O_RDWR)
        tun = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(tun, taps.TUNSETIFF, taps.IFREQ.pack(b"tun0", 0x1001))
        said = []
        for descriptor in (bare, tun):
            try:
                Tap.open(f"fd:{descriptor}")
            except ConfigError as error:
                said.append(str(error).partition(": ")[2])
        return "|".join(said)

    assert in_private(do) == (
        "it is /dev/net/tun with no interface: attach it by TUNSETIFF first"
        "|it is a TUN, which carries no Ethernet frames"
    )


def test_offloads_are_refused_where_the_kernel_refuses_them():
    def do():
        tap = Tap.open("xpv0")
        differing = []
        for flags in range(128):
            try:
                fcntl.ioctl(tap, taps.TUNSETOFFLOAD, flags)
                kernel = True
            except OSError:
                kernel = False
            try:
                check_offload(Offload(flags))
                ours = True
            except ConfigError:
                ours = False
            if kernel is not ours:
                differing.append(flags)
        return str(differing)

    assert in_private(do) == "[]"


def test_whatever_passes_our_checks_the_kernel_takes():
    """Frames of a table, and of headers by chance."""
    import random
    import struct

    from tests.host.test_vnet import EMITTED, LARGE4, LARGE6, PARSED, TCP4, UDP6

    def do():
        tap = Tap.open("xpv0")
        subprocess.run(["ip", "link", "set", "xpv0", "up"], check=True)
        for frame, _ in EMITTED.values():
            tap.write(frame)
        for head, data, _ in PARSED.values():
            tap.write(vnet.parse(head + data))
        chance = random.Random(7)
        for _ in range(2000):
            data = chance.choice((TCP4, UDP6, LARGE4, LARGE6))
            start = chance.choice((0, 14, 34, 54, len(data) - 2, len(data), 60000))
            head = struct.pack(
                "=BBHHHH", chance.choice((0, 1)), chance.choice((0, 1, 4, 7)),
                chance.choice((0, 54, 74)), chance.choice((0, 1448)), start, chance.choice((6, 16)),
            )  # fmt: skip
            with contextlib.suppress(PeerProtocolError):
                tap.write(vnet.parse(head + data))
        return f"{tap.refused} {tap.frames_out > 100}"

    assert in_private(do) == "{} True"


def test_what_the_kernel_says_to_a_frame():
    def do():
        tap = Tap.open("xpv0", Mode.PLAIN)
        tap.write(Frame(bytes(60)))
        subprocess.run(["ip", "link", "set", "xpv0", "up"], check=True)
        tap.write(Frame(bytes(60)))
        tap.write(Frame(bytes(13)))
        subprocess.run(["ip", "link", "delete", "xpv0"], check=True)
        tap.write(Frame(bytes(60)))
        tap.read()
        return json.dumps([tap.frames_out, tap.refused, tap.gone])

    counted = json.loads(in_private(do))
    assert counted == [1, {"EIO": 1, "EINVAL": 1, errno.errorcode[errno.EBADFD]: 1}, True]


def test_the_interface_gets_an_address_wherever_it_is():
    def do():
        tap = Tap.open("xpv0")
        other = Namespace()
        subprocess.run(["ip", "link", "set", "xpv0", "netns", str(other.pid)], check=True)
        assert tap.tx_dropped() is None
        done = tap.set_mac(bytes.fromhex("00163e000001"))
        said = other.run("ip", "link", "show", "xpv0")
        other.close()
        return f"{done} {'00:16:3e:00:00:01' in said}"

    assert in_private(do) == "True True"
