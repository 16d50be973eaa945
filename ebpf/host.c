/* Host: the LAN interface in both directions, and the loopback on the way out. README.md tells a packet's
 * way. */
#include <dnat/abi.h>
#include <dnat/counters.h>
#include <dnat/fragments.h>
#include <dnat/helpers.h>
#include <dnat/identification.h>
#include <dnat/packet.h>
#include <dnat/parse.h>
#include <dnat/ports.h>
#include <dnat/refuse.h>
#include <dnat/rewrite.h>
#include <dnat/translate.h>

/* The kernel knows this string to the letter, and lends some helpers only to what may be under the GPL. */
// clang-format off
#define BPF_LICENSE Dual MIT/GPL
// clang-format on

/* LAN interface, egress: whatever leaves with the shared address leaves from a port of ours. */
int host_out(struct __sk_buff *skb)
{
	const struct host_config *config = host_config();
	enum counter way = HOST_OUT_TRANSLATED;
	struct packet packet;
	struct drawn drawn;

	if (!config || !config->external || !parse_addresses(skb, &packet) ||
	    packet.source != config->external || is_multicast(packet.destination))
		return VERDICT_PASS;
	if (!parse_ports(skb, &packet))
		return drop(DROP_MALFORMED);
	if (packet.kind == KIND_FRAGMENT) {
		/* The port and the checksum are in the first one. */
		way = HOST_OUT_FRAGMENT;
	} else if (packet.kind == KIND_PORTLESS) {
		return refuse(skb, &packet, config, DROP_NOT_TRANSLATABLE);
	} else if (is_native(packet.port_class, packet.source_port)) {
		way = HOST_OUT_NATIVE;
	} else if (packet.port_class >= TRANSLATED_CLASSES) {
		return refuse(skb, &packet, config, DROP_NOT_TRANSLATABLE);
	} else {
		drawn = unique_port(skb, &packet, config);
		if (!drawn.port)
			return refuse(skb, &packet, config, drawn.reason);
		if (!rewrite_port(skb, &packet, SOURCE_PORT, drawn.port))
			return drop(DROP_REWRITE_FAILED);
	}
	if (!rewrite_id(skb, &packet, config))
		return drop(DROP_REWRITE_FAILED);
	return pass(way);
}

/* LAN interface, ingress: the router sends us only what is ours. */
int host_in(struct __sk_buff *skb)
{
	const struct host_config *config = host_config();
	struct packet packet;
	__u16 port = 0;

	if (!config || !config->external || !parse_addresses(skb, &packet) ||
	    packet.destination != config->external)
		return VERDICT_PASS;
	if (!parse_ports(skb, &packet))
		return drop(DROP_MALFORMED);
	if (packet.kind == KIND_FRAGMENT || packet.kind == KIND_PORTLESS ||
	    packet.port_class >= TRANSLATED_CLASSES)
		return pass(HOST_IN_NATIVE);
	/* Our own refusal quotes the local port. */
	if (packet.kind == KIND_ERROR && is_from_ourselves(skb))
		return pass(HOST_LOCAL);
	if (packet.kind == KIND_ERROR && !is_quote_intact(skb, &packet))
		return drop(DROP_QUOTE_DAMAGED);
	switch (local_port(config, &packet, &port)) {
	case INBOUND_NATIVE:
		return pass(HOST_IN_NATIVE);
	case INBOUND_UNBOUND:
		return drop(DROP_UNBOUND);
	case INBOUND_FILTERED:
		return drop(DROP_FILTERED);
	case INBOUND_TRANSLATED:
		break;
	}
	if (!rewrite_port(skb, &packet, DESTINATION_PORT, port))
		return drop(DROP_REWRITE_FAILED);
	return pass(HOST_IN_TRANSLATED);
}

enum loop_target { LOOP_STAY, LOOP_TO_ROUTER };

/* Ours alone if we would receive the packet at that port, and the answer would come back to the port it was
 * sent from. An ICMP query always comes back to its sender: the identifier is the sender's own. */
static __always_inline enum loop_target loop_target(const struct packet *packet,
						    const struct host_config *config)
{
	if (packet->kind == KIND_QUERY || packet->kind == KIND_PORTLESS)
		return LOOP_STAY;
	if (!is_native(packet->port_class, packet->destination_port))
		return LOOP_TO_ROUTER;
	if (packet->source != config->external || is_native(packet->port_class, packet->source_port))
		return LOOP_STAY;
	return LOOP_TO_ROUTER;
}

/* Loopback, egress: the shared address is local, but the port may be another host's. */
int host_loop(struct __sk_buff *skb)
{
	const struct host_config *config = host_config();
	struct fragment_key key;
	struct packet packet;
	int target;

	if (!config || !config->external || !parse_addresses(skb, &packet) ||
	    packet.destination != config->external || is_loopback(packet.source))
		return VERDICT_PASS;
	if (!parse_ports(skb, &packet))
		return drop(DROP_MALFORMED);
	key = fragment_key(&packet);
	if (packet.kind == KIND_FRAGMENT) {
		target = follow_fragment(&packet, &key);
		if (target < 0)
			return drop(fragment_reason(target));
	} else {
		target = loop_target(&packet, config);
		if (remember_fragment(&packet, &key, target) == REMEMBERED_NOT)
			return drop(DROP_FRAGMENT_OVERLAP);
	}
	if (target == LOOP_STAY)
		return pass(HOST_LOCAL);
	count(HOST_HAIRPIN);
	return send_to(config->lan_ifindex, config->router);
}
