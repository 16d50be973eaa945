"""Reading PAP, SIP and RTP from the wire, and drawing what was read."""
