"""Where each defect of rings, ids, blk and grants is found."""

from __future__ import annotations

# id: (examples that are enough, text of the failure)
FOUND = {
    "ring-back-no-final-check": (1, "lost wake-up: d0 sleeps with"),
    "ring-event-late": (200, "lost wake-up: d0 sleeps with"),
    "blk-double-fetch-nr-segments": (1, "d0 fetches blkif_request[0].nr_segments"),
}
