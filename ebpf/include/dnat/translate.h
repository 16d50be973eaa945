/* Finding, or making, the binding of a packet. */
#pragma once

#include <dnat/abi.h>
#include <dnat/bindings.h>
#include <dnat/counters.h>
#include <dnat/helpers.h>
#include <dnat/packet.h>
#include <dnat/peers.h>
#include <dnat/pool.h>
#include <dnat/ports.h>
#include <dnat/recent.h>
#include <dnat/scratch.h>
#include <dnat/tcp_state.h>

/* Ports drawn for one packet: the first two are wishes, the last one an expired binding's; in between,
 * another CPU or a local socket may have what looked free. */
#define DRAW_ATTEMPTS 5

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

/* The local port itself if it is in the pool, so that a program may use such a port by its number. */
static __always_inline __u16 own_number(const struct packet *packet, __u64 now)
{
	__u16 port = packet->source_port;

	return is_in_pool(packet->port_class, port) && is_free(packet->port_class, port, now) ? port : 0;
}

/* RTP and RTCP use neighbouring ports, the even one first; so do their unique ones, if that can be had. */
static __always_inline __u16 beside_sibling(const struct packet *packet, __u64 now)
{
	struct port_key sibling = port_key(packet->port_class, packet->source_port ^ 1);
	const struct binding *binding = bindings_out_get(&sibling);
	__u16 port;

	if (!binding || ((binding->port ^ sibling.port) & 1))
		return 0;
	port = binding->port ^ 1;
	return is_in_pool(packet->port_class, port) && is_free(packet->port_class, port, now) ? port : 0;
}

static __always_inline __u16 find_port(struct draw *draw, const struct host_config *config, __u32 attempt,
				       __u64 now)
{
	const struct packet *packet = &draw->packet;

	if (attempt == 0)
		return own_number(packet, now);
	if (attempt == 1)
		return beside_sibling(packet, now);
	if (attempt == DRAW_ATTEMPTS - 1)
		return expired_port(config, packet->port_class, now);
	return free_port(config, draw);
}

static __always_inline struct drawn draw_port(struct __sk_buff *skb, struct draw *draw,
					      const struct host_config *config, __u64 now)
{
	const struct packet *packet = &draw->packet;
	struct drawn drawn = {.port = 0, .reason = DROP_POOL_EXHAUSTED};
	__u32 peer = TCP_PEER(packet->destination, packet->destination_port);

#pragma clang loop unroll(disable)
	for (__u32 attempt = 0; attempt < DRAW_ATTEMPTS; attempt++) {
		__u16 port = find_port(draw, config, attempt, now);
		enum claim claim = CLAIM_TAKEN;

		if (!port)
			continue;
		/* The first is the program's own. */
		if (!attempt || !is_bound_locally(skb, packet, port))
			claim = claim_port(config, packet->port_class, packet->source_port, port, peer, now);
		if (claim == CLAIM_LATE)
			return made_by_another_cpu(packet);
		mark_bound(packet->port_class, port);
		if (claim == CLAIM_FULL) {
			drawn.reason = DROP_TABLE_FULL;
			return drawn;
		}
		if (claim == CLAIM_TAKEN)
			continue;
		if (claim == CLAIM_MADE)
			note_use(config, packet->port_class, now);
		drawn.port = port;
		return drawn;
	}
	note_exhaustion(packet->port_class, now);
	return drawn;
}

/* Whether an outbound packet may change nothing in its binding but the time of its last use. */
static __always_inline bool is_plain_out(const struct host_config *config, const struct packet *packet)
{
	return !(packet->tcp_flags & (TCP_FLAG_FIN | TCP_FLAG_SYN | TCP_FLAG_RST)) &&
	       !(config->flags & HOST_FILTERS_BY_ADDRESS);
}

/* Whether an inbound packet concerns more than its local port. */
static __always_inline bool is_plain_in(const struct host_config *config, const struct packet *packet)
{
	return !(packet->tcp_flags & (TCP_FLAG_FIN | TCP_FLAG_RST)) &&
	       !(config->flags & (HOST_FILTERS_BY_ADDRESS | HOST_INBOUND_REFRESHES));
}

/* At most one packet in each tick reads the clock and writes. */
static __always_inline void refresh(const struct host_config *config, struct binding *binding,
				    const struct packet *packet, const struct recent *recent)
{
	__u32 tick = ticks();

	if (!is_tcp_use(binding, packet))
		return;
	if (binding->seen_tick != tick) {
		binding->seen_tick = tick;
		binding->seen_ns = bpf_ktime_get_ns();
	}
	if (packet->port_class == CLASS_TCP)
		note_tcp_sent(config, binding, packet);
	/* After a SYN or a reset the next segment changes the state, whatever it is. */
	if (packet->port_class != CLASS_TCP || tcp_after_sending(binding->state, 0) == binding->state)
		note_recent(recent, binding->port);
	else
		forget_recent(recent);
	if (config->flags & HOST_FILTERS_BY_ADDRESS)
		note_peer(packet, binding->port, bpf_ktime_get_ns());
}

/* Port 0 of an error says that the packet it quotes is none of ours; of a packet, it is a number like others.
 */
static __always_inline bool quotes_another(const struct packet *packet, __u16 port)
{
	return packet->kind == KIND_ERROR && !port;
}

/* The locally unique port for an outbound packet. An ICMP error neither makes nor refreshes a binding (RFC
 * 5508, REQ-6). */
static __always_inline struct drawn unique_port(struct __sk_buff *skb, struct packet *packet,
						const struct host_config *config)
{
	struct port_key local = port_key(packet->port_class, packet->source_port);
	struct drawn drawn = {.port = 0, .reason = DROP_ERROR_UNBOUND};
	struct binding *binding;
	struct recent recent;
	struct draw *draw;
	__u16 port;
	__u64 now;

	if (quotes_another(packet, packet->source_port))
		return drawn;
	recent = recent_out(packet->port_class, packet->source_port);
	if (is_plain_out(config, packet) && recall(&recent, &port)) {
		drawn.port = port;
		return drawn;
	}
	binding = bindings_out_get(&local);
	if (binding) {
		drawn.port = binding->port;
		if (packet->kind != KIND_ERROR)
			refresh(config, binding, packet, &recent);
		return drawn;
	}
	if (packet->kind == KIND_ERROR)
		return drawn;
	draw = scratch_draw();
	if (!draw)
		return drawn;
	draw->packet = *packet;
	now = bpf_ktime_get_ns();
	drawn = draw_port(skb, draw, config, now);
	*packet = draw->packet;
	if (drawn.port && (config->flags & HOST_FILTERS_BY_ADDRESS))
		note_peer(packet, drawn.port, now);
	return drawn;
}

enum inbound { INBOUND_NATIVE, INBOUND_TRANSLATED, INBOUND_UNBOUND, INBOUND_FILTERED };

/* What else an inbound packet does to its binding; false: it must not pass. An error speaks for a router on
 * the way, and changes nothing (RFC 5508, REQ-6). */
static __always_inline bool admit(const struct host_config *config, const struct packet *packet,
				  const struct inward *inward)
{
	struct port_key local = port_key(packet->port_class, inward->port);
	struct recent recent = recent_out(packet->port_class, inward->port);
	struct binding *binding;

	if (packet->kind == KIND_ERROR || is_plain_in(config, packet))
		return true;
	binding = bindings_out_get(&local);
	if (!binding || binding->port != packet->destination_port)
		return false;
	if ((config->flags & HOST_FILTERS_BY_ADDRESS) && !is_peer(packet, binding, bpf_ktime_get_ns()))
		return false;
	if (config->flags & HOST_INBOUND_REFRESHES)
		binding->seen_ns = bpf_ktime_get_ns();
	note_tcp_received(config, binding, packet);
	/* What is sent after a reset shall tell the binding. */
	if (packet->tcp_flags & TCP_FLAG_RST)
		forget_recent(&recent);
	return true;
}

/* Finds the local port of an inbound packet. What comes for a port of the pool that nobody uses gets no
 * answer: the kernel would reset a connection that is about to be opened from both sides (RFC 5382, REQ-4).
 */
static __always_inline enum inbound local_port(const struct host_config *config, const struct packet *packet,
					       __u16 *port)
{
	struct port_key unique = port_key(packet->port_class, packet->destination_port);
	const struct inward *inward;
	struct recent recent;

	/* A look-up in an array spares most packets the one in a hash. */
	if (is_native(unique.port_class, unique.port) || quotes_another(packet, unique.port))
		return INBOUND_NATIVE;
	recent = recent_in(unique.port_class, unique.port);
	if (is_plain_in(config, packet) && recall(&recent, port))
		return INBOUND_TRANSLATED;
	inward = bindings_in_get(&unique);
	if (!inward)
		return is_in_pool(unique.port_class, unique.port) ? INBOUND_UNBOUND : INBOUND_NATIVE;
	*port = inward->port;
	note_recent(&recent, inward->port);
	return admit(config, packet, inward) ? INBOUND_TRANSLATED : INBOUND_FILTERED;
}
