"""`xenpv run --pcap`: what crosses the bridges, or one guest's interface, into pcapng files."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from contextlib import ExitStack
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from xenpv.errors import ConfigError
from xenpv.host.pcapng import PcapngCapture, PcapngWriter

if TYPE_CHECKING:
    from xenpv.guest import Guest
    from xenpv.host.device import Device
    from xenpv.host.network import Bridge

HELP: Final = """\
capture the bridges as pcapng; GUEST.N=FILE: one guest's interface alone, both ways, with the
queue and slot of each frame. May be repeated
"""
_PORT: Final = re.compile(r"([^/=]+)\.([0-9]{1,5})=(.+)", re.DOTALL)


@attrs.frozen
class CaptureOption:
    """One --pcap. `guest` "": all bridges."""

    path: Path
    guest: str = ""
    devid: int = 0


def add_to(run: argparse.ArgumentParser) -> None:
    """The option, for `cli.parser`."""
    run.add_argument(
        "--pcap", type=_option, action="append", default=[], metavar="[GUEST.N=]FILE", help=HELP
    )


def _option(text: str) -> CaptureOption:
    port = _PORT.fullmatch(text)
    if port is None:
        return CaptureOption(Path(text))
    return CaptureOption(Path(port[3]), port[1], int(port[2]))


def check(options: Sequence[CaptureOption], interfaces: Sequence[tuple[str, int]]) -> None:
    """ConfigError for an interface that no guest of the run has; each is (guest, devid)."""
    for option in options:
        if option.guest and (option.guest, option.devid) not in interfaces:
            known = ", ".join(f"{name}.{number}" for name, number in interfaces) or "none"
            raise ConfigError(
                f"--pcap {option.guest}.{option.devid}: no such interface; expected one of {known}"
            )
    paths = [str(option.path) for option in options]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError("two captures would write it", file=path)


def _unwritable(path: object, why: str | None) -> ConfigError:
    return ConfigError(f"cannot write the capture: {why}", file=str(path))


class CaptureFile(FileIO):
    """A capture that the host's disk has no room for is cut: frames go on to cross."""

    failure = ""

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self.buffer = BufferedWriter(self)

    def write(self, data: Any, /) -> int:
        """All of it, as far as anybody is told: `close_of` says what happened."""
        if not self.failure:
            try:
                return super().write(data)
            except OSError as error:
                self.failure = error.strerror or str(error)
        return len(data)

    def close_of(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """At the run's end. ConfigError, unless it ends by something else: it was cut."""
        self.buffer.close()
        if self.failure and error is None:
            raise _unwritable(self.name, self.failure)


class Captures:
    """The files of one run, open from `open` until its stack ends."""

    def __init__(self, options: Sequence[CaptureOption]) -> None:
        self._options = options
        self._writers: list[tuple[CaptureOption, PcapngWriter]] = []

    def open(self, stack: ExitStack, inputs: Sequence[Path]) -> None:
        """ConfigError, before anything is written, for one that cannot be or is of `inputs`."""
        for option in self._options:
            path = option.path
            if path.exists() and any(path.samefile(other) for other in inputs):
                raise ConfigError("the capture would overwrite it", file=str(path))
            try:
                raw = CaptureFile(path, "wb")
            except OSError as error:
                raise _unwritable(path, error.strerror) from None
            stack.push(raw.close_of)
            self._writers.append((option, PcapngWriter(raw.buffer)))

    def add_bridge(self, bridge: Bridge) -> None:
        """A bridge that was not there before."""
        for option, writer in self._writers:
            if not option.guest:
                bridge.taps.append(PcapngCapture(writer))

    def add_interface(self, guest: Guest, device: Device, bridge: Bridge) -> None:
        """A guest's interface, before it connects."""
        for option, writer in self._writers:
            if (option.guest, option.devid) == (guest.name, device.devid):
                name = device.back.get("vifname") or f"vif{device.domid}.{device.devid}"
                capture = PcapngCapture(writer, port=name)
                mac = bytes.fromhex(device.back["mac"].replace(":", ""))
                capture.describe(name, description=f"{guest.name}.{device.devid}", mac=mac)
                bridge.taps.append(capture)
