"""The page of a recorded platform in a browser: it shows what the tape has, by keys alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.view.chromium import Chromium, Tab
from tests.view.recordings import platform_tape
from xenpv.view import page
from xenpv.view.page.columns import printable
from xenpv.view.tape import Tape
from xenpv.xen.trace import Event

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def tape() -> Tape:
    return platform_tape()


@pytest.fixture(scope="module")
def opened(
    chromium: Chromium, tape: Tape, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tab]:
    file = tmp_path_factory.mktemp("page") / "run.html"
    page.write(tape, file)
    tab = chromium.open(file, width=1010, height=620)
    yield tab
    assert tab.complaints() == []
    tab.close()


@pytest.fixture
def tab(opened: Tab) -> Tab:
    """At the first event, whole run in sight, nothing typed, no lane chosen."""
    opened.run(
        "(() => { const x = xenpv; x.cursor.choose(null); x.cursor.set(0); x.timeline.whole();"
        " document.activeElement.blur(); for (const e of document.querySelectorAll('input[type=search]'))"
        " { e.value = ''; e.dispatchEvent(new Event('input')); } x.cursor.flush(); })()"
    )
    return opened


def at(tab: Tab) -> int:
    return int(tab.run("xenpv.cursor.at"))


def go(tab: Tab, moment: int) -> None:
    tab.run(f"xenpv.cursor.set({moment})")
    tab.settle()


def moments(tape: Tape) -> list[int]:
    """The first, the last, and some of each kind between."""
    last = len(tape.events) - 1
    some = [tape.publications[len(tape.publications) * part // 8].moment for part in range(8)]
    some += [tape.changes[len(tape.changes) * part // 4].moment for part in range(4)]
    return sorted({0, 1, last, *(min(max(one, 0), last) for one in some)})


def test_page_asks_for_nothing_and_complains_of_nothing(tab: Tab) -> None:
    assert [url.split(":")[0] for url in tab.requests()] == ["file"]
    assert tab.complaints() == []


def test_every_slot_of_every_ring_is_what_the_tape_has(tab: Tab, tape: Tape) -> None:
    script = """
      (moment => xenpv.tape.rings.map(({number, size, entrySize}) => {
        const state = xenpv.tape.ringAt(number, moment);
        if (!state) return null;
        return [...Array(size).keys()].map(slot => {
          const how = xenpv.tape.slotState(number, state, slot);
          if (how === 'empty') return [how, -1, ''];
          const isResponse = how === 'answered' || how === 'done';
          const id = (isResponse ? state.response : state.request)[slot];
          const index = (isResponse ? state.responseIndex : state.requestIndex)[slot];
          const bytes = Array.from(xenpv.tape.slotBytes(id, entrySize));
          return [how, index % 2**32, bytes.map(b => b.toString(16).padStart(2, '0')).join('')];
        });
      }))"""
    seen: set[str] = set()
    for moment in moments(tape):
        for number, shown in enumerate(tab.run(f"{script}({moment})")):
            expected = [
                [one.state.value, one.index, one.data.hex()]
                for one in tape.slots_at(number, moment)
            ]
            if shown is None:
                assert {state for state, _, _ in expected} == {"empty"}, (moment, number)
            else:
                assert shown == expected, (moment, number)
            seen |= {state for state, _, _ in expected}
    assert seen == {"empty", "unconsumed", "in flight", "answered", "done"}


def test_store_tree_is_what_the_tape_has(tab: Tab, tape: Tape) -> None:
    script = """
      xenpv.store.rows.filter(node => xenpv.store._has(node))
        .map(node => [node.path, xenpv.store.value(node)])"""
    for moment in [*moments(tape), *moments(tape)[-3::-3]]:
        tab.run(f"xenpv.cursor.set({moment}); xenpv.cursor.flush()")
        expected = {
            printable(path): printable(node.value) for path, node in tape.store_at(moment).items()
        }
        assert dict(tab.run(script)) == expected, moment


def test_rows_in_sight_say_what_is_chosen(tab: Tab, tape: Tape) -> None:
    published = next(
        one for one in tape.publications if one.is_response and tape.rings[one.ring].kind == "blkif"
    )
    go(tab, published.moment)
    ring = tape.rings[published.ring]
    assert (
        tab.run("document.querySelector('#ring-title').textContent")
        == f"d{ring.domid} {ring.device[7:]} blkif"
    )
    words = tab.run(
        "[...document.querySelectorAll('#ring-words div')].map(e => e.innerText.split(/\\s+/))"
    )
    assert dict(words[:4]) == {
        name: f"{getattr(published, name):,}"
        for name in ("req_prod", "req_event", "rsp_prod", "rsp_event")
    }
    row = tab.run("document.querySelector('#slots .active').innerText")
    response = int.from_bytes(published.slots[0][:8], "little")
    assert f"id {response:#x}" in row
    assert "status OKAY" in row
    assert str(published.moment) == tab.run("document.querySelector('#moment-number').value")
    assert "publishes 1 response on" in tab.run(
        "document.querySelector('#moment-text').textContent"
    )


def test_frames_are_listed_with_their_words_and_bytes(tab: Tab, tape: Tape) -> None:
    frame = next(one for one in tape.frames if not one.is_in)
    go(tab, frame.moment)
    detail = tab.run("document.querySelector('#packet-detail').innerText")
    shown = bytes.fromhex("".join(line[6:54] for line in detail.splitlines() if line[4:6] == "  "))
    here = [one.data for one in tape.frames if one.moment == frame.moment]
    assert shown in here
    assert tab.run("document.querySelectorAll('#packets .row.changed').length") == len(here)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["ArrowRight", "ArrowRight", "ArrowLeft"], 1),
        (["ArrowLeft"], 0),
        (["End"], -1),
        (["End", "ArrowRight"], -1),
        (["End", "ArrowLeft", "ArrowLeft"], -3),
        (["End", "Home"], 0),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_keys_step_over_all_events(tab: Tab, tape: Tape, keys: list[str], expected: int) -> None:
    tab.press(*keys)
    assert at(tab) == expected % len(tape.events)


def test_shift_and_arrows_step_in_the_lane_that_up_and_down_choose(tab: Tab, tape: Tape) -> None:
    tab.run("document.querySelector('#lanes').focus()")
    tab.press("ArrowDown")
    assert tab.run("xenpv.cursor.lane.name") == "d0 Domain-0"
    tab.press("ArrowDown")
    own = [number for number, one in enumerate(tape.events) if one.domid == 1]
    tab.press("Shift+ArrowRight", "Shift+ArrowRight", "Shift+ArrowRight")
    assert at(tab) == own[2]
    tab.press("Shift+ArrowLeft")
    assert at(tab) == own[1]
    tab.press("End", "Shift+ArrowLeft")
    assert at(tab) == max(one for one in own if one < len(tape.events) - 1)


def test_keys_zoom_about_the_chosen_event(tab: Tab, tape: Tape) -> None:
    go(tab, 1000)
    tab.press("+", "+", "+")
    view = tab.run("xenpv.timeline.view")
    assert view["span"] == pytest.approx(len(tape.events) / 8)
    assert view["from"] < 1000 < view["from"] + view["span"]
    tab.press("-")
    assert tab.run("xenpv.timeline.view.span") == pytest.approx(len(tape.events) / 4)
    tab.press("]")
    assert tab.run("xenpv.timeline.view.from") > view["from"]
    tab.press("0")
    assert tab.run("xenpv.timeline.view") == {"from": 0, "span": len(tape.events)}


def test_the_view_follows_the_chosen_event(tab: Tab, tape: Tape) -> None:
    tab.press("+", "+", "+", "+", "End")
    view = tab.run("xenpv.timeline.view")
    assert view["from"] <= len(tape.events) - 1 < view["from"] + view["span"] + 1e-6


def test_slash_searches_and_n_goes_on(tab: Tab, tape: Tape) -> None:
    tab.press("/")
    tab.type("DEVICE/VIF/0/state")
    tab.press("Enter")
    first = at(tab)
    tab.press("Enter")
    second = at(tab)
    tab.press("Escape", "n")
    third = at(tab)
    tab.press("N")
    assert at(tab) == second
    about = [
        moment for moment in range(len(tape.events))
        if any(b"device/vif/0/state" in one.payload for one in tape.requests if one.moment == moment)
        or any("device/vif/0/state" in one.path for one in tape.changes if one.moment == moment)
    ]  # fmt: skip
    assert [first, second, third] == about[:3]


def test_search_says_what_it_does_not_find(tab: Tab) -> None:
    tab.press("/")
    tab.type("no such words")
    tab.press("Enter")
    assert tab.run("document.querySelector('#search-said').textContent") == "not found"
    assert at(tab) == 0


def test_keys_in_a_field_are_text(tab: Tab) -> None:
    tab.press("/", "+", "0", "?", "ArrowRight", "Home")
    assert tab.run("document.querySelector('#search').value") == "+0?"
    assert at(tab) == 0
    assert not tab.run("document.querySelector('#help').open")


def test_question_mark_shows_the_keys_and_escape_closes(tab: Tab) -> None:
    tab.press("?")
    assert tab.run("document.querySelector('#help').open")
    assert "Shift" in tab.run("document.querySelector('#help').innerText")
    tab.press("Escape")
    assert not tab.run("document.querySelector('#help').open")


def test_tab_reaches_all_in_order_and_the_focus_shows(tab: Tab) -> None:
    reached = []
    tab.run("document.querySelector('#theme').focus()")
    for _ in range(80):
        tab.press("Tab")
        name, outline = tab.run(
            "[document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]"
        )
        if name == "theme" or (not name and reached[-1:] == ["packet-filter"]):
            break
        if name:
            assert outline != "none", name
            reached.append(name)
    wanted = [
        "first", "back", "forward", "last", "moment-number", "search", "zoom-in", "zoom-out", "zoom-all",
        "lanes", "events", "ring-follow", "ring-busy", "rings", "slots", "store-filter", "store", "changes-only",
        "changes", "packet-filter", "packets",
    ]  # fmt: skip
    assert [name for name in reached if name in wanted] == wanted


def test_lists_are_driven_by_keys(tab: Tab, tape: Tape) -> None:
    tab.run("document.querySelector('#events').focus()")
    tab.press("ArrowDown", "ArrowDown", "ArrowUp", "PageDown")
    page_rows = tab.run("xenpv.events.list.inSight") - 1
    assert at(tab) == 1 + page_rows
    tab.run("document.querySelector('#changes').focus()")
    tab.press("ArrowDown", "Enter")
    chosen = tab.run("xenpv.store.listed[xenpv.store.changes.active]")
    assert at(tab) == tape.changes[chosen].moment
    tab.run("document.querySelector('#packets').focus()")
    tab.press("ArrowDown", "ArrowDown", "Enter")
    assert at(tab) in {one.moment for one in tape.frames}


def test_filter_of_the_store_keeps_what_lies_above(tab: Tab, tape: Tape) -> None:
    go(tab, next(one.moment for one in tape.changes if one.path.endswith("/mac")))
    tab.run("document.querySelector('#store-filter').focus()")
    tab.type("/MAC")
    rows = tab.run("xenpv.store.rows.map(node => node.path)")
    leaves = [path for path in rows if path.endswith("/mac")]
    assert leaves
    above = {"/"} | {leaf.rsplit("/", up)[0] for leaf in leaves for up in range(1, leaf.count("/"))}
    assert set(rows) == above | set(leaves)


def test_enter_closes_a_node_of_the_tree_and_opens_it(tab: Tab, tape: Tape) -> None:
    go(tab, len(tape.events) // 2)
    before = tab.run("xenpv.store.rows.length")
    tab.run(
        "document.querySelector('#store').focus(); xenpv.store.tree.setActive(xenpv.store.rows.findIndex(n => n.path === '/local'))"
    )
    tab.press("Enter")
    assert tab.run("xenpv.store.rows.some(n => n.path.startsWith('/local/'))") is False
    assert (
        tab.run("document.querySelector('#store .active').getAttribute('aria-expanded')") == "false"
    )
    tab.press("Enter")
    assert tab.run("xenpv.store.rows.length") == before


def test_a_click_on_a_lane_chooses_its_nearest_event(tab: Tab, tape: Tape) -> None:
    row = tab.run("xenpv.timeline.shown.findIndex(lane => lane.ring && lane.ring.kind === 'blkif')")
    box = tab.box("#timeline-canvas")
    own = [
        one.moment
        for one in tape.publications
        if tape.rings[one.ring].kind == "blkif"
        and one.ring == int(tab.run(f"xenpv.timeline.shown[{row}].ring.number"))
    ]
    x = box["x"] + (own[5] + 0.5) * box["width"] / len(tape.events)
    tab.click(x, box["y"] + 54 + 24 * row + 12)
    assert at(tab) in own
    assert tab.run("xenpv.cursor.lane.ring.kind") == "blkif"


def test_wheel_zooms_about_the_pointer_and_drag_moves(tab: Tab, tape: Tape) -> None:
    box = tab.box("#timeline-canvas")
    x, y = box["x"] + box["width"] * 0.25, box["y"] + 200
    before = tab.run("xenpv.timeline.momentAt(xenpv.timeline.width * 0.25)")
    tab.wheel(x, y, -400)
    assert tab.run("xenpv.timeline.view.span") < len(tape.events) / 2
    assert tab.run("xenpv.timeline.momentAt(xenpv.timeline.width * 0.25)") == pytest.approx(
        before, abs=3
    )
    start = tab.run("xenpv.timeline.view.from")
    tab.click(x, y, to=(x - 100, y))
    assert tab.run("xenpv.timeline.view.from") > start
    assert at(tab) == 0


def test_event_words_are_the_tapes(tab: Tab, tape: Tape) -> None:
    notes = {moment: printable(text) for moment, text in tape.notes.items()}
    shown = tab.run(f"{json.dumps(list(notes))}.map(moment => xenpv.tape.eventText(moment))")
    assert shown == list(notes.values())
    plain = [
        moment
        for moment, one in enumerate(tape.events)
        if one.event in (Event.SEND, Event.DRAW, Event.GRANT, Event.DOMAIN)
    ]
    shown = tab.run(f"{json.dumps(plain)}.map(moment => xenpv.tape.eventText(moment))")
    assert shown == [tape.text(moment) for moment in plain]


def test_times_are_the_tapes(tab: Tab, tape: Tape) -> None:
    shown = tab.run("[...Array(xenpv.tape.count).keys()].map(moment => xenpv.tape.timeAt(moment))")
    assert shown == [one.time_ns for one in tape.events]


def test_a_fragment_opens_at_its_event(chromium: Chromium, tape: Tape, tmp_path: Path) -> None:
    page.write(tape, tmp_path / "run.html")
    tab = chromium.open(tmp_path / "run.html", fragment="event=77")
    assert at(tab) == 77
    tab.close()
