"""``dnatctl doctor``: says what stands in the way on this machine, and what to do about it. Changes nothing."""
