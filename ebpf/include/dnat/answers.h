/* ICMP errors of the router itself (RFC 1812, section 4.3).
 *
 * Map `error_budget`: enum error_kind -> how many were sent in the current second. Written by the programs.
 */
#pragma once

#include <linux/icmp.h>
#include <linux/if_ether.h>
#include <linux/ip.h>

#include <dnat/abi.h>
#include <dnat/budget.h>
#include <dnat/checksum.h>
#include <dnat/counters.h>
#include <dnat/cut.h>
#include <dnat/helpers.h>
#include <dnat/map.h>
#include <dnat/order.h>
#include <dnat/owners.h>
#include <dnat/partial.h>
#include <dnat/parse.h>
#include <dnat/stages.h>

MAP(error_budget, ARRAY, __u32, struct offence_budget, ERROR_KINDS)

struct answer {
	struct iphdr ip;
	struct icmphdr icmp;
} __attribute__((packed));

/* An error quotes as much as fits into 576 octets (RFC 1812, section 4.3.2.3). */
#define QUOTE_MAX (576 - sizeof(struct answer))

/* What the kernel adds up in one call, and the rest. */
#define QUOTE_SUM_AT_ONCE 512
#define QUOTE_SUM_REST (QUOTE_MAX + 4 - QUOTE_SUM_AT_ONCE)

/* RFC 1812, section 4.3.2.5: internetwork control. */
#define ANSWER_TOS 0xc0
#define ANSWER_TTL 64
#define IPV4_DONT_FRAGMENT 0x4000

/* The way back to the sender, and what is said. */
struct reply {
	__u32 ifindex;
	__be32 next_hop; /* 0: by the routing table */
	__be32 source;
	__u32 error; /* enum error_kind */
	__u16 mtu;
};

/* Never about errors (RFC 1812, section 4.3.2.7); what no single host sent does not get here. */
static __always_inline bool may_answer(const struct packet *packet)
{
	return packet->kind != KIND_FRAGMENT && packet->kind != KIND_ERROR &&
	       (packet->ip_protocol != IPPROTO_ICMP || packet->kind == KIND_QUERY);
}

/* The sum of the first octets of the IP packet; needs `cutting` for room. False: there are fewer. */
static __always_inline bool sum_quote(struct __sk_buff *skb, __u64 length, __u64 *sum)
{
	__u32 zero = 0;
	struct cutting *room = cutting_get(&zero);

	if (!room || !WITHIN(length, sizeof(struct iphdr), QUOTE_MAX))
		return false;
	__builtin_memset(room->octets, 0, QUOTE_SUM_AT_ONCE);
	__builtin_memset(room->octets + QUOTE_SUM_AT_ONCE, 0, QUOTE_SUM_REST);
	if (bpf_skb_load_bytes(skb, ETH_HLEN, room->octets, length))
		return false;
	*sum = add_up(room->octets + QUOTE_SUM_AT_ONCE, QUOTE_SUM_REST,
		      add_up(room->octets, QUOTE_SUM_AT_ONCE, 0));
	return true;
}

/* The device will complete the quoted checksum: what it writes is the complement of all that it adds up, so
 * from there on the quoted transport header and data add up to nothing but the complement of what is in the
 * field now. */
static __always_inline bool sum_partial(struct __sk_buff *skb, const struct packet *packet, __u64 *sum)
{
	__be16 field;

	if (bpf_skb_load_bytes(skb, packet->l4 + checksum_offset(packet->ip_protocol), &field, sizeof(field)))
		return false;
	*sum = (__u16)~field;
	return true;
}

static __always_inline void fill_answer(struct answer *answer, const struct packet *packet,
					const struct reply *reply, __u32 quoted, __u64 sum)
{
	answer->ip.version = 4;
	answer->ip.ihl = 5;
	answer->ip.tos = ANSWER_TOS;
	answer->ip.tot_len = TO_BE16(sizeof(*answer) + quoted);
	/* Atomic: needs no identification (RFC 6864). */
	answer->ip.frag_off = TO_BE16(IPV4_DONT_FRAGMENT);
	answer->ip.ttl = ANSWER_TTL;
	answer->ip.protocol = IPPROTO_ICMP;
	answer->ip.saddr = reply->source;
	answer->ip.daddr = packet->source;
	answer->ip.check = ~fold(add_up(&answer->ip, sizeof(answer->ip), 0));
	if (reply->error == ERROR_TIME_EXCEEDED) {
		answer->icmp.type = ICMP_TIME_EXCEEDED;
		answer->icmp.code = ICMP_EXC_TTL;
	} else {
		answer->icmp.type = ICMP_DEST_UNREACH;
		answer->icmp.code = ICMP_FRAG_NEEDED;
		answer->icmp.un.frag.mtu = TO_BE16(reply->mtu);
	}
	answer->icmp.checksum = ~fold(add_up(&answer->icmp, sizeof(answer->icmp), 0) + sum);
}

/* Hosts know the router by its LAN address, the outside by its WAN address. A sender on the LAN that holds no
 * port of the address it uses is a plain device. */
static __always_inline void find_way_back(struct reply *reply, const struct packet *packet, enum side side,
					  const struct router_config *config)
{
	const struct host *host;
	void *ports;

	if (side == FROM_WAN) {
		reply->ifindex = config->wan_ifindex;
		reply->next_hop = 0;
		reply->source = config->wan_address ? config->wan_address : packet->destination;
		return;
	}
	reply->ifindex = config->lan_ifindex;
	reply->next_hop = packet->source;
	reply->source = config->lan_address;
	ports = ports_of(config, packet->source);
	if (!ports)
		return;
	host = host_at(owner_of(ports, packet->port_class, packet->source_port));
	if (host)
		reply->next_hop = host->address;
}

/* Turns the packet into an ICMP error about itself, and sends it back. */
static __always_inline int answer(struct __sk_buff *skb, const struct packet *packet,
				  const struct reply *reply)
{
	__u32 quoted = packet->l4 - ETH_HLEN + packet->payload;
	__u32 kind = reply->error & (ERROR_KINDS - 1);
	struct answer answer = {};
	__u64 sum;

	if (!may_answer(packet) || !spend(error_budget_get(&kind), ERRORS_PER_SECOND))
		return drop(ROUTER_ERROR_UNSENT);
	if (quoted > QUOTE_MAX)
		quoted = QUOTE_MAX;
	if (!sum_quote(skb, quoted, &sum) ||
	    (is_checksum_partial(skb, packet) && !sum_partial(skb, packet, &sum)))
		return drop(ROUTER_ERROR_UNSENT);
	fill_answer(&answer, packet, reply, quoted, sum);
	if (bpf_skb_change_tail(skb, ETH_HLEN + quoted, 0) ||
	    bpf_skb_adjust_room(skb, sizeof(answer), BPF_ADJ_ROOM_MAC, 0) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN, &answer, sizeof(answer), BPF_F_RECOMPUTE_CSUM))
		return drop(ROUTER_ERROR_UNSENT);
	count(kind == ERROR_TIME_EXCEEDED ? ROUTER_TIME_EXCEEDED : ROUTER_FRAGMENTATION_NEEDED);
	if (reply->next_hop)
		return send_to(reply->ifindex, reply->next_hop);
	return send_by_route(reply->ifindex);
}

/* A packet of several segments cannot be cut here, so its sender is told, whether it allowed fragments or
 * not. */
static __always_inline int answer_or_cut(struct __sk_buff *skb, const struct packet *packet,
					 const struct job *job)
{
	const struct router_config *config = router_config();
	struct iphdr *ip = packet_start(skb) + ETH_HLEN;
	struct reply reply = {.error = ERROR_TIME_EXCEEDED, .mtu = job->mtu};

	if (!config || (void *)(ip + 1) > packet_end(skb))
		return drop(DROP_MALFORMED);
	if (ip->ttl > 1) {
		reply.error = ERROR_FRAGMENTATION_NEEDED;
		if (!(ip->frag_off & TO_BE16(IPV4_DONT_FRAGMENT)) && !skb->gso_size && !job->whole)
			return go_on(skb, STAGE_CUT);
	}
	count(reply.error == ERROR_TIME_EXCEEDED ? DROP_TTL_EXPIRED : DROP_TOO_BIG);
	find_way_back(&reply, packet, job->side, config);
	return answer(skb, packet, &reply);
}
