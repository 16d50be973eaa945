/* The router's one change to a packet, and its ways out. */
#pragma once

#include <linux/if_ether.h>
#include <linux/ip.h>

#include <dnat/abi.h>
#include <dnat/counters.h>
#include <dnat/helpers.h>
#include <dnat/order.h>
#include <dnat/owners.h>
#include <dnat/parse.h>

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

/* To the LAN host with this index, as it is. */
static __always_inline int deliver(__u16 index, enum counter counter)
{
	const struct host *host = host_at(index);

	if (!host || !host->address)
		return drop(DROP_NO_OWNER);
	count(counter);
	return send_to(host->ifindex, host->address);
}

static __always_inline int forward_to_host(struct __sk_buff *skb, __u16 index, enum counter counter)
{
	if (!decrease_ttl(skb))
		return drop(DROP_TTL_EXPIRED);
	return deliver(index, counter);
}

static __always_inline int forward_to_wan(struct __sk_buff *skb, const struct router_config *config)
{
	if (!decrease_ttl(skb))
		return drop(DROP_TTL_EXPIRED);
	count(ROUTER_OUT);
	return send_by_route(config->wan_ifindex);
}
