"""What clients of the store get wrong: transactions and watches."""

from __future__ import annotations

from typing import Any, Final

from xenpv.bus import power, store_client
from xenpv.bus.power import Power
from xenpv.bus.store_client import StoreClient
from xenpv.testing.zoo.defect import Defect, forgets

WATCHES: Final = (Power._watch_device, Power._watch_shutdown)


def _takes_conflict_for_commit(original: Any) -> Any:
    def transaction_end(store: Any, transaction: Any, *, commit: bool) -> bool:
        original(store, transaction, commit=commit)
        return True

    return transaction_end


def _without_watches(steps: Any) -> Any:
    return tuple(one for one in steps if one[0] not in WATCHES)


def _leaves_open(_original: Any) -> Any:
    def run(_store: Any, body: Any, transaction: Any) -> Any:
        return body(transaction)

    return run


def _only_forgets(_original: Any) -> Any:
    def watch_remove(store: Any, watch: Any) -> None:
        store._forget(watch)

    return watch_remove


def _first_part(_original: Any) -> Any:
    def directory_parts(store: Any, path: str, tx_id: int) -> bytes:
        body = store.request(store_client.DIRECTORY_PART, b"%b\0000\0" % path.encode(), tx_id)
        names: bytes = body.partition(b"\0")[2]
        return names

    return directory_parts


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
    Defect(
        id="store-transaction-kept",
        end="bus",
        mutation="a transaction whose work failed is left open",
        hunt="scenario:store_uses",
        changes=((StoreClient, "_run", _leaves_open),),
    ),
    Defect(
        id="store-watch-kept",
        end="bus",
        mutation="a watch is forgotten and not taken back from xenstored",
        hunt="scenario:store_uses",
        changes=((StoreClient, "watch_remove", _only_forgets),),
    ),
    Defect(
        id="store-watches-pile-up",
        end="bus",
        mutation="watches added again after each resume in the same domain, and none taken back",
        hunt="scenario:store_resume",
        changes=((StoreClient, "_reset", forgets),),
    ),
    Defect(
        id="store-directory-cut",
        end="bus",
        mutation="of a directory that takes several replies only the first is read",
        hunt="scenario:store_uses",
        changes=((StoreClient, "_directory_parts", _first_part),),
    ),
)
