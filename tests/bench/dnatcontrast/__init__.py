"""The same phones and calls through other ways of sharing an address: what arrives, how fast, at what price."""
