"""Cases of grant copies, and of a guest's own grants (XenBus' GNTTAB)."""

from __future__ import annotations

from typing import Final

from xenpv.abi._kernel import lib
from xenpv.bus.gnttab import GnttabInterface
from xenpv.testing.cases.claims import expect
from xenpv.testing.cases.grant import (
    BAD_DOMAIN,
    BAD_REF,
    CODE,
    DENIED,
    GENERAL,
    SUITE,
    each_version,
)
from xenpv.testing.cases.grantscene import (
    MAP_HOST,
    MAP_READONLY,
    PERMIT,
    READONLY,
    Granter,
    GrantScene,
)
from xenpv.testing.cases.machinescene import NOBODY, SELF

GNTTAB_C: Final = "win-xenbus src/xenbus/gnttab.c"
BAD_COPY_ARG: Final = -10
V2_ONLY: Final = 2


@SUITE.case(
    "GNT-030",
    "copies move what they say, and no byte more",
    source=f"{CODE}, gnttab_copy",
    expected="the bytes at these offsets; the rest of the page is as it was",
    hostile=False,
)
def _copy(s: GrantScene) -> None:
    for granter in each_version(s):
        machine, dom = granter.machine, granter.domid
        machine.domain.write(machine.page(0), 0, bytes(range(256)) * 16)
        s.dom0.domain.write(s.mine, 0, b"\xee" * 4096)
        expect(s.copy(s.ref(8, 100, dom), s.own(4000), 96), 0, "copy from a reference")
        page = s.dom0.domain.read(s.mine, 0, 4096)
        expect(page, b"\xee" * 4000 + bytes(range(100, 196)), "dom0's page")
        expect(s.copy(s.own(), s.ref(8, 4095, dom), 1), 0, "copy of the last byte")
        expect(machine.domain.read(machine.page(0), 4094, 2), b"\xfe\xee", "the guest's last bytes")
        expect(granter.bits(8), 0, "bits")


@SUITE.case(
    "GNT-031",
    "copies over the end of a page",
    source=f"{CODE}, gnttab_copy_buf",
    expected="bad_copy_arg on either side, and no byte is moved",
)
def _bounds(s: GrantScene) -> None:
    granter = s.granter()
    before = s.guest.domain.read(s.page, 0, 4096), s.dom0.domain.read(s.mine, 0, 4096)
    for source, dest, size in (
        (1, 0, 4096), (4095, 0, 2), (0, 4095, 2), (4096, 0, 1), (0xFFFF, 0, 1),
        (0, 0xFFFF, 0xFFFF), (0, 0, 4097), (0, 0, 0xFFFF),
    ):  # fmt: skip
        for one, two in ((s.ref(8, source), s.own(dest)), (s.own(source), s.ref(8, dest))):
            expect(s.copy(one, two, size), BAD_COPY_ARG, f"copy {source} to {dest} of {size}")
    after = s.guest.domain.read(s.page, 0, 4096), s.dom0.domain.read(s.mine, 0, 4096)
    expect((after, granter.bits(8)), (before, 0), "pages and bits")
    expect(s.copy((0xFFFFFFFF, NOBODY, 0xFFFF, True), s.own(), 0), 0, "copy of nothing")


@SUITE.case(
    "GNT-032",
    "copies of what was not granted",
    source=f"{CODE}, gnttab_copy_claim_buf",
    expected="general_error, bad_gntref, bad_domain, permission_denied for another's frame",
)
def _refused(s: GrantScene) -> None:
    for granter in each_version(s):
        dom, page = granter.domid, granter.machine.page(0)
        granter.entry(10, 0, page, 0)
        granter.entry(11, s.other.domid, page)
        before = granter.machine.domain.read(page, 0, 4096)
        for source, dest, status in (
            (s.own(), s.ref(9, dom=dom), GENERAL),
            (s.ref(10, dom=dom), s.own(), GENERAL),
            (s.ref(11, dom=dom), s.own(), GENERAL),
            (s.ref(granter.nr_entries, dom=dom), s.own(), BAD_REF),
            (s.ref(0xFFFFFFFF, dom=dom), s.own(), BAD_REF),
            (s.ref(8, dom=NOBODY), s.own(), BAD_DOMAIN),
            ((page, dom, 0, False), s.own(), DENIED),
            (s.own(), (page, dom, 0, False), DENIED),
            (s.own(), (0x7FFFF, SELF, 0, False), -9),
        ):  # fmt: skip
            expect(s.copy(source, dest), status, f"copy {source} to {dest}")
        expect(granter.machine.domain.read(page, 0, 4096), before, "the page")
        expect([granter.bits(ref) for ref in (9, 10, 11)], [0, 0, 0], "bits")


@SUITE.case(
    "GNT-033",
    "every copy of a long batch has its own status",
    source="XSA-318",
    expected="none is left untouched, none is another's",
)
def _long(s: GrantScene) -> None:
    granter = s.granter()
    granter.entry(10, 0, s.page, 0)
    rows = [
        (s.ref(8 if at % 7 else 10), s.own(), at * 3 or 1) for at in range(1600 // 16)
    ]  # of 40 bytes each: what a page of arguments holds
    expected = [
        GENERAL if source[0] == 10 else BAD_COPY_ARG if size > 4096 else 0
        for source, _, size in rows
    ]
    for _ in range(12):
        expect(s.copies(rows), expected, "statuses")
    expect(granter.bits(8), 0, "bits")


@SUITE.case(
    "GNT-034",
    "a sub-page grant is a window",
    source=f"{CODE}, gnttab_copy_buf; {CODE}, GTF_sub_page",
    expected="general_error outside of it, and for a map",
)
def _window(s: GrantScene) -> None:
    granter = s.granter(V2_ONLY)
    granter.sub_page(10, 0, s.page, 100, 50)
    s.guest.domain.write(s.page, 0, bytes(range(256)) * 16)
    expect(s.copy(s.ref(10, 100), s.own(), 50), 0, "copy of the window")
    expect(s.dom0.domain.read(s.mine, 0, 50), bytes(range(100, 150)), "what was copied")
    for offset, size in ((99, 1), (100, 51), (150, 1), (149, 2), (0, 4096)):
        expect(s.copy(s.ref(10, offset), s.own(), size), GENERAL, f"copy of {size} at {offset}")
    expect(s.map(10, flags=MAP_HOST | MAP_READONLY), GENERAL, "map")


@SUITE.case(
    "GNT-035",
    "a transitive grant goes one hop",
    source="XSA-226",
    expected="through one entry; two hops and circles are general_error",
)
def _transitive(s: GrantScene) -> None:
    granter = s.granter(V2_ONLY)
    other = Granter(s.other, V2_ONLY)
    s.other.domain.write(s.other.page(0), 0, b"behind..")
    other.entry(20, granter.domid, s.other.page(0))
    granter.transitive(10, 0, other.domid, 20)
    expect(s.copy(s.ref(10), s.own()), 0, "copy through one hop")
    expect(s.dom0.domain.read(s.mine, 0, 8), b"behind..", "what was copied")
    other.transitive(21, granter.domid, granter.domid, 11)  # a circle with 11
    granter.transitive(11, 0, other.domid, 21)
    granter.transitive(12, 0, granter.domid, 12)  # to itself
    other.entry(22, 0, s.other.page(0))  # not for who is in between
    granter.transitive(13, 0, other.domid, 22)
    granter.transitive(14, 0, NOBODY, 20)
    for ref in (11, 12, 13):
        expect(s.copy(s.ref(ref), s.own()), GENERAL, f"copy of {ref}")
    expect(s.copy(s.ref(14), s.own()) in (GENERAL, BAD_DOMAIN), True, "copy through nobody")
    expect(s.map(10, flags=MAP_HOST | MAP_READONLY), GENERAL, "map")
    expect((granter.bits(10), other.bits(20)), (0, 0), "bits")


@SUITE.case(
    "GNT-036",
    "a transitive grant that is read-only on either hop",
    source=f"{CODE}, acquire_grant_for_copy",
    expected="copying from it is 0, copying to it general_error",
)
def _transitive_readonly(s: GrantScene) -> None:
    granter = s.granter(V2_ONLY)
    other = Granter(s.other, V2_ONLY)
    page = s.other.page(0)
    other.entry(20, granter.domid, page, PERMIT | READONLY)
    other.entry(21, granter.domid, page)
    granter.transitive(10, 0, other.domid, 20)
    granter.transitive(11, 0, other.domid, 21, READONLY)
    before = s.other.domain.read(page, 0, 4096)
    for ref in (10, 11):
        found = s.copy(s.ref(ref), s.own()), s.copy(s.own(), s.ref(ref))
        expect(found, (0, GENERAL), f"copies of {ref}")
    expect(s.other.domain.read(page, 0, 4096), before, "the page")


@SUITE.case(
    "GNT-037",
    "two tables that refer to each other",
    source="XSA-411",
    expected="the copy is done, nothing stays pinned; no lock waits for another",
)
def _crossed(s: GrantScene) -> None:
    guest = s.granter(V2_ONLY)
    dom0 = Granter(s.dom0, V2_ONLY)
    guest.transitive(15, 0, 0, 30)
    dom0.entry(30, guest.domid, s.dom0.page(1))
    dom0.transitive(31, 0, guest.domid, 8)
    s.dom0.domain.write(s.dom0.page(1), 0, b"from dom0")
    expect(s.copy(s.ref(15), s.ref(31, 100, 0), 9), 0, "copy")
    expect(s.guest.domain.read(s.page, 100, 9), b"from dom0", "what was copied")
    bits = (guest.bits(8), guest.bits(15), dom0.bits(30), dom0.bits(31))
    expect(bits, (0, 0, 0, 0), "bits")


@SUITE.case(
    "GNT-038",
    "a version is changed in the midst of a copy",
    source="XSA-486",
    expected="EAGAIN; the copy is done as it was begun",
)
def _switched(s: GrantScene) -> None:
    granter = s.granter()
    answers: list[int | str] = []

    def race(_actor: int, kind: int, _frame: int, _offset: int, _size: int) -> None:
        if kind & lib.ACCESS_ATOMIC and not answers:  # the entry is pinned
            answers.append("")
            answers[0] = granter.set_version(2)

    with s.meanwhile(race):
        done = s.copy(s.ref(8), s.own())
    expect((done, answers), (0, ["EAGAIN"]), "copy, and the switch within it")


@SUITE.case(
    "GNT-039",
    "an entry is revoked between two copies of one call",
    source=f"{CODE}, gnttab_copy: a claimed page is kept for the next operation",
    expected="consecutive ones of one page go through; the next call is refused",
)
def _kept(s: GrantScene) -> None:
    granter = s.granter()
    rows = [(s.ref(8), s.own(8 * at), 8) for at in range(3)]
    moved: list[int] = []

    def race(_actor: int, kind: int, _frame: int, offset: int, size: int) -> None:
        if size == 8 and offset in (0, 8, 16) and s.is_write(kind) and not moved:
            moved.append(offset)
            granter.flags(8, granter.bits(8))

    with s.meanwhile(race):
        done = s.copies(rows)
    expect(done, [0, 0, 0], "statuses")
    expect(s.copy(s.ref(8), s.own()), GENERAL, "copy of the next call")


# a guest's own grants


class Gnttab:
    """XenBus' GNTTAB of the guest; dom0 maps what it grants."""

    def __init__(self, s: GrantScene) -> None:
        self.s = s
        self.gnttab = GnttabInterface(s.guest.domain)

    def grant(self, *, readonly: bool = False) -> int:
        return self.gnttab.permit_foreign_access(0, self.s.page, readonly=readonly)

    def revoke(self, ref: int) -> bool:
        return self.gnttab.revoke_foreign_access(ref)


@SUITE.case(
    "GNT-050",
    "a guest's grant that is mapped is not revoked, nor given out again",
    source=f"{GNTTAB_C}, GnttabRevokeForeignAccess",
    expected="refused while it is mapped; granted once it is not; other references meanwhile",
)
def _revoke(s: GrantScene) -> None:
    guest = Gnttab(s)
    ref = guest.grant()
    expect(s.map(ref), 0, "map")
    expect(guest.revoke(ref), False, "revoke while it is mapped")
    others = [guest.grant() for _ in range(600)]
    expect(ref in others, False, "the reference is given out again")
    expect(s.unmap(s.handle), 0, "unmap")
    expect(guest.revoke(ref), True, "revoke afterwards")
    expect(s.map(ref), GENERAL, "map of what was revoked")


@SUITE.case(
    "GNT-051",
    "what a guest grants read-only is read-only",
    source=f"{GNTTAB_C}, GnttabPermitForeignAccess",
    expected="no map to write, no copy to it; reading works",
)
def _readonly(s: GrantScene) -> None:
    ref = Gnttab(s).grant(readonly=True)
    found = (
        s.map(ref), s.copy(s.own(), s.ref(ref)), s.map(ref, flags=MAP_HOST | MAP_READONLY),
    )  # fmt: skip
    expect(found, (GENERAL, GENERAL, 0), "map, copy, map to read")
    s.unmap(s.handle)


@SUITE.case(
    "GNT-052",
    "a guest leaves Xen's and its crash path's references alone",
    source=f"{GNTTAB_C}, GNTTAB_RESERVED_ENTRY_COUNT",
    expected="the first one that it gives out is 32 or above",
    hostile=False,
)
def _reserved(s: GrantScene) -> None:
    guest = Gnttab(s)
    refs = [guest.grant() for _ in range(3 * 512)]
    expect(min(refs) >= 32, True, "the lowest reference is above the reserved ones")
    expect(len(dict.fromkeys(refs)), len(refs), "different references over three frames")
    expect(s.map(max(refs)), 0, "map of one in a frame that was added")
    s.unmap(s.handle)


@SUITE.case(
    "GNT-053",
    "bits that a peer's map left are looked at in one step with the revocation",
    source=f'{GNTTAB_C}; {CODE}: the header\'s rule, "Removing a grant entry"',
    expected="a map in the midst of a revocation wins or loses: never both",
)
def _raced(s: GrantScene) -> None:
    guest = Gnttab(s)
    ref = guest.grant()
    done: list[int | str] = []

    def race(_actor: int, kind: int, _frame: int, _offset: int, _size: int) -> None:
        if kind & lib.ACCESS_ATOMIC and not done:
            done.append("")
            done[0] = s.map(ref)

    with s.meanwhile(race):
        revoked = guest.revoke(ref)
    expect((revoked, done), (False, [0]), "revoke, and the map within it")
    expect(s.unmap(s.handle), 0, "unmap")
    expect(guest.revoke(ref), True, "revoke afterwards")
