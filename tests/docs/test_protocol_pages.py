"""The pages of the protocol reference: complete, and made only of what the code knows."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from protocol import keys, observed, rings, states, texts, traces, words
from protocol.directives import DIRECTIVES
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

from xenpv.abi.build import index

ROOT = Path(__file__).parent.parent.parent
PAGES = ROOT / "docs/reference/protocol"
HEADERS = ("netif.h", "blkif.h", "store.h", "grant_table.h", "event_channel.h")
DIRECTIVE = re.compile(r"^```\{([\w-]+)\} (.*)\n((?::\w+:.*\n)*)```$", re.MULTILINE)


def _used():
    """(directive, argument, options) of all pages."""
    for path in sorted(PAGES.glob("*.md")):
        for name, argument, options in DIRECTIVE.findall(path.read_text()):
            if name != "toctree":
                yield name, argument.strip(), dict(re.findall(r":(\w+): *(.*)", options))


USED = list(_used())


def _of(*names):
    return [argument for name, argument, _ in USED if name in names]


def _declared(kind):
    for header in HEADERS:
        for entry in index((ROOT / "xenpv/abi/decl" / header).read_text()):
            what, name = entry.split()
            if what in kind:
                yield name


def test_every_struct_of_the_protocols_is_on_a_page():
    shown = set(_of("struct")) | {f"{ring}_sring" for ring in _of("ring")}
    assert [name for name in _declared(("struct", "union")) if name not in shown] == []


def test_every_constant_of_the_protocols_is_on_a_page():
    """But for the numbers of bits (_NETTXF_...), which stand beside their masks."""
    shown = (
        {"XenbusState" + one for one in states.CAMEL.values()} if _of("xenbus-states") else set()
    )
    known = list(words.constants(""))
    for name, argument, options in USED:
        if name == "values":
            shown |= set(argument.split())
        elif name in ("enum", "flags"):
            without = (
                tuple(options.get("without", "").split())
                if name == "enum"
                else words.FLAGS[argument][1]
            )
            shown |= {
                one
                for one, _ in known
                if one.startswith(argument) and not one.startswith(tuple(without) or ("-",))
            }
    missing = [
        name for name in _declared(("define",)) if name not in shown and not name.startswith("_")
    ]
    assert missing == []


def test_every_state_table_key_table_and_answer_is_on_a_page():
    assert set(states.names()) == set(_of("states"))
    assert {*keys.TABLES, "home"} == set(_of("keys"))
    assert set(observed.ERRORS) == set(_of("errors"))
    assert set(observed.OPCODES) == set(_of("opcodes"))
    assert set(observed.OBSERVED) == set(_of("observed"))
    assert set(words.PICTURES) == set(_of("word"))
    assert set(rings.RINGS) == set(_of("ring"))
    assert set(_of("chain")) == {"tx", "rx", "blk"}


def test_every_handshake_of_every_pair_is_on_a_page():
    shown = [
        (kind, front, back)
        for kind, front, *backs in map(str.split, _of("handshake"))
        for back in backs
    ]
    wanted = [
        (kind, front, back)
        for kind, backs in traces.BACKENDS.items()
        for front in traces.FRONTENDS
        for back in backs
    ]
    assert sorted(shown) == sorted(wanted)


def test_every_directive_is_used():
    assert set(DIRECTIVES) == {name for name, _, _ in USED}


def test_pages_say_first_what_the_reader_gets():
    for path in PAGES.glob("*.md"):
        title, blank, first = path.read_text().split("\n")[:3]
        assert title.startswith("# "), path
        assert not blank, path
        assert first[:1].isupper(), path


@pytest.mark.parametrize("section", ["struct", "constant", "state", "units", "storeop"])
def test_words_are_words(section):
    """A text begins small and ends without a full stop, but for a struct's own sentence."""
    for name, text in texts.sections()[section].items():
        for key, one in text.items() if isinstance(text, dict) else [("", text)]:
            assert one, name
            assert one == one.strip(), (name, one)
            if key == "_":
                assert one.endswith("."), (name, one)
            elif section in ("struct", "constant"):
                assert not one.endswith("."), (name, one)


# directives in a small build of their own


def _build(tmp_path, text):
    """What a build of one page says on its error stream; and the page."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "conf.py").write_text(
        "extensions = ['myst_parser', 'protocol']\nexclude_patterns = []\n"
    )
    (source / "index.md").write_text(f"# Page\n\n{text}\n")
    said = io.StringIO()
    with docutils_namespace():
        app = Sphinx(
            source,
            source,
            tmp_path / "out",
            tmp_path / "trees",
            "html",
            status=None,
            warning=said,
            freshenv=True,
            confoverrides={"html_theme": "basic"},
        )
        app.build()
    return said.getvalue(), (tmp_path / "out/index.html").read_text()


# directive with its argument: what the build says
REFUSED = {
    "struct netif_txrequest": "struct: unknown struct 'netif_txrequest'",
    "ring netif": "ring: unknown ring 'netif': expected one of netif_tx, netif_rx, xen_netif_ctrl, blkif",
    "enum NETIFF_": "enum: unknown prefix of constants 'NETIFF_'",
    "values NETIF_RSP_GOOD": "values: unknown constant 'NETIF_RSP_GOOD'",
    "flags NETIF_": "flags: unknown flags 'NETIF_': expected one of NETTXF_",
    "word grant": "word: unknown word 'grant': expected one of event-word, grant-flags",
    "chain rxx": "chain: unknown chain 'rxx': expected one of tx, rx, blk",
    "states netback": "states: unknown state table 'netback': expected one of vif-frontend",
    "xenbus-states some": "xenbus-states: unknown choice of states 'some': expected one of all",
    "handshake vif windows bsd": "handshake: unknown backend 'bsd': expected one of linux, qemu, mirage",
    "keys netbsd": "keys: unknown table of keys 'netbsd': expected one of vif-toolstack",
    "errors nothing": "errors: unknown table of errors 'nothing': expected one of netback-tx",
    "opcodes nothing": "opcodes: unknown table of opcodes 'nothing': expected one of xs_wire",
    "observed nothing": "observed: unknown table of observed 'nothing': expected one of blk-rules",
}


def test_every_directive_has_a_name_that_it_refuses():
    assert {one.split()[0] for one in REFUSED} == set(DIRECTIVES)


def test_unknown_names_fail_the_build_and_say_what_is_known(tmp_path):
    said, _ = _build(
        tmp_path,
        "\n".join(
            f"```{{{name}}} {argument}\n```"
            for name, argument in (one.split(" ", 1) for one in REFUSED)
        ),
    )
    for at, message in enumerate(REFUSED.values()):
        assert f"index.md:{3 + 2 * at}: ERROR: {message}" in said


def test_a_member_that_a_union_does_not_have_fails_the_build(tmp_path):
    said, _ = _build(tmp_path, "```{struct} netif_extra_info\n:only: u.vlan\n```")
    assert (
        "unknown member of netif_extra_info 'u.vlan': expected one of u.gso, u.mcast, u.hash"
        in said
    )


def test_a_page_has_its_pictures_inside_it_and_its_style(tmp_path):
    said, page = _build(
        tmp_path, "```{struct} netif_tx_request\n```\n\n```{states} netback-linux\n```"
    )
    assert said == ""
    assert page.count("<svg ") == 2
    assert "protocol.css" in page
    assert "<script" not in page.split("<body")[1].split("<svg")[1].split("</svg>")[0]
    assert "reference of the page, granted to the backend" in page


def test_options_choose_what_is_drawn_and_listed(tmp_path):
    said, page = _build(
        tmp_path,
        "```{struct} netif_extra_info\n:only: u.gso u.hash\n```\n\n```{struct} grant_entry_header\n:bare:\n```\n\n"
        "```{enum} XENSTORE_\n:without: XENSTORE_SERVER XENSTORE_ERROR\n```",
    )
    assert said == ""
    assert page.count("<svg ") == 2
    assert "with u.gso" in page
    assert "with u.mcast" not in page
    assert "XENSTORE_RING_SIZE" in page
    assert "XENSTORE_ERROR_COMM" not in page


def test_what_is_told_twice_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.toml").write_text("[constant]\nX = 'one'\n")
    (tmp_path / "b.toml").write_text("[constant]\nX = 'two'\n")
    monkeypatch.setattr(texts, "HERE", tmp_path)
    texts.sections.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"b\.toml: constant\.X is told twice"):
            texts.sections()
    finally:
        monkeypatch.undo()
        texts.sections.cache_clear()
