"""For programs: lease ports from this host's dnat, and hear when they are lost (docs/api.md).

``with lease(2) as ports: ...`` is all that most need; `dnat.client.aio` has the same for asyncio.
"""

from dnat.client.blocking import PortLease, lease
from dnat.client.wire import Client

__all__ = ["Client", "PortLease", "lease"]
