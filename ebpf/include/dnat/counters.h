/* Counting, and dropping with a reason.
 *
 * Map `counters`: enum counter -> number of packets. Written by the programs, read by user space, never
 * reset, per CPU so that no two CPUs share a cache line.
 */
#pragma once

#include <dnat/abi.h>
#include <dnat/helpers.h>
#include <dnat/map.h>

MAP(counters, PERCPU_ARRAY, __u32, __u64, COUNTERS)

static __always_inline void count(enum counter counter)
{
	__u32 index = counter;
	__u64 *value = counters_get(&index);

	if (value)
		*value += 1;
}

static __always_inline int pass(enum counter counter)
{
	count(counter);
	return VERDICT_PASS;
}

static __always_inline int drop(enum counter reason)
{
	count(reason);
	return VERDICT_DROP;
}
