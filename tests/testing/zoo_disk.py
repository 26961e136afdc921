"""Where each defect of rings, ids, blk and grants is found."""

from __future__ import annotations

# id: (examples that are enough, text of the failure)
FOUND = {
    "ring-back-no-final-check": (1, "lost wake-up: d0 sleeps with"),
    "ring-front-no-final-check": (1, "lost wake-up: d1 sleeps with"),
    "ring-event-late": (200, "lost wake-up: d0 sleeps with"),
    "ring-notify-unmasked": (1, "lost wake-up: d"),
    "ring-prod-unbounded-back": (1, "33 answers to requests that are none"),
    "ring-prod-unbounded-front": (1, "d1 took 0x9 responses to 0x1 requests"),
    "ring-prod-reread": (200, "requests in flight in a ring of 32"),
    "ring-reinit-at-attach": (1, "of two early requests these are answered: []"),
    "ring-response-before-data": (100, "is answered 0 before its data is there"),
    "ring-response-leak": (1, "shows 0xa5 at byte 9, 8 bytes beside its fields"),
    "blk-double-fetch-nr-segments": (1, "d0 fetches blkif_request[0].nr_segments"),
}
