"""Who holds which ports, what is free, what is on hold. Pure: no I/O, no clock, no randomness of its own."""
