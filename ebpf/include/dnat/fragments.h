/* Fragments after the first carry no ports: they go where the first one went.
 *
 * Map `fragments`: (source, destination, identification, protocol, sender) -> where the datagram goes.
 * Written by the programs on a first fragment, deleted by them once the datagram is complete; the least
 * recently used entry makes room for a new one. A fragment that no entry covers is held or dropped, never
 * guessed.
 */
#pragma once

#include <dnat/abi.h>
#include <dnat/map.h>
#include <dnat/packet.h>

MAP(fragments, LRU_HASH, struct fragment_key, struct fragment, FRAGMENTS_MAX)

#define NANOSECONDS 1000000000ULL

/* Instead of a target. */
#define FRAGMENT_UNKNOWN (-1)
#define FRAGMENT_OVERLAPS (-2)

enum remembered {
	REMEMBERED,         /* nothing more to do */
	REMEMBERED_AWAITED, /* later fragments of this datagram are held */
	REMEMBERED_NOT,     /* contradicts an earlier first fragment */
};

static __always_inline struct fragment_key fragment_key(const struct packet *packet)
{
	struct fragment_key key = {
		.source = packet->source,
		.destination = packet->destination,
		.id = packet->id,
		.protocol = packet->ip_protocol,
	};

	return key;
}

/* A second first fragment may repeat what the first said, but not send the rest of the datagram elsewhere
 * (RFC 1858). */
static __always_inline enum remembered
replace_fragment(const struct fragment_key *key, struct fragment *known, const struct fragment *fragment)
{
	enum remembered remembered = known->state == FRAGMENT_AWAITED ? REMEMBERED_AWAITED : REMEMBERED;

	if (remembered == REMEMBERED &&
	    fragment->expires_ns - known->expires_ns < FRAGMENT_SECONDS * NANOSECONDS &&
	    (known->state == FRAGMENT_CONFLICT || known->target != fragment->target)) {
		known->state = FRAGMENT_CONFLICT;
		return REMEMBERED_NOT;
	}
	fragments_put(key, fragment, BPF_ANY);
	return remembered;
}

/* Notes where the rest of this datagram shall go, if this is the first of several fragments. */
static __always_inline enum remembered remember_fragment(const struct packet *packet,
							 const struct fragment_key *key, __u16 target)
{
	struct fragment fragment = {.seen = packet->payload, .first = packet->payload, .target = target};
	struct fragment *known;

	if (__builtin_expect(!packet->more_fragments, 1))
		return REMEMBERED;
	fragment.expires_ns = bpf_ktime_get_ns() + FRAGMENT_SECONDS * NANOSECONDS;
	/* Whoever holds a fragment from now on finds this entry, and whoever did before left one. */
	if (fragments_put(key, &fragment, BPF_NOEXIST) == 0)
		return REMEMBERED;
	known = fragments_get(key);
	return known ? replace_fragment(key, known, &fragment) : REMEMBERED;
}

/* Where a later fragment goes, FRAGMENT_UNKNOWN, or FRAGMENT_OVERLAPS. */
static __always_inline int follow_fragment(const struct packet *packet, const struct fragment_key *key)
{
	struct fragment *fragment = fragments_get(key);
	int target;

	if (!fragment || fragment->state == FRAGMENT_AWAITED || bpf_ktime_get_ns() > fragment->expires_ns)
		return FRAGMENT_UNKNOWN;
	/* What the first one says about ports and flags shall stand (RFC 1858, RFC 3128). */
	if (fragment->state == FRAGMENT_CONFLICT || packet->offset < fragment->first)
		return FRAGMENT_OVERLAPS;
	target = fragment->target;
	fragment->seen += packet->payload;
	if (!packet->more_fragments)
		fragment->total = packet->offset + packet->payload;
	/* Complete: the same identification now means another datagram. */
	if (fragment->total && fragment->seen >= fragment->total)
		fragments_delete(key);
	return target;
}

/* Why a later fragment does not go anywhere. */
static __always_inline enum counter fragment_reason(int target)
{
	return target == FRAGMENT_OVERLAPS ? DROP_FRAGMENT_OVERLAP : DROP_FRAGMENT_UNKNOWN;
}
