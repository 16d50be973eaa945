"""The asyncio shell: joins the pure protocol and lease code to sockets, store, kernel and time."""
