"""Defects that only a life cycle shows: what a driver, a backend or the toolstack forgets.

`zoo.defect` turns them on; `run_lifecycle` finds them. A `hunt` is few steps that do.
"""

from __future__ import annotations

from typing import Any, Final

from xenpv.back.blkthread import Queue as BlkQueue
from xenpv.back.xenbus import Device
from xenpv.host.device import DeviceKey
from xenpv.testing.zoo.defect import Defect
from xenpv.vbd.frontend import Frontend


def _nothing(_original: Any) -> Any:
    def forget(*_arguments: Any) -> None:
        """What should be done here is not."""

    return forget


def _leaves_copy(original: Any) -> Any:
    def destroy(key: Any, xs: Any) -> None:
        original(key, xs)
        xs.write(f"{key.libxl_path}/online", "0")

    return destroy


def _grants_again(original: Any) -> Any:
    def resume(frontend: Any) -> None:
        frontend.granter.permit(frontend.granter.page(), readonly=False)
        original(frontend)

    return resume


def _loses_srbs(original: Any) -> Any:
    def resume(frontend: Any) -> None:
        for ring in frontend.rings:
            ring.queue.clear()
            ring.prepared.clear()
            ring.submitted.clear()
        original(frontend)

    return resume


DEFECTS: Final = (
    Defect(
        id="blkback-keeps-maps",
        end="blkback",
        mutation="disconnects without unmapping the ring pages",
        hunt="lifecycle:create:0:4 destroy",
        changes=((BlkQueue, "_unmap", _nothing),),
    ),
    Defect(
        id="xenbus-back-keeps-watches",
        end="backend",
        mutation="a device that goes leaves its watches",
        hunt="lifecycle:create:0:4 destroy create:0:4",
        changes=((Device, "unwatch", _nothing),),
    ),
    Defect(
        id="libxl-leaves-copy",
        end="toolstack",
        mutation="the toolstack's copy of a device is not removed whole",
        hunt="lifecycle:create:0:4 attach-disk detach-disk:0:1",
        changes=((DeviceKey, "destroy", _leaves_copy),),
    ),
    Defect(
        id="xenvbd-grants-again-at-resume",
        end="xenvbd",
        mutation="a grant of before the suspend is not taken back",
        hunt="lifecycle:create:0:4 suspend resume-slow",
        changes=((Frontend, "resume", _grants_again),),
    ),
    Defect(
        id="xenvbd-loses-srbs-at-resume",
        end="xenvbd",
        mutation="what was in flight or waited at a suspend is forgotten",
        hunt="lifecycle:create:0:4 suspend resume-slow suspend resume-slow suspend resume-slow",
        changes=((Frontend, "resume", _loses_srbs),),
    ),
)
