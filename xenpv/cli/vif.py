"""A network interface exercised: pings to the host on its bridge, up to the MTU."""

from __future__ import annotations

import random
import time
from typing import Final

from xenpv.back.netback import Netback
from xenpv.cli.report import VifFound
from xenpv.errors import Livelock, XenpvError
from xenpv.host.network import Port
from xenpv.host.packet import arp_request, icmp_echo_request, parse_arp, parse_echo_reply
from xenpv.host.responder import Responder
from xenpv.net.adapter import Adapter
from xenpv.platform import Platform

# Bytes of the IPv4 and ICMP headers; those of payload in the pings that come first, one by
# one.
HEADERS: Final = 28
PAYLOADS: Final = (0, 1, 18, 56, 511, 1024)
# Of frames that fill the MTU, so many are sent at once, and no more than so many bytes: half
# of what Linux' netback keeps for a guest (XENVIF_RX_QUEUE_BYTES) before it drops.
BURST: Final = 64
BURST_BYTES: Final = 256 << 10
ETHERNET_HEADER: Final = 14


def losses(adapter: Adapter | None, port: Port | None) -> dict[str, int]:
    """Frames lost between a guest's programs and the bridge, so far, by where and why."""
    lost = {}
    if adapter is not None:
        counted = adapter.statistics
        lost = {
            "sent_dropped": counted.sent_dropped,
            "sent_errors": counted.sent_errors,
            "received_dropped": counted.received_dropped,
            "received_errors": counted.received_errors,
        }
    if isinstance(port, Netback):
        lost["backend_tx_dropped"] = port.counters.tx_dropped
        lost["backend_rx_dropped"] = port.counters.rx_dropped
    return lost


class VifCheck:
    """One interface of a guest, whose IPv4 address is `ipv4`; findings go into `found`."""

    def __init__(
        self,
        platform: Platform,
        adapter: Adapter,
        station: Responder,
        ipv4: bytes,
        found: VifFound,
    ) -> None:
        self.platform = platform
        self.adapter = adapter
        self.station = station
        self.ipv4 = ipv4
        self.found = found

    def run(self, seed: str) -> None:
        """`seed` makes the payloads. Raises Livelock."""
        found = self.found
        begin = time.perf_counter()
        before = self._counted()
        try:
            self._check_link()
            station = self._resolve()
            if station is not None:
                self._ping(station, random.Random(seed))
            self._check_counters(before)
            found.exercised = True
        except Livelock:
            raise
        except XenpvError as error:
            found.failures.append(str(error))
        found.seconds = time.perf_counter() - begin

    def _check_link(self) -> None:
        found, adapter = self.found, self.adapter
        found.mtu = adapter.mtu
        if adapter.mac.hex(":") != found.mac:
            found.failures.append(f"its address is {adapter.mac.hex(':')}")

    def _resolve(self) -> bytes | None:
        """Ask for the station's address by ARP."""
        self.adapter.received.clear()
        self._send([arp_request(self.adapter.mac, self.ipv4, self.station.ipv4)])
        for frame in self._received():
            arp = parse_arp(frame)
            if arp is not None and arp.sender_ip == self.station.ipv4:
                if arp.sender_mac == self.station.mac and arp.target_mac == self.adapter.mac:
                    return arp.sender_mac
                self.found.failures.append(f"the ARP answer is wrong: {frame.hex()}")
                return None
        self.found.failures.append("no answer to ARP")
        return None

    def _ping(self, station: bytes, chance: random.Random) -> None:
        most = self.adapter.mtu - HEADERS
        sizes = [*(size for size in PAYLOADS if size < most), most - 1, most]
        burst = min(BURST, BURST_BYTES // (most + HEADERS + ETHERNET_HEADER))
        rounds = [[size] for size in sizes] + [[most] * burst]
        sequence = 0
        for sizes in rounds:
            payloads = {sequence + n: chance.randbytes(size) for n, size in enumerate(sizes)}
            sequence += len(sizes)
            self._send(
                [
                    icmp_echo_request(
                        self.adapter.mac,
                        station,
                        self.ipv4,
                        self.station.ipv4,
                        self.found.id,
                        number,
                        payload,
                    )
                    for number, payload in payloads.items()
                ]
            )
            self._judge(payloads)

    def _judge(self, payloads: dict[int, bytes]) -> None:
        """Each ping answered once, byte for byte."""
        found = self.found
        found.pings_sent += len(payloads)
        waiting = dict(payloads)
        for frame in self._received():
            echo = parse_echo_reply(frame)
            if echo is None or echo.source_ip != self.station.ipv4:
                continue
            ends = (echo.source_mac, echo.destination_mac, echo.destination_ip, echo.ident)
            payload = waiting.pop(echo.sequence, None)
            if (
                payload is None
                or echo.payload != payload
                or len(frame) != ETHERNET_HEADER + HEADERS + len(payload)
                or ends != (self.station.mac, self.adapter.mac, self.ipv4, found.id)
            ):
                found.failures.append(f"wrong answer to ping {echo.sequence}: {frame[:64].hex()}")
            else:
                found.pings_answered += 1
        if waiting:
            sizes = sorted(len(payload) for payload in waiting.values())
            found.failures.append(
                f"no answer to {len(waiting)} of {len(payloads)} pings with payloads of "
                f"{sizes[0]} to {sizes[-1]} bytes"
            )

    def _counted(self) -> tuple[int, int, int]:
        """Frames that the adapter sent, that came in on its port of the bridge, and losses.

        Those of a restored guest count what it did in its former life too.
        """
        counted = self.adapter.statistics
        port = self.platform.bridge(self.found.bridge).ports.get(self.found.name)
        lost = counted.sent_errors + counted.sent_dropped + counted.received_errors
        came = counted.sent_frames if port is None else port.received_frames
        return counted.sent_frames, came, lost

    def _check_counters(self, before: tuple[int, int, int]) -> None:
        """What the adapter counts as sent is what came to the bridge, since `before`."""
        found = self.found
        sent, came, lost = (now - then for now, then in zip(self._counted(), before, strict=True))
        if came != sent:
            found.failures.append(f"{sent} frames sent, {came} came to the bridge")
        if self.adapter.in_flight:
            found.failures.append(f"{self.adapter.in_flight} frames sent and never completed")
        if lost:
            found.failures.append(f"{lost} frames lost to errors")

    def _send(self, frames: list[bytes]) -> None:
        self.adapter.send_many(frames)
        self.platform.run()
        self.found.frames_sent += len(frames)
        self.found.bytes_sent += sum(map(len, frames))

    def _received(self) -> list[bytes]:
        frames = [bytes(frame) for frame in self.adapter.received]
        self.adapter.received.clear()
        self.found.frames_received += len(frames)
        self.found.bytes_received += sum(map(len, frames))
        return frames
