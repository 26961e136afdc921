"""One end of a conversation, run inside a network namespace by namespaces.py: no xenpv here.

The last line of output is a JSON object. Whatever is not as it should be ends it with a trace.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import struct
import sys

SECONDS = 30
MIB = 1 << 20
PORT = 5009
WINDOW = 32
ECHO = {socket.AF_INET: (8, 0), socket.AF_INET6: (128, 129)}


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def pings(address: str, most: str) -> dict[str, int]:
    """An echo of every size from 0 to `most`, each with bytes of its own."""
    kind = family(address)
    request, reply = ECHO[kind]
    protocol = socket.IPPROTO_ICMPV6 if kind is socket.AF_INET6 else socket.IPPROTO_ICMP
    chance = random.Random(7)
    answered = 0
    with socket.socket(kind, socket.SOCK_RAW, protocol) as raw:
        raw.settimeout(SECONDS)
        for size in range(int(most) + 1):
            payload = chance.randbytes(size)
            head = struct.pack(">BBHHH", request, 0, 0, 77, size)
            if kind is socket.AF_INET:
                head = struct.pack(">BBHHH", request, 0, checksum(head + payload), 77, size)
            raw.sendto(head + payload, (address, 0))
            while True:
                got = raw.recv(65535)
                if kind is socket.AF_INET:
                    got = got[(got[0] & 15) * 4 :]
                if got[0] == reply and struct.unpack(">HH", got[4:8]) == (77, size):
                    break
            assert got[8:] == payload, f"{size} bytes came back as {len(got) - 8} others"
            answered += 1
    return {"answered": answered}


def checksum(data: bytes) -> int:
    value = int.from_bytes(data + b"\0" * (len(data) & 1), "big") % 0xFFFF
    return 0xFFFF - value


def datagrams(address: str, count: str, longest: str) -> dict[str, int]:
    """Datagrams to the echo port, WINDOW at a time, each of which has to come back as it went."""
    chance = random.Random(7)
    echoed = 0
    with socket.socket(family(address), socket.SOCK_DGRAM) as udp:
        udp.settimeout(SECONDS)
        udp.connect((address, 7))
        while echoed < int(count):
            batch = min(WINDOW, int(count) - echoed)
            sent = [
                struct.pack(">I", echoed + n) + chance.randbytes(chance.randrange(int(longest) - 3))
                for n in range(batch)
            ]
            for one in sent:
                udp.send(one)
            got = [udp.recv(65535) for _ in sent]
            assert sorted(got) == sorted(sent)
            echoed += batch
    return {"echoed": echoed}


def burst(address: str, count: str) -> dict[str, int]:
    """Datagrams that nobody answers, as fast as they go."""
    with socket.socket(family(address), socket.SOCK_DGRAM) as udp:
        udp.connect((address, 9))
        sent = 0
        for _ in range(int(count)):
            try:
                udp.send(bytes(1000))
            except ConnectionRefusedError:  # by an ICMP of an earlier one
                continue
            sent += 1
    return {"sent": sent}


def chunk(number: int) -> bytes:
    return random.Random(number).randbytes(MIB)


def send(address: str, mebibytes: str) -> dict[str, str]:
    """A file of so many MiB by TCP; the other side answers with its SHA-256."""
    digest = hashlib.sha256()
    with socket.create_connection((address, PORT), timeout=SECONDS) as tcp:
        for number in range(int(mebibytes)):
            piece = chunk(number)
            digest.update(piece)
            tcp.sendall(piece)
        tcp.shutdown(socket.SHUT_WR)
        answer = tcp.recv(64, socket.MSG_WAITALL).decode()
    assert answer == digest.hexdigest()
    return {"sha256": answer}


def receive(address: str) -> dict[str, int | str]:
    """Take one file; a line says when it listens."""
    digest = hashlib.sha256()
    size = 0
    with socket.create_server((address, PORT), family=family(address)) as server:
        server.settimeout(SECONDS)
        print("listening", flush=True)
        tcp, _ = server.accept()
        with tcp:
            tcp.settimeout(SECONDS)
            while piece := tcp.recv(MIB):
                digest.update(piece)
                size += len(piece)
            tcp.sendall(digest.hexdigest().encode())
    return {"bytes": size, "sha256": digest.hexdigest()}


if __name__ == "__main__":
    does = {
        "pings": pings,
        "datagrams": datagrams,
        "burst": burst,
        "send": send,
        "receive": receive,
    }
    print(json.dumps(does[sys.argv[1]](*sys.argv[2:])))
