# ruff: noqa: INP001 - a script, in no package
"""Watches and transactions: a counter that two clients raise at once, and who hears of it.

python examples/store_transaction.py
"""

from __future__ import annotations

from xenpv import Platform
from xenpv.back.store import BackStore
from xenpv.errors import StoreError

COUNTER = "/tool/counter"


def client(xen: Platform, name: str) -> BackStore:
    return BackStore(xen.dom0, xen.xenstored.connect_local(name), name)


def add(store: BackStore, t: int = 0) -> None:
    store.write(COUNTER, str(int(store.read(COUNTER, t)) + 1), t)


def main() -> None:
    heard: list[str] = []
    with Platform(seed=1) as xen:
        one, two = client(xen, "one"), client(xen, "two")
        one.write(COUNTER, "0")
        two.watch("/tool", heard.append)
        xen.run()
        print("at once:", heard)

        try:
            with one.begin() as t:
                add(one, t)
                add(two)  # somebody else, while the transaction is open
        except StoreError as error:
            print("the commit:", error.name)
        print("nothing of it is there:", one.read(COUNTER))

        one.transaction(lambda t: add(one, t))  # runs again after EAGAIN
        print("the second try:", one.read(COUNTER))
        xen.run()
        print("heard:", heard)
        one.close()
        two.close()


if __name__ == "__main__":
    main()
