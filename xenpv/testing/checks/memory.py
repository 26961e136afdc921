"""Bounded memory: what a guest can make others keep for it has an end, in bytes and in number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.back.netback import Netback

if TYPE_CHECKING:
    from xenpv.platform import Platform

BACKLOG_BYTES: Final = 524_288  # half the slots of an rx ring, a page each
FRAME_BYTES: Final = 65_535 + 18  # the last that was taken
MULTICAST: Final = 64  # XEN_NETBK_MCAST_MAX
MAPPING: Final = 128  # XEN_NETBK_MAX_HASH_MAPPING_SIZE
QUOTAS: Final = ("nodes", "watches", "transactions")
LATE: Final = 1  # what xenstored finds at a limit is counted before it is refused


def check_memory(platform: Platform) -> list[str]:
    """What netback and xenstored keep for guests, against their limits."""
    return [*_interfaces(platform), *_store(platform)]


def _interfaces(platform: Platform) -> list[str]:
    findings = []
    for device in platform.backends.devices.values():
        driver = device.driver
        if not isinstance(driver, Netback):
            continue
        kept = {
            "multicast groups": (len(driver.multicast), MULTICAST),
            "entries of its hash mapping": (len(driver.hash.mapping), MAPPING),
        }
        for queue in driver.queues:
            waits = 0 if queue.rx is None else queue.rx.backlog_bytes
            kept[f"bytes of frames in queue {queue.name}"] = waits, BACKLOG_BYTES + FRAME_BYTES
        findings += [
            f"{driver.name}: {count} {what}, {most} at most"
            for what, (count, most) in kept.items()
            if count > most
        ]
    return findings


def _store(platform: Platform) -> list[str]:
    findings = []
    for domid, domain in platform.xenstored.known.items():
        if not domain.accounted:
            continue
        for quota in QUOTAS:
            most, count = getattr(domain.limits, quota), getattr(domain, quota)
            if most and count > most + LATE:
                findings.append(f"xenstored: d{domid} has {count} {quota}, {most} at most")
    return findings
