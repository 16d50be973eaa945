/* So many events each second. CPUs may race for a budget; a few events more or less do no harm. */
#pragma once

#include <dnat/abi.h>

static __always_inline bool spend(struct offence_budget *budget, __u32 limit)
{
	__u64 second = bpf_ktime_get_ns() / 1000000000ULL;

	if (!budget)
		return false;
	if (budget->second != second) {
		budget->second = second;
		budget->used = 0;
	}
	if (budget->used >= limit)
		return false;
	budget->used += 1;
	return true;
}
