# ruff: noqa: INP001 - a script, in no package
"""Random bytes over a frontend until blkback breaks a rule, and what those bytes did.

python examples/fuzz_and_replay.py

The mistake is one of the zoo's, which the kit keeps to see that it finds them: a request beyond
the end of the disk is not refused.
"""

from __future__ import annotations

import random

from xenpv.testing import CheckFailed, fuzz_one, zoo
from xenpv.testing.overlays.blkback import LANGUAGE

TARGET = "blk-backend"


def failure(data: bytes) -> str:
    """What does not hold; empty if everything does."""
    try:
        fuzz_one(data, TARGET)
    except CheckFailed as error:
        return str(error)
    return ""


def shrunk(data: bytes) -> bytes:
    """As short as it fails, and with as many zeros."""
    for at in reversed(range(len(data))):
        for shorter in (data[:at] + data[at + 1 :], data[:at] + b"\0" + data[at + 1 :]):
            if failure(shorter):
                data = shorter
                break
    return data


def main() -> None:
    rng = random.Random(1)
    with zoo.defect("blk-range-unchecked"):
        examples = (rng.randbytes(40) for _ in range(1000))
        number, data = next((at, one) for at, one in enumerate(examples) if failure(one))
        print(f"example {number}: {failure(data)}")
        data = shrunk(data)
        print(f"shrunk to {data.hex()}: {LANGUAGE.words(data)}")
        print(failure(data))
    print("without the mistake:", failure(data) or "nothing")


if __name__ == "__main__":
    main()
