/* Telling a local program that its packet is not going to be sent.
 *
 * The packet turns into an ICMP error that quotes it, and comes back in at the LAN interface: a connected
 * socket learns of it at once. Source and destination link address of the frame are both our own, which no
 * frame off the wire has; host_in knows it by that.
 */
#pragma once

#include <linux/icmp.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>

#include <dnat/abi.h>
#include <dnat/checksum.h>
#include <dnat/counters.h>
#include <dnat/order.h>
#include <dnat/packet.h>
#include <dnat/parse.h>

/* RFC 792: the header and eight octets; of TCP a whole header, which the kernel asks for while a checksum in
 * it waits to be completed. */
#define QUOTED_MAX (60 + 20)

struct answer {
	struct iphdr ip;
	struct icmphdr icmp;
};

static __always_inline bool is_from_ourselves(const struct __sk_buff *skb)
{
	const struct ethhdr *ethernet = packet_start(skb);
	__u32 from, to;
	__u16 from_rest, to_rest;

	if ((void *)(ethernet + 1) > packet_end(skb))
		return false;
	__builtin_memcpy(&from, ethernet->h_source, sizeof(from));
	__builtin_memcpy(&to, ethernet->h_dest, sizeof(to));
	__builtin_memcpy(&from_rest, ethernet->h_source + sizeof(from), sizeof(from_rest));
	__builtin_memcpy(&to_rest, ethernet->h_dest + sizeof(to), sizeof(to_rest));
	return from == to && from_rest == to_rest;
}

/* Turns the packet into the answer; false: the kernel refused. */
static __always_inline bool make_answer(struct __sk_buff *skb, const struct packet *packet)
{
	__u64 size = packet->l4 - ETH_HLEN +
		     (packet->ip_protocol == IPPROTO_TCP ? sizeof(struct tcphdr) : sizeof(struct icmphdr));
	__u8 quoted[QUOTED_MAX];
	__u8 own[ETH_ALEN];
	struct answer answer = {
		.ip =
			{
				.version = 4,
				.ihl = sizeof(struct iphdr) / 4,
				.frag_off = TO_BE16(0x4000),
				.ttl = 64,
				.protocol = IPPROTO_ICMP,
				.saddr = packet->source,
				.daddr = packet->source,
			},
		.icmp = {.type = ICMP_DEST_UNREACH, .code = ICMP_PKT_FILTERED},
	};

	if (size > QUOTED_MAX)
		return false;
	/* Else the compiler joins the two comparisons into one that the verifier cannot follow. */
	asm volatile("" : "+r"(size));
	if (size < sizeof(struct iphdr) + sizeof(struct icmphdr) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, quoted, size))
		return false;
	answer.ip.tot_len = TO_BE16(sizeof(answer) + size);
	answer.ip.check = ~fold(add_up(&answer.ip, sizeof(answer.ip), 0));
	answer.icmp.checksum = ~fold(add_up(quoted, size, add_up(&answer.icmp, sizeof(answer.icmp), 0)));
	return bpf_skb_change_tail(skb, ETH_HLEN + size, 0) == 0 &&
	       bpf_skb_adjust_room(skb, sizeof(answer), BPF_ADJ_ROOM_MAC, 0) == 0 &&
	       bpf_skb_store_bytes(skb, ETH_HLEN, &answer, sizeof(answer), 0) == 0 &&
	       bpf_skb_load_bytes(skb, __builtin_offsetof(struct ethhdr, h_source), own, sizeof(own)) == 0 &&
	       bpf_skb_store_bytes(skb, __builtin_offsetof(struct ethhdr, h_dest), own, sizeof(own), 0) == 0;
}

/* Drops a packet of a local program, and tells it if that is wanted. Not while more ports may be had: the
 * program will send again. Nothing answers an ICMP error (RFC 1122, section 3.2.2). */
static __always_inline int refuse(struct __sk_buff *skb, const struct packet *packet,
				  const struct host_config *config, enum counter reason)
{
	bool for_good = reason != DROP_POOL_EXHAUSTED || (config->flags & HOST_CANNOT_GET_PORTS);

	count(reason);
	if (!(config->flags & HOST_ANSWERS_REFUSALS) || !for_good ||
	    (packet->ip_protocol == IPPROTO_ICMP && packet->kind != KIND_QUERY) || !make_answer(skb, packet))
		return VERDICT_DROP;
	count(HOST_REFUSED);
	return bpf_redirect(config->lan_ifindex, BPF_F_INGRESS);
}
