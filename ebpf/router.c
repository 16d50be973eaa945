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
#include <dnat/stages.h>

/* The kernel knows this string to the letter, and lends some helpers only to what may be under the GPL. */
// clang-format off
#define BPF_LICENSE Dual MIT/GPL
// clang-format on

/* In `fragments`: the stack of the router, or the way out; hosts have the indices from 1. */
#define TARGET_STACK 0
#define TARGET_WAN HOSTS_MAX

/* Frames of others, which an interface in promiscuous mode shows us, are none of our business, nor is what
 * was sent to all (RFC 1812, section 5.3.4). */
static __always_inline bool is_to_us(const struct __sk_buff *skb)
{
	return skb->pkt_type == PACKET_TO_US;
}

/* Nobody's port: the router's own, if the address is the router's too. */
static __always_inline int to_stack(const struct packet *packet, __u32 flags)
{
	if (flags & ADDRESS_LOCAL)
		return pass(ROUTER_TO_SELF);
	return drop(packet->kind == KIND_PORTLESS && packet->ip_protocol == IPPROTO_ICMP ? DROP_ERROR_UNMAPPED
											 : DROP_NO_OWNER);
}

/* A later fragment without a target. */
static __always_inline int without_target(struct __sk_buff *skb, const struct fragment_key *key, int target)
{
	struct job *job = current_job();

	if (target != FRAGMENT_UNKNOWN || !job)
		return drop(fragment_reason(target));
	job->key = *key;
	return go_on(skb, STAGE_HOLD);
}

/* A first fragment that cannot simply go on. */
static __always_inline int with_others(struct __sk_buff *skb, const struct fragment_key *key,
				       enum remembered remembered)
{
	struct job *job = current_job();

	if (remembered == REMEMBERED_NOT || !job)
		return drop(DROP_FRAGMENT_OVERLAP);
	job->key = *key;
	return go_on(skb, STAGE_RELEASE);
}

/* From the WAN nobody speaks with an address of this side, or of no side. */
static __always_inline bool is_spoofed(const struct packet *packet, const struct router_config *config)
{
	return address_flags(config, packet->source) || is_martian(packet->source) ||
	       (packet->source & config->lan_mask) == config->lan_network;
}

static __always_inline int from_wan(struct __sk_buff *skb)
{
	const struct router_config *config = router_config();
	enum remembered remembered;
	struct fragment_key key;
	struct packet packet;
	void *ports;
	int target;

	if (!config || !config->lan_ifindex || !parse_addresses(skb, &packet) || !is_to_us(skb))
		return leave_alone(skb);
	ports = ports_of(config, packet.destination);
	if (!ports)
		return VERDICT_PASS;
	if (is_spoofed(&packet, config))
		return drop(DROP_SPOOFED);
	if (!parse_ports(skb, &packet))
		return drop(DROP_MALFORMED);
	if (RARELY(packet.kind == KIND_FRAGMENT)) {
		key = fragment_key(&packet);
		target = follow_fragment(&packet, &key);
		if (target < 0)
			return without_target(skb, &key, target);
	} else {
		target = owner_of(ports, packet.port_class, packet.destination_port);
		if (RARELY(packet.more_fragments)) {
			key = fragment_key(&packet);
			remembered = remember_fragment(&packet, &key, target);
			if (remembered != REMEMBERED)
				return with_others(skb, &key, remembered);
		}
	}
	if (target == TARGET_STACK)
		return to_stack(&packet, address_flags(config, packet.destination));
	return forward_to_host(skb, &packet, config, target, FROM_WAN, ROUTER_IN);
}

/* WAN interface, ingress: to the owner of the destination port. */
int router_wan(struct __sk_buff *skb)
{
	return from_wan(skb);
}

/* The same where packets come without link addresses (PPP, tunnels): what is ours gets a header, which the
 * kernel takes off again from whatever leaves by such an interface, and ignores otherwise. */
int router_wan_l3(struct __sk_buff *skb)
{
	const struct router_config *config = router_config();
	__be16 type = TO_BE16(ETH_P_IP);
	__be32 destination;

	if (!config || !config->lan_ifindex || skb->protocol != type ||
	    bpf_skb_load_bytes(skb, __builtin_offsetof(struct iphdr, daddr), &destination,
			       sizeof(destination)) ||
	    !ports_of(config, destination))
		return VERDICT_PASS;
	if (bpf_skb_change_head(skb, ETH_HLEN, 0) ||
	    bpf_skb_store_bytes(skb, __builtin_offsetof(struct ethhdr, h_proto), &type, sizeof(type), 0))
		return drop(DROP_REWRITE_FAILED);
	return from_wan(skb);
}

/* Hosts share their address, so the sender's link address belongs to the key. */
static __always_inline struct fragment_key lan_fragment_key(struct __sk_buff *skb,
							    const struct packet *packet)
{
	struct fragment_key key = fragment_key(packet);

	bpf_skb_load_bytes(skb, ETH_ALEN, key.mac, sizeof(key.mac));
	return key;
}

/* Where a packet from the LAN goes: a host's index, the stack, or the WAN. `ports` are those of its source.
 */
static __always_inline __u16 lan_target(const struct packet *packet, void *ports, __u32 flags,
					const struct router_config *config)
{
	if (flags & ADDRESS_EXTERNAL) {
		if (packet->destination != packet->source)
			ports = ports_of(config, packet->destination);
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
	enum remembered remembered;
	struct fragment_key key;
	struct packet packet;
	__u32 flags;
	void *ports;
	int target;

	if (!config || !config->lan_ifindex || !parse_addresses(skb, &packet) || !is_to_us(skb) ||
	    is_multicast(packet.destination))
		return leave_alone(skb);
	ports = ports_of(config, packet.source);
	flags = address_flags(config, packet.destination);
	if (!ports && !(flags & ADDRESS_EXTERNAL))
		return VERDICT_PASS;
	if (!ports && is_martian(packet.source))
		return drop(DROP_SPOOFED);
	if (!parse_ports(skb, &packet))
		return drop(DROP_MALFORMED);
	if (RARELY(packet.kind == KIND_FRAGMENT)) {
		key = lan_fragment_key(skb, &packet);
		target = follow_fragment(&packet, &key);
		if (target < 0)
			return without_target(skb, &key, target);
	} else {
		if (ports && !is_sent_by(skb, owner_of(ports, packet.port_class, packet.source_port))) {
			report_offence(skb, &packet);
			return drop(DROP_NOT_OWNER);
		}
		target = lan_target(&packet, ports, flags, config);
		if (RARELY(packet.more_fragments)) {
			key = lan_fragment_key(skb, &packet);
			remembered = remember_fragment(&packet, &key, target);
			if (remembered != REMEMBERED)
				return with_others(skb, &key, remembered);
		}
	}
	if (target == TARGET_WAN)
		return forward_to_wan(skb, &packet, config);
	if (target == TARGET_STACK)
		return flags & ADDRESS_EXTERNAL ? to_stack(&packet, flags) : pass(ROUTER_TO_SELF);
	return forward_to_host(skb, &packet, config, target, FROM_LAN, ROUTER_HAIRPIN);
}

/* Loopback, egress: the router's own programs reach hosts that share the router's address. An ICMP query
 * would only come back: the identifier is the sender's own. */
int router_loop(struct __sk_buff *skb)
{
	const struct router_config *config = router_config();
	struct fragment_key key;
	struct packet packet;
	void *ports;
	int target;

	if (!config || !parse_addresses(skb, &packet) || is_loopback(packet.source))
		return VERDICT_PASS;
	ports = ports_of(config, packet.destination);
	if (!ports)
		return VERDICT_PASS;
	if (!parse_ports(skb, &packet))
		return drop(DROP_MALFORMED);
	key = fragment_key(&packet);
	if (RARELY(packet.kind == KIND_FRAGMENT)) {
		target = follow_fragment(&packet, &key);
		if (target < 0)
			return drop(fragment_reason(target));
	} else {
		target = packet.kind == KIND_QUERY
				 ? TARGET_STACK
				 : owner_of(ports, packet.port_class, packet.destination_port);
		if (remember_fragment(&packet, &key, target) == REMEMBERED_NOT)
			return drop(DROP_FRAGMENT_OVERLAP);
	}
	if (target == TARGET_STACK)
		return VERDICT_PASS;
	return deliver(target, ROUTER_FROM_SELF);
}
