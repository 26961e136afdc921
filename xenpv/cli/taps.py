"""`xenpv run --tap --guest-tap --for`: the host's kernel as a peer of the guests, for a while."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from io import RawIOBase
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import attrs

from xenpv.cli.report import TapFound
from xenpv.errors import ConfigError
from xenpv.host.hotplug import DOM0_NAMES
from xenpv.host.journal import TAPS_MAX, JournalReader, JournalWriter, Setup
from xenpv.host.tap import Mode, Played, Tap
from xenpv.taps import Attachment, Pump, Taps

if TYPE_CHECKING:
    from xenpv.cli.inputs import Source
    from xenpv.guest import Guest
    from xenpv.host.network import Bridge
    from xenpv.platform import Platform
    from xenpv.view.dump.socket import DumpSocket

SECONDS_MAX: Final = 10_000_000
MODES: Final = ", ".join(mode.value for mode in Mode)
TAP_HELP: Final = """\
join a bridge to a TAP, by name or as fd:N, a descriptor that this process was given; may be
repeated. Of a driver domain: GUEST:BRIDGE=TAP
"""
GUEST_TAP_HELP: Final = """\
let the kernel behind a TAP have adapter N of a guest; may be repeated. A TAP's name may be
followed by ",plain" (no virtio-net header), ",csum" (checksums only) or ",tso" (the default)
"""


@attrs.frozen
class TapOption:
    """One --tap or --guest-tap: `where` is `BRIDGE`, `GUEST:BRIDGE` or `GUEST.N`."""

    where: str
    to_guest: bool
    tap: str
    mode: Mode = Mode.TSO


@attrs.frozen(kw_only=True)
class Outside:
    """What a run has to do with the outside. `seconds` None: until a signal.

    `record` is the journal that it writes, `replay` the one that it reads instead of any TAP.
    `dump` is the socket on which `xenpv dump` is answered.
    """

    taps: tuple[TapOption, ...] = ()
    seconds: float | None = None
    record: Path | None = None
    replay: Path | None = None
    dump: Path | None = None

    @property
    def serves(self) -> bool:
        return bool(self.taps or self.replay) or self.seconds is not None


def add_to(run: argparse.ArgumentParser) -> None:
    """The options, for `cli.parser`."""
    run.add_argument(
        "--tap", type=_bridge_tap, action="append", default=[], metavar="BRIDGE=TAP",
        help=TAP_HELP,
    )  # fmt: skip
    run.add_argument(
        "--guest-tap", type=_guest_tap, action="append", default=[], metavar="GUEST.N=TAP",
        help=GUEST_TAP_HELP,
    )  # fmt: skip
    run.add_argument(
        "--for", type=_seconds, dest="seconds", metavar="SECONDS",
        help="keep running so long; with TAPs and without this, until a signal",
    )  # fmt: skip
    run.add_argument(
        "--journal", type=Path, metavar="FILE", help="record what came in through the TAPs"
    )
    run.add_argument(
        "--replay", type=Path, metavar="FILE", help="run again on what a journal recorded"
    )
    run.add_argument(
        "--dump-socket",
        type=Path,
        metavar="PATH",
        help="answer `xenpv dump PATH` while the run goes on",
    )


def _seconds(text: str) -> float:
    whole, _, part = text.partition(".")
    if not (whole.isdecimal() and (part or "0").isdecimal() and float(text) <= SECONDS_MAX):
        raise argparse.ArgumentTypeError(f"expected seconds, as 10 or 0.5, not {text!r}")
    return float(text)


def _bridge_tap(text: str) -> TapOption:
    return _option(text, "BRIDGE=TAP", to_guest=False)


def _guest_tap(text: str) -> TapOption:
    option = _option(text, "GUEST.N=TAP", to_guest=True)
    guest, dot, number = option.where.rpartition(".")
    if not (guest and dot and number.isascii() and number.isdecimal() and len(number) < 6):
        raise argparse.ArgumentTypeError(
            f"expected a guest's name, a dot and the adapter's number, not {option.where!r}"
        )
    return attrs.evolve(option, where=f"{guest}.{int(number)}")


def _option(text: str, shape: str, *, to_guest: bool) -> TapOption:
    where, equals, tap = text.rpartition("=")
    tap, comma, word = tap.partition(",")
    if not (where and equals and tap):
        raise argparse.ArgumentTypeError(f"expected {shape}, not {text!r}")
    if comma and word not in [mode.value for mode in Mode]:
        raise argparse.ArgumentTypeError(f"behind {tap}: expected one of {MODES}, not {word!r}")
    return TapOption(where, to_guest, tap, Mode(word) if comma else Mode.TSO)


def outside(options: argparse.Namespace) -> Outside:
    """What the options say. ConfigError for those that exclude each other."""
    taps = (*options.tap, *options.guest_tap)
    if options.replay is not None:
        named = [
            name
            for name, given in (
                ("--tap", options.tap),
                ("--guest-tap", options.guest_tap),
                ("--for", options.seconds is not None),
                ("--journal", options.journal),
                ("--seed", options.seed is not None),
            )
            if given
        ]
        if named:
            raise ConfigError(f"--replay has all from its journal: leave {named[0]} away")
        with ExitStack() as stack:
            setup = _journal(stack, options.replay).setup
        taps = tuple(TapOption(tap.where, tap.to_guest, tap.name) for tap in setup.taps)
    elif options.journal is not None and not taps:
        raise ConfigError("--journal records what comes in: expected --tap or --guest-tap too")
    if len(taps) > TAPS_MAX:
        raise ConfigError(f"{len(taps)} TAPs, at most {TAPS_MAX} are possible")
    return Outside(
        taps=taps,
        seconds=options.seconds,
        record=options.journal,
        replay=options.replay,
        dump=options.dump_socket,
    )


def _journal(stack: ExitStack, path: Path) -> JournalReader:
    try:
        file = stack.enter_context(path.open("rb"))
    except OSError as error:
        raise ConfigError(f"cannot read it: {error.strerror}", file=str(path)) from None
    return JournalReader(file, str(path))


def check(outside: Outside, sources: Sequence[Source]) -> None:
    """Whether these guests have what the TAPs are for. Raises ConfigError."""
    bridges: list[str] = []
    adapters: list[str] = []
    for config in [source.config for source in sources]:
        for index, vif in enumerate(config.vifs):
            here = "" if vif.backend in DOM0_NAMES else f"{vif.backend}:"
            bridges.append(f"{here}{vif.bridge}")
            adapters.append(f"{config.name}.{index if vif.devid is None else vif.devid}")
    taken: list[str] = []
    for option in outside.taps:
        known = adapters if option.to_guest else bridges
        kind = "adapter" if option.to_guest else "bridge"
        if option.where not in known:
            there = ", ".join(dict.fromkeys(known)) or "none"
            raise ConfigError(
                f"there is no {kind} {option.where} for the TAP {option.tap}: there is {there}"
            )
        if option.to_guest and option.where in taken:
            raise ConfigError(f"adapter {option.where} has a TAP already: not {option.tap} too")
        if f"={option.tap}" in taken:
            raise ConfigError(f"the TAP {option.tap} is named twice")
        taken += [option.where, f"={option.tap}"]


class Service:
    """The part of a run in which the outside takes part: opened first, served last.

    `say` gets a line for each TAP that is open, so that it may be moved, and one when frames
    cross.
    """

    def __init__(self, outside: Outside, seed: int, say: Callable[[str], None]) -> None:
        self.outside = outside
        self.seed = seed
        self.found: list[TapFound] = []
        self._say = say
        self._devices: list[tuple[TapOption, Tap | Played]] = []
        self._reader: JournalReader | None = None
        self._writer: JournalWriter | None = None
        self._file: RawIOBase | None = None
        self._expected: str | None = None
        self._dump: DumpSocket | None = None

    def open(self, stack: ExitStack, inputs: Sequence[Path]) -> None:
        """Everything that may fail by what the user gave. Raises ConfigError.

        `inputs` are files that the journal must not be.
        """
        record = self.outside.record
        there = record is not None and record.exists()
        if record is not None and there and any(record.samefile(other) for other in inputs):
            raise ConfigError("the journal would overwrite it", file=str(record))
        if self.outside.dump is not None:
            from xenpv.view.dump.socket import DumpSocket

            self._dump = stack.enter_context(DumpSocket(self.outside.dump))
        if self.outside.replay is not None:
            self._open_replay(stack, self.outside.replay)
            return
        for option in self.outside.taps:
            tap = Tap.open(option.tap, option.mode)
            stack.callback(tap.close)
            self._devices.append((option, tap))
            self._say(f"{tap.name} is open, for {option.where}")
        if record is not None:
            try:
                self._file = stack.enter_context(record.open("wb", buffering=0))
            except OSError as error:
                raise ConfigError(
                    f"cannot write the journal: {error.strerror}", file=str(record)
                ) from None

    def _open_replay(self, stack: ExitStack, path: Path) -> None:
        self._reader = _journal(stack, path)
        self.seed = self._reader.setup.seed
        for tap in self._reader.setup.taps:
            option = TapOption(tap.where, tap.to_guest, tap.name)
            self._devices.append((option, Played(tap.name, headed=tap.headed)))

    @property
    def bridges(self) -> list[str]:
        """Those with a TAP."""
        return [option.where for option, _ in self._devices if not option.to_guest]

    def join(self, platform: Platform) -> None:
        """It is there: whoever asks for a dump is answered."""
        if self._dump is not None:
            self._dump.join(platform)

    def serve(
        self,
        platform: Platform,
        bridge_of: Callable[[str], Bridge],
        guest_of: Callable[[str], Guest | None],
    ) -> None:
        """Join the TAPs, let time pass, and let go of them again. Raises Livelock, ConfigError."""
        with Taps(platform) as taps:
            for option, device in self._devices:
                if not option.to_guest:
                    taps.join(bridge_of(option.where), device, option.where)
                    continue
                name, _, number = option.where.rpartition(".")
                guest = guest_of(name)
                if guest is None:
                    raise ConfigError(
                        f"guest {name}, whose adapter {device.name} has, is not there"
                    )
                taps.give(guest, int(number), device)
            try:
                self._go(platform, taps)
            finally:
                self.found = [_found(one) for one in taps.attached]

    def _go(self, platform: Platform, taps: Taps) -> None:
        if self._reader is not None:
            self._expected = taps.play(self._reader)
            return
        if self._file is not None:
            self._writer = taps.journal = JournalWriter(
                self._file, Setup(platform.seed, taps.described()), str(self.outside.record)
            )
        named = " ".join(f"{one.where}={one.end.name}" for one in taps.attached)
        seconds = self.outside.seconds
        how_long = "until a signal" if seconds is None else f"for {seconds:g} s"
        pump = Pump(taps, lookers=[] if self._dump is None else [self._dump])
        with ExitStack() as stack:
            stack.callback(pump.close)
            _on_signals(stack, pump)
            self._say(f"serving {named} {how_long}".replace("  ", " "))
            pump.serve(seconds)

    def conclude(self, digest: str) -> list[str]:
        """Write the digest of the whole run, or compare it; what is wrong with it."""
        if self._writer is not None:
            self._writer.end(digest)
        if self._reader is None or self._expected == digest:
            return []
        if not self._expected:
            return ["the journal was cut short: it has no digest of its run to compare with"]
        return [f"the digest is not that of the journal's run, {self._expected}"]


def _on_signals(stack: ExitStack, pump: Pump) -> None:
    """The first signal ends the service, the next one the run, as it does without a service."""
    previous: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        if not pump.stopped:
            pump.stop()
        elif callable(previous[number]):
            previous[number](number, frame)
        else:
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            previous[number] = signal.signal(number, note)
            stack.callback(_put_back, number, note, previous[number])


def _put_back(number: int, note: object, previous: Any) -> None:
    """Unless a second signal came: then all are ignored until everything is cleared up."""
    if signal.getsignal(number) is note:
        signal.signal(number, previous)


def say(text: str) -> None:
    """On stderr, at once: somebody waits for it."""
    print(text, file=sys.stderr, flush=True)


def _found(attachment: Attachment) -> TapFound:
    end = attachment.end
    device = end.device
    refused: dict[str, int] = {}
    tx_dropped = None
    if isinstance(device, Tap):
        refused, tx_dropped = device.refused, device.tx_dropped()
    lost = {
        "malformed": end.malformed,
        "unfinished": end.unfinished,
        "overflow": end.overflow,
        "unsent": attachment.unsent,
    }
    return TapFound(
        name=end.name,
        where=attachment.where,
        headed=device.headed,
        frames_in=end.frames_in,
        bytes_in=end.bytes_in,
        frames_out=device.frames_out,
        bytes_out=device.bytes_out,
        lost=lost,
        refused=refused,
        tx_dropped=tx_dropped,
    )
