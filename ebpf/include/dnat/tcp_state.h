/* How long a TCP binding may be idle depends on the connections that use it (RFC 5382, REQ-5; RFC 7857,
 * section 2).
 *
 * A binding serves every connection from one local port, so the state is a summary that errs on the long
 * side: that of the connection that was opened last, and where others were open then, nothing ends it.
 * Anybody may send to the port, and our kernel answers strangers with a reset, so FIN and RST count only from
 * and to the connection's own other end. CPUs may race for the octet; a lost bit comes back with the next
 * segment.
 */
#pragma once

#include <dnat/abi.h>
#include <dnat/packet.h>

#define TCP_FLAG_FIN 0x01
#define TCP_FLAG_SYN 0x02
#define TCP_FLAG_RST 0x04
#define TCP_BOTH_FINS (TCP_FIN_SENT | TCP_FIN_RECEIVED)

static __always_inline bool tcp_is_closed(__u8 state)
{
	return (state & TCP_RESET) || (state & TCP_BOTH_FINS) == TCP_BOTH_FINS;
}

static __always_inline __u8 tcp_after_sending(__u8 state, __u8 flags)
{
	if (flags & TCP_FLAG_RST)
		return state | TCP_RESET;
	if (flags & TCP_FLAG_SYN) {
		if ((state & TCP_ESTABLISHED) && !tcp_is_closed(state))
			return state | TCP_SHARED;
		return state & TCP_SHARED;
	}
	if (flags & TCP_FLAG_FIN)
		return state | TCP_FIN_SENT;
	return (state | TCP_ESTABLISHED) & ~TCP_RESET;
}

static __always_inline __u8 tcp_after_receiving(__u8 state, __u8 flags)
{
	if (flags & TCP_FLAG_RST)
		state |= TCP_RESET;
	if (flags & TCP_FLAG_FIN)
		state |= TCP_FIN_RECEIVED;
	return state;
}

static __always_inline bool is_tcp_peer(const struct binding *binding, __be32 address, __u16 port)
{
	return !binding->peer || binding->peer == TCP_PEER(address, port);
}

/* Whether an outbound segment keeps the binding alive. A reset does once, when it ends the connection; others
 * answer what came in, and that has no say (RFC 7857, section 7.1). */
static __always_inline bool is_tcp_use(const struct binding *binding, const struct packet *packet)
{
	return !(packet->tcp_flags & TCP_FLAG_RST) ||
	       (!tcp_is_closed(binding->state) &&
		is_tcp_peer(binding, packet->destination, packet->destination_port));
}

/* What a segment sent to or received from an address says about the connection. */
static __always_inline __u8 tcp_flags_of(const struct binding *binding, const struct packet *packet,
					 __be32 address, __u16 port)
{
	if (is_tcp_peer(binding, address, port))
		return packet->tcp_flags;
	return packet->tcp_flags & ~(TCP_FLAG_FIN | TCP_FLAG_RST);
}

static __always_inline void set_tcp_state(const struct host_config *config, struct binding *binding,
					  __u8 state)
{
	bool established = (state & TCP_SHARED) || ((state & TCP_ESTABLISHED) && !tcp_is_closed(state));

	if (state == binding->state)
		return;
	binding->state = state;
	if (!(binding->flags & BINDING_STATIC))
		binding->idle_seconds =
			config->idle_seconds[established ? IDLE_TCP_ESTABLISHED : IDLE_TCP_TRANSITORY];
}

static __always_inline void note_tcp_sent(const struct host_config *config, struct binding *binding,
					  const struct packet *packet)
{
	__u8 flags;

	/* Of a connection that is open, the other end stays. */
	if (!binding->peer || !(binding->state & TCP_ESTABLISHED) || tcp_is_closed(binding->state))
		binding->peer = TCP_PEER(packet->destination, packet->destination_port);
	flags = tcp_flags_of(binding, packet, packet->destination, packet->destination_port);
	set_tcp_state(config, binding, tcp_after_sending(binding->state, flags));
}

static __always_inline void note_tcp_received(const struct host_config *config, struct binding *binding,
					      const struct packet *packet)
{
	__u8 flags = tcp_flags_of(binding, packet, packet->source, packet->source_port);

	set_tcp_state(config, binding, tcp_after_receiving(binding->state, flags));
}
