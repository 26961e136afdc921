"""Where each defect of net, bus and store is found."""

from __future__ import annotations

# id: (examples that are enough, text of the failure)
FOUND: dict[str, tuple[int, str]] = {
    "net-csum-flags-swapped": (1, "flags 0x2, expected 0x1"),
    "net-first-size-as-fragment": (1, "what was sent is not what came"),
    "net-extra-not-answered": (1, "answers ["),
    "net-extra-past-producer": (10, "the peer's index runs past the ring"),
    "net-page-cross": (10, "a fragment beyond its page: it was answered"),
    "net-zero-length-mapped": (1, "what was sent is not what came"),
    "net-short-header": (10, "a first fragment under 14 bytes: a frame of 100 bytes came"),
    "net-rx-partial": (40, "half a packet is on the rx ring"),
    "net-gso-unvalidated": (1, "flags 0xe, expected 0xf"),
    "net-hash-mapping-overflow": (1, "an end that wraps: status 0, expected 2"),
    "net-backlog-unbounded": (1, "bytes waited for a guest without slots"),
    "net-status-unsigned": (1, "netif_rx of d1"),
    "net-rx-page-leak": (1, "253 of 256 slots are posted"),
    "evtchn-ack-late": (60, "a wake-up was lost (its callback reads): 2 of 3"),
    "evtchn-unmask-forgets": (
        1,
        "an event is pending and not masked, and nobody is going to take it",
    ),
    "bus-skip-closing": (1, "vif: its frontend is closing, it is closed"),
    "bus-miss-first-watch": (1, "is init_wait: no reason"),
    "bus-garbage-state": (1, "ValueError"),
    "bus-queue-ten": (1, "is closing: EINVAL: EVTCHNOP_bind_interdomain"),
    "store-no-retry": (1, "of 9 additions are left"),
    "store-watch-after-resume": (1, "waited 60 s for domain 1 to acknowledge suspend"),
}
