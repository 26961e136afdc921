"""What clients of the store get wrong: transactions and watches."""

from __future__ import annotations

from typing import Any, Final

from xenpv.bus import power
from xenpv.bus.power import Power
from xenpv.bus.store_client import StoreClient
from xenpv.testing.zoo.defect import Defect

WATCHES: Final = (Power._watch_device, Power._watch_shutdown)


def _takes_conflict_for_commit(original: Any) -> Any:
    def transaction_end(store: Any, transaction: Any, *, commit: bool) -> bool:
        original(store, transaction, commit=commit)
        return True

    return transaction_end


def _without_watches(steps: Any) -> Any:
    return tuple(one for one in steps if one[0] not in WATCHES)


DEFECTS: Final = (
    Defect(
        id="store-no-retry",
        end="bus",
        mutation="EAGAIN of a commit dropped, values lost",
        hunt="scenario:store_conflict",
        changes=((StoreClient, "transaction_end", _takes_conflict_for_commit),),
    ),
    Defect(
        id="store-watch-after-resume",
        end="bus",
        mutation="watches not added again after resume",
        hunt="scenario:store_resume",
        changes=((power, "INNER", _without_watches),),
    ),
)
