/* The pool that translations draw from: which of its ports are free, and word to user space when few are
 * left.
 *
 * Map `pool`: position -> index of a word of `ports` that has bits of the pool. Written by user space. A hint
 * only: `ports` decides whether a port may be used.
 *
 * Map `usage`: class -> struct pool_usage. Written by the programs, set right by user space when it sweeps.
 *
 * Map `pool_events`: a ring of struct pool_event, written by the programs, read by the daemon, which leases
 * more ports.
 */
#pragma once

#include <dnat/abi.h>
#include <dnat/bindings.h>
#include <dnat/counters.h>
#include <dnat/map.h>
#include <dnat/ports.h>
#include <dnat/scratch.h>

MAP(pool, ARRAY, __u32, __u32, POOL_WORDS_MAX)
MAP(usage, ARRAY, __u32, struct pool_usage, TRANSLATED_CLASSES)
MAP_SHAPE(pool_events, RINGBUF, 0, 0, POOL_EVENTS_SIZE);

/* Expired bindings are looked for in so many words of the pool, when no port is free and user space has not
 * swept. A bound the verifier can walk. */
#define TAKEOVER_WORDS 4

#define EVERY_FOURTH 0x1111111111111111ULL
#define EVEN_PORTS 0x0101010101010101ULL
#define EVEN_NIBBLES 0x0f0f0f0f0f0f0f0fULL

enum rank { RANK_FREE = 1, RANK_SAME_PARITY = 2, RANK_PAIR = 3 };

static __always_inline void mark_bound(enum port_class port_class, __u16 port)
{
	__u32 index = port >> 4;
	struct port_word *word = ports_get(&index);

	if (word)
		word->bound |= port_bit(port_class, port);
}

/* One of the ports whose bits are set, all of one class: the first at or after a random place (RFC 6056). */
static __always_inline __u16 pick(__u32 word, __u64 bits, enum port_class port_class, __u32 random)
{
	__u32 shift = (random & 15) * 4;
	__u64 turned;

	bits >>= port_class;
	turned = (bits >> shift) | (bits << ((64 - shift) & 63));
	turned &= -turned;
	/* One bit is left, the lowest of the n-th nibble; the product's highest nibble is n. */
	return word * 16 + ((((turned * 0x0123456789abcdefULL) >> 60) + random) & 15);
}

/* The free ports whose neighbour, the other one of an even and the next odd port, is free as well. */
static __always_inline __u64 pairs(__u64 free)
{
	return free & (((free & EVEN_NIBBLES) << 4) | ((free >> 4) & EVEN_NIBBLES));
}

/* A port without a binding, as far as `ports` knows; 0: none. Of the parity of the local port if there is one
 * (RFC 4787, REQ-4), and then rather one whose neighbour is free as well, so that the other one of RTP and
 * RTCP can have that. */
static __always_inline __u16 free_port(const struct host_config *config, struct draw *draw)
{
	__u32 port_class = draw->packet.port_class & 3;
	__u64 of_class = EVERY_FOURTH << port_class;
	__u64 parity = EVEN_PORTS << (port_class + (draw->packet.source_port & 1) * 4);
	__u32 random = bpf_get_prandom_u32();
	__u32 count = config->pool_words;

	draw->best = 0;
#pragma clang loop unroll(disable)
	for (__u32 step = 0; step < POOL_WORDS_MAX; step++) {
		__u32 position, rank = RANK_PAIR;
		const struct port_word *word;
		const __u32 *index;
		__u64 free, bits;

		if (step >= count)
			break;
		position = ((random >> 4) + step) % count;
		index = pool_get(&position);
		if (!index)
			break;
		word = ports_get(index);
		if (!word)
			break;
		free = word->pool & ~word->bound & of_class;
		bits = pairs(free) & parity;
		if (!bits) {
			bits = free & parity;
			rank = RANK_SAME_PARITY;
		}
		if (!bits) {
			bits = free;
			rank = RANK_FREE;
		}
		if (!bits || rank <= draw->best >> 16)
			continue;
		draw->best = rank << 16 | pick(*index, bits, port_class, random);
		if (rank == RANK_PAIR)
			break;
	}
	return draw->best;
}

/* A port of the pool whose binding has expired; 0: none found. */
static __always_inline __u16 expired_port(const struct host_config *config, enum port_class port_class,
					  __u64 now)
{
	__u32 random = bpf_get_prandom_u32();
	__u32 count = config->pool_words;

	if (!count)
		return 0;
#pragma clang loop unroll(disable)
	for (__u32 step = 0; step < TAKEOVER_WORDS * 16; step++) {
		__u32 position = (random + (step >> 4)) % count;
		const __u32 *index = pool_get(&position);
		__u16 port;

		if (!index)
			break;
		port = *index * 16 + (step & 15);
		if (is_in_pool(port_class, port) && is_free(port_class, port, now))
			return port;
	}
	return 0;
}

static __always_inline void tell(enum port_class port_class, struct pool_usage *usage, __u32 free, __u64 now)
{
	struct pool_event event = {.port_class = port_class, .free = free};

	if (usage->told_ns && now - usage->told_ns < NANOSECONDS)
		return;
	usage->told_ns = now;
	bpf_ringbuf_output((void *)MAP_HANDLE(pool_events), &event, sizeof(event), 0);
}

/* A binding was made. */
static __always_inline void note_use(const struct host_config *config, enum port_class port_class, __u64 now)
{
	__u32 key = port_class, index = port_class;
	struct pool_usage *usage = usage_get(&key);
	__u32 total, free;

	if (!usage)
		return;
	__sync_fetch_and_add(&usage->bound, 1);
	/* Linux 5.10 forgets the bounds of what was kept in memory meanwhile. */
	asm volatile("" : "+r"(index));
	if (index >= TRANSLATED_CLASSES)
		return;
	total = config->pool_ports[index];
	free = total > usage->bound ? total - usage->bound : 0;
	if (free > config->low_water)
		return;
	count(HOST_POOL_LOW);
	/* 0 would say that a packet was dropped. */
	tell(port_class, usage, free ? free : 1, now);
}

static __always_inline void note_exhaustion(enum port_class port_class, __u64 now)
{
	__u32 index = port_class;
	struct pool_usage *usage = usage_get(&index);

	if (usage)
		tell(port_class, usage, 0, now);
}
