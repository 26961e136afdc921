"""Replay files of failures that are no schedule: a case that does not hold, an overlay's bytes.

JSON as in testing.replay, with `kind`: "case" ({"case", "seed"}) or "overlay" ({"target",
"data": hex}).
"""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import attrs

from xenpv.testing import zoo

if TYPE_CHECKING:
    from xenpv.testing.cases.suite import CaseResult


def save_document(directory: Path, name: str, document: dict[str, Any]) -> Path:
    """Write a replay file; its name is of its content: the same failure is written once."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1) + "\n"
    short = blake2b(text.encode(), digest_size=4).hexdigest()
    path = directory / f"{name}-{short}.replay"
    path.write_text(text, encoding="utf-8")
    return path


@attrs.frozen(kw_only=True)
class CaseReplay:
    """A case that failed against our own end, with the zoo's `defects` on."""

    case: str
    seed: int
    defects: tuple[str, ...]
    failure: str

    @classmethod
    def of(cls, result: CaseResult) -> Self:
        """The record of a case that failed."""
        return cls(
            case=result.case.id, seed=result.seed, defects=zoo.active(), failure=result.reason
        )

    def save(self, directory: Path) -> Path:
        """Write it; the file's path."""
        document = {"xenpv-replay": 2, "kind": "case", **attrs.asdict(self)}
        return save_document(directory, self.case, document)


@attrs.frozen(kw_only=True)
class OverlayReplay:
    """Bytes that an overlay's target fails with."""

    target: str
    data: str
    defects: tuple[str, ...]
    failure: str

    @classmethod
    def of(cls, target: str, data: bytes, failure: str) -> Self:
        """The record of an overlay that failed."""
        return cls(target=target, data=data.hex(), defects=zoo.active(), failure=failure)

    def save(self, directory: Path) -> Path:
        """Write it; the file's path."""
        document = {"xenpv-replay": 2, "kind": "overlay", **attrs.asdict(self)}
        return save_document(directory, self.target, document)
