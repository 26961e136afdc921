"""docs/howto/fuzzing.md and the driver for fuzzers: what they show runs."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from xenpv.testing import overlay, strategies
from xenpv.testing.checkers import CheckFailed

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/howto/fuzzing.md").read_text(encoding="utf-8")


def test_every_target_and_strategy_has_its_row() -> None:
    for name in (*overlay.targets(), *[one for one in strategies.__all__ if one.islower()]):
        assert f"`{name}" in TEXT, name


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """examples/fuzz_atheris.py."""
    path = ROOT / "examples" / "fuzz_atheris.py"
    spec = importlib.util.spec_from_file_location("fuzz_atheris", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TARGET", "store")
    return module


def test_the_driver_runs_plain_files(driver: Any, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "input"
    file.write_bytes(bytes(20))
    assert driver.main([str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: 20 bytes over store: nothing found\n"


def test_the_driver_reads_its_input_as_afl_gives_it(driver: Any, monkeypatch: Any) -> None:
    seen: list[bytes] = []
    monkeypatch.setattr(driver, "test_one_input", seen.append)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"abc")))
    assert driver.main(["-"]) == 0
    assert seen == [b"abc"]


def test_the_driver_lets_a_finding_out(driver: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def run(_data: bytes, _target: str) -> None:
        raise CheckFailed(["a law does not hold"])

    monkeypatch.setattr("xenpv.testing.overlay.fuzz_one", run)
    monkeypatch.setattr("xenpv.testing.fuzz_one", run, raising=False)
    file = tmp_path / "input"
    file.write_bytes(b"x")
    with pytest.raises(CheckFailed, match="a law"):
        driver.main([str(file)])


def test_the_driver_gives_itself_to_atheris(driver: Any, monkeypatch: Any) -> None:
    calls: list[str] = []

    class Imports:
        def __enter__(self) -> None:
            calls.append("instrument")

        def __exit__(self, *_: object) -> None:
            pass

    atheris = SimpleNamespace(
        instrument_imports=lambda include: Imports(),
        Setup=lambda args, run: calls.append(f"setup {args[1:]} {run.__name__}"),
        Fuzz=lambda: calls.append("fuzz"),
    )
    monkeypatch.setitem(sys.modules, "atheris", atheris)
    assert driver.main(["--atheris", "corpus/"]) == 0
    assert calls == ["instrument", "setup ['corpus/'] test_one_input", "fuzz"]
