/* The router's short cut at XDP: the packets that need no thought, parsed and sent on before the kernel makes
 * a socket buffer of them. Whatever is not plain passes on to the programs at TC.
 *
 * Map `links`: LINK_LAN, LINK_WAN -> an interface to send by. Written by user space.
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/ip.h>

#include <dnat/abi.h>
#include <dnat/counters.h>
#include <dnat/map.h>
#include <dnat/order.h>
#include <dnat/owners.h>
#include <dnat/packet.h>
#include <dnat/parse.h>
#include <dnat/pseudo.h>
#include <dnat/ways.h>

MAP(links, ARRAY, __u32, struct link, LINKS)

/* Whether XDP may use a link. */
static __always_inline bool is_usable(const struct link *link)
{
	return link && link->ifindex;
}

static __always_inline bool is_same_mac(const __u8 *one, const __u8 *other)
{
	return *(__u32 *)one == *(__u32 *)other && *(__u16 *)(one + 4) == *(__u16 *)(other + 4);
}

static __always_inline struct ethhdr *xdp_ethernet(const struct xdp_md *ctx)
{
	return (void *)(long)ctx->data;
}

static __always_inline bool is_from(const struct xdp_md *ctx, const __u8 *mac)
{
	struct ethhdr *ethernet = xdp_ethernet(ctx);

	return (void *)(ethernet + 1) <= (void *)(long)ctx->data_end && is_same_mac(ethernet->h_source, mac);
}

/* Fills in addresses, ports and class of a packet to this interface that is plain: IPv4 without options,
 * whole, TCP, UDP or an ICMP query, and with a hop left. */
static __always_inline bool parse_plain(const struct xdp_md *ctx, const struct link *link,
					struct packet *packet)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = xdp_ethernet(ctx);
	struct iphdr *ip = (void *)(ethernet + 1);
	void *l4 = ip + 1;
	struct icmphdr *icmp = l4;
	struct udphdr *ports = l4;

	if (l4 + sizeof(struct udphdr) > end || ethernet->h_proto != TO_BE16(ETH_P_IP) ||
	    !is_same_mac(ethernet->h_dest, link->mac))
		return false;
	packet->payload = FROM_BE16(ip->tot_len) - sizeof(*ip);
	if (*(__u8 *)ip != 0x45 || packet->payload < sizeof(struct udphdr) || packet->payload > 65535 ||
	    (ip->frag_off & TO_BE16(IPV4_OFFSET | IPV4_MORE_FRAGMENTS)) || ip->ttl <= 1)
		return false;
	packet->source = ip->saddr;
	packet->destination = ip->daddr;
	packet->tos = ip->tos;
	packet->port_class = class_of(ip->protocol);
	switch (ip->protocol) {
	case IPPROTO_TCP:
		if (l4 + sizeof(struct tcphdr) > end || packet->payload < sizeof(struct tcphdr) ||
		    is_begun(packet, IPPROTO_TCP, ((struct tcphdr *)l4)->check))
			return false;
		break;
	case IPPROTO_UDP:
		if (ports->check && is_begun(packet, IPPROTO_UDP, ports->check))
			return false;
		break;
	case IPPROTO_ICMP:
		if (!is_query(icmp->type))
			return false;
		packet->source_port = FROM_BE16(icmp->un.echo.id);
		packet->destination_port = packet->source_port;
		return true;
	default:
		return false;
	}
	packet->source_port = FROM_BE16(ports->source);
	packet->destination_port = FROM_BE16(ports->dest);
	return true;
}

static __always_inline bool fits_link(const struct xdp_md *ctx, __u32 mtu)
{
	return !mtu || ctx->data_end - ctx->data <= ETH_HLEN + mtu;
}

/* Out of a link, with one hop less (RFC 1141). */
static __always_inline int send_by(const struct xdp_md *ctx, __u32 ifindex, const __u8 *to, const __u8 *from,
				   enum counter counter)
{
	struct ethhdr *ethernet = xdp_ethernet(ctx);
	struct iphdr *ip = (void *)(ethernet + 1);
	__u32 checksum;

	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return XDP_PASS;
	__builtin_memcpy(ethernet->h_dest, to, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, from, ETH_ALEN);
	checksum = (__u32)ip->check + TO_BE16(0x0100);
	ip->check = checksum + (checksum >= 0xffff);
	ip->ttl -= 1;
	count(counter);
	return bpf_redirect(ifindex, 0);
}

/* To the LAN host with this index, if its link address is known. Now and then TC has the kernel find it. */
static __always_inline int send_to_host(const struct xdp_md *ctx, __u16 index, enum counter counter)
{
	const struct host *host = host_at(index);
	__u32 key = LINK_LAN;
	const struct link *lan = links_get(&key);

	if (!host || !is_usable(lan) || host->ifindex != lan->ifindex || !fits_link(ctx, host->mtu) ||
	    !is_mac_known(host->mac) || is_host_due(host, ticks()))
		return XDP_PASS;
	return send_by(ctx, lan->ifindex, host->mac, lan->mac, counter);
}

/* Out of the WAN, if the kernel's tables know the way. TC has it look again when a way is too old; should
 * that have been on another CPU, the next packet finds it here. */
static __always_inline int send_to_wan(struct xdp_md *ctx, const struct packet *packet, __u32 mtu)
{
	__u32 key = LINK_WAN;
	const struct link *wan = links_get(&key);
	struct way *way = way_at(packet);
	__u64 now = ticks();

	if (!is_usable(wan) || !way || !fits_link(ctx, mtu))
		return XDP_PASS;
	if (is_way_of(way, packet) && now > way->expires && !way->passed) {
		way->passed = 1;
		return XDP_PASS;
	}
	if ((!is_way_of(way, packet) || now > way->expires) && !find_way(ctx, way, packet, wan->ifindex, now))
		return XDP_PASS;
	return send_by(ctx, wan->ifindex, way->to, way->from, ROUTER_OUT);
}
