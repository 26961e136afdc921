"""Tapes made by hand, and one of a platform: what the page is tested with."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from tests.view.worlds import work
from xenpv import Disk, MemoryImage, Platform, Vif
from xenpv.abi.layout import sizeof
from xenpv.view.tape import (
    Consumption,
    Publication,
    StoreChange,
    StoreRequest,
    Tape,
    TapedDomain,
    TapedFrame,
    TapedRing,
    TapedTask,
    TapeEvent,
)
from xenpv.xen.trace import Event

KIB = 1024
HOSTILE = (
    "</script><script>document.title='caught'</script>",
    "<img src=x onerror=\"document.title='caught'\">",
    "\u2028\u2029 \u202e\u200b\x00\x07\x1b[31m",
    "{{ 7 * 7 }} ${document.title} '\"`&lt;",
    "\\u003c/script\\u003e <!-- ]]> <![CDATA[",
)


@cache
def platform_tape() -> Tape:
    """Two guests with disks and interfaces at work, then gone; about 2,000 events."""
    tape = Tape()
    with Platform(seed=3, tape=tape) as xen:
        xen.respond("xenbr0")
        for personality in ("windows", "linux"):
            guest = xen.create(
                name=personality,
                personality=personality,
                disks=[Disk(MemoryImage(bytearray(256 * KIB)))],
                vifs=[Vif()],
            ).start()
            work(xen, guest)
        for guest in list(xen.guests):
            guest.shutdown()
    return tape


def event(kind: Event, *, domid: int = 0, a: int = 0, b: int = 0, time_ns: int = 0) -> TapeEvent:
    return TapeEvent(time_ns=time_ns, machine=0, domid=domid, event=kind, a=a, b=b)


def ring(**changed: Any) -> TapedRing:
    """A blkif ring of 4 slots; what is `changed` is otherwise."""
    usual: dict[str, Any] = {
        "number": 0, "machine": 0, "domid": 1, "back_domid": 0, "kind": "blkif",
        "device": "device/vbd/51712", "queue": 0, "size": 4,
        "entry_size": sizeof("blkif_sring_entry"), "request": "blkif_request",
        "response": "blkif_response", "first": 0, "pfn": 0x10,
    }  # fmt: skip
    return TapedRing(**usual | changed)


def published(moment: int, first: int, *slots: bytes, **changed: Any) -> Publication:
    usual: dict[str, Any] = {
        "moment": moment, "ring": 0, "is_response": False, "first": first, "slots": slots,
        "req_prod": first + len(slots) & 0xFFFFFFFF, "req_event": 1, "rsp_prod": 0, "rsp_event": 1,
    }  # fmt: skip
    return Publication(**usual | changed)


def hostile() -> Tape:
    """Whatever a guest may name or write says HOSTILE things."""
    tape = Tape()
    for number, text in enumerate(HOSTILE):
        data = text.encode()
        moment = len(tape.events)
        tape.events += [
            event(Event.DELIVER, domid=number, a=number),
            event(Event.NOTE, domid=number),
            event(Event.STORE, domid=number, a=11),
            event(Event.PUBLISH, domid=number, b=1),
        ]
        tape.domains.append(TapedDomain(0, number, text, moment, None))
        tape.tasks[0, number] = TapedTask(0, number, number, text)
        tape.notes[moment + 1] = text
        tape.requests.append(StoreRequest(moment + 2, number, 11, 0, b"a\0" + data, text))
        tape.changes.append(StoreChange(moment + 2, f"/{text}", data, (text,)))
        tape.rings.append(ring(number=number, kind=text, device=text, entry_size=112))
        slot = data.ljust(112, b"<")
        tape.publications.append(published(moment + 3, 0, slot, ring=number))
        tape.frames.append(TapedFrame(moment + 3, 0, text, text, is_in=True, data=data.ljust(60)))
    return tape


@cache
def large(count: int) -> Tape:
    """`count` events of a plausible mix: 8 domains, 16 rings, a store that changes, frames."""
    chance = random.Random(1)
    tape = Tape()
    for domid in range(8):
        tape.domains.append(TapedDomain(0, domid, f"guest{domid}", 0, None))
        for number in range(domid * 4, domid * 4 + 4):
            tape.tasks[0, number] = TapedTask(0, domid, number, f"device/vbd/{number}")
    tape.rings = [ring(number=n, domid=n // 2, size=32, queue=n % 2) for n in range(16)]
    ends = [[0, 0] for _ in tape.rings]
    now = 0
    for moment in range(count):
        number = chance.randrange(16)
        domid = number // 2
        kind = chance.choice((Event.DELIVER, Event.SEND, Event.PUBLISH, Event.STORE, Event.DRAW))
        if not moment % 1000:
            kind = Event.TIMER
            now += chance.choice((1_000, 30_000_000_000))
        tape.events.append(event(kind, domid=domid, a=domid * 4 + moment % 4, b=1, time_ns=now))
        if kind == Event.PUBLISH:
            _publish(tape, moment, number, ends[number], chance)
        elif kind == Event.STORE:
            path = f"/local/domain/{domid}/key{chance.randrange(200)}"
            value = str(chance.randrange(1000)).encode()
            tape.requests.append(
                StoreRequest(moment, domid, 11, 0, path.encode() + b"\0" + value, None)
            )
            tape.changes.append(StoreChange(moment, path, value, (f"n{domid}",)))
        elif kind == Event.SEND and moment % 7 == 0:
            frame = bytes(12) + b"\x08\x06" + chance.randbytes(46)
            tape.frames.append(
                TapedFrame(
                    moment, now, f"xenbr{domid % 2}", f"vif{domid}.0", is_in=True, data=frame
                )
            )
    return tape


def _publish(tape: Tape, moment: int, number: int, end: list[int], chance: random.Random) -> None:
    is_response = end[1] < end[0] and (end[0] - end[1] == 32 or chance.random() < 0.5)
    slot = bytes(8) + end[is_response].to_bytes(8, "little") + bytes(96)
    first = end[is_response]
    end[is_response] += 1
    tape.publications.append(
        published(
            moment, first, slot, ring=number, is_response=is_response, req_prod=end[0],
            rsp_prod=end[1], req_cons=end[1], rsp_cons=end[1],
        )
    )  # fmt: skip
    if chance.random() < 0.2:
        tape.consumptions.append(Consumption(moment, number, end[0], end[1]))
