/* Address-dependent filtering (RFC 4787, section 5): a binding receives only from addresses that it has sent
 * to. Off by default: endpoint-independent filtering lets anybody answer at a combination network address.
 *
 * Map `peers`: (remote address, class, locally unique port) -> time of the last packet to it, CLOCK_MONOTONIC
 * in nanoseconds. Written by the programs, and only while the filter is on. What is older than the binding
 * belongs to a former one.
 */
#pragma once

#include <dnat/abi.h>
#include <dnat/map.h>
#include <dnat/packet.h>

MAP(peers, LRU_HASH, struct peer_key, __u64, PEERS_MAX)

static __always_inline void note_peer(const struct packet *packet, __u16 unique_port, __u64 now)
{
	struct peer_key key = {
		.address = packet->destination,
		.port = unique_port,
		.port_class = packet->port_class,
	};

	peers_put(&key, &now, BPF_ANY);
}

/* Whether the sender of an inbound packet was sent to, by this binding and not too long ago. */
static __always_inline bool is_peer(const struct packet *packet, const struct binding *binding, __u64 now)
{
	struct peer_key key = {
		.address = packet->source,
		.port = packet->destination_port,
		.port_class = packet->port_class,
	};
	const __u64 *sent = peers_get(&key);

	return sent && *sent >= binding->created_ns && now <= *sent + binding->idle_seconds * NANOSECONDS;
}
