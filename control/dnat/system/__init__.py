"""Everything that needs root and is not BPF: namespaces, sysctls, addresses, routes, nftables.

What it changes, the journal undoes.

The functions are synchronous and idempotent. pyroute2's synchronous API runs an event loop of its own, so
inside asyncio call them with ``asyncio.to_thread``, never from the loop's thread. Nothing heavy is imported
before it is used.
"""
