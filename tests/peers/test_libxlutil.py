"""xenpv.host's readers against libxlutil, which parses without Xen; tests/peers/xlu.c drives it."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.host.xl_vectors import (
    CONFIGS_ACCEPTED,
    CONFIGS_REFUSED_HERE,
    CONFIGS_REJECTED,
    CORPUS,
    DISKS_ACCEPTED,
    DISKS_REJECTED,
    RATES_ACCEPTED,
    RATES_REJECTED,
)
from tests.peers import need
from xenpv.errors import ConfigError
from xenpv.host import xlcfg
from xenpv.host.diskspec import DiskSpec
from xenpv.host.vifspec import parse_rate
from xenpv.host.xlcfg import Atom

pytestmark = pytest.mark.peers

KEY = re.compile(r"[a-z][._0-9a-z]*")


class Xlu:
    """A running tests/peers/xlu.c; each answer is ("ok", lines) or ("error", report)."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def ask(self, kind: str, *texts: str) -> tuple[str, list[str]]:
        coded = [text.encode("utf-8", "surrogateescape") for text in texts]
        record = kind.encode() + struct.pack("=I", len(coded))
        record += b"".join(struct.pack("=I", len(text)) + text for text in coded)
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(record)
        stdin.flush()
        lines = []
        while (line := stdout.readline()) != b".\n":
            assert line, f"libxlutil ended on {texts!r}"
            lines.append(line.decode().rstrip("\n"))
        verdict, *rest = lines
        if verdict == "ok":
            return "ok", rest
        return "error", [string(verdict.removeprefix("error ")) or ""]

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="session")
def xlu(tmp_path_factory):
    need("/usr/include/libxlutil.h", "libxen-dev")
    program = tmp_path_factory.mktemp("xlu") / "xlu"
    source = Path(__file__).with_name("xlu.c")
    command = [need("cc", "gcc"), "-Wall", "-Werror", source, "-o", program]
    subprocess.run([*command, "-lxlutil", "-lxenlight"], check=True)
    running = Xlu(program)
    yield running
    running.close()


def string(word: str) -> str | None:
    if word == "-":
        return None
    return bytes.fromhex(word.removeprefix("x")).decode("utf-8", "surrogateescape")


def value(words: list[str]) -> object:
    word = words.pop(0)
    if word != "[":
        return string(word)
    items = []
    while words[0] != "]":
        items.append(value(words))
    words.pop(0)
    return items


# Settings.


def settings_of_xlu(xlu: Xlu, text: str) -> dict[str, tuple[object, int | None]] | str:
    """Each key that is set with its value and its number; the report if it fails."""
    keys = sorted(set(KEY.findall(text)))
    verdict, lines = xlu.ask("c", text, *keys)
    if verdict == "error":
        return lines[0]
    read = {}
    for key, shape, number in zip(keys, lines[::2], lines[1::2], strict=True):
        kind, _, rest = shape.partition(" ")
        if kind != "absent":
            long = number.removeprefix("long ")
            read[key] = (value(rest.split()), None if long == "-" else int(long))
    return read


def settings_of_ours(text: str) -> dict[str, tuple[object, int | None]] | str:
    try:
        read = xlcfg.parse(text)
    except ConfigError as error:
        return error.message
    return {
        key: (
            xlcfg.plain(setting.value),
            setting.value.number()
            if isinstance(setting.value, Atom) and not setting.added
            else None,
        )
        for key, setting in read.items()
    }


def corpus_texts() -> dict[str, str]:
    return {
        path.name: path.read_bytes().decode("utf-8", "surrogateescape")
        for path in sorted(CORPUS.glob("*.cfg"))
    }


def test_the_corpus_has_at_least_80_configurations():
    assert len(CONFIGS_ACCEPTED) + len(CONFIGS_REJECTED) + len(corpus_texts()) >= 80


@pytest.mark.parametrize("text", CONFIGS_ACCEPTED, ids=repr)
def test_reads_the_same_settings(xlu, text):
    theirs = settings_of_xlu(xlu, text)
    assert isinstance(theirs, dict)
    assert settings_of_ours(text) == theirs


@pytest.mark.parametrize("text", [text for text, *_ in CONFIGS_REJECTED], ids=repr)
def test_refuses_the_same_texts(xlu, text):
    assert isinstance(settings_of_xlu(xlu, text), str)
    assert isinstance(settings_of_ours(text), str)


@pytest.mark.parametrize(("name", "text"), corpus_texts().items(), ids=corpus_texts())
def test_agrees_on_a_file(xlu, name, text):
    theirs, ours = settings_of_xlu(xlu, text), settings_of_ours(text)
    if name.startswith("bad_"):
        assert isinstance(theirs, str)
        assert isinstance(ours, str)
    else:
        assert theirs == ours


def test_agrees_on_the_examples_of_the_package(xlu):
    first = need("/etc/xen/xlexample.hvm", "xen-utils-common")
    paths = sorted(Path(first).parent.glob("xlexample.*"))
    assert len(paths) >= 2
    for path in paths:
        text = path.read_text(encoding="utf-8")
        theirs = settings_of_xlu(xlu, text)
        assert "name" in theirs
        assert settings_of_ours(text) == theirs


@pytest.mark.parametrize("text", [text for text, _ in CONFIGS_REFUSED_HERE], ids=repr)
def test_lets_pass_what_is_refused_here(xlu, text):
    assert isinstance(settings_of_xlu(xlu, text), dict)


NUMBERS = [
    *("0", "010", "08", "0x1f", "0x", "12x", "1e", "9223372036854775807", "9223372036854775808"),
    *("0777777777777777777777", "01777777777777777777777", "0xffffffffffffffff", "0" * 400),
    *('"-5"', '"+5"', '" 5"', '"5 "', '"-9223372036854775808"', '"-9223372036854775809"'),
    *('"- 5"', '""', r'"\t\n\v\f\r5"', '"0X1F"', '"0x1G"', '"--5"', '"-0x10"', '"-010"', "9" * 400),
]


@pytest.mark.parametrize("number", NUMBERS)
def test_reads_the_same_numbers(xlu, number):
    text = f"a={number}"
    theirs = settings_of_xlu(xlu, text)
    assert isinstance(theirs, dict)
    assert settings_of_ours(text) == theirs


WORDS = st.sampled_from(
    [
        *("a", "b", "name", "=", "=", "=", "+=", "[", "]", ",", ";", "\n", "\n", " ", "\t", "#c\n"),
        *("# ", '"x"', "'y z'", "1", "0x1f", "12x", '"', "'", "\\", r'"a\n\t"', r'"\q"', r'"\x41"'),
        *("(", "-", ".", ":", "T", "\r", "\x0c", "\u00e9", "'\u00e9'", "\udcff", "'\udcff'", "@"),
        *("a=1\n", "a=[", "a='", "a+='x'\n", "[1,2]", "[[", "]]", "a+=[3]\n", "\x7f"),
    ]
)


def excused(text: str, ours: str) -> bool:
    """Whether a refusal is one of those that libxlutil does not share."""
    if re.match(r"unknown escape \\[0-7]|lists may be nested", ours):
        return True
    # It ignores one stray byte at the very end, where nothing follows to make it a token.
    return not isinstance(settings_of_ours(text[:-1]), str) and bool(
        re.match("unexpected|carriage return|expected a (closing|newline after the comment)", ours)
    )


def assert_same_settings(xlu: Xlu, text: str) -> None:
    ours = settings_of_ours(text)
    theirs = settings_of_xlu(xlu, text)
    if isinstance(ours, dict):
        assert ours == theirs
    elif isinstance(theirs, dict):
        assert excused(text, ours)


@settings(max_examples=2000, deadline=None)
@given(st.lists(WORDS, max_size=14).map("".join))
def test_agrees_on_texts_near_the_grammar(xlu, text):
    assert_same_settings(xlu, text)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=40))
def test_agrees_on_any_bytes(xlu, data):
    # A NUL inside a string ends the library in an assertion.
    assert_same_settings(xlu, data.replace(b"\0", b"=").decode("utf-8", "surrogateescape"))


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(sorted(corpus_texts().values())), st.data())
def test_agrees_on_files_with_a_slice_replaced(xlu, text, data):
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 20)))
    assert_same_settings(xlu, text[:start] + data.draw(WORDS) + text[end:])


# Disks.


def disk_of_xlu(xlu: Xlu, spec: str) -> dict[str, str] | str:
    verdict, lines = xlu.ask("d", spec)
    if verdict == "error":
        return lines[0].partition("\n")[0].removeprefix("FILE: ")
    fields = dict(line.split(" ", 1) for line in lines)
    for key in ("target", "vdev", "backend", "script"):
        fields[key] = string(fields[key]) or ""
    return fields


def disk_of_ours(spec: str) -> dict[str, str] | str:
    try:
        disk = DiskSpec.parse(spec)
    except ConfigError as error:
        return error.message
    flags = {
        key: str(int(getattr(disk, key)))
        for key in ("readwrite", "removable", "is_cdrom", "direct_io_safe")
    }
    return {
        "target": disk.target,
        "vdev": disk.vdev,
        "backend": disk.backend,
        "script": disk.script,
        "format": disk.format.value,
        "backendtype": disk.backendtype.value if disk.backendtype else "unknown",
        "specification": disk.specification.value,
        "discard": "-" if disk.discard is None else str(int(disk.discard)),
        **flags,
    }


def assert_same_disk(xlu: Xlu, spec: str) -> None:
    ours, theirs = disk_of_ours(spec), disk_of_xlu(xlu, spec)
    if isinstance(ours, str) and "bad disk syntax: near `='" in ours:
        return  # a stray = at the end, which libxlutil overlooks
    if isinstance(theirs, str):
        # The library's place has the comma that ended a bad devtype.
        assert isinstance(ours, str)
        assert ours.startswith(re.sub(r"(near `devtype=[^']*),'", r"\1'", theirs))
    else:
        if theirs["specification"] == "unknown":  # libxl's default
            theirs["specification"] = "xen"
        assert ours == theirs


@pytest.mark.parametrize("spec", [*DISKS_ACCEPTED, *(spec for spec, *_ in DISKS_REJECTED)])
def test_reads_the_same_disk_or_gives_the_same_message(xlu, spec):
    assert_same_disk(xlu, spec)
    assert isinstance(disk_of_xlu(xlu, spec), dict) is (spec in DISKS_ACCEPTED)


# No line feeds, which are refused here, and nothing that only newer trees know.
PARAMETERS = st.sampled_from(
    [
        *("raw", "raw:", "qcow2", "qcow2:", "vhd:", "phy:", "file:", "tap:", "tap2:", "aio:"),
        *("iscsi:", "nbd:", "foo:", "foo", "format=", "format=raw", "format=qcow2", "vdev="),
        *("vdev=xvda", "access=", "access=r", "devtype=", "devtype=cdrom", "devtype=disk", "cdrom"),
        *("discard", "no-discard", "direct-io-safe", "backend=", "backend=b", "backendtype=phy"),
        *("backendtype=", "script=s", "script=", "specification=xen", "specification=virtio"),
        *("target=", "target=/t", "/x", "xvda", "hdc:cdrom", "hdc:disk", "hdc:", ":", "=", ","),
        *(",", ",", ", ", "r", "w", "ro", "empty", "qed", "a", "1", "x=y", "A", "-", "_", "."),
        *("colo", "colo-host=h", "colo-port=1", " ", ""),
    ]
)


@settings(max_examples=2000, deadline=None)
@given(
    st.one_of(
        st.lists(PARAMETERS, max_size=7).map(",".join),
        st.lists(PARAMETERS, max_size=10).map("".join),
    ).filter(lambda spec: len(spec) < 110)
)
def test_agrees_on_specifications_near_the_grammar(xlu, spec):
    assert_same_disk(xlu, spec)


# Rates.


def rate_of_xlu(xlu: Xlu, rate: str) -> tuple[int, int] | str:
    verdict, lines = xlu.ask("r", rate)
    if verdict == "error":
        return lines[0].strip().removeprefix("FILE: ")
    _, amount, interval = lines[0].split()
    return int(amount), int(interval)


def assert_same_rate(xlu: Xlu, rate: str) -> None:
    theirs = rate_of_xlu(xlu, rate)
    try:
        ours: tuple[int, int] | str = parse_rate(rate)
    except ConfigError as error:
        ours = error.message
    if isinstance(theirs, str):
        assert isinstance(ours, str)
        assert ours.startswith(theirs)
    else:
        assert ours == theirs


@pytest.mark.parametrize("rate", [*RATES_ACCEPTED, *RATES_REJECTED])
def test_reads_the_same_rate_or_gives_the_same_message(xlu, rate):
    assert_same_rate(xlu, rate)


# No octal number that stops at an 8 or a 9, which is refused here.
DIGITS = st.from_regex(r"\A(0[0-7]{0,11}|[1-9][0-9]{0,11})\Z")


@settings(max_examples=1000, deadline=None)
@given(
    st.tuples(
        DIGITS,
        st.sampled_from(["", "K", "M", "G", "k"]),
        st.sampled_from(["B", "b", ""]),
        st.sampled_from(["/s", "/s", "/s@", ""]),
        st.one_of(st.just(""), DIGITS),
        st.sampled_from(["", "u", "m", "us", "s", "h", "@"]),
    ).map("".join)
)
def test_agrees_on_rates_near_the_grammar(xlu, rate):
    assert_same_rate(xlu, rate)
