/* The router's one change to a packet, its ways out. */
#pragma once

#include <linux/if_ether.h>
#include <linux/ip.h>

#include <dnat/abi.h>
#include <dnat/counters.h>
#include <dnat/helpers.h>
#include <dnat/order.h>
#include <dnat/owners.h>
#include <dnat/parse.h>
#include <dnat/stages.h>
#include <dnat/ways.h>

/* SCTP's segments have sizes of their own (GSO_BY_FRAGS); their sender made them fit its path. */
#define SEGMENTS_UNEQUAL 0xffff

/* RFC 1812, section 5.3.1; false: the packet's time is over. The checksum moves by one in the TTL's octet
 * (RFC 1141). */
static __always_inline bool decrease_ttl(struct __sk_buff *skb)
{
	struct iphdr *ip = packet_start(skb) + ETH_HLEN;
	__u32 checksum;

	if ((void *)(ip + 1) > packet_end(skb) || ip->ttl <= 1)
		return false;
	checksum = (__u32)ip->check + TO_BE16(0x0100);
	ip->check = checksum + (checksum >= 0xffff);
	ip->ttl -= 1;
	return true;
}

/* Out of an interface to a link address that is known. */
static __always_inline int send_on_link(struct __sk_buff *skb, __u32 ifindex, const __u8 *to,
					const __u8 *from)
{
	struct ethhdr *ethernet = packet_start(skb);

	if ((void *)(ethernet + 1) > packet_end(skb))
		return VERDICT_DROP;
	__builtin_memcpy(ethernet->h_dest, to, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, from, ETH_ALEN);
	return bpf_redirect(ifindex, 0);
}

/* Whether the segments that the packet stands for are small enough. */
static __always_inline bool segments_fit(struct __sk_buff *skb, const struct packet *packet, __u32 mtu)
{
	__u32 header = sizeof(struct udphdr);
	__u8 words;

	if (!skb->gso_size)
		return false;
	if (packet->ip_protocol == IPPROTO_TCP) {
		if (bpf_skb_load_bytes(skb, packet->l4 + 12, &words, sizeof(words)))
			return false;
		header = (words >> 4) * 4;
	}
	return skb->gso_size == SEGMENTS_UNEQUAL || packet->l4 - ETH_HLEN + header + skb->gso_size <= mtu;
}

/* Takes off what a frame has behind its packet, such as a checksum that its interface left there; false: it
 * is not that which makes it too big. */
static __always_inline bool trim(struct __sk_buff *skb, const struct packet *packet, __u32 mtu)
{
	__u32 length = packet->l4 + packet->payload;

	return !skb->gso_size && length <= ETH_HLEN + mtu && bpf_skb_change_tail(skb, length, 0) == 0;
}

static __always_inline bool fits(struct __sk_buff *skb, const struct packet *packet, __u32 mtu)
{
	return __builtin_expect(!mtu || skb->len <= ETH_HLEN + mtu, 1) || segments_fit(skb, packet, mtu) ||
	       trim(skb, packet, mtu);
}

/* Its time is over, or it is too big: STAGE_ANSWER finds out. */
static __always_inline int refuse(struct __sk_buff *skb, enum side side, __u32 mtu)
{
	struct job *job = current_job();

	if (!job)
		return VERDICT_DROP;
	job->mtu = mtu;
	job->side = side;
	job->whole = false;
	return go_on(skb, STAGE_ANSWER);
}

/* To the LAN host with this index, as it is. */
static __always_inline int deliver(__u16 index, enum counter counter)
{
	const struct host *host = host_at(index);

	if (!host || !host->address)
		return drop(DROP_NO_OWNER);
	count(counter);
	return send_to(host->ifindex, host->address);
}

static __always_inline int forward_to_host(struct __sk_buff *skb, const struct packet *packet,
					   const struct router_config *config, __u16 index, enum side side,
					   enum counter counter)
{
	struct host *host = host_at(index);
	__u64 now;

	if (!host || !host->address)
		return drop(DROP_NO_OWNER);
	if (!fits(skb, packet, host->mtu) || !decrease_ttl(skb))
		return refuse(skb, side, host->mtu);
	count(counter);
	now = ticks();
	if (is_mac_known(host->mac) && !is_host_due(host, now))
		return send_on_link(skb, host->ifindex, host->mac, config->lan_mac);
	host->asked = now;
	return send_to(host->ifindex, host->address);
}

static __always_inline int forward_to_wan(struct __sk_buff *skb, const struct packet *packet,
					  const struct router_config *config)
{
	struct way *way;
	__u64 now;

	if (!fits(skb, packet, config->wan_mtu) || !decrease_ttl(skb))
		return refuse(skb, FROM_LAN, config->wan_mtu);
	count(ROUTER_OUT);
	way = way_at(packet);
	now = ticks();
	if (!way)
		return send_by_route(config->wan_ifindex);
	if (!is_way_of(way, packet)) {
		if (!find_way(skb, way, packet, config->wan_ifindex, now))
			return send_by_route(config->wan_ifindex);
	} else if (now > way->expires) {
		if (!find_way(skb, way, packet, config->wan_ifindex, now))
			way->destination = 0;
		return send_by_route(config->wan_ifindex);
	}
	return send_on_link(skb, config->wan_ifindex, way->to, way->from);
}
