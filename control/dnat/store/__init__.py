"""Where leases live: one interface, `Store`; SQLite behind it."""

from dnat.store.base import State, Store, StoreError
from dnat.store.history import Period, Tenure
from dnat.store.keys import KeyStore
from dnat.store.sqlite import SqliteStore

__all__ = ["KeyStore", "Period", "SqliteStore", "State", "Store", "StoreError", "Tenure"]
