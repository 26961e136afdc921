"""Pictures of the protocol reference: well-formed, readable, the same bytes each time."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from xml.etree import ElementTree as ET

import pytest
from protocol import chains, charts, diagrams, rings, slots, states, structs, texts, traces, words
from protocol.svg import FONT_MIN, Box, Picture, PictureError

from xenpv.abi.xenbus import XenbusState

SVG = "{http://www.w3.org/2000/svg}"
ADVANCE = 0.6  # of a monospaced letter; DejaVu Sans Mono has 0.602


def _pictures():
    for base in texts.sections()["struct"]:
        for name in (base, base + structs.SUFFIX_32) if structs.has_32(base) else (base,):
            for variant in structs.variants(name):
                yield (
                    f"struct {name} {variant.name}",
                    lambda name=name, variant=variant: slots.draw(name, variant),
                )
    for name in ("tx", "rx", "blk"):
        yield f"chain {name}", lambda name=name: chains.picture(name)
    for name in words.PICTURES:
        yield f"word {name}", lambda name=name: words.picture(name)
    for name in words.FLAGS:
        yield f"flags {name}", lambda name=name: words.flags(name)[0]
    for name in rings.RINGS:
        yield f"ring {name}", lambda name=name: rings.draw(name)
    for name, make in states.FRONTENDS.items():
        for number in range(len(make().columns)):
            yield (
                f"states {name} {number}",
                lambda make=make, number=number: diagrams.draw_goal(make(), number),
            )
    for name, backend in states.backends().items():
        yield f"states {name}", lambda backend=backend: diagrams.draw_backend(backend)
    for kind, backends in traces.BACKENDS.items():
        for frontend in traces.FRONTENDS:
            for backend in backends:
                yield (
                    f"handshake {kind} {frontend} {backend}",
                    lambda run=(kind, frontend, backend): charts.draw(traces.run(*run)),
                )


PICTURES = dict(_pictures())


def _texts(svg):
    """(text, left, top, right, bottom) of each, measured here and not by the writer."""
    for node in svg.iter(f"{SVG}text"):
        size = float(node.get("font-size"))
        width = len(node.text) * size * ADVANCE
        x, baseline = float(node.get("x")), float(node.get("y"))
        left = {"start": x, "middle": x - width / 2, "end": x - width}[node.get("text-anchor")]
        yield node.text, left, baseline - size * 0.75, left + width, baseline + size * 0.15


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_well_formed_named_and_its_text_is_apart_and_inside(name):
    text = PICTURES[name]().render()
    svg = ET.fromstring(text)
    _, _, width, height = map(float, svg.get("viewBox").split())
    assert svg.find(f"{SVG}title").text
    assert svg.find(f"{SVG}desc").text
    assert svg.get("role") == "img"
    found = list(_texts(svg))
    assert found
    for said, left, top, right, bottom in found:
        assert left >= 0, said
        assert top >= 0, said
        assert right <= width, said
        assert bottom <= height, said
    for (one, l1, t1, r1, b1), (other, l2, t2, r2, b2) in combinations(found, 2):
        assert r1 <= l2 or r2 <= l1 or b1 <= t2 or b2 <= t1, (one, other)


@pytest.mark.parametrize("name", PICTURES)
def test_text_is_never_smaller_than_eleven_pixels(name):
    """At the narrowest that the picture may become."""
    svg = ET.fromstring(PICTURES[name]().render())
    width = float(svg.get("viewBox").split()[2])
    style = dict(one.split(":") for one in svg.get("style").split(";"))
    least = float(style["min-width"].removesuffix("px"))
    sizes = [float(node.get("font-size")) for node in svg.iter(f"{SVG}text")]
    assert min(sizes) * least / width >= 10.99
    assert FONT_MIN == 11


@pytest.mark.parametrize(
    "name", [one for one in PICTURES if one.startswith(("struct", "ring", "states"))]
)
def test_colours_are_the_pages_own(name):
    text = PICTURES[name]().render()
    assert "#" not in text
    assert "fill=" not in text
    assert "stroke=" not in text


def test_pictures_are_narrow_enough_for_a_phone():
    for name, make in PICTURES.items():
        if not name.startswith("states vif-frontend 2"):  # its longest step is a sentence
            assert make().width <= 410, name


@pytest.mark.parametrize("name", [one for one in PICTURES if one.startswith("states")])
def test_a_state_diagram_has_every_state(name):
    said = [text for _, text in PICTURES[name]().texts]
    for state in XenbusState:
        number = str(int(state))
        assert any(text.split(" ")[0] == number and len(text) > 2 for text in said), (name, state)


def test_bytes_are_the_same_in_another_process_with_another_hash_seed():
    script = (
        "import hashlib\nfrom tests.docs.test_protocol_svg import PICTURES\n"
        "print(hashlib.sha256(''.join(make().render() for make in PICTURES.values()).encode()).hexdigest())"
    )
    found = {
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True,
                       env={"PYTHONHASHSEED": seed, "PYTHONPATH": "docs/_ext"}).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1


def test_text_that_leaves_the_picture_is_refused():
    picture = Picture(100, 40, "small", "")
    with pytest.raises(PictureError, match="leaves the picture"):
        picture.text(90, 20, "too far right")


def test_text_on_text_is_refused():
    picture = Picture(200, 40, "crowd", "")
    picture.text(100, 20, "first")
    with pytest.raises(PictureError, match="lies on 'first'"):
        picture.text(105, 22, "second")


def test_a_name_wider_than_two_lines_of_its_box_is_refused():
    picture = Picture(200, 40, "box", "")
    with pytest.raises(PictureError, match="wider than its box"):
        picture.label(Box(0, 0, 20, 30), "something_that_has_no_room")


def test_what_is_told_is_escaped():
    text = Picture(10, 10, "<a & b>", '"quoted"').render()
    ET.fromstring(text)
    assert "&lt;a &amp; b&gt;" in text
