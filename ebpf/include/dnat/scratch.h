/* What a program keeps while it draws a port, where the verifier forgets what it knows about it.
 *
 * Map `scratch`: one struct draw per CPU, written and read back by the programs within one run.
 *
 * Parsing leaves known numbers on the stack, so the verifier follows every protocol apart, and would walk the
 * loops over the pool once for each, up to its limit of a million instructions. What comes from
 * a map it takes as unknown.
 */
#pragma once

#include <dnat/map.h>
#include <dnat/packet.h>

struct draw {
	struct packet packet;
	__u32 best; /* rank << 16 | port, 0: nothing found yet */
};

MAP(scratch, PERCPU_ARRAY, __u32, struct draw, 1)

static __always_inline struct draw *scratch_draw(void)
{
	__u32 zero = 0;

	return scratch_get(&zero);
}
