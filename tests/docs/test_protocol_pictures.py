"""What pictures show is what tables say: read back from the SVG, box by box and arrow by arrow."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from protocol import chains, charts, diagrams, rings, slots, states, structs, traces, words
from protocol.texts import sections

from tests.docs.test_protocol_states import FRONTENDS, HANDSHAKES, SEEN

SVG = "{http://www.w3.org/2000/svg}"


class Drawn:
    """Rectangles (x, y, width, height), texts (x, y, text) and arrows (class, start, end) of one."""

    def __init__(self, picture):
        svg = ET.fromstring(picture.render())
        self.boxes = [
            tuple(float(node.get(key)) for key in ("x", "y", "width", "height"))
            for node in svg.iter(f"{SVG}rect")
        ]
        self.texts = [
            (
                float(node.get("x")),
                float(node.get("y")) - float(node.get("font-size")) * 0.35,
                node.text,
                node.get("text-anchor"),
            )
            for node in svg.iter(f"{SVG}text")
        ]
        self.arrows = []
        for path, head in zip(svg.iter(f"{SVG}path"), svg.iter(f"{SVG}polygon"), strict=True):
            numbers = [float(one) for one in re.findall(r"-?[\d.]+", path.get("d"))]
            tip = [float(one) for one in head.get("points").split()[:2]]
            self.arrows.append((path.get("class").split("xp-")[-1], tuple(numbers[:2]), tuple(tip)))

    def inside(self, box):
        """Texts whose middle is in a box, from top to bottom."""
        x, y, width, height = box
        found = [
            (ty, text)
            for tx, ty, text, anchor in self.texts
            if x <= tx <= x + width and y <= ty <= y + height and anchor != "end"
        ]
        return [text for _, text in sorted(found)]

    def box_at(self, point, slack=4):
        """The text of the box whose border a point lies on."""
        for x, y, width, height in self.boxes:
            if (
                x - slack <= point[0] <= x + width + slack
                and y - slack <= point[1] <= y + height + slack
            ):
                return self.inside((x, y, width, height))[0]
        raise AssertionError(point)


# structs

LEFT, HEAD, BYTE, ROW = 42, 22, 76, 30


@pytest.mark.parametrize(
    "name",
    [
        one
        for one in sections()["struct"]
        if structs.layout.sizeof(one) <= 64 and one != "evtchn_op"
    ],
)
def test_a_field_is_drawn_over_its_own_bytes(name):
    """Of structs small enough that nothing is folded."""
    for variant in structs.variants(name):
        if any(field.size > 16 for field in variant.fields):
            continue
        drawn = Drawn(slots.draw(name, variant))
        covered = []
        for box in drawn.boxes:
            x, y, width, height = box
            first = round((y - HEAD) / ROW) * 4 + round((x - LEFT) / BYTE)
            size = round(width / BYTE) * round(height / ROW)
            covered += [(byte, "".join(drawn.inside(box))) for byte in range(first, first + size)]
        assert [byte for byte, _ in covered] == list(range(structs.layout.sizeof(name)))
        said = dict(covered)
        for field in variant.fields:
            labels = {
                said[byte].removesuffix(f"[{field.count}]")
                for byte in range(field.offset, field.offset + field.size)
            }
            assert labels - {"…"} <= {
                field.name,
                field.last,
                f"…{field.name.rpartition('_')[2]}",
            }, (field, labels)
        numbers = sorted(int(text) for _, _, text, anchor in drawn.texts if anchor == "end")
        assert set(numbers) <= set(range(0, structs.layout.sizeof(name), 4))
        assert 0 in numbers


def test_a_long_array_is_folded_and_says_how_long_it_is():
    (variant,) = structs.variants("blkif_request")
    texts = [text for _, _, text, _ in Drawn(slots.draw("blkif_request", variant)).texts]
    assert "seg[11]" in texts
    assert "88 bytes, to 111" in texts
    assert structs.layout.sizeof("blkif_request") == 112


RINGS = {
    "netif_tx": "0 4 8 12 16 64 76 3124", "netif_rx": "0 4 8 12 16 64 72 2104",
    "xen_netif_ctrl": "0 4 8 12 16 64 80 2096", "blkif": "0 4 8 12 16 64 176 3536",
}  # fmt: skip


@pytest.mark.parametrize("name", RINGS)
def test_a_rings_page_has_its_words_and_slots_where_they_are(name):
    drawn = Drawn(rings.draw(name))
    assert " ".join(text for _, _, text, anchor in drawn.texts if anchor == "end") == RINGS[name]
    assert [drawn.inside(box)[0] for box in drawn.boxes][:4] == [
        "req_prod",
        "req_event",
        "rsp_prod",
        "rsp_event",
    ]


# states


@pytest.mark.parametrize("name", states.FRONTENDS)
def test_arrows_of_a_frontend_go_where_its_table_says(name):
    frontend = states.FRONTENDS[name]()
    for number, (goal, _) in enumerate(frontend.columns):
        drawn = Drawn(diagrams.draw_goal(frontend, number))
        found = {
            drawn.box_at(start).split()[0]: drawn.box_at(end) for _, start, end in drawn.arrows
        }
        wanted = dict(zip(SEEN, FRONTENDS[name, goal], strict=True))
        wanted = {
            seen: f"write {one}" if isinstance(one, int) else one
            for seen, one in wanted.items()
            if one != "wait"
        }
        assert found == wanted, goal


@pytest.mark.parametrize("name", states.backends())
def test_arrows_of_a_backend_go_where_its_table_says(name):
    backend = states.backends()[name]
    drawn = Drawn(diagrams.draw_backend(backend))
    found = sorted((drawn.box_at(start), drawn.box_at(end)) for _, start, end in drawn.arrows)
    wanted, labels = [], []
    for own in backend.own:
        ends = {}
        for seen in states.STATES:
            move = backend.moves.get((own, seen))
            if move is None or not move.path or move.path[-1] is own:
                continue
            if int(move.path[-1]) == 8 and int(own) != 4:
                continue  # from Connected alone
            ends.setdefault(move.path[-1], []).append(str(int(seen)))
        wanted += [(states.state_name(own), states.state_name(end)) for end in ends]
        labels += [",".join(seen) for seen in ends.values()]
    assert found == sorted(wanted)
    assert sorted(text for _, _, text, _ in drawn.texts if re.fullmatch(r"[\d,]+", text)) == sorted(
        labels
    )


# handshakes


@pytest.mark.parametrize("which", HANDSHAKES, ids="-".join)
def test_a_chart_has_every_state_in_order_and_from_who_wrote_it(which):
    drawn = Drawn(charts.draw(traces.run(*which)))
    order = []
    for kind, start, end in sorted(drawn.arrows, key=lambda one: one[1][1]):
        assert start[1] == end[1]
        assert kind == ("front" if start[0] < end[0] else "back")
        above = [
            text
            for _, y, text, _ in drawn.texts
            if 0 < start[1] - y < 14 and text.startswith("state = ")
        ]
        assert len(above) == 1
        order.append(f"{kind[0]}{above[0].split()[2]}")
    assert " ".join(order) == HANDSHAKES[which]


def test_a_chart_has_every_key_that_was_written():
    run = traces.run("vif", "windows", "linux")
    texts = [text for _, _, text, _ in Drawn(charts.draw(run)).texts]
    for key in ("request-rx-copy = 1", "remove feature-gso-tcpv4-prefix", "tx-ring-ref = …", "event-channel-ctrl = …",
                "multi-queue-num-queues = 1", "feature-dynamic-multicast-control = 1", "hotplug-status = connected"):  # fmt: skip
        assert texts.count(key) == 1, key
    assert (
        texts.index("feature-sg = 1")
        < texts.index("state = 5 Closing")
        < texts.index("tx-ring-ref = …")
    )


# words and chains


def test_an_event_word_has_its_bits():
    drawn = Drawn(words.picture("event-word"))
    assert [text for _, _, text, _ in drawn.texts] == [
        "31",
        "PENDING",
        "30",
        "MASKED",
        "29",
        "LINKED",
        "28",
        "BUSY",
        "27:17",
        "16:0",
        "LINK",
    ]


FLAGS = {
    "NETTXF_": {"csum_blank": 0, "data_validated": 1, "more_data": 2, "extra_info": 3},
    "NETRXF_": {
        "data_validated": 0,
        "csum_blank": 1,
        "more_data": 2,
        "extra_info": 3,
        "gso_prefix": 4,
    },
    "GNTMAP_": {
        "device_map": 0,
        "host_map": 1,
        "readonly": 2,
        "application_map": 3,
        "contains_pte": 4,
    },
    "GTF_": {
        "readonly": 2,
        "reading": 3,
        "writing": 4,
        "PWT": 5,
        "PCD": 6,
        "PAT": 7,
        "sub_page": 8,
    },
    "XENSTORE_SERVER_FEATURE_": {"RECONNECTION": 0, "ERROR": 1, "WATCHDEPTH": 2, "DOMID_ANY": 3},
}


@pytest.mark.parametrize("prefix", FLAGS)
def test_flags_have_their_bits_and_masks(prefix):
    picture, table = words.flags(prefix)
    wanted = {
        f"`{prefix}{name}`": (str(bit), f"{1 << bit:#x}") for name, bit in FLAGS[prefix].items()
    }
    assert {row[1]: (row[0], row[2]) for row in table.rows} == wanted
    drawn = Drawn(picture)
    boxes = {tuple(drawn.inside(box)) for box in drawn.boxes} - {()}
    assert boxes == {(mask,) for _, mask in wanted.values()}
    above = [text for _, _, text, _ in drawn.texts if text.isdigit()]
    assert sorted(map(int, above)) == sorted(FLAGS[prefix].values())


# slot: what stands in the left and in the right box
CHAINS = {
    "tx": [
        (
            "id 100, offset 0|size 6154 (whole)|csum_blank|data_validated|more_data|extra_info",
            "id 100|status OKAY",
        ),
        ("extra GSO, MORE|size 1448, type 1", "status NULL"),
        ("extra HASH", "status NULL"),
        ("id 101, offset 0|size 4000 (own bytes)|more_data", "id 101|status OKAY"),
        ("id 102, offset 0|size 2054 (own bytes)", "id 102|status OKAY"),
    ],
    "rx": [
        (
            "id 40960, a page",
            "id 40960, offset 0|status 4096 (bytes)|data_validated|csum_blank|more_data|extra_info",
        ),
        ("id 40961, a page", "extra GSO|size 1448, type 1"),
        ("id 40962, a page", "id 40962, offset 0|status 2058 (bytes)"),
        ("id 40963, a page", ""),
        ("id 40964, a page", ""),
    ],
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_has_its_slots_and_answers(name):
    picture = chains.picture(name)
    svg = ET.fromstring(picture.render())
    boxes = [
        tuple(float(node.get(key)) for key in ("x", "y", "width", "height"))
        for node in svg.iter(f"{SVG}rect")
    ]
    texts = [
        (float(node.get("x")), float(node.get("y")), node.text) for node in svg.iter(f"{SVG}text")
    ]

    def said(box):
        x, y, width, height = box
        return "|".join(
            text
            for tx, ty, text in sorted(texts, key=lambda one: one[1])
            if x < tx < x + width and y < ty < y + height
        )

    assert [
        (said(left), said(right)) for left, right in zip(boxes[::2], boxes[1::2], strict=True)
    ] == CHAINS[name]


def test_a_table_of_constants_has_values_as_the_header_has_them():
    table = structs.describe_constants(structs.constants("BLKIF_OP_"), sections()["constant"])
    assert [(row[0], row[1]) for row in table.rows] == [
        ("`BLKIF_OP_READ`", "0"), ("`BLKIF_OP_WRITE`", "1"), ("`BLKIF_OP_WRITE_BARRIER`", "2"),
        ("`BLKIF_OP_FLUSH_DISKCACHE`", "3"), ("`BLKIF_OP_RESERVED_1`", "4"), ("`BLKIF_OP_DISCARD`", "5"),
        ("`BLKIF_OP_INDIRECT`", "6"),
    ]  # fmt: skip
    table = structs.describe_constants(
        [("XS_INVALID", structs.value_of("XS_INVALID"))], sections()["constant"]
    )
    assert table.rows[0][1:3] == ("65535", "0xffff")
    newer = structs.describe_constants([("XS_GET_QUOTA", 25)], sections()["constant"])
    assert newer.rows[0][-1].endswith("(newer than Xen 4.17: io/xs_wire.h)")
