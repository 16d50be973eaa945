/* Router: ingress of the WAN and of the LAN interface, and the loopback on the way out. README.md tells a
 * packet's way. */
#include <dnat/abi.h>
#include <dnat/counters.h>
#include <dnat/forward.h>
#include <dnat/fragments.h>
#include <dnat/helpers.h>
#include <dnat/offences.h>
#include <dnat/owners.h>
#include <dnat/packet.h>
#include <dnat/parse.h>

#define BPF_LICENSE Dual MIT / GPL

/* In `fragments`: the stack of the router, or the way out; hosts have the indices from 1. */
#define TARGET_STACK 0
#define TARGET_WAN HOSTS_MAX

/* Nobody's port: the router's own, if the address is the router's too. */
static __always_inline int to_stack(__u32 flags)
{
	return flags & ADDRESS_LOCAL ? pass(ROUTER_TO_SELF) : drop(DROP_NO_OWNER);
}

/* WAN interface, ingress: to the owner of the destination port. */
int router_wan(struct __sk_buff *skb)
{
	struct fragment_key key;
	struct packet packet;
	void *ports;
	int target;

	if (!parse_addresses(skb, &packet))
		return VERDICT_PASS;
	ports = owners_get(&packet.destination);
	if (!ports)
		return VERDICT_PASS;
	if (!parse_ports(skb, &packet))
		return drop(DROP_MALFORMED);
	key = fragment_key(&packet);
	if (packet.kind == KIND_FRAGMENT) {
		target = follow_fragment(&packet, &key);
		if (target == FRAGMENT_UNKNOWN)
			return drop(DROP_FRAGMENT_UNKNOWN);
	} else {
		target = owner_of(ports, packet.port_class, packet.destination_port);
		remember_fragment(&packet, &key, target);
	}
	if (target == TARGET_STACK)
		return to_stack(address_flags(packet.destination));
	return forward_to_host(skb, target, ROUTER_IN);
}

/* Where a packet from the LAN goes: a host's index, the stack, or the WAN. */
static __always_inline __u16 lan_target(const struct packet *packet, __u32 flags,
					const struct router_config *config)
{
	if (flags & ADDRESS_EXTERNAL) {
		void *ports = owners_get(&packet->destination);

		return ports ? owner_of(ports, packet->port_class, packet->destination_port) : TARGET_STACK;
	}
	if ((flags & ADDRESS_LOCAL) || (packet->destination & config->lan_mask) == config->lan_network ||
	    is_loopback(packet->destination))
		return TARGET_STACK;
	return TARGET_WAN;
}

/* LAN interface, ingress: only the owner may send from a port of a shared address. This has to happen before
 * the stack, which takes a packet with the router's own address as source for a forgery. */
int router_lan(struct __sk_buff *skb)
{
	const struct router_config *config = router_config();
	struct fragment_key key;
	struct packet packet;
	__u32 flags;
	void *ports;
	int target;

	if (!config || !config->lan_ifindex || !parse_addresses(skb, &packet) ||
	    is_multicast(packet.destination))
		return VERDICT_PASS;
	ports = owners_get(&packet.source);
	flags = address_flags(packet.destination);
	if (!ports && !(flags & ADDRESS_EXTERNAL))
		return VERDICT_PASS;
	if (!parse_ports(skb, &packet))
		return drop(DROP_MALFORMED);
	key = fragment_key(&packet);
	bpf_skb_load_bytes(skb, ETH_ALEN, key.mac, sizeof(key.mac));
	if (packet.kind == KIND_FRAGMENT) {
		target = follow_fragment(&packet, &key);
		if (target == FRAGMENT_UNKNOWN)
			return drop(DROP_FRAGMENT_UNKNOWN);
	} else {
		if (ports && !is_sent_by(skb, owner_of(ports, packet.port_class, packet.source_port))) {
			report_offence(skb, &packet);
			return drop(DROP_NOT_OWNER);
		}
		target = lan_target(&packet, flags, config);
		remember_fragment(&packet, &key, target);
	}
	if (target == TARGET_WAN)
		return forward_to_wan(skb, config);
	if (target == TARGET_STACK)
		return flags & ADDRESS_EXTERNAL ? to_stack(flags) : pass(ROUTER_TO_SELF);
	return forward_to_host(skb, target, ROUTER_HAIRPIN);
}

/* Loopback, egress: the router's own programs reach hosts that share the router's address. An ICMP query
 * would only come back: the identifier is the sender's own. */
int router_loop(struct __sk_buff *skb)
{
	struct fragment_key key;
	struct packet packet;
	void *ports;
	int target;

	if (!parse_addresses(skb, &packet) || is_loopback(packet.source))
		return VERDICT_PASS;
	ports = owners_get(&packet.destination);
	if (!ports)
		return VERDICT_PASS;
	if (!parse_ports(skb, &packet))
		return drop(DROP_MALFORMED);
	key = fragment_key(&packet);
	if (packet.kind == KIND_FRAGMENT) {
		target = follow_fragment(&packet, &key);
		if (target == FRAGMENT_UNKNOWN)
			return drop(DROP_FRAGMENT_UNKNOWN);
	} else {
		target = packet.kind == KIND_QUERY
				 ? TARGET_STACK
				 : owner_of(ports, packet.port_class, packet.destination_port);
		remember_fragment(&packet, &key, target);
	}
	if (target == TARGET_STACK)
		return VERDICT_PASS;
	return deliver(target, ROUTER_FROM_SELF);
}
