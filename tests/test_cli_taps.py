"""`--tap`, `--guest-tap`, `--for`, `--journal` and `--replay`: what wrong ones are answered with."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from xenpv import cli
from xenpv.host import packet
from xenpv.host.journal import JournalTap, JournalWriter, Setup

CONFIG = """\
name = "web"
memory = 64
vif = [ "bridge=xenbr0,mac=00:16:3e:00:00:01", "bridge=xenbr1,devid=5,mac=00:16:3e:00:00:02" ]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("web.cfg").write_text(CONFIG)
    return tmp_path


def outcome(capsys, *arguments):
    """(exit status, stdout, stderr)"""
    try:
        status = cli.main(["run", "web.cfg", *arguments])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


WRONG = {
    "no tap": (["--tap", "xenbr0"], "argument --tap: expected BRIDGE=TAP, not 'xenbr0'"),
    "empty tap": (["--tap", "xenbr0="], "argument --tap: expected BRIDGE=TAP, not 'xenbr0='"),
    "empty bridge": (["--tap", "=tap0"], "argument --tap: expected BRIDGE=TAP, not '=tap0'"),
    "unknown mode": (
        ["--tap", "xenbr0=tap0,lro"],
        "behind tap0: expected one of tso, csum, plain, not 'lro'",
    ),
    "no number": (
        ["--guest-tap", "web=tap0"],
        "argument --guest-tap: expected a guest's name, a dot and the adapter's number, not 'web'",
    ),
    "no guest": (["--guest-tap", ".0=tap0"], "and the adapter's number, not '.0'"),
    "number that is none": (["--guest-tap", "web.x=tap0"], "and the adapter's number, not 'web.x'"),
    "unknown bridge": (
        ["--tap", "xenbr7=tap0"],
        "there is no bridge xenbr7 for the TAP tap0: there is xenbr0, xenbr1\n",
    ),
    "unknown guest": (
        ["--guest-tap", "db.0=tap0"],
        "there is no adapter db.0 for the TAP tap0: there is web.0, web.5\n",
    ),
    "unknown adapter": (
        ["--guest-tap", "web.1=tap0"],
        "there is no adapter web.1 for the TAP tap0: there is web.0, web.5\n",
    ),
    "adapter twice": (
        ["--guest-tap", "web.0=tap0", "--guest-tap", "web.00=tap1"],
        "adapter web.0 has a TAP already: not tap1 too\n",
    ),
    "tap twice": (
        ["--tap", "xenbr0=tap0", "--tap", "xenbr1=tap0,plain"],
        "the TAP tap0 is named twice\n",
    ),
    "bad name": (["--tap", "xenbr0=a/b"], "'a/b' is no name of an interface"),
    "bad descriptor": (["--tap", "xenbr0=fd:x"], "'fd:x': expected fd: and a number\n"),
    "descriptor not open": (
        ["--tap", "xenbr0=fd:98765"],
        "TAP fd:98765: that descriptor is not open here\n",
    ),
    "seconds": (["--for", "soon"], "argument --for: expected seconds, as 10 or 0.5, not 'soon'"),
    "seconds below 0": (["--for=-1"], "argument --for: expected seconds, as 10 or 0.5, not '-1'"),
    "endless": (["--for", "99999999"], "argument --for: expected seconds"),
    "journal of nothing": (["--journal", "j"], "--journal records what comes in: expected --tap"),
    "journal over an input": (
        ["--journal", "web.cfg", "--tap", "xenbr0=tap0"],
        "web.cfg: the journal would overwrite it\n",
    ),
    "replay and tap": (
        ["--replay", "j", "--tap", "xenbr0=tap0"],
        "--replay has all from its journal: leave --tap away\n",
    ),
    "replay and seed": (
        ["--replay", "j", "--seed", "0"],
        "--replay has all from its journal: leave --seed away\n",
    ),
    "no journal": (["--replay", "j"], "j: cannot read it: No such file or directory\n"),
    "another file": (["--replay", "web.cfg"], "web.cfg: it is no journal of this version"),
    "vcpus": (["--dom0-vcpus", "0"], "argument --dom0-vcpus: expected 1 to 128 vcpus, not '0'"),
}


@pytest.mark.parametrize("row", WRONG.values(), ids=WRONG)
def test_wrong_options_get_one_line_and_status_2(here, capsys, row):
    arguments, words = row
    status, out, err = outcome(capsys, *arguments)
    assert (status, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_a_run_may_go_on_without_taps(here, capsys):
    status, out, err = outcome(capsys, "--for", "0.01", "--json")
    document = json.loads(out)
    assert (status, err, document["taps"]) == (0, "serving for 0.01 s\n", [])
    assert document["virtual_ns"] >= 10_000_000


def journal(*records, taps=()):
    file = io.BytesIO()
    writer = JournalWriter(file, Setup(3, taps))
    for record in records:
        getattr(writer, record[0])(*record[1:])
    Path("j").write_bytes(file.getvalue())


TAP = JournalTap("xenbr0", False, "tap0", False)
FRAME = b"\xff" * 6 + bytes.fromhex("020000000009") + b"\x88\xb5" + bytes(46)


def test_a_replay_has_seed_and_taps_of_its_journal_and_compares_the_digest(here, capsys):
    steps = [("step", 10**10), ("arrived", 0, [FRAME, b"x"]), ("step", 10**11)]
    journal(*steps, ("end", "0" * 32), taps=(TAP, JournalTap("web.0", True, "tap1", True)))
    status, out, err = outcome(capsys, "--replay", "j", "--json")
    document = json.loads(out)
    assert (status, err, document["seed"]) == (1, "", 3)
    assert document["failures"] == [
        "the digest is not that of the journal's run, 00000000000000000000000000000000"
    ]
    first, second = document["taps"]
    assert first["lost"] == {"malformed": 1, "unfinished": 0, "overflow": 0, "unsent": 0}
    assert (first["where"], first["frames_in"], first["bytes_in"]) == ("xenbr0", 1, 60)
    assert (second["where"], second["frames_out"], second["bytes_out"]) == ("web.0", 1, 60)
    digest = document["digest"]
    journal(*steps, ("end", digest), taps=(TAP, JournalTap("web.0", True, "tap1", True)))
    status, out, _ = outcome(capsys, "--replay", "j")
    assert status == 0
    assert "  xenbr0=tap0, without headers: 1 frame (60 bytes) in, 0 (0 bytes) out, 1 lost" in out
    assert "    1 malformed" in out
    assert f"digest {digest} seed 3" in out


@pytest.mark.parametrize(("with_tap", "answers"), [(True, 0), (False, 1)])
def test_the_host_on_a_bridge_leaves_it_to_a_tap(here, capsys, with_tap, answers):
    mac, ip = bytes.fromhex("00163e000001"), bytes([10, 0, 0, 9])
    asks = packet.arp_request(mac, ip, bytes([10, 0, 0, 1]))
    guest_tap = JournalTap("web.0", True, "tap1", False)
    taps = (guest_tap, TAP) if with_tap else (guest_tap,)
    journal(("step", 10**10), ("arrived", 0, [asks]), ("step", 10**11), taps=taps)
    _, out, _ = outcome(capsys, "--replay", "j", "--json")
    assert json.loads(out)["taps"][0]["frames_out"] == answers


@pytest.mark.parametrize(("vcpus", "queues"), [("1", 1), ("3", 3), ("16", 4)])
def test_netback_offers_a_queue_for_each_vcpu_of_dom0(here, capsys, vcpus, queues):
    Path("web.cfg").write_text(CONFIG + "vcpus = 4\n")
    status, out, _ = outcome(capsys, "--dom0-vcpus", vcpus, "--json")
    (guest,) = json.loads(out)["guests"]
    assert (status, [device["queues"] for device in guest["devices"]]) == (0, [queues] * 2)


def test_a_journal_that_was_cut_short_is_no_proof(here, capsys):
    journal(("step", 10**10), taps=(TAP,))
    status, out, _ = outcome(capsys, "--replay", "j")
    assert status == 1
    assert "FAILED: the journal was cut short: it has no digest of its run to compare with" in out


def test_a_journal_of_other_guests_is_refused(here, capsys):
    for tap, words in (
        (JournalTap("xenbr9", False, "tap0", False), "there is no bridge xenbr9"),
        (JournalTap("db.0", True, "tap0", False), "there is no adapter db.0"),
        (JournalTap("web", True, "tap0", False), "there is no adapter web"),
    ):
        journal(("step", 10**10), taps=(tap,))
        status, _, err = outcome(capsys, "--replay", "j")
        assert (status, words in err) == (2, True), err
