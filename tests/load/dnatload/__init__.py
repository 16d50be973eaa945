"""``make load``: calls by the hundred, and what a call costs the router."""
