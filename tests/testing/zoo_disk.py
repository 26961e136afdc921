"""Where each defect of rings, ids, blk and grants is found."""

from __future__ import annotations

# id: (examples that are enough, text of the failure)
FOUND = {
    "ring-back-no-final-check": (1, "lost wake-up: d0 sleeps with"),
    "ring-front-no-final-check": (10, "of two reads that are answered these are complete"),
    "ring-event-late": (10, "lost wake-up: d0 sleeps with"),
    "ring-notify-unmasked": (1, "lost wake-up: d"),
    "ring-prod-unbounded-back": (1, "33 answers to requests that are none"),
    "ring-prod-unbounded-front": (1, "d1 took 0x9 responses to 0x1 requests"),
    "ring-prod-reread": (10, "requests in flight in a ring of 32"),
    "ring-reinit-at-attach": (1, "of two early requests these are answered: []"),
    "ring-response-before-data": (100, "is answered 0 before its data is there"),
    "ring-response-leak": (1, "shows 0xa5 at byte 9, 8 bytes beside its fields"),
    "id-reuse": (1, "two requests in flight have id 0x1"),
    "id-unchecked": (10, "IndexError: request 0x7fffffff of [1, 2, 3]"),
    "id-completed-twice": (10, "answered one id twice: success [True, False, True]"),
    "blk-double-fetch-operation": (1, "d0 fetches blkif_request[0].operation"),
    "blk-double-fetch-nr-segments": (1, "d0 fetches blkif_request[0].nr_segments"),
    "blk-double-fetch-sectors": (1, "d0 fetches blkif_request[0].seg[0].first_sect"),
    "blk-nr-segments-unchecked": (1, "12 segments: answered 0, expected -1"),
    "blk-first-after-last": (1, "a segment that ends before it begins: answered 0, expected -1"),
    "blk-range-unchecked": (1, "a read beyond the end: answered 0, expected -1"),
    "blk-readonly-bypass": (1, "an indirect write: answered 0, expected -1"),
    "blk-indirect-overrun": (1, "more indirect segments than offered: answered 0, expected -1"),
    "blk-abi-mixed": (1, "response for id 34359738368, which is not in flight"),
    "blk-eopnotsupp-success": (10, "answered EOPNOTSUPP: success [True, True, True]"),
    "blk-flush-early": (1, "flush 1 is answered 0, 1 writes are not durable"),
    "blk-persistent-leak": (1, "d0 maps 1 pages of d1 after the close"),
    "blk-short-read-okay": (1, "a read that comes short: answered 0, expected -1"),
    "grant-revoke-mapped": (1, "bits 0x0, expected 0x18"),
    "grant-leak-at-close": (1, "grants page 0x207, which is free"),
    "grant-writable": (1, "of a WRITE can be written by the backend"),
}
