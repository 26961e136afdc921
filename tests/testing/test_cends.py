"""C drivers under test: whatever they do wrong is an error that names their file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenpv.testing import CEnd, UserEndError, load_end, user_blk_backend

SOURCE = Path(__file__).parent / "cends" / "misdeeds.c"
STEPS = 300_000

# misdeed (its line has that comment), what is said of it
MISDEEDS = (
    ("past the end", "reads 4 bytes, 16 bytes past the end of a page"),
    ("across the end", "writes 10 bytes, 0 bytes past the end of a page"),
    ("past own pages", "writes 1 bytes, 0 bytes past the end of adjacent pages"),
    ("before the start", "writes 1 bytes, 8 bytes before the start of a page"),
    ("read-only", "writes 1 bytes of a page that was mapped to be read, at offset 0"),
    ("unmapped", "reads 1 bytes of a page that was given back, at offset 0x40"),
    ("null", "uses a null pointer (address 0)"),
    ("wild", "uses memory that is not there at 0x123456789000"),
    ("unseen", "uses a page beside the ones it has"),
    ("loop", "does not return: 300000 steps and no end"),
    ("empty loop", "does not return: 100 ms of CPU and no step"),
    ("recursion", "has 1024 KiB of stack in use: a recursion without an end"),
    ("assert", "asserts `zero` in ways_out, which does not hold"),
    ("abort", "calls abort()"),
    ("exit", "calls exit(3)"),
    ("division", "raises SIGFPE"),
    ("overflow", "allocates 10 bytes here, and wrote beyond them"),
    ("double free", "frees 0x"),
    ("wild free", "frees 0x"),
    ("not its end", "calls with 0x"),
    ("grant of the other's", "grants a page that it has mapped: it is the other end's"),
    ("grant of the heap", "grants 0x"),
    ("unmap of own", "gives its own pages to xenpv_unmap: they are freed"),
    ("free of the other's", "gives pages of the other end to xenpv_free_pages: they are unmapped"),
    ("free inside", "gives back 0x"),
    ("granted", "is freed while reference 32 is out"),
    ("no port", "port 0x4d is none of this end's"),
    ("no watch", "watch 77 is none of this end's"),
    ("no state", "goes to 77, which is no XenbusState"),
    ("no transaction", "transaction 0x4d is none of this end's"),
    ("no request", "completes request 77, which is not under way"),
    ("no bridge", "transmits, and is no network backend"),
    ("no pages", "asks for 0 pages at once, expected 1 to 1024"),
    ("too much", "hands over 1073741824 bytes, expected at most 16777216"),
)  # fmt: skip
# What only a process of its own survives; the line is the newest that was heard of.
ALONE = (
    ("kill", "does not get further: its process ended with status 9"),
    ("shot", "does not get further: its process was killed by SIGKILL"),
    ("deep", "does not get further: its process was killed by SIGSEGV"),
    ("sleep", "does not get further: no word of its process in 0.2 s"),
)
# Seen when the device is gone.
LEFT = (
    ("leak", "allocates 24 bytes that are not freed when its device is gone"),
    ("left map", "reference 32, mapped at pfn"),
    ("left port", "event channel port"),
    ("left watch", "a watch of /local/domain/0/backend/vbd/1/51712/mine"),
    ("left timer", "a timer"),
    ("left transaction", "transaction"),
    ("left page", "page 0x"),
    ("left reference", "reference"),
)


@pytest.fixture(scope="module")
def driver() -> CEnd:
    return load_end(SOURCE, steps=STEPS, seconds=0.1)


@pytest.fixture(scope="module")
def alone() -> CEnd:
    return load_end(SOURCE, steps=STEPS, seconds=0.1, isolate=True)


def line_of(misdeed: str) -> int:
    lines = SOURCE.read_text().splitlines()
    return next(at for at, line in enumerate(lines, 1) if line.endswith(f"/* {misdeed} */"))


def play(end: CEnd, misdeed: str) -> UserEndError:
    """The error of a world whose backend does that."""

    def world() -> None:
        with user_blk_backend(end, connect=False) as world:
            world.guest.xs.write(f"{world.vbd.backend_path}/misdeed", misdeed)
            world.connect()

    with pytest.raises(UserEndError) as caught:
        world()
    return caught.value


@pytest.mark.parametrize(("misdeed", "said"), MISDEEDS, ids=[one[0] for one in MISDEEDS])
def test_a_misdeed_in_c_is_told_with_its_line(driver: CEnd, misdeed: str, said: str) -> None:
    error = play(driver, misdeed)
    assert said in error.what
    assert (error.file, error.line) == (str(SOURCE), line_of(misdeed))


@pytest.mark.parametrize(("misdeed", "said"), LEFT, ids=[one[0] for one in LEFT])
def test_what_is_left_behind_is_told_with_the_line_that_made_it(
    driver: CEnd, misdeed: str, said: str
) -> None:
    error = play(driver, misdeed)
    assert said in error.what
    assert f"{SOURCE.name}:{line_of(misdeed)} in " in str(error)


@pytest.mark.parametrize(
    ("misdeed", "said"),
    [*MISDEEDS, *ALONE, *LEFT],
    ids=[one[0] for one in (*MISDEEDS, *ALONE, *LEFT)],
)
def test_a_process_of_its_own_tells_the_same_and_more(alone: CEnd, misdeed: str, said: str) -> None:
    error = play(alone, misdeed)
    assert said in error.what
    assert f"{SOURCE.name}:{line_of(misdeed)} in " in str(error)


@pytest.mark.parametrize("isolate", [False, True], ids=["loaded", "process"])
def test_a_driver_that_asks_for_ever_is_ended_by_the_wall_clock(isolate: bool) -> None:
    """Far from its limit of steps: each takes Python's time."""
    end = load_end(SOURCE, isolate=isolate)

    def world() -> None:
        with user_blk_backend(end, connect=False, seconds=1.0) as world:
            world.guest.xs.write(f"{world.vbd.backend_path}/misdeed", "asks")
            world.connect()

    with pytest.raises(UserEndError, match=r"did not return in 1 s") as caught:
        world()
    assert (caught.value.file, caught.value.line) == (str(SOURCE), line_of("asks"))
