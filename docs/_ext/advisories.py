"""Advisories (XSA) by what went wrong, what stands against it here, and the cases that name them.

The first two are told here; which cases there are is read from the suites.
"""

from __future__ import annotations

import re
from typing import Final

from cases import link
from markdown import plain, table

from xenpv.testing.cases import Case, all_cases

# Where it stands: {number: (what a peer could do, what guards against it here)}
TOLD: Final[dict[str, dict[int, tuple[str, str]]]] = {
    "backends": {
        39: ("garbage on a tx ring: an endless loop, leaks on the error path", "a producer too far ahead breaks the vif; one way out gives all back"),
        71: ("errors leaked the grants of a request", "maps and unmaps are balanced on every path"),
        90: ("a malformed packet was torn down in atomic context", "the vif is marked broken, and taken down by its own task"),
        142: ("a read-only disk could be written", "each operation that writes is refused, and the image is opened to be read only"),
        155: ("a slot was read again after it was checked", "each slot is copied once; the kit reports a second fetch"),
        175: ("the toolstack believed keys that a guest may write", "backends are found by the toolstack's own tree"),
        178: ("the same, of the backend's directory", "as XSA-175"),
        216: ("response slots had bytes of the backend's stack", "a whole entry is written, with zeros"),
        229: ("segments were merged by the place of their frames", "segments are joined by their place on the disk only"),
        266: ("a read-only disk could be written by another way", "as XSA-142"),
        270: ("offset + length of a hash mapping wrapped", "the sum is checked without wrapping, each entry against the queues"),
        332: ("a storm of events starved the backend", "events are acknowledged late, and later the more come for nothing"),
        349: ("rewriting a watched key filled memory with events", "equal events are one, queues have a limit"),
        350: ("toggling states used a thread that was gone", "a connection is taken down once, and before the next"),
        361: ("one failed map of a batch was taken for all well", "each status of a batch is looked at"),
        362: ("a failed map hit an assertion", "a failed map fails its request, no more"),
        365: ("a later map hid the error of an earlier", "an error stays"),
        367: ("an error of a map was lost", "as XSA-361"),
        374: ("a malformed packet ended a queue that others still used", "a queue lives until its device is closed"),
        392: ("posting too few rx slots kept frames for ever", "what waits has a limit in bytes and in time"),
        423: ("headers over many small slots", "the first bytes are copied together before anybody parses them"),
        424: ("dropping a frame took a lock that was held", "no locks; what is dropped is freed by its task"),
        432: ("most slots and few bytes: a counter went below zero", "slots copied and slots mapped are counted apart"),
        448: ("a fragment of no bytes was mapped", "it is answered and not mapped"),
    },
    "frontends": {
        376: ("a frontend believed its backend's responses", "a response is copied once, its producer bounded, its id one that is in flight"),
        391: ("a backend's storm of events", "events are acknowledged after the work"),
        396: ("a page was used again while the backend still had it mapped", "a grant that cannot be ended keeps its page out of use"),
        403: ("what lay beside the data of a request could be read", "pages are zeroed, or bounced where `trusted` is 0"),
        405: ("a freed buffer stayed in a queue", "a buffer has one owner"),
        457: ("an rx page was not posted again: memory leaked", "each page is counted"),
        465: ("removal after a resume, before queues were there", "taking down is possible in each state"),
    },
    "the store": {
        38: ("indices of a ring page were believed", "a ring that is wrong disconnects its guest"),
        72: ("a reply of more than 4,096 bytes", "E2BIG"),
        115: ("watch events told of nodes that a guest may not read", "events are sent by the rights of their node"),
        206: ("a flood of writes starved the transactions of others", "who spoils transactions has to wait"),
        322: ("a new domain had the rights of the old one with its number", "rights of the dead are gone"),
        323: ("the length of a path was checked wrongly", "one check for every request"),
        324: ("an event that is too long crashed the store", "it is dropped"),
        325: ("a guest with a broken ring was never released", "@releaseDomain is sent at its death"),
        326: ("requests and events without limit", "quotas of memory, of requests and of events"),
        330: ("RESET_WATCHES left a part behind", "all of a connection's watches go"),
        352: ("a guest gave nodes away, beyond its quota", "only domain 0 changes an owner"),
        353: ("the root's rights were not checked", "they are"),
        414: ("a failed creation left a part behind", "nothing is changed before all is checked"),
        415: ("the same in a transaction", "as XSA-414"),
        416: ("memory of a reply that is never read", "freed with its request; unread replies have a limit"),
        417: ("rights to nodes of a domain that is gone", "as XSA-322"),
        418: ("a deep tree used up the stack", "trees are walked without recursion"),
        419: ("nodes without an owner and without a quota", "what a dead domain owned goes"),
        420: ("a negative length", "lengths are unsigned; too long ends the connection"),
        421: ("deletions in a transaction spoiled the count of nodes", "the count is exact at its end"),
        425: ("a connection was freed while it was walked over", "who goes is taken out after the walk"),
        440: ("two transactions that deleted the same node", "EAGAIN"),
        481: ("a path with nothing behind its last slash", "EINVAL"),
        483: ("counts of a domain lived on for the next of its number", "counts end with the domain"),
        484: ("RESET_WATCHES within a transaction", "OK, and the transaction is gone"),
    },
    "the hypervisor": {
        18: ("grant entries could be swapped beyond the table", "both are checked against its size"),
        107: ("an event for a FIFO without a control block", "it is dropped"),
        134: ("swaps in a version without them", "the version is looked at first"),
        188: ("a failed FIFO init was used afterwards", "it is undone whole"),
        221: ("a poll on a port that is none", "EINVAL"),
        224: ("counts of maps, and bits of entries, were wrong", "counts are exact, and compared by a checker"),
        226: ("transitive copies without end", "one hop"),
        228: ("two maps had one handle", "handles are unique"),
        230: ("as XSA-224", "as XSA-224"),
        232: ("a cache flush of a page that is no RAM", "refused"),
        236: ("as XSA-224", "as XSA-224"),
        255: ("a change of version with status pages in use", "EBUSY"),
        316: ("a failed map had a positive status", "an error is negative"),
        317: ("a port that could not be allocated", "an error, and nothing is left"),
        318: ("copies that were continued were counted wrongly", "each operation has its status"),
        338: ("a port that was valid became invalid", "what is valid stays so"),
        342: ("ports beyond 1,023 of a 32-bit guest", "refused"),
        343: ("a reset beside other calls", "one after the other"),
        344: ("a reset that takes long", "it goes on where it stopped"),
        358: ("FIFO queues in another order than written", "one link at a time"),
        359: ("a FIFO that grows while events come", "it has grown before it is used"),
        379: ("status pages after a change of version", "as XSA-255"),
        382: ("a frame of status pages beyond the last", "refused"),
        394: ("a grant half unmapped was given back twice", "once"),
        411: ("a transitive copy and its locks", "one at a time"),
        486: ("status pages that are still mapped", "as XSA-255"),
        496: ("a failed bind of a virtual interrupt took it from another", "a failed bind changes nothing"),
        500: ("a copy of an entry that changed while it was pinned", "it is compared again"),
        501: ("as XSA-486", "as XSA-255"),
        505: ("a FIFO that grows beside a reset", "as XSA-359"),
    },
}  # fmt: skip


def named() -> dict[int, list[Case]]:
    """The cases of each advisory, by its number."""
    found: dict[int, list[Case]] = {}
    for case in all_cases().values():
        numbers = re.findall(r"XSA-(\d+)", f"{case.source} {case.expected}")
        for number in dict.fromkeys(map(int, numbers)):
            found.setdefault(number, []).append(case)
    return found


def about(*words: str) -> str:
    """A table of those told under these words."""
    cases = named()
    rows = [
        [plain(f"XSA-{number}"), plain(done), told(guard), ", ".join(map(link, cases[number]))]
        for number, (done, guard) in TOLD[" ".join(words)].items()
        if number in cases
    ]
    return table(["advisory", "what a peer could do", "what stands against it here", "cases"], rows)


def told(text: str) -> str:
    """`x` is code."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(part if part.startswith("`") else plain(part) for part in parts)
