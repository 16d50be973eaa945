"""Where leases live: one interface, `Store`; SQLite behind it, or etcd (`dnat.store.etcd`)."""

from dnat.store.base import PublishedPool, SharedStore, State, Store, StoreConflict, StoreError
from dnat.store.history import Period, Tenure
from dnat.store.keys import KeyStore, SharedKeyStore, SqliteKeyStore
from dnat.store.sqlite import SqliteStore

__all__ = [
    "KeyStore",
    "Period",
    "PublishedPool",
    "SharedKeyStore",
    "SharedStore",
    "SqliteKeyStore",
    "SqliteStore",
    "State",
    "Store",
    "StoreConflict",
    "StoreError",
    "Tenure",
]
