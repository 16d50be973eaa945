/* IP identifications of packets that may be fragmented.
 *
 * Hosts that share an address share its identifications (RFC 6864), and their kernels know nothing of each
 * other. So each host draws only from the numbers of ports that are its own whatever the protocol, which no
 * other host has. The kernel's number picks one of them, so all fragments of a datagram get the same one
 * without any memory, and two datagrams differ unless as many lie between them as the host has ports. Atomic
 * packets (DF set, not fragmented) have no use for an identification and stay as they are.
 *
 * Map `ids`: position -> identification. Written by user space.
 */
#pragma once

#include <linux/ip.h>

#include <dnat/abi.h>
#include <dnat/counters.h>
#include <dnat/map.h>
#include <dnat/order.h>
#include <dnat/packet.h>
#include <dnat/parse.h>

MAP(ids, ARRAY, __u32, __u32, IDS_MAX)

#define IPV4_DONT_FRAGMENT 0x4000
#define IPV4_FRAGMENT_BITS 0x7fff

static __always_inline bool is_atomic(const struct __sk_buff *skb)
{
	const struct iphdr *ip = packet_start(skb) + ETH_HLEN;

	return (void *)(ip + 1) <= packet_end(skb) &&
	       (ip->frag_off & TO_BE16(IPV4_FRAGMENT_BITS)) == TO_BE16(IPV4_DONT_FRAGMENT);
}

/* Gives a packet that may be fragmented an identification of our own; false: the kernel refused. */
static __always_inline bool rewrite_id(struct __sk_buff *skb, const struct packet *packet,
				       const struct host_config *config)
{
	__u32 position;
	const __u32 *own;
	__be16 id;

	if (!config->id_count || is_atomic(skb))
		return true;
	position = FROM_BE16(packet->id) % config->id_count;
	own = ids_get(&position);
	if (!own)
		return true;
	id = TO_BE16(*own);
	count(HOST_ID_REPLACED);
	return bpf_l3_csum_replace(skb, ETH_HLEN + __builtin_offsetof(struct iphdr, check), packet->id, id,
				   sizeof(id)) == 0 &&
	       bpf_skb_store_bytes(skb, ETH_HLEN + __builtin_offsetof(struct iphdr, id), &id, sizeof(id),
				   0) == 0;
}
