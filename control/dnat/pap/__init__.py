"""The Port Allocation Protocol (docs/pap.md). Pure: octets, events, time in; octets, events, deadline out."""
