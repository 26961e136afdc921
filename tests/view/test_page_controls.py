"""Each button, box, field and picture of the page that is no key: what it does to the panels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.view.chromium import Chromium, Tab
from tests.view.recordings import event, platform_tape, published, ring
from xenpv.view import page
from xenpv.view.page import document
from xenpv.view.tape import StoreChange, Tape, TapedFrame
from xenpv.xen.trace import Event

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def opened(chromium: Chromium, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    file = tmp_path_factory.mktemp("page") / "run.html"
    page.write(platform_tape(), file)
    tab = chromium.open(file, width=1010, height=620)
    yield tab
    assert tab.complaints() == []
    tab.close()


@pytest.fixture
def tab(opened: Tab) -> Tab:
    """At event 500, as the page was when it was opened."""
    opened.run(
        "(() => { const x = xenpv; x.cursor.choose(null); x.cursor.set(500); x.timeline.whole();"
        " for (const [id, on] of [['ring-follow', true], ['ring-busy', false], ['changes-only', false]]) {"
        " const e = document.getElementById(id); e.checked = on; e.dispatchEvent(new Event('change')); }"
        " for (const e of document.querySelectorAll('input[type=search]')) { e.value = ''; e.dispatchEvent(new Event('input')); }"
        " for (const lane of x.timeline.lanes) lane.open = Boolean(lane.children) && !lane.at.length;"
        " x.timeline.refresh(); x.cursor.flush(); })()"
    )
    return opened


def at(tab: Tab) -> int:
    return int(tab.run("xenpv.cursor.at"))


def press(tab: Tab, name: str) -> None:
    """A click on an element."""
    tab.run(f"document.getElementById('{name}').click()")
    tab.settle()


@pytest.mark.parametrize(
    ("name", "expected"), [("first", 0), ("back", 499), ("forward", 501), ("last", -1)]
)
def test_buttons_step(tab: Tab, name: str, expected: int) -> None:
    press(tab, name)
    assert at(tab) == expected % len(platform_tape().events)


@pytest.mark.parametrize(("typed", "expected"), [("77", 77), ("-5", 0), ("99999999", -1), ("", 0)])
def test_a_number_goes_to_that_event(tab: Tab, typed: str, expected: int) -> None:
    tab.run(
        f"(() => {{ const e = document.querySelector('#moment-number'); e.value = '{typed}';"
        " e.dispatchEvent(new Event('change')); })()"
    )
    assert at(tab) == expected % len(platform_tape().events)
    assert tab.run("document.querySelector('#moment-number').value") == str(at(tab))


def test_buttons_zoom(tab: Tab) -> None:
    count = len(platform_tape().events)
    press(tab, "zoom-in")
    press(tab, "zoom-in")
    assert tab.run("xenpv.timeline.view.span") == pytest.approx(count / 4)
    press(tab, "zoom-out")
    assert tab.run("xenpv.timeline.view.span") == pytest.approx(count / 2)
    press(tab, "zoom-all")
    assert tab.run("xenpv.timeline.view") == {"from": 0, "span": count}


def test_the_overview_moves_what_the_timeline_shows(tab: Tab) -> None:
    count = len(platform_tape().events)
    for _ in range(3):
        press(tab, "zoom-in")
    box = tab.box("#overview-canvas")
    y = box["y"] + box["height"] / 2
    tab.click(box["x"] + box["width"] * 0.75, y)
    view = tab.run("xenpv.timeline.view")
    assert view["from"] + view["span"] / 2 == pytest.approx(count * 0.75, abs=count / 200)
    tab.click(box["x"] + box["width"] * 0.75, y, to=(box["x"] + box["width"] * 0.25, y))
    view = tab.run("xenpv.timeline.view")
    assert view["from"] + view["span"] / 2 == pytest.approx(count * 0.25, abs=count / 200)
    assert at(tab) == 500


def test_a_domain_opens_into_its_tasks(tab: Tab) -> None:
    tape = platform_tape()
    before = tab.run("xenpv.timeline.shown.length")
    tab.run("document.querySelector('#lanes .mark').click()")
    tab.settle()
    names = tab.run("xenpv.timeline.shown.filter(lane => lane.isTask).map(lane => lane.name)")
    ran = {
        one.a for one in tape.events if one.event in (Event.DELIVER, Event.TIMER) and one.domid == 0
    }
    assert len(names) == tab.run("xenpv.timeline.shown.length") - before == len(ran)
    assert set(names) == {tape.tasks[0, number].name for number in ran}


def test_rings_stay_where_they_are_unless_they_follow(tab: Tab) -> None:
    tape = platform_tape()
    first, other = (
        tape.publications[0],
        next(one for one in tape.publications if one.ring != tape.publications[0].ring),
    )
    tab.run(f"xenpv.cursor.set({first.moment})")
    tab.settle()
    assert tab.run("xenpv.rings.chosen") == first.ring
    press(tab, "ring-follow")
    tab.run(f"xenpv.cursor.set({other.moment})")
    tab.settle()
    assert tab.run("xenpv.rings.chosen") == first.ring
    assert tab.run("document.querySelectorAll('#rings .changed').length") == 1
    press(tab, "ring-follow")
    tab.run("xenpv.cursor.set(0)")
    tab.run(f"xenpv.cursor.flush(); xenpv.cursor.set({other.moment})")
    tab.settle()
    assert tab.run("xenpv.rings.chosen") == other.ring


def test_only_slots_in_use(tab: Tab) -> None:
    tape = platform_tape()
    one = next(
        one
        for one in tape.publications
        if not one.is_response and tape.rings[one.ring].kind == "blkif"
    )
    tab.run(f"xenpv.cursor.set({one.moment})")
    tab.settle()
    press(tab, "ring-busy")
    states = tape.slots_at(one.ring, one.moment)
    busy = [
        slot.slot for slot in states if slot.state.value in ("unconsumed", "in flight", "answered")
    ]
    assert tab.run("xenpv.rings.slots") == busy
    assert 0 < len(busy) < tape.rings[one.ring].size


def test_changes_below_the_selected_node_alone(tab: Tab) -> None:
    tape = platform_tape()
    tab.run(
        "xenpv.store.tree.setActive(xenpv.store.rows.findIndex(n => n.path === '/local/domain/1/device/vbd'))"
    )
    press(tab, "changes-only")
    paths = [one.path for one in tape.changes]
    below = [
        i
        for i, path in enumerate(paths)
        if path == "/local/domain/1/device/vbd" or path.startswith("/local/domain/1/device/vbd/")
    ]
    assert tab.run("xenpv.store.listed") == below


def test_the_filter_of_packets(tab: Tab) -> None:
    tape = platform_tape()
    tab.run(
        "(() => { const e = document.querySelector('#packet-filter'); e.value = 'VIF2.0'; e.dispatchEvent(new Event('input')); })()"
    )
    assert tab.run("xenpv.packets.listed") == [
        i for i, one in enumerate(tape.frames) if one.port == "vif2.0"
    ]


def tiny() -> Tape:
    """Two rings of which all is known, and frames and a node at one moment each."""
    tape = Tape()
    tape.events = [
        event(Event.PUBLISH, domid=1, b=1, time_ns=moment // 4 * 10**9) for moment in range(8)
    ]
    request = (
        bytes([1, 2, 0xCC, 0xCA])
        + bytes(4)
        + (2**63 + 1).to_bytes(8, "little")
        + (5).to_bytes(8, "little")
    )
    request += (
        (9).to_bytes(4, "little")
        + bytes([0, 7, 0, 0])
        + (10).to_bytes(4, "little")
        + bytes([1, 3, 0, 0])
        + b"\xff" * 72
    )
    answer = (
        (2**63 + 1).to_bytes(8, "little") + bytes([1, 0]) + (-2).to_bytes(2, "little", signed=True)
    )
    tx = (7).to_bytes(4, "little") + bytes([16, 0, 0b110101, 0]) + bytes([3, 0, 60, 0])
    tape.rings = [
        ring(),
        ring(number=1, kind="netif_tx", device="", entry_size=12, request="netif_tx_request", response="netif_tx_response"),
    ]  # fmt: skip
    tape.publications = [
        published(0, 2**32 - 1, request.ljust(112, b"\xff"), req_prod=0, req_cons=2**32 - 1, rsp_cons=2**32 - 1),
        published(1, 2**32 - 1, answer.ljust(112, b"\xff"), is_response=True, req_prod=0, rsp_prod=0, req_cons=0, rsp_cons=2**32 - 1),
        published(2, 0, tx, tx, ring=1),
        # Its index jumped by more than a ring: memory holds what it held.
        published(5, 100, ring=1, req_prod=100),
        # A whole ring before its consumer: no honest end does that.
        published(7, 4, request, req_prod=5, req_cons=0, rsp_cons=0),
        published(8, 2, request, req_prod=3, req_cons=0, rsp_cons=0),  # and none goes back
    ]  # fmt: skip
    frames = ((3, bytes(range(60))), (7, b"\xaa" * 200), (7, b"\xbb" * 60))
    tape.frames = [
        TapedFrame(moment, 0, "xenbr0", "vif1.0", is_in=True, data=data) for moment, data in frames
    ]
    tape.changes = [StoreChange(4, "/a/b", b"", ("n0", "r1")), StoreChange(6, "/a/b", None)]
    return tape


@pytest.fixture(scope="module")
def small(chromium: Chromium, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    file: Path = tmp_path_factory.mktemp("tiny") / "run.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document, "FRAMES_WHOLE_BYTES", 100)
        page.write(tiny(), file)
    tab = chromium.open(file, width=1010, height=620)
    yield tab
    assert tab.complaints() == []
    tab.close()


def text(tab: Tab, selector: str) -> str:
    return " ".join(str(tab.run(f"document.querySelector('{selector}').innerText")).split())


def choose(tab: Tab, moment: int) -> None:
    tab.run(f"xenpv.cursor.set({moment}); xenpv.cursor.flush()")
    tab.settle()


def test_slots_are_the_tapes_whatever_was_published(small: Tab) -> None:
    tape = tiny()
    script = "(m => xenpv.tape.rings.map(({number, size}) => { const s = xenpv.tape.ringAt(number, m); return [...Array(size).keys()].map(i => s ? xenpv.tape.slotState(number, s, i) : 'empty'); }))"
    for moment in range(len(tape.events)):
        expected = [
            [slot.state.value for slot in tape.slots_at(number, moment)] for number in (0, 1)
        ]
        assert small.run(f"{script}({moment})") == expected, moment


def test_a_request_is_shown_in_full(small: Tab) -> None:
    choose(small, 1)
    choose(small, 0)
    assert text(small, "#slots .active") == (
        "3 unconsumed 4,294,967,295 operation WRITE, nr_segments 2, handle 51916, id 0x8000000000000001, sector_number 5,"
        " seg[0].gref 9, seg[0].first_sect 0, seg[0].last_sect 7, seg[1].gref 10, seg[1].first_sect 1, seg[1].last_sect 3"
    )
    assert (
        text(small, "#ring-words")
        == "req_prod 0 req_event 1 rsp_prod 0 rsp_event 1 req_cons 4,294,967,295 rsp_cons 4,294,967,295"
    )
    assert text(small, "#slot-detail").startswith(
        "Slot 3: unconsumed a request that the backend has not taken blkif_request operation WRITE (1)"
    )
    assert "seg[1] gref 10, first_sect 1, last_sect 3" in text(small, "#slot-detail")


def test_a_response_is_shown_with_what_it_answered(small: Tab) -> None:
    choose(small, 1)
    assert (
        text(small, "#slots .active")
        == "3 answered 4,294,967,295 id 0x8000000000000001, operation WRITE, status EOPNOTSUPP"
    )
    detail = text(small, "#slot-detail")
    assert detail.index("blkif_response") < detail.index("blkif_request, which it answered")
    assert "status EOPNOTSUPP (-2)" in detail
    assert (
        text(small, "#ring-about")
        == "4 slots of 112 bytes, frontend d1 (page at pfn 0x10), backend d0 Domain-0"
    )


def test_flags_without_a_name_are_said_too(small: Tab) -> None:
    choose(small, 2)
    assert text(small, "#ring-title") == "d1 pfn 0x10 netif_tx"
    assert (
        text(small, "#slots .active")
        == "0 in flight 0 gref 7, offset 16, flags csum_blank|more_data|0x30, id 0x3, size 60"
    )
    assert small.run("document.querySelectorAll('#slots .changed').length") == 2
    assert (
        text(small, "#moment-text")
        == "publishes 2 requests on d1 pfn 0x10 netif_tx (indices 0 to 1)"
    )


def test_an_index_that_jumped_is_said(small: Tab) -> None:
    choose(small, 5)
    assert (
        text(small, "#moment-text") == "moves an index of d1 pfn 0x10 netif_tx by more than a ring"
    )
    assert text(small, "#ring-words .changed") == "req_prod 100"
    assert small.run("document.querySelectorAll('#slots .changed').length") == 0


def test_a_node_comes_and_goes(small: Tab) -> None:
    counts = []
    for moment in (3, 4, 5, 6, 7, 5, 3):
        choose(small, moment)
        counts.append(text(small, "#store-count"))
    assert counts == ["0 nodes", "1 node", "1 node", "0 nodes", "0 nodes", "1 node", "0 nodes"]
    choose(small, 4)
    assert text(small, "#store .changed") == "b n0 r1"
    assert text(small, "#store-last") == "Last change, event 4: /a/b = (empty)"
    choose(small, 6)
    assert text(small, "#store-last") == "Last change, event 6: /a/b removed"


def test_a_frame_is_shown_when_it_has_crossed(small: Tab) -> None:
    choose(small, 2)
    assert text(small, "#packet-detail") == "No frame has crossed a bridge yet."
    choose(small, 3)
    assert (
        text(small, "#packets .changed") == "3 xenbr0 in from vif1.0 60 ethertype 0x0c0d, 46 bytes"
    )
    assert "0000 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f ................" in text(
        small, "#packet-detail"
    )
    assert "0030 30 31 32 33 34 35 36 37 38 39 3a 3b 0123456789:;" in text(small, "#packet-detail")


def test_time_that_passed_is_said(small: Tab) -> None:
    choose(small, 4)
    assert text(small, "#moment-time") == "1.000000000 s"
    assert text(small, "#events .active") == "4 d1 publishes 1 slots of the ring at pfn 0x0 +1 s"
    choose(small, 3)
    assert text(small, "#moment-time") == "0.000000000 s"


def test_words_are_drawn_where_there_is_room(small: Tab) -> None:
    small.run(
        "(() => { const x = xenpv.timeline; window.said = []; const words = x.brush.words; x.brush.words = (...given) => { said.push(given[0]); words.apply(x.brush, given); }; })()"
    )
    small.run("xenpv.timeline.whole(); xenpv.timeline.repaint()")
    said = small.run("said")
    assert "1 request, index 4294967295" in said
    assert "2 requests, indices 0 to 1" in said
    assert "/a/b = (empty)" in said
    assert "ethertype 0x0c0d, 46 bytes" in said


IN_SIGHT = """
(name => {
  const box = document.getElementById(name).getBoundingClientRect();
  const row = document.querySelector(`#${name} .active`);
  if (!row) return null;
  const place = row.getBoundingClientRect();
  return [Number(row.dataset.row), place.top >= box.top && place.bottom <= box.bottom + 1];
})"""


@pytest.mark.parametrize("moment", [30, 31, 1500, 1499, 3000, 600])
def test_lists_go_to_the_chosen_moment(tab: Tab, moment: int) -> None:
    tape = platform_tape()
    tab.run(f"xenpv.cursor.set({moment})")
    tab.settle()
    assert tab.run(f"{IN_SIGHT}('events')") == [moment, True]
    for name, dated in (("changes", tape.changes), ("packets", tape.frames)):
        before = sum(one.moment <= moment for one in dated)
        assert tab.run(f"{IN_SIGHT}('{name}')") == ([before - 1, True] if before else None)


@pytest.mark.parametrize("by", [-1, 1])
def test_a_list_scrolls_with_each_step(tab: Tab, by: int) -> None:
    for _ in range(tab.run("xenpv.events.list.inSight") + 2):
        tab.run(f"xenpv.cursor.step({by}); xenpv.cursor.flush()")
        assert tab.run(f"{IN_SIGHT}('events')") == [at(tab), True]


def test_the_tree_goes_to_the_last_change(tab: Tab) -> None:
    tape = platform_tape()
    for change in (tape.changes[-40], tape.changes[10]):
        tab.run(f"xenpv.cursor.set({change.moment})")
        tab.settle()
        last = [one for one in tape.changes if one.moment <= change.moment][-1]
        if last.value is not None:
            assert last.path in tab.run(
                "[...document.querySelectorAll('#store .row.changed')].map(e => e.title)"
            )


def test_of_a_long_frame_the_head_is_shown_and_said(small: Tab) -> None:
    choose(small, 7)
    shown = text(small, "#packet-detail")
    assert "60 bytes without FCS" in shown
    assert " bb bb bb" in shown
    assert "aa" not in shown
    small.run("document.querySelector('#packets').focus()")
    small.press("ArrowUp")
    shown = text(small, "#packet-detail")
    assert "200 bytes without FCS; the first 96 are shown, --pcap keeps all" in shown
    assert shown.count("aa aa aa aa aa aa aa aa") == 96 // 8
    assert "bb" not in shown
