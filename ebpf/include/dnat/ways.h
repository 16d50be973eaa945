/* Ways out that need no look at the kernel's tables: the link address of an owner, the next hop to a
 * destination.
 *
 * Map `ways`: hash of a packet's addresses -> struct way, for each CPU. Written by the programs; what hashes
 * to the same entry takes its place. No state of a flow: whatever is forgotten is asked for again.
 *
 * Redirecting to a neighbour has the kernel look up a route and the neighbour for each packet. Here a way is
 * used for WAY_TICKS without asking; then one packet takes the kernel's own, which also keeps the neighbour
 * alive.
 */
#pragma once

#include <linux/if_ether.h>

#include <dnat/abi.h>
#include <dnat/helpers.h>
#include <dnat/map.h>
#include <dnat/owners.h>
#include <dnat/packet.h>

MAP(ways, PERCPU_ARRAY, __u32, struct way, WAYS_MAX)

static __always_inline bool is_mac_known(const __u8 *mac)
{
	return *(__u32 *)mac | *(__u16 *)(mac + 4);
}

/* Whether it is time to let the kernel find a host. */
static __always_inline bool is_host_due(const struct host *host, __u64 now)
{
	return now - host->asked >= WAY_TICKS;
}

/* The entry for a packet, whatever is in it. */
static __always_inline struct way *way_at(const struct packet *packet)
{
	/* Knuth's multiplicative hash. */
	__u32 index = ((packet->destination ^ packet->source ^ packet->tos) * 2654435761U) /
		      (0xffffffffU / WAYS_MAX + 1);

	return ways_get(&index);
}

static __always_inline bool is_way_of(const struct way *way, const struct packet *packet)
{
	return way->destination == packet->destination && way->source == packet->source &&
	       way->tos == packet->tos;
}

/* Has the kernel find the way out of an interface; false: it does not know one, or it is another interface's.
 */
static __always_inline bool find_way(void *ctx, struct way *way, const struct packet *packet, __u32 ifindex,
				     __u64 now)
{
	struct bpf_fib_lookup found = {
		.family = ADDRESS_FAMILY_IPV4,
		.ifindex = ifindex,
		.tos = packet->tos,
		.ipv4_src = packet->source,
		.ipv4_dst = packet->destination,
	};

	if (bpf_fib_lookup(ctx, &found, sizeof(found), BPF_FIB_LOOKUP_OUTPUT) || found.ifindex != ifindex)
		return false;
	__builtin_memcpy(way->to, found.dmac, ETH_ALEN);
	__builtin_memcpy(way->from, found.smac, ETH_ALEN);
	way->source = packet->source;
	way->destination = packet->destination;
	way->tos = packet->tos;
	way->passed = 0;
	way->expires = now + WAY_TICKS;
	return true;
}
