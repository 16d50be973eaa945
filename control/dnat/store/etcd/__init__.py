"""Leases in etcd: for port servers and routers on machines of their own (docs/architecture.md, "The shared store").

Imported only where the configuration asks for it: gRPC takes time and memory.
"""
