/* Finding, or making, the binding of a packet. */
#pragma once

#include <dnat/abi.h>
#include <dnat/bindings.h>
#include <dnat/counters.h>
#include <dnat/packet.h>
#include <dnat/ports.h>
#include <dnat/scratch.h>
#include <dnat/tcp_state.h>

/* Ports tried in each of the two parities before a pool counts as exhausted: all of a pool of 128 ports; in a
 * larger one the chance to miss the free ones is small until nearly all are taken. A bound the verifier can
 * walk. */
#define POOL_PROBES 64

/* Ports drawn for one packet: another CPU may take the first, hardly ever two in a row. */
#define DRAW_ATTEMPTS 3

/* No port is 0, so 0 says that there is none. */
struct drawn {
	__u16 port;
	enum counter reason; /* if there is none */
};

/* A translation to a port that a local program has bound would steal the program's packets. */
static __always_inline bool is_bound_locally(struct __sk_buff *skb, const struct packet *packet, __u16 port)
{
	struct bpf_sock_tuple tuple = {
		.ipv4 =
			{
				.saddr = packet->destination,
				.daddr = packet->source,
				.sport = TO_BE16(packet->destination_port),
				.dport = TO_BE16(port),
			},
	};
	struct bpf_sock *sock;

	if (packet->port_class == CLASS_TCP)
		sock = bpf_sk_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	else if (packet->port_class == CLASS_UDP)
		sock = bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	else
		return false;
	if (!sock)
		return false;
	bpf_sk_release(sock);
	return true;
}

static __always_inline struct drawn made_by_another_cpu(const struct packet *packet)
{
	struct port_key local = port_key(packet->port_class, packet->source_port);
	const struct binding *binding = bindings_out_get(&local);
	struct drawn drawn = {.port = binding ? binding->port : 0, .reason = DROP_POOL_EXHAUSTED};

	return drawn;
}

/* A port of the pool that could be had: the local port itself if it is in the pool, so that a program may use
 * such a port by its number; else one at random (RFC 6056), of the same parity if there is one (RFC 4787,
 * REQ-4: RTP and RTCP). 0: there is none. */
static __always_inline __u16 find_port(struct __sk_buff *skb, const struct packet *packet,
				       const struct host_config *config, __u64 now)
{
	__u32 start = bpf_get_prandom_u32() >> 8;

	if (is_in_pool(packet->port_class, packet->source_port) &&
	    is_free(packet->port_class, packet->source_port, now))
		return packet->source_port;

#pragma clang loop unroll(disable)
	for (__u32 probe = 0; probe < 2 * POOL_PROBES; probe++) {
		__u32 parity = (packet->source_port & 1) ^ (probe >= POOL_PROBES);
		__u32 list = packet->port_class * 2 + parity;
		__u32 position = probe % POOL_PROBES;
		const __u32 *port;
		__u32 index;

		if (list >= POOL_LISTS || position >= config->pool_count[list])
			continue;
		index = list * POOL_LIST_MAX + (start + position) % config->pool_count[list];
		port = pool_get(&index);
		if (port && is_in_pool(packet->port_class, *port) &&
		    is_free(packet->port_class, *port, now) && !is_bound_locally(skb, packet, *port))
			return *port;
	}
	return 0;
}

static __always_inline struct drawn draw_port(struct __sk_buff *skb, const struct packet *packet,
					      const struct host_config *config, __u64 now)
{
	struct drawn drawn = {.port = 0, .reason = DROP_POOL_EXHAUSTED};

#pragma clang loop unroll(disable)
	for (__u32 attempt = 0; attempt < DRAW_ATTEMPTS; attempt++) {
		__u16 port = find_port(skb, packet, config, now);

		if (!port)
			break;
		switch (claim_port(packet->port_class, packet->source_port, port, now)) {
		case CLAIM_MADE:
			drawn.port = port;
			return drawn;
		case CLAIM_FULL:
			drawn.reason = DROP_TABLE_FULL;
			return drawn;
		case CLAIM_LATE:
			return made_by_another_cpu(packet);
		case CLAIM_TAKEN:
			continue;
		}
	}
	return drawn;
}

/* The locally unique port for an outbound packet. An ICMP error neither makes nor refreshes a binding (RFC
 * 5508, REQ-6). */
static __always_inline struct drawn unique_port(struct __sk_buff *skb, struct packet *packet,
						const struct host_config *config)
{
	struct port_key local = port_key(packet->port_class, packet->source_port);
	struct binding *binding = bindings_out_get(&local);
	struct drawn drawn = {.port = 0, .reason = DROP_ERROR_UNBOUND};
	struct packet *scratch;

	if (binding) {
		drawn.port = binding->port;
		if (packet->kind != KIND_ERROR) {
			binding->seen_ns = bpf_ktime_get_ns();
			if (packet->port_class == CLASS_TCP)
				set_tcp_state(binding, tcp_after_sending(binding->state, packet->tcp_flags));
		}
		return drawn;
	}
	if (packet->kind == KIND_ERROR)
		return drawn;
	scratch = scratch_packet();
	if (!scratch)
		return drawn;
	*scratch = *packet;
	drawn = draw_port(skb, scratch, config, bpf_ktime_get_ns());
	*packet = *scratch;
	return drawn;
}

/* The local port for an inbound packet, 0 if it is not translated. */
static __always_inline __u16 local_port(const struct packet *packet)
{
	struct port_key unique = port_key(packet->port_class, packet->destination_port);
	const struct inward *inward = bindings_in_get(&unique);

	if (!inward)
		return 0;
	if (packet->tcp_flags & (TCP_FLAG_FIN | TCP_FLAG_RST)) {
		struct port_key local = port_key(packet->port_class, inward->port);
		struct binding *binding = bindings_out_get(&local);

		if (binding)
			set_tcp_state(binding, tcp_after_receiving(binding->state, packet->tcp_flags));
	}
	return inward->port;
}
