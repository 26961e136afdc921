from __future__ import annotations

import gc
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import walk_packages

import pytest

import _xenpv_pytest
import xenpv
from _xenpv_pytest import Worlds

# Without an installation the inner runs have to be told.
ARGUMENTS = () if entry_points(group="pytest11", name="xenpv") else ("-p", "_xenpv_pytest")


@pytest.fixture(scope="module")
def everything_imported():
    """An inner run forgets the modules that it imported first; a second copy of some beside the
    first of others would not know the other's enums.
    """
    for module in walk_packages(xenpv.__path__, "xenpv."):
        if not module.name.endswith("__main__"):
            import_module(module.name)


@pytest.fixture
def inner(everything_imported, pytester):
    """Run a test file in a pytest of its own, in this process; its result."""

    def run(source: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(source)
        # Hypothesis' and xdist's state is the outer run's.
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *ARGUMENTS, *arguments)

    return run


def test_nothing_is_imported_before_a_fixture_is_used():
    script = (
        "import sys; before = set(sys.modules); import _xenpv_pytest;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "sys.exit(bool(new & {'xenpv', 'hypothesis', 'attrs', 'lark', 'cffi'}))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_xen_is_an_empty_platform_that_is_closed_when_the_test_ends(inner):
    inner("""
        made = []

        def test_one(xen):
            assert xen.seed == 0 and xen.guests == []
            made.append(xen)

        def test_two(xen):
            assert made[0].hypervisor.closed
            assert xen is not made[0]
    """).assert_outcomes(passed=2)


def test_guest_is_connected_with_a_disk_and_an_interface(inner):
    inner("""
        def test_guest(xen, guest):
            assert xen.guests == [guest]
            (disk,), (net,) = guest.disks, guest.nets
            assert disk.capacity * disk.sector_size == 1 << 20
            assert disk.read(2047, 1) == bytes(512)
            net.send(b"\\xff" * 6 + net.mac + b"\\x88\\xb5" + bytes(46))
            xen.run()
            assert len(xen.bridge("xenbr0").frames) >= 1
    """).assert_outcomes(passed=1)


def test_worlds_go_with_given(inner):
    inner("""
        from hypothesis import given, settings, strategies as st
        from xenpv import Disk, MemoryImage

        @settings(max_examples=20, deadline=None, database=None)
        @given(st.integers(0, 2**32))
        def test_worlds(worlds, seed):
            with worlds(seed=seed, disks=[Disk(MemoryImage(b"xenpv".ljust(512)))]) as xen:
                assert xen.seed == seed
                assert xen.guests[0].name == "guest"
                assert xen.guests[0].disks[0].read(0, 1) == b"xenpv".ljust(512)
    """).assert_outcomes(passed=1)


def test_the_seed_is_the_options(inner):
    inner(
        """
        def test_seeds(worlds, xen):
            assert xen.seed == 1234
            assert worlds().seed == 1234
            assert worlds(seed=5).seed == 5
        """,
        "--xenpv-seed=1234",
    ).assert_outcomes(passed=1)


@pytest.mark.parametrize("seed", ["-1", "x", "18446744073709551616"])
def test_a_seed_that_is_none_is_a_usage_error(inner, seed):
    result = inner("def test_nothing(): pass", f"--xenpv-seed={seed}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_a_failure_says_seed_trace_and_how_to_repeat(inner):
    result = inner(
        """
        import pytest

        @pytest.mark.parametrize("way", ["a b"])
        def test_fails(xen, guest, way):
            assert False
        """,
        "--xenpv-seed=77",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*- xenpv -*",
            "platform with seed 77, after 0.0* virtual seconds:",
            "  d[01] *",
            "again: pytest 'test_*.py::test_fails[[]a b[]]' --xenpv-seed 77",
        ]
    )
    tail = [line for line in result.outlines if line.startswith(("  d0 ", "  d1 "))]
    assert len(tail) == _xenpv_pytest.TAIL_LINES


def test_a_failure_without_a_platform_says_nothing_of_it(inner):
    result = inner("""
        def test_one(xen):
            pass

        def test_two():
            assert False
    """)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.no_fnmatch_line("*- xenpv -*")


def test_a_failure_shows_the_newest_worlds_closed_ones_too(inner):
    result = inner("""
        def test_many(worlds):
            for seed in range(10):
                with worlds(seed=seed):
                    pass
            assert False
    """)
    shown = [line for line in result.outlines if line.startswith("platform with seed")]
    assert [line.split()[3] for line in shown] == ["7,", "8,", "9,"]


def test_a_world_that_does_not_start_is_closed():
    worlds = Worlds(0)
    from xenpv import Disk, ToolstackError

    with pytest.raises(ToolstackError):
        worlds(disks=[Disk("no/such/image")])
    worlds.close()
    assert [one for one in worlds._open if not one().hypervisor.closed] == []


def test_worlds_close_what_is_still_there_and_keep_nothing_alive():
    worlds = Worlds(3)
    kept, dropped = worlds(), worlds()
    dropped.close()
    del dropped
    gc.collect()
    assert len(worlds._open) == 1
    worlds.close()
    assert kept.hypervisor.closed


PLANTED = """
    from xenpv.testing import scenarios, zoo

    def test_explored(explore):
        with zoo.defect("ring-event-late"):
            explore(scenarios.blk_requests).check()
"""


def test_a_failed_exploration_shows_schedule_events_rings_paths_and_the_command(inner, pytester):
    result = inner(PLANTED, "--xenpv-seed=4", "--xenpv-artefacts=found")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*- xenpv exploration -*",
            "xenpv.testing.scenarios:blk_requests fails: CheckFailed: *lost wake-up*",
            "found at example * with seed 4, shrunk to 1 steps *",
            "  1. at decision *: preempt d0 vbd1.51712-0 before it writes blkif.req_event *",
            "again: xenpv replay found/blk_requests-*.replay",
            "last events:",
            "rings:",
            "  blkif of d1 at pfn 0x101, 32 entries: req_prod *",
            "    blkif_request[[]*[]] operation 0x1, nr_segments 0x1, *",
            "trace: found/blk_requests-*.trace",
            "store: found/blk_requests-*.store",
        ]
    )
    suffixes = sorted(path.suffix for path in (pytester.path / "found").iterdir())
    assert suffixes == [".replay", ".store", ".trace"]


def test_an_exploration_that_a_test_expected_is_not_shown_with_the_next_failure(inner):
    result = inner(
        PLANTED.replace(".check()", "")
        + """
    def test_later():
        assert False
    """
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.no_fnmatch_line("*- xenpv exploration -*")


def test_a_failure_shows_the_rings_of_a_platform_that_still_runs(inner, pytester):
    result = inner(
        """
        def test_fails(xen, guest):
            guest.disks[0].read(0, 1)
            assert False
        """,
        "--xenpv-artefacts=kept",
    )
    result.stdout.fnmatch_lines(["rings:", "  blkif of d1 at pfn *", "    blkif_response[[]*"])
    result.stdout.fnmatch_lines(
        ["trace: kept/test-fails-0.trace", "store: kept/test-fails-0.store"]
    )
    store = (pytester.path / "kept" / "test-fails-0.store").read_text()
    assert "/local/domain/1/name = 'guest'" in store


def test_a_failure_writes_nothing_unless_asked(inner, pytester):
    inner("def test_fails(xen, guest): assert False").assert_outcomes(failed=1)
    assert [path for path in pytester.path.rglob("*") if path.suffix in (".trace", ".store")] == []
    assert not (pytester.path / _xenpv_pytest.ARTEFACTS).exists()


def test_a_failure_shows_where_the_packets_of_a_closed_platform_are(inner, pytester):
    result = inner(
        """
        from xenpv import Vif

        def test_fails(worlds):
            with worlds(vifs=[Vif(bridge="xenbr0")]) as xen:
                net = xen.guests[0].nets[0]
                net.send(b"\\xff" * 6 + net.mac + b"\\x88\\xb5" + bytes(50))
                xen.run()
            assert False
        """,
        "--xenpv-artefacts=kept",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["pcapng: kept/test-fails-0.pcapng"])
    data = (pytester.path / "kept" / "test-fails-0.pcapng").read_bytes()
    assert data[:4] == b"\x0a\x0d\x0d\x0a"
    assert b"\x88\xb5" + bytes(50) in data


def test_a_defect_that_is_left_on_is_an_error_of_that_test_alone(inner):
    result = inner(
        """
        from xenpv.testing import zoo

        kept = []

        def test_leaves_it():
            kept.append(zoo.defect("ring-event-late"))
            kept[0].__enter__()

        def test_later():
            assert zoo.active() == ()
        """
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*test_leaves_it left ring-event-late of the zoo on: *"])


def test_fixtures_give_each_end_of_a_device(inner):
    result = inner(
        """
        def test_ours(xen, guest, vbd, vif):
            assert vbd is guest.disks[0]
            assert vif is guest.nets[0]
            assert vbd.read(0, 1) == bytes(512)

        def test_raw_frontends(raw_world, raw_vbd, raw_vif):
            assert raw_vbd.backend.broken == raw_vif.backend.broken == ""
            raw_vbd.sring.req_prod = raw_vbd.sring.size + 1
            raw_vbd.notify()
            raw_world.run()
            assert raw_vbd.backend.broken

        def test_raw_backends(raw_back):
            assert raw_back.vbd.connected
            assert raw_back.vif.connected

        def test_fails(raw_vbd):
            assert False
        """,
        "--xenpv-seed=9",
    )
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["platform with seed 9, after *", "rings:", "  blkif of d1 *"])
