/* Translations of the current tick, so that most packets are spared the look-up in a hash.
 *
 * Maps `recent_out`, `recent_in`: RECENT_INDEX of (class, local port), of (class, locally unique port) -> one
 * word: tick, the rest of class and port, and the port that takes its place; 0: nothing. Written by the
 * programs, and zeroed by user space where it removes or replaces a binding. Arrays, whose look-up the JIT
 * writes out; a newer entry takes the place of another.
 *
 * The tables of bindings decide. An entry only repeats what they said within the same tick of the kernel's
 * clock (1 to 10 ms), and only to packets that change nothing in their binding but the time of its last use,
 * which is noted once in a tick anyhow. A word is read and written at once, so CPUs need no lock.
 */
#pragma once

#include <dnat/abi.h>
#include <dnat/helpers.h>
#include <dnat/map.h>

MAP(recent_out, ARRAY, __u32, __u64, RECENT_MAX)
MAP(recent_in, ARRAY, __u32, __u64, RECENT_MAX)

#define RECENT_PORT 0xffffULL

struct recent {
	__u64 *entry;
	__u64 word; /* that the entry would hold, without the port that takes the place */
};

static __always_inline struct recent recent(__u64 *entry, __u8 port_class, __u16 port)
{
	struct recent recent = {
		.entry = entry,
		.word = ticks() << 22 | (__u64)(port / RECENT_MAX * CLASSES + port_class) << 16,
	};

	return recent;
}

static __always_inline struct recent recent_out(__u8 port_class, __u16 local_port)
{
	__u32 index = RECENT_INDEX(port_class, local_port);

	return recent(recent_out_get(&index), port_class, local_port);
}

static __always_inline struct recent recent_in(__u8 port_class, __u16 unique_port)
{
	__u32 index = RECENT_INDEX(port_class, unique_port);

	return recent(recent_in_get(&index), port_class, unique_port);
}

/* Whether the port that takes the place is known; if not, ``port`` is of no use. */
static __always_inline bool recall(const struct recent *recent, __u16 *port)
{
	/* Read once: another CPU may write. */
	__u64 found = recent->entry ? *(volatile __u64 *)recent->entry : 0;

	*port = found & RECENT_PORT;
	return (found ^ recent->word) <= RECENT_PORT;
}

static __always_inline void note_recent(const struct recent *recent, __u16 port)
{
	if (recent->entry)
		*(volatile __u64 *)recent->entry = recent->word | port;
}

static __always_inline void forget_recent(const struct recent *recent)
{
	if (recent->entry)
		*(volatile __u64 *)recent->entry = 0;
}
