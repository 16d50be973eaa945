/* Fragments after the first carry no ports: they go where the first one went.
 *
 * Map `fragments`: (source, destination, identification, protocol, sender) -> where the datagram goes.
 * Written by the programs on a first fragment, deleted by them once the datagram is complete; the least
 * recently used entry makes room for a new one. A fragment that no entry covers is dropped, never guessed.
 */
#pragma once

#include <dnat/abi.h>
#include <dnat/map.h>
#include <dnat/packet.h>

MAP(fragments, LRU_HASH, struct fragment_key, struct fragment, FRAGMENTS_MAX)

#define FRAGMENT_UNKNOWN (-1)

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

/* Notes where the rest of this datagram shall go, if this is the first of several fragments. */
static __always_inline void remember_fragment(const struct packet *packet, const struct fragment_key *key,
					      __u16 target)
{
	struct fragment fragment = {.seen = packet->payload, .target = target};

	if (!packet->more_fragments)
		return;
	fragment.expires_ns = bpf_ktime_get_ns() + FRAGMENT_SECONDS * 1000000000ULL;
	fragments_put(key, &fragment, BPF_ANY);
}

/* Where a later fragment goes, or FRAGMENT_UNKNOWN. */
static __always_inline int follow_fragment(const struct packet *packet, const struct fragment_key *key)
{
	struct fragment *fragment = fragments_get(key);
	int target;

	if (!fragment || bpf_ktime_get_ns() > fragment->expires_ns)
		return FRAGMENT_UNKNOWN;
	target = (__u16)fragment->target;
	fragment->seen += packet->payload;
	if (!packet->more_fragments)
		fragment->total = packet->offset + packet->payload;
	/* Complete: the same identification now means another datagram. */
	if (fragment->total && fragment->seen >= fragment->total)
		fragments_delete(key);
	return target;
}
