"""The data plane's userspace half: compile and load (bcc), typed maps, attachment (pyroute2)."""
