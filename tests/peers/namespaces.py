"""Private network namespaces, an `xenpv run` between them, and what their kernels counted.

A namespace lives as long as a `cat` in it, whose input is a pipe of this process: nothing is left
when a test ends, however it ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.peers import need

PACKAGES = "iperf3 iproute2 iputils-ping"
CLONE_NEWNET = 0x40000000
SECONDS = 60  # for anything that is waited for
TALKER = Path(__file__).parent / "talker.py"


def need_namespaces(*programs: str) -> None:
    """Skip, or fail under XENPV_REQUIRE_PEERS, where there can be no namespaces with TAPs."""
    for program in ("ip", "ping", "nsenter", "unshare", *programs):
        need(program, PACKAGES)
    missing = ""
    if os.geteuid() != 0:
        missing = "network namespaces and TAPs need root"
    elif not Path("/dev/net/tun").exists():
        missing = "there is no /dev/net/tun: modprobe tun"
    elif subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True).returncode:
        missing = "unshare --net fails: CAP_SYS_ADMIN is missing"
    if missing:
        line = f"{missing}; and apt-get install {PACKAGES}"
        if os.environ.get("XENPV_REQUIRE_PEERS"):
            pytest.fail(line)
        pytest.skip(line)


class Namespace:
    """A network namespace with its loopback up."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        self.pid = self._process.pid
        self.run("ip", "link", "set", "lo", "up")

    def command(self, *command: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command]

    def run(self, *command: str, seconds: float = SECONDS) -> str:
        """Its standard output; its failure is the test's."""
        done = subprocess.run(
            self.command(*command), capture_output=True, text=True, timeout=seconds, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def talk(self, *arguments: str, seconds: float = SECONDS) -> dict[str, int]:
        """What talker.py says of a conversation."""
        done = self.run(sys.executable, "-I", str(TALKER), *arguments, seconds=seconds)
        return json.loads(done.splitlines()[-1])

    def configure(self, tap: str, number: int) -> None:
        """10.9.0.N and fd09::N at a TAP, set up: without offers of its own, a long queue, and a
        TCP that sends nothing twice because an answer is late."""
        self.run("ip", "link", "set", tap, "txqueuelen", "20000", "up")
        self.run("ip", "addr", "add", f"10.9.0.{number}/24", "dev", tap)
        self.run("ip", "addr", "add", f"fd09::{number}/64", "dev", tap, "nodad")
        route = ("10.9.0.0/24", "dev", tap, "src", f"10.9.0.{number}", "rto_min", "30s")
        self.run("ip", "route", "replace", *route)
        self.run("sh", "-c", "echo 0 > /proc/sys/net/ipv4/tcp_early_retrans")
        # On a busy machine TCP would make its large packets small.
        self.run("sh", "-c", "echo 16 > /proc/sys/net/ipv4/tcp_min_tso_segs")

    def counted(self, tap: str) -> dict[str, dict[str, int]]:
        """What the kernel counts of a TAP: `rx` is what xenpv wrote, `tx` what it read."""
        (link,) = json.loads(self.run("ip", "-s", "-j", "link", "show", tap))
        counters: dict[str, dict[str, int]] = link["stats64"]
        return counters

    def tx_dropped(self, tap: str) -> int:
        return self.counted(tap)["tx"]["dropped"]

    def retransmitted(self) -> int:
        """Segments that TCP sent again, but for SYNs."""
        return self._counter("snmp", "Tcp", "RetransSegs") - self._counter(
            "netstat", "TcpExt", "TCPSynRetrans"
        )

    def _counter(self, file: str, kind: str, name: str) -> int:
        """/proc/net goes by the process that reads it."""
        lines = self.run("cat", f"/proc/self/net/{file}").splitlines()
        names, values = (line.split() for line in lines if line.startswith(f"{kind}:"))
        return int(values[names.index(name)])

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(SECONDS)


class Run:
    """`xenpv run` in a namespace of its own, once it serves. `lines` are those on stderr."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        prefix: tuple[str, ...] = (),
        made: tuple[str, ...] = (),
    ) -> None:
        """`made` are TAPs that are there before, and stay."""
        self.namespace = Namespace()
        for tap in made:
            self.namespace.run("ip", "tuntap", "add", "dev", tap, "mode", "tap")
        self._out = folder / "run.json"
        command = [*prefix, sys.executable, "-m", "xenpv", "run", "--json", *arguments]
        with self._out.open("wb") as out:
            self._process = subprocess.Popen(
                self.namespace.command(*command),
                cwd=folder,
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
            )
        self.lines: list[str] = []
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("serving"):
                break
        else:
            self._process.wait(SECONDS)
            self.namespace.close()
            pytest.fail(f"xenpv run does not serve: {self.lines}")

    def move(self, tap: str, to: Namespace) -> None:
        self.namespace.run("ip", "link", "set", tap, "netns", str(to.pid))

    def finish(self) -> dict:
        """End it by SIGTERM; its document. All was verified."""
        self._process.send_signal(signal.SIGTERM)
        _, err = self._process.communicate(timeout=SECONDS)
        self.namespace.close()
        document = json.loads(self._out.read_text())
        assert self._process.returncode == 0, (err, document)
        assert document["ok"]
        return document

    def abandon(self) -> None:
        """After a failure."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
            self.namespace.close()


def lost_inside(document: dict) -> dict[str, int]:
    """Every counter of a frame that was lost anywhere in a run, by where; without the zeros."""
    found = {}
    for bridge in document["bridges"]:
        found[f"bridge {bridge['name']}"] = bridge["dropped"]
    for tap in document["taps"]:
        found |= {f"{tap['name']} {why}": count for why, count in tap["lost"].items()}
        # Before it was set up, and while it moved.
        found |= {f"{tap['name']} {why}": n for why, n in tap["refused"].items() if why != "EIO"}
    for guest in document["guests"]:
        for device in guest["devices"]:
            if device["kind"] == "vif":
                found |= {f"{device['name']} {why}": n for why, n in device["lost"].items()}
    return {where: count for where, count in found.items() if count}


def in_private(function: Callable[[], str]) -> str:
    """What `function` answers in a child of this process, in a network namespace of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.unshare(CLONE_NEWNET) == 0
            answer = function()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(child, 0)
    return answer


def wait_for(condition: Callable[[], bool]) -> None:
    """A kernel does some things a moment later."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
