/* How long a TCP binding may be idle depends on the connections that use it (RFC 5382, REQ-5; RFC 7857,
 * section 2).
 *
 * A binding serves every connection from one local port, so the state is a summary that errs on the long
 * side. CPUs may race for the octet; a lost bit comes back with the next segment.
 */
#pragma once

#include <dnat/abi.h>

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
