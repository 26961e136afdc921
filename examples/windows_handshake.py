# ruff: noqa: INP001 - a script, in no package
"""Why a backend wedges Windows: XenVif closes its device before it connects it.

python examples/windows_handshake.py

Five backends, each a few lines that say which state it writes for each of its frontend's. Two
of them connect nobody, and each is what somebody shipped.
"""

from __future__ import annotations

from xenpv import Platform, Vif
from xenpv.abi.xenbus import XenbusState as S
from xenpv.back.xenbus import Device

LINUX = {S.INITIALISING: S.INIT_WAIT, S.CONNECTED: S.CONNECTED, S.CLOSING: S.CLOSING,
         S.CLOSED: S.CLOSED}  # fmt: skip
SKIPS = LINUX | {S.CLOSING: S.CLOSED}
WAITS = {S.INITIALISING: S.INIT_WAIT, S.CONNECTED: S.CONNECTED}

# what it does, its answers, whether its directory goes once it is closed, where it stands at
# the guest's boot
BACKENDS = [
    ("answers every state, as Linux does", LINUX, False, S.INIT_WAIT),
    ("goes from Closing to Closed at once", SKIPS, False, S.INIT_WAIT),
    ("waits for nothing but Connected", WAITS, False, S.INIT_WAIT),
    ("takes its directory away when it closes", SKIPS, True, S.INIT_WAIT),
    ("is connected already: the firmware booted from it", LINUX, False, S.CONNECTED),
]


class Backend:
    """A backend driver of one device: nothing but states, and a diary of both ends."""

    def __init__(self, device: Device, answers: dict[S, S], *, leaves: bool) -> None:
        self.device = device
        self.answers = answers
        self.leaves = leaves
        self.diary: list[tuple[int, str, S]] = []

    def note(self, who: str, state: S) -> None:
        self.diary.append((self.device.domain.loop.now // 10**9, who, state))

    def probe(self) -> None:
        self.write(S.INIT_WAIT)

    def write(self, state: S) -> None:
        if state is not self.device.state:
            self.note("backend", state)
            self.device.switch_state(state)

    def frontend_changed(self, state: S) -> None:
        self.note("frontend", state)
        if state in self.answers:
            self.write(self.answers[state])
        if self.leaves and self.device.state is S.CLOSED:
            self.device.store.remove(self.device.path)

    def hotplug_changed(self) -> None: ...

    def remove(self) -> None: ...


def boot(answers: dict[S, S], leaves: bool, stands: S) -> tuple[list[tuple[int, str, S]], str]:
    """Boot a Windows guest on such a backend: the diary, and what became of its interface."""
    with Platform(seed=1) as xen:
        made: list[Backend] = []

        def factory(device: Device) -> Backend:
            made.append(Backend(device, answers, leaves=leaves))
            return made[-1]

        xen.backends.drivers = {"vif": factory}
        guest = xen.create(name="windows", vifs=[Vif()])
        (backend,) = made
        backend.diary.clear()
        backend.write(stands)
        xen.toolstack.unpause(guest.created)
        xen.advance(300)  # five minutes of the guest's time
        if [nic.link_up for nic in guest.nets] == [True]:
            outcome = "connected"
        elif guest.bus.pdos["VIF"].driver.pdos:
            outcome = "wedged: XenVif waits, and a real one spins on its processor"
        else:
            outcome = "ejected: the guest has no interface any more"
        return backend.diary, outcome


def main() -> None:
    for what, answers, leaves, stands in BACKENDS:
        diary, outcome = boot(answers, leaves, stands)
        print(f"A backend that {what}:")
        for seconds, who, state in diary:
            side = f"{state:d} {state.name}"
            print(f"  {seconds:3} s  {side if who == 'frontend' else '':16}"
                  f"{side if who == 'backend' else ''}".rstrip())  # fmt: skip
        print(f"  -> {outcome}\n")


if __name__ == "__main__":
    main()
