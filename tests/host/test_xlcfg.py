from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.xl_vectors import (
    CONFIGS_ACCEPTED,
    CONFIGS_REFUSED_HERE,
    CONFIGS_REJECTED,
    CORPUS,
)
from xenpv.errors import ConfigError
from xenpv.host import xlcfg
from xenpv.host.position import Position
from xenpv.host.xlcfg import Atom


@pytest.fixture(scope="module", autouse=True)
def _lark_is_loaded():
    """Loading takes as long as a hundred examples: not while a deadline counts."""
    xlcfg.parse("")


def plain_settings(text: str) -> dict[str, object]:
    return {key: xlcfg.plain(setting.value) for key, setting in xlcfg.parse(text).items()}


@pytest.mark.parametrize(("text", "settings"), CONFIGS_ACCEPTED.items())
def test_reads(text, settings):
    assert plain_settings(text) == settings


@pytest.mark.parametrize(("text", "line", "column", "message"), CONFIGS_REJECTED)
def test_refuses_and_names_the_place(text, line, column, message):
    with pytest.raises(ConfigError) as caught:
        xlcfg.parse(text, "f.cfg")
    error = caught.value
    assert (error.file, error.line, error.column) == ("f.cfg", line, column)
    assert message in error.message
    assert "\n" not in str(error)


@pytest.mark.parametrize(("text", "message"), CONFIGS_REFUSED_HERE)
def test_refuses_what_libxlutil_lets_pass(text, message):
    with pytest.raises(ConfigError) as caught:
        xlcfg.parse(text)
    assert caught.value.message.startswith(message)


def test_a_nul_is_refused_where_it_stands():
    with pytest.raises(ConfigError, match=r"^f:2:4: NUL byte"):
        xlcfg.parse('a=1\nb="\0"', "f")


def test_settings_keep_the_order_of_first_assignment_and_the_place_of_the_last():
    settings = xlcfg.parse("b=1\na=2\n  b=3", "f")
    assert list(settings) == ["b", "a"]
    assert settings["b"].position == Position("f", 3, 3)
    assert settings["b"].value == Atom("3")


def test_list_elements_know_their_place():
    disks = xlcfg.parse('disk=["a",\n   "b"]\ndisk+=["c"]', "f")["disk"].value
    assert isinstance(disks, xlcfg.ValueList)
    assert [item.position for item in disks.items] == [
        Position("f", 1, 7),
        Position("f", 2, 4),
        Position("f", 3, 8),
    ]


@pytest.mark.parametrize(
    ("text", "added"),
    [("a=1", False), ("a+=1", True), ("a=1\na+=2", True), ("a+=1\na=2", False)],
)
def test_a_setting_knows_whether_addition_was_last(text, added):
    assert xlcfg.parse(text)["a"].added is added


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("010", 8),
        ("0x1f", 31),
        ("0X1F", 31),
        (" \t\n\v\f\r12", 12),
        ("-5", -5),
        ("+5", 5),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("0777777777777777777777", 2**63 - 1),
        ("0x7fffffffffffffff", 2**63 - 1),
        ("0" * 5000, 0),
        ("9223372036854775808", None),
        ("9" * 5000, None),
        ("0x", None),
        ("08", None),
        ("12x", None),
        ("12 ", None),
        ("- 5", None),
        ("", None),
        ("\u0661", None),
    ],
)
def test_atoms_are_c_integers(text, number):
    assert Atom(text).number() == number


def test_overrides_follow_the_file_even_one_that_ends_in_a_comment():
    settings = xlcfg.parse("a=1\nb=2 # end", "f", ["b=3", 'c+="x"'])
    assert {key: xlcfg.plain(setting.value) for key, setting in settings.items()} == {
        "a": "1",
        "b": "3",
        "c": "x",
    }
    assert settings["c"].position == Position("command line", 2, 1)


def test_an_error_in_an_override_is_on_the_command_line():
    with pytest.raises(
        ConfigError, match=r"^command line:2:6: .* found 'web': text must be quoted"
    ):
        xlcfg.parse("a=1\n", "f", ["b=3", "name=web"])


def test_read_keeps_bytes_that_are_not_utf8():
    setting = xlcfg.read(CORPUS / "latin1.cfg")["name"]
    assert xlcfg.plain(setting.value) == "latin \udce9"


def test_read_names_a_missing_file(tmp_path):
    path = tmp_path / "none.cfg"
    with pytest.raises(ConfigError) as caught:
        xlcfg.read(path)
    assert str(caught.value) == f"{path}: cannot read the configuration: No such file or directory"


def test_read_refuses_a_directory(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the configuration: Is a directory$"):
        xlcfg.read(tmp_path)


def test_read_refuses_a_file_beyond_its_limit(tmp_path):
    path = tmp_path / "long.cfg"
    path.write_bytes(b"\n" * (xlcfg.FILE_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match=r"a configuration may have 1048576 bytes$"):
        xlcfg.read(path)


def test_messages_show_unprintable_text_escaped():
    assert xlcfg.shown("a\n\x1b\udcff\u00e9") == "a\\n\\x1b\\udcff\u00e9"
    assert len(xlcfg.shown("x" * 1000)) == 120


def test_lark_is_loaded_when_a_configuration_is_read():
    code = (
        "import sys, xenpv.host.config as c; assert 'lark' not in sys.modules;"
        "c.parse('name=\"a\"'); assert 'lark' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.cfg")), ids=lambda path: path.name)
def test_corpus_files_read_or_fail_as_they_are_named(path):
    if path.name.startswith("bad_"):
        with pytest.raises(ConfigError):
            xlcfg.read(path)
    else:
        assert "name" in xlcfg.read(path)


# Unparse and parse.

KEYS = st.from_regex(r"\A[a-z][._0-9a-z]{0,6}\Z")
TEXTS = st.text(st.characters(exclude_characters="\0"), max_size=12)
NUMBERS = st.from_regex(r"\A[0-9][0-9a-fx]{0,6}\Z")
BLANKS = st.sampled_from(["", " ", "\t", "  "])
NEWLINES = st.sampled_from(["\n", "\n\n", ' # a "comment\n', "\n#]\n\t"])


@st.composite
def quoted(draw: st.DrawFn) -> tuple[str, str]:
    text, quote = draw(TEXTS), draw(st.sampled_from("'\""))
    body = text.replace("\\", "\\\\").replace(quote, f"\\{quote}").replace("\n", "\\n")
    return f"{quote}{body}{quote}", text


@st.composite
def lists(draw: st.DrawFn, elements: st.SearchStrategy) -> tuple[str, object]:
    items = draw(st.lists(elements, max_size=4))
    layout = st.one_of(BLANKS, NEWLINES)
    source = "".join(
        f"{draw(layout)}{item}{draw(layout)}," if index < len(items) else f"{draw(layout)}{item}"
        for index, (item, _) in enumerate(items, 1)
    )
    if items and draw(st.booleans()):
        source += f"{draw(layout)},"
    return f"[{source}{draw(layout)}]", [value for _, value in items]


ATOMS = st.one_of(quoted(), NUMBERS.map(lambda text: (text, text)))
VALUES = st.recursive(ATOMS, lists, max_leaves=8)


@st.composite
def configs(draw: st.DrawFn) -> tuple[str, dict[str, object]]:
    expected: dict[str, object] = {}
    source = ""
    for key, (text, value) in draw(st.lists(st.tuples(KEYS, VALUES), max_size=6)):
        adds = draw(st.booleans()) and isinstance(expected.get(key, value), type(value))
        expected[key] = expected[key] + value if adds and key in expected else value  # type: ignore[operator] # same types
        end = draw(st.one_of(NEWLINES, st.just(";"), st.just(" ; ")))
        source += f"{draw(BLANKS)}{key}{draw(BLANKS)}{'+=' if adds else '='}{draw(BLANKS)}{text}"
        source += end
    if draw(st.booleans()):  # no newline at the end
        source += "last=0"
        expected["last"] = "0"
    return source, expected


@given(configs())
def test_what_is_written_is_what_is_read(config):
    source, expected = config
    assert plain_settings(source) == expected


WORDS = st.sampled_from(
    [
        *("a", "name", "=", "+=", "[", "]", ",", ";", "\n", " ", "#c\n", '"x"', "'", '"', "1"),
        *("0x1f", "\\", "\\n", "(", "-", "T", "\r", "\0", "\u00e9", "\udcff", "#", "[[", "]]"),
        '"\\q"',
    ]
)


@given(st.one_of(st.text(), st.lists(WORDS, max_size=20).map("".join)))
def test_garbage_raises_nothing_but_a_config_error(text):
    try:
        xlcfg.parse(text, "f")
    except ConfigError as error:
        refusal = error
    else:
        return
    assert "\n" not in str(refusal)
    assert refusal.line >= 1


@given(st.binary())
def test_garbage_files_raise_nothing_but_a_config_error(data):
    with contextlib.suppress(ConfigError):
        xlcfg.parse(data.decode("utf-8", "surrogateescape"))


def test_a_list_that_is_only_opened_is_an_error_and_no_recursion():
    with pytest.raises(ConfigError, match="found the end of the file"):
        xlcfg.parse("a=" + "[" * 50_000)
