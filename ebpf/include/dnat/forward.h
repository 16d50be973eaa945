/* The router's one change to a packet, its ways out, and what becomes of a packet that cannot take them. */
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

#define IPV4_DONT_FRAGMENT 0x4000

/* SCTP's segments have sizes of their own (GSO_BY_FRAGS); their sender made them fit its path. */
#define SEGMENTS_UNEQUAL 0xffff

/* The way back to the sender. */
enum side { FROM_WAN, FROM_LAN };

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

static __always_inline bool fits(struct __sk_buff *skb, const struct packet *packet, __u32 mtu)
{
	return __builtin_expect(!mtu || skb->len <= ETH_HLEN + mtu, 1) || segments_fit(skb, packet, mtu);
}

/* A sender that holds no port of the address it uses is a plain device of the LAN. */
static __always_inline void note_way_back(struct job *job, enum side side, const struct router_config *config)
{
	void *ports = owners_get(&job->packet.source);
	const struct host *host;

	if (side == FROM_WAN) {
		job->back_ifindex = config->wan_ifindex;
		job->back_next_hop = 0;
		return;
	}
	job->back_ifindex = config->lan_ifindex;
	job->back_next_hop = job->packet.source;
	if (!ports)
		return;
	host = host_at(owner_of(ports, job->packet.port_class, job->packet.source_port));
	if (host)
		job->back_next_hop = host->address;
}

/* An ICMP error to the sender, or pieces that fit. A packet of several segments cannot be cut here, so its
 * sender is told, whether it allowed fragments or not. */
static __always_inline int refuse(struct __sk_buff *skb, const struct packet *packet, enum side side,
				  __u32 mtu)
{
	struct iphdr *ip = packet_start(skb) + ETH_HLEN;
	const struct router_config *config = router_config();
	struct job *job = current_job();

	if (!job || !config || (void *)(ip + 1) > packet_end(skb))
		return drop(DROP_MALFORMED);
	job->packet = *packet;
	job->mtu = mtu;
	note_way_back(job, side, config);
	if (ip->ttl <= 1) {
		job->error = ERROR_TIME_EXCEEDED;
		count(DROP_TTL_EXPIRED);
		return go_on(skb, STAGE_ANSWER);
	}
	job->error = ERROR_FRAGMENTATION_NEEDED;
	if (!(ip->frag_off & TO_BE16(IPV4_DONT_FRAGMENT)) && !skb->gso_size)
		return go_on(skb, STAGE_CUT);
	count(DROP_TOO_BIG);
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

static __always_inline int forward_to_host(struct __sk_buff *skb, const struct packet *packet, __u16 index,
					   enum side side, enum counter counter)
{
	const struct host *host = host_at(index);

	if (!host || !host->address)
		return drop(DROP_NO_OWNER);
	if (!fits(skb, packet, host->mtu) || !decrease_ttl(skb))
		return refuse(skb, packet, side, host->mtu);
	count(counter);
	return send_to(host->ifindex, host->address);
}

static __always_inline int forward_to_wan(struct __sk_buff *skb, const struct packet *packet,
					  const struct router_config *config)
{
	if (!fits(skb, packet, config->wan_mtu) || !decrease_ttl(skb))
		return refuse(skb, packet, FROM_LAN, config->wan_mtu);
	count(ROUTER_OUT);
	return send_by_route(config->wan_ifindex);
}
