/* A place to keep a packet where the verifier forgets what it knows about it.
 *
 * Map `scratch`: one struct packet per CPU, written and read back by the programs within one run.
 *
 * Parsing leaves known numbers on the stack, so the verifier follows every protocol apart, and would walk the
 * loop over the pool once for each, up to its limit of a million instructions. What comes from
 * a map it takes as unknown.
 */
#pragma once

#include <dnat/map.h>
#include <dnat/packet.h>

MAP(scratch, PERCPU_ARRAY, __u32, struct packet, 1)

static __always_inline struct packet *scratch_packet(void)
{
	__u32 zero = 0;

	return scratch_get(&zero);
}
