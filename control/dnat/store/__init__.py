"""Where leases live: one interface, `Store`; SQLite behind it."""

from dnat.store.base import State, Store, StoreError
from dnat.store.sqlite import SqliteStore

__all__ = ["SqliteStore", "State", "Store", "StoreError"]
