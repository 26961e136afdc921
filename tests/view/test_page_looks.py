"""How the page looks and holds: contrast, widths, both themes, print, hostile data, many events."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.view.chromium import Chromium, Tab
from tests.view.recordings import HOSTILE, hostile, large, platform_tape
from tests.view.test_page import FOUND
from tests.view.worlds import WORLDS
from xenpv.view import page
from xenpv.view.page.columns import printable
from xenpv.view.recording import recording
from xenpv.view.tape import Tape

pytestmark = pytest.mark.peers

# WCAG 2.1, 1.4.3: of text that is not large.
CONTRAST_MIN = 4.5
# The nearest ancestor with a colour of its own is what a text stands on; none is see-through.
CONTRASTS = """
(() => {
  const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    let element = walker.currentNode.parentElement;
    if (!text || ['SCRIPT', 'STYLE', 'NOSCRIPT'].includes(element.tagName)) continue;
    if (!element.getClientRects().length) continue;
    const ink = parse(getComputedStyle(element).color);
    let paper = [0, 0, 0, 0];
    for (; element && paper[3] === 0; element = element.parentElement) {
      paper = parse(getComputedStyle(element).backgroundColor);
      if (paper.length === 3) paper.push(1);
    }
    const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
    found.push([text.slice(0, 40), (a + 0.05) / (b + 0.05)]);
  }
  return found;
})()"""
CANVAS = """
(() => {
  const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = text => { const n = parseInt(text.slice(1), 16);
    return 0.2126 * channel(n >> 16) + 0.7152 * channel(n >> 8 & 255) + 0.0722 * channel(n & 255); };
  const p = xenpv.palette, ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((m, n) => n - m);
    return (x + 0.05) / (y + 0.05); };
  return { panel: ratio(p.ink, p.panel), dim: ratio(p.dim, p.panel), chosen: ratio(p.ink, p.chosen),
    fill: ratio(p.ink, p.slot['in flight']), idle: ratio(p.ink, p.idle) };
})()"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "run.html"
    page.write(
        platform_tape(),
        path,
        FOUND,
        title="xenpv run: web",
        repeat="xenpv run " + "a-long-name.cfg " * 20,
    )
    return path


@pytest.fixture
def opened(chromium: Chromium) -> Iterator[Any]:
    tabs: list[Tab] = []

    def opener(*arguments: Any, **options: Any) -> Tab:
        tabs.append(chromium.open(*arguments, **options))
        return tabs[-1]

    yield opener
    for tab in tabs:
        assert tab.complaints() == []
        assert [url[:5] for url in tab.requests()] == ["file:"]
        tab.close()


def show_much(tab: Tab) -> None:
    """A moment with much to see, and all that is folded away."""
    tab.run(
        "xenpv.cursor.set(xenpv.tape.published.moment[xenpv.tape.published.moment.length - 3]);"
        "document.querySelectorAll('details').forEach(one => { one.open = true; })"
    )
    tab.settle()


def test_text_has_contrast_in_both_schemes(opened: Any, file: Path) -> None:
    tab = opened(file)
    show_much(tab)
    tab.run("document.querySelector('#help').show()")
    for scheme in ("light", "dark"):
        tab.scheme(scheme)
        tab.settle()
        found = tab.run(CONTRASTS)
        assert len(found) > 300
        assert [(scheme, text, ratio) for text, ratio in found if ratio < CONTRAST_MIN] == []
        low = {name: ratio for name, ratio in tab.run(CANVAS).items() if ratio < CONTRAST_MIN}
        assert low == {}, scheme


def test_the_page_takes_the_readers_scheme_and_a_button_the_other(opened: Any, file: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = opened(file, scheme="light")
    dark = opened(file, scheme="dark")
    papers = light.run(paper), dark.run(paper)
    assert papers[0] != papers[1]
    before = light.run("xenpv.palette.ink")
    light.press("t")
    assert light.run(paper) == papers[1]
    assert light.run("xenpv.palette.ink") == dark.run("xenpv.palette.ink") != before
    light.press("t")
    assert light.run(paper) == papers[0]
    dark.run("document.querySelector('#theme').click()")
    assert dark.run(paper) == papers[0]
    dark.scheme("light")
    assert dark.run(paper) == papers[0]


def test_both_sets_of_dark_colours_are_the_same(opened: Any, file: Path) -> None:
    variables = "Object.fromEntries([...document.styleSheets[0].cssRules[0].style].filter(n => n.startsWith('--')).map(n => [n, getComputedStyle(document.documentElement).getPropertyValue(n)]))"
    light, dark = opened(file, scheme="light"), opened(file, scheme="dark")
    as_told = dark.run(variables)
    light.press("t")
    assert light.run(variables) == as_told
    dark.press("t")
    light.press("t")
    assert light.run(variables) == dark.run(variables)


def test_nothing_runs_over_the_page(opened: Any, file: Path) -> None:
    tab = opened(file)
    show_much(tab)
    for width in (1280, 700, 360):
        tab.resize(width, 900)
        tab.settle()
        assert tab.run("document.documentElement.scrollWidth") <= width
        # What is wider than its place scrolls or is cut with dots, and does not lie over others.
        over = tab.run(
            "[...document.querySelectorAll('main *, header *')].filter(e => e.getClientRects().length"
            f" && e.getBoundingClientRect().right > {width} + 1"
            " && !e.closest('.list, .scroll, pre, .detail, .hidden, .said'))"
            ".map(e => e.tagName + '#' + e.id + '.' + e.className)"
        )
        assert over == [], width


def test_lists_are_never_without_rows_in_sight(opened: Any, file: Path) -> None:
    tab = opened(file)
    for name in ("events", "changes", "store", "packets"):
        tab.run(f"document.querySelector('#{name}').scrollTop = 1e9")
        tab.settle()
        last = tab.run(
            f"(() => {{ const box = document.querySelector('#{name}').getBoundingClientRect();"
            f" const rows = [...document.querySelectorAll('#{name} .row')].map(e => e.getBoundingClientRect());"
            " return [rows.length, Math.round(box.bottom - rows[rows.length - 1].bottom), Math.round(rows[0].top - box.top)]; })()"
        )
        assert last[0] > 3, name
        if tab.run(f"document.querySelector('#{name}').scrollTop"):
            assert 0 <= last[1] < 24, name
        assert last[2] <= 2, name


def test_print_shows_the_report_and_no_buttons(opened: Any, file: Path) -> None:
    tab = opened(file, scheme="dark")
    tab.scheme("light", "print")
    assert tab.run("getComputedStyle(document.querySelector('.tools')).display") == "none"
    assert tab.run("getComputedStyle(document.querySelector('.bar')).display") == "none"
    assert tab.run("document.querySelector('#report').getClientRects().length") == 1
    assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    pdf = tab.call("Page.printToPDF", printBackground=True)["data"]
    assert pdf.startswith("JVBERi0")  # %PDF-


def test_everything_has_a_name_for_those_who_hear_the_page(opened: Any, file: Path) -> None:
    tab = opened(file)
    show_much(tab)
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    wanted = {
        "button",
        "textbox",
        "searchbox",
        "spinbutton",
        "checkbox",
        "listbox",
        "tree",
        "image",
        "region",
        "dialog",
        "option",
        "treeitem",
    }
    unnamed = [
        (node["role"]["value"], node["nodeId"])
        for node in nodes
        if not node.get("ignored") and node["role"]["value"] in wanted and not node.get("name", {}).get("value")
    ]  # fmt: skip
    assert unnamed == []
    roles = {node["role"]["value"] for node in nodes}
    assert {"listbox", "tree", "option", "treeitem", "searchbox", "image"} <= roles
    active = tab.run(
        "document.getElementById(document.querySelector('#events').getAttribute('aria-activedescendant')).getAttribute('aria-posinset')"
    )
    assert active == str(tab.run("xenpv.cursor.at") + 1)


def test_a_page_without_anything_says_so(opened: Any, tmp_path: Path) -> None:
    page.write(Tape(), tmp_path / "empty.html")
    tab = opened(tmp_path / "empty.html")
    tab.press("ArrowRight", "End", "+", "-", "0", "]", "n", "Shift+ArrowRight", "t")
    shown = tab.run("document.body.innerText")
    for words in (
        "Nothing was recorded.",
        "No ring was set up.",
        "Nothing has been written yet.",
        "No frame has crossed a bridge yet.",
    ):
        assert words in shown


def test_hostile_data_is_text_and_runs_nothing(opened: Any, tmp_path: Path) -> None:
    page.write(hostile(), tmp_path / "hostile.html", title=HOSTILE[0])
    tab = opened(tmp_path / "hostile.html")
    tab.run("for (const lane of xenpv.timeline.lanes) lane.open = true;")
    for moment in range(len(hostile().events)):
        tab.run(f"xenpv.cursor.set({moment}); xenpv.cursor.flush()")
        said = tab.run("document.querySelector('#moment-text').textContent")
        if moment % 4 == 1:
            assert said == printable(HOSTILE[moment // 4])
    tab.press("+", "+", "+", "+")
    assert tab.run("document.title") == printable(HOSTILE[0])
    assert tab.run("document.querySelectorAll('img, iframe, object, embed, link').length") == 0
    assert tab.run("document.scripts.length") == 2
    rows = tab.run("xenpv.store.rows.map(node => xenpv.store.value(node)).filter(Boolean)")
    assert set(rows) == {printable(text.encode()) for text in HOSTILE}


def test_the_policy_stops_what_would_be_smuggled_in(chromium: Chromium, tmp_path: Path) -> None:
    text = page.html(hostile())
    smuggled = "<script>document.title='caught'</script><img src='http://127.0.0.1:9/x' onerror=\"document.title='caught'\"><p style='color: red' id='styled'>x</p>"
    (tmp_path / "smuggled.html").write_text(
        text.replace("<main>", f"<main>{smuggled}"), encoding="utf-8"
    )
    tab = chromium.open(tmp_path / "smuggled.html")
    tab.settle()
    assert tab.run("document.title") == "xenpv: a recording"
    assert tab.run("getComputedStyle(document.querySelector('#styled')).color") != "rgb(255, 0, 0)"
    said = " ".join(tab.complaints())
    assert said.count("Content Security Policy") >= 3
    for script in ("document.body.innerHTML = '<b>x</b>'", "eval('1')"):
        answer = tab.call(
            "Runtime.evaluate",
            expression=f"(() => {{ {script} }})()",
            allowUnsafeEvalBlockedByCSP=False,
        )
        assert "exceptionDetails" in answer, script
    tab.close()


EVENTS = 100_000


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Pages by their number of events."""
    room = tmp_path_factory.mktemp("many")
    for count in (EVENTS // 10, EVENTS):
        page.write(large(count), room / f"{count}.html")
    return {count: room / f"{count}.html" for count in (EVENTS // 10, EVENTS)}


WORK = """
(() => {
  const { timeline, cursor, store } = xenpv, found = [];
  const look = () => { timeline.pictured = ''; cursor.flush(); found.push([timeline.brush.drawn, timeline.visited]); };
  timeline.whole(); look();
  for (let i = 0; i < 5; i++) { timeline.zoom(0.125); look(); }
  for (let i = 0; i < 2; i++) { cursor.set(i * 1499); look(); }
  return found;
})()"""


def test_work_of_a_view_is_bounded_by_the_screen(opened: Any, many: dict[int, Path]) -> None:
    most = {}
    for count, path in many.items():
        tab = opened(path)
        assert tab.run("xenpv.tape.count") == count
        work = tab.run(WORK)
        most[count] = [max(column) for column in zip(*work, strict=True)]
        assert tab.run("document.querySelectorAll('.row').length") < 200
    (drawn, visited), (drawn_more, visited_more) = most[EVENTS // 10], most[EVENTS]
    columns, lanes = 1000 // 2, 26
    assert 100 < drawn_more <= columns * lanes
    assert visited_more <= 8 * columns * lanes
    assert drawn_more < 2 * drawn
    assert visited_more < 4 * visited  # ten times the events


def test_a_step_draws_the_timeline_from_its_picture(opened: Any, many: dict[int, Path]) -> None:
    tab = opened(many[EVENTS])
    tab.press("ArrowRight", "ArrowRight")
    assert tab.run("[xenpv.timeline.brush.drawn, xenpv.timeline.visited]") == [1, 0]


def test_panels_agree_with_a_large_tape_also_backwards(opened: Any, many: dict[int, Path]) -> None:
    tape = large(EVENTS)
    tab = opened(many[EVENTS])
    for moment in (EVENTS - 1, 60_000, 59_999, 3):
        tab.run(f"xenpv.cursor.set({moment}); xenpv.cursor.flush()")
        shown = tab.run(
            "xenpv.store.rows.filter(n => xenpv.store._has(n)).map(n => [n.path, xenpv.store.value(n)])"
        )
        assert dict(shown) == {
            path: node.value.decode() for path, node in tape.store_at(moment).items()
        }
        for ring in (0, 7, 15):
            states = tab.run(
                f"(() => {{ const s = xenpv.tape.ringAt({ring}, {moment}); return s && [...Array(32).keys()].map(i => xenpv.tape.slotState({ring}, s, i)); }})()"
            )
            expected = [one.state.value for one in tape.slots_at(ring, moment)]
            assert (states or ["empty"] * 32) == expected


ACTS = {
    "a step": "x.cursor.step(1); x.cursor.flush()",
    "a jump": "x.cursor.set(i * 7919 % x.tape.count); x.cursor.flush()",
    "a zoom": "x.timeline.zoom(i % 20 < 10 ? 0.7 : 1.4); x.cursor.flush(false)",
}


@pytest.mark.soak
def test_frames_are_short_with_many_events(
    opened: Any, many: dict[int, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Time of the processor, without a graphics card: what else the machine does is not in it."""
    tab = opened(many[EVENTS])
    tab.call("Performance.enable", timeDomain="threadTicks")

    def busy() -> float:
        metrics = tab.call("Performance.getMetrics")["metrics"]
        return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))

    for name, act in ACTS.items():
        before = busy()
        tab.run(f"(() => {{ const x = xenpv; for (let i = 0; i < 100; i++) {{ {act}; }} }})()")
        milliseconds = (busy() - before) * 1000 / 100
        with capsys.disabled():
            print(f"\n{EVENTS} events, {name}: {milliseconds:.1f} ms", end="")
        assert milliseconds < 50


SLOTS = """
  (moment => xenpv.tape.rings.map(({number, size}) => {
    const state = xenpv.tape.ringAt(number, moment);
    return [...Array(size).keys()].map(slot => state ? xenpv.tape.slotState(number, state, slot) : 'empty');
  }))"""


@pytest.mark.parametrize(
    "world", [pytest.param("driver_domain", marks=pytest.mark.soak), "migration", "raw"]
)
def test_worlds_of_several_ends_are_shown_as_the_tape_has_them(
    opened: Any, tmp_path: Path, world: str
) -> None:
    with recording() as tapes:
        for _ in WORLDS[world]():
            pass
    [tape] = tapes
    page.write(tape, tmp_path / "world.html")
    tab = opened(tmp_path / "world.html")
    machines = sorted({one.machine for one in tape.changes})
    for moment in (len(tape.events) * part // 3 - 1 for part in (1, 2, 3)):
        tab.run(f"xenpv.cursor.set({moment}); xenpv.cursor.flush()")
        states = [
            [slot.state.value for slot in tape.slots_at(ring.number, moment)] for ring in tape.rings
        ]
        assert tab.run(f"{SLOTS}({moment})") == states
        shown = tab.run(
            "xenpv.store.rows.filter(n => xenpv.store._has(n)).map(n => [n.path, xenpv.store.value(n)])"
        )
        expected = {
            (f"/machine {machine}" if len(machines) > 1 else "") + printable(path): printable(
                node.value
            )
            for machine in machines
            for path, node in tape.store_at(moment, machine).items()
        }
        assert dict(shown) == expected
