"""What XenVif believes of its backend, what it leaves to it, and offloads that were not offered."""

from __future__ import annotations

from typing import Any, Final

import attrs

from xenpv.back import netback, netfit
from xenpv.testing.zoo.defect import Defect, becomes, forgets
from xenpv.vif import rxpacket, rxring
from xenpv.vif.rxring import ReceiverRing
from xenpv.vif.txslots import SlotTable

PAGES: Final = 1 << 20
STATUS: Final = 2  # in a tx response of 4 bytes


def _any_id(original: Any) -> Any:
    return {name: attrs.evolve(rules, ids=False) for name, rules in original.items()}


def _all_well(original: Any) -> Any:
    def answer(slots: Any, responses: Any, count: int) -> Any:
        said = bytearray(responses)
        for at in range(STATUS, 4 * count, 4):
            if said[at + 1] & 0x80:
                said[at : at + 2] = bytes(2)
        return original(slots, memoryview(said), count)

    return answer


def _only_says(_original: Any) -> Any:
    def finish_checksum(frame: Any) -> Any:
        return attrs.evolve(frame, csum_blank=False, data_validated=True)

    return finish_checksum


def _large_for_all(original: Any) -> Any:
    def read_offer(*arguments: Any) -> Any:
        return attrs.evolve(original(*arguments), gso_types=(1, 2))

    return read_offer


DEFECTS: Final = (
    Defect(
        id="vif-rx-offset-unchecked",
        end="XenVif",
        mutation="rx offset + status > 4096 not refused",
        hunt="scenario:vif_hostile",
        changes=((rxpacket, "PAGE_SIZE", becomes(PAGES)),),
    ),
    Defect(
        id="vif-rx-id-unchecked",
        end="XenVif",
        mutation="an rx response with another id than its slot's taken for its slot's",
        hunt="scenario:vif_hostile",
        changes=((rxring, "RULES", _any_id),),
    ),
    Defect(
        id="vif-rx-page-dirty",
        end="XenVif",
        mutation="pages posted again with what was received in them (XSA-403)",
        hunt="scenario:vif_errors",
        changes=((ReceiverRing, "_wipe", forgets),),
    ),
    Defect(
        id="vif-tx-status-ignored",
        end="XenVif",
        mutation="an error of a tx response taken for well",
        hunt="scenario:vif_sent",
        changes=((SlotTable, "answer", _all_well),),
    ),
    Defect(
        id="net-sum-unfinished",
        end="netback",
        mutation="a blank sum goes to a frontend that takes none (feature-no-csum-offload)",
        hunt="scenario:net_plain",
        changes=((netfit, "takes_sum", lambda _original: lambda _frame, _offer: True),),
    ),
    Defect(
        id="net-sum-unwritten",
        end="netback",
        mutation="a blank sum said to be finished, and left as it was",
        hunt="scenario:net_plain",
        changes=((netfit, "finish_checksum", _only_says),),
    ),
    Defect(
        id="net-gso-unoffered",
        end="netback",
        mutation="large packets go to a frontend without feature-gso-tcpv4",
        hunt="scenario:net_plain",
        changes=((netback, "read_offer", _large_for_all),),
    ),
)
