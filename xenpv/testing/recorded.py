"""Replay files: a failure as versioned text that goes into a bug report.

JSON of the format FORMAT. Every kind has `defects` (those of the zoo that were on), `digest` of
the run and `failure`, its text; what else it has is in testing.replays, a class for each kind.
Beside the file stand what the run showed: `.trace` (last events and rings), `.store`, and
`.pcapng` if a packet crossed a bridge.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import attrs

from xenpv.errors import ConfigError
from xenpv.testing import zoo
from xenpv.testing.run import Run

FORMAT: Final = 2
SUFFIXES: Final = (".trace", ".store", ".pcapng")


@attrs.frozen(kw_only=True)
class Recorded:
    """A recorded failure, of any kind."""

    kind: ClassVar[str]

    defects: tuple[str, ...]
    digest: str
    failure: str

    @property
    def title(self) -> str:
        """What is run, for people."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """What the file is called after."""
        raise NotImplementedError

    def body(self) -> dict[str, Any]:
        """The keys of this kind."""
        raise NotImplementedError

    @classmethod
    def parse(cls, document: Mapping[str, Any], file: str) -> Self:
        """From a document whose common keys are good. ConfigError."""
        raise NotImplementedError

    def perform(self) -> Run:
        """Run it as things are. ConfigError: it leads nowhere."""
        raise NotImplementedError

    def run(self) -> Run:
        """Run it again, with its defects on. ConfigError: unknown defect, or it leads nowhere."""
        known = zoo.all_defects() if self.defects else {}
        unknown = [one for one in self.defects if one not in known]
        if unknown:
            raise ConfigError(f"unknown defect {unknown[0]!r}")
        with ExitStack() as stack:
            for one in self.defects:
                stack.enter_context(zoo.defect(one))
            return self.perform()

    def dumps(self) -> str:
        """The file's text."""
        document = {
            "xenpv-replay": FORMAT,
            "kind": self.kind,
            **self.body(),
            "defects": list(self.defects),
            "digest": self.digest,
            "failure": self.failure,
        }
        return json.dumps(document, indent=1) + "\n"

    def save(self, directory: Path, run: Run) -> Path:
        """Write the replay file, and beside it what `run` showed; the file's path.

        The name is of the content: the same failure is written once.
        """
        directory.mkdir(parents=True, exist_ok=True)
        text = self.dumps()
        short = blake2b(text.encode(), digest_size=4).hexdigest()
        path = directory / f"{self.name}-{short}.replay"
        path.write_text(text, encoding="utf-8")
        trace = [*run.tail, "", *run.tables]
        path.with_suffix(".trace").write_text("\n".join(trace) + "\n", encoding="utf-8")
        path.with_suffix(".store").write_text("\n".join(run.store) + "\n", encoding="utf-8")
        if run.packets:
            path.with_suffix(".pcapng").write_bytes(run.packets)
        return path


def document_of(text: str, file: str) -> dict[str, Any]:
    """A file's text as a document of a format that is known. ConfigError: what is wrong."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not a replay file: not JSON: {error}", file=file) from error
    if not isinstance(document, dict) or "xenpv-replay" not in document:
        raise ConfigError("not a replay file: no xenpv-replay in it", file=file)
    version = document["xenpv-replay"]
    if type(version) is not int or version < 1:
        raise ConfigError(f"format {version!r} of a replay file is no number", file=file)
    if version > FORMAT:
        raise ConfigError(
            f"format {version} is newer than this xenpv, which reads up to {FORMAT}", file=file
        )
    if version == 1:
        document.setdefault("kind", "schedule")  # it had no other
    return document


def checked(
    document: Mapping[str, Any], file: str, *, texts: tuple[str, ...], numbers: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The keys that are there, each of its type, with the common ones. ConfigError."""
    wanted = (*texts, *numbers, "defects", "digest", "failure")
    missing = [key for key in wanted if key not in document]
    if missing:
        raise ConfigError(f"no {missing[0]} in it", file=file)
    for key in (*texts, "digest", "failure"):
        if not isinstance(document[key], str):
            raise ConfigError(f"{key} is {document[key]!r}: expected text", file=file)
    for key in numbers:
        if not isinstance(document[key], int) or isinstance(document[key], bool):
            raise ConfigError(f"{key} is {document[key]!r}: expected a number", file=file)
    defects = document["defects"]
    if not isinstance(defects, list) or not all(isinstance(one, str) for one in defects):
        raise ConfigError(f"defects is {defects!r}: expected a list of names", file=file)
    found = {key: document[key] for key in wanted}
    return {**found, "defects": tuple(defects)}
