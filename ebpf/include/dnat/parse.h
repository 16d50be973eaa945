/* From bytes to struct packet, in two steps: addresses, which tell most packets to be none of ours, then
 * ports. */
#pragma once

#include <linux/icmp.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include <dnat/counters.h>
#include <dnat/helpers.h>
#include <dnat/order.h>
#include <dnat/packet.h>

/* Of a packet that an ICMP error quotes: IP with options, and TCP. */
#define QUOTED_HEADERS_MAX (60 + 20)

/* Longest run of headers before a transport header: Ethernet, IP with options. */
#define NETWORK_HEADERS_MAX (ETH_HLEN + 60)
/* gso_size of several SCTP packets in one (linux/skbuff.h). */
#define GSO_BY_FRAGS 0xffff
#define PRIORITY_TAGS 2
#define VLAN_NUMBER 0xfff
#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_OFFSET 0x1fff
#define PROTOCOL_DCCP 33
#define PROTOCOL_SCTP 132
#define PROTOCOL_UDPLITE 136

static __always_inline void *packet_start(const struct __sk_buff *skb)
{
	return (void *)(long)skb->data;
}

static __always_inline void *packet_end(const struct __sk_buff *skb)
{
	return (void *)(long)skb->data_end;
}

/* Packets of AF_PACKET rings and of some drivers keep their headers outside of the linear part. What TCP
 * sends keeps its payload there, and is left so: a pull copies the buffer. Several packets that SCTP sends as
 * one have their headers in it, and behind them a list of packets that a pull would take octets from. */
static __always_inline void make_linear(struct __sk_buff *skb, __u32 octets)
{
	__u32 wanted = skb->len < octets ? skb->len : octets;

	if (RARELY(packet_start(skb) + wanted > packet_end(skb)) && skb->gso_size != GSO_BY_FRAGS)
		bpf_skb_pull_data(skb, wanted);
}

/* Whether the frame is of this interface's own network. A tag with a number belongs to another one, which has
 * an interface of its own; one without, only a priority (IEEE 802.1Q, VLAN 0), goes. The kernel would take a
 * second such tag off, too, after us. */
static __always_inline bool is_untagged(struct __sk_buff *skb)
{
	for (int tags = 0; tags < PRIORITY_TAGS; tags++) {
		if (!skb->vlan_present)
			return true;
		if ((skb->vlan_tci & VLAN_NUMBER) || bpf_skb_vlan_pop(skb))
			return false;
	}
	return !skb->vlan_present;
}

/* A packet that is none of ours. Tags that hide more tags than we take off are meant to hide something: the
 * kernel would take off all of them. */
static __always_inline int leave_alone(const struct __sk_buff *skb)
{
	if (RARELY(skb->vlan_present) && !(skb->vlan_tci & VLAN_NUMBER))
		return drop(DROP_MALFORMED);
	return VERDICT_PASS;
}

/* Fills in the addresses; false: not IPv4, or of another network. */
static __always_inline bool parse_addresses(struct __sk_buff *skb, struct packet *packet)
{
	struct iphdr *ip;

	if (RARELY(skb->vlan_present) && !is_untagged(skb))
		return false;
	if (skb->protocol != TO_BE16(ETH_P_IP))
		return false;
	make_linear(skb, ETH_HLEN + sizeof(*ip));
	ip = packet_start(skb) + ETH_HLEN;
	if ((void *)(ip + 1) > packet_end(skb))
		return false;
	packet->source = ip->saddr;
	packet->destination = ip->daddr;
	return true;
}

static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == PROTOCOL_UDPLITE ||
	       protocol == PROTOCOL_DCCP || protocol == PROTOCOL_SCTP;
}

static __always_inline enum port_class class_of(__u8 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
		return CLASS_TCP;
	case IPPROTO_UDP:
	case PROTOCOL_UDPLITE:
		return CLASS_UDP;
	case IPPROTO_ICMP:
		return CLASS_ICMP;
	default:
		return CLASS_OTHER;
	}
}

static __always_inline bool is_query(__u8 type)
{
	return type == ICMP_ECHO || type == ICMP_ECHOREPLY || type == ICMP_TIMESTAMP ||
	       type == ICMP_TIMESTAMPREPLY;
}

static __always_inline bool is_error(__u8 type)
{
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB ||
	       type == ICMP_SOURCE_QUENCH;
}

/* The packet that an ICMP error quotes. What quotes no port, or answers nothing that this address sent, stays
 * portless. */
static __always_inline void parse_quoted(struct packet *packet, struct iphdr *ip, void *end)
{
	__u16 source_port, destination_port;
	__u8 protocol;
	void *l4;

	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5 ||
	    (ip->frag_off & TO_BE16(IPV4_OFFSET)))
		return;
	l4 = (void *)ip + ip->ihl * 4;
	/* What a frame has behind its packet is not quoted. */
	if (l4 + 8 > end || packet->payload < sizeof(struct icmphdr) + ip->ihl * 4 + 8)
		return;
	protocol = ip->protocol;
	if (has_ports(protocol)) {
		source_port = FROM_BE16(((struct udphdr *)l4)->source);
		destination_port = FROM_BE16(((struct udphdr *)l4)->dest);
	} else if (protocol == IPPROTO_ICMP && is_query(((struct icmphdr *)l4)->type)) {
		source_port = FROM_BE16(((struct icmphdr *)l4)->un.echo.id);
		destination_port = source_port;
	} else {
		return;
	}
	packet->source_port = ip->daddr == packet->source ? destination_port : 0;
	packet->destination_port = ip->saddr == packet->destination ? source_port : 0;
	packet->quoted = packet->l4 + sizeof(struct icmphdr) + ip->ihl * 4;
	packet->protocol = protocol;
	packet->port_class = class_of(protocol);
	packet->kind = KIND_ERROR;
}

static __always_inline bool parse_icmp(struct packet *packet, struct icmphdr *icmp, void *end)
{
	if ((void *)(icmp + 1) > end || packet->payload < sizeof(*icmp))
		return false;
	if (is_query(icmp->type)) {
		packet->source_port = FROM_BE16(icmp->un.echo.id);
		packet->destination_port = packet->source_port;
		packet->kind = KIND_QUERY;
	} else if (is_error(icmp->type)) {
		parse_quoted(packet, (void *)(icmp + 1), end);
	}
	return true;
}

/* Octets of the transport header that we look at, and of what it quotes. */
static __always_inline __u32 header_octets(__u8 protocol)
{
	if (protocol == IPPROTO_ICMP)
		return sizeof(struct icmphdr) + QUOTED_HEADERS_MAX;
	return protocol == IPPROTO_TCP ? sizeof(struct tcphdr) : sizeof(struct udphdr);
}

/* A header cut short could hide its checksum in the next fragment, so all of it has to be here (RFC 1858). */
static __always_inline bool parse_transport(struct __sk_buff *skb, struct packet *packet)
{
	__u64 offset = packet->l4;
	void *l4, *end;

	make_linear(skb, offset + header_octets(packet->protocol));
	if (!WITHIN(offset, ETH_HLEN, NETWORK_HEADERS_MAX))
		return false;
	l4 = packet_start(skb) + offset;
	end = packet_end(skb);
	if (packet->protocol == IPPROTO_ICMP)
		return parse_icmp(packet, l4, end);
	if (!has_ports(packet->protocol))
		return true;
	if (l4 + sizeof(struct udphdr) > end || packet->payload < sizeof(struct udphdr))
		return false;
	packet->source_port = FROM_BE16(((struct udphdr *)l4)->source);
	packet->destination_port = FROM_BE16(((struct udphdr *)l4)->dest);
	packet->kind = KIND_PORTS;
	if (packet->protocol == IPPROTO_TCP) {
		if (l4 + sizeof(struct tcphdr) > end || packet->payload < sizeof(struct tcphdr))
			return false;
		packet->tcp_flags = ((__u8 *)l4)[13];
	}
	return true;
}

/* What no receiver could put together: only the last fragment may be of any length, and none reaches beyond
 * the longest datagram. */
static __always_inline bool is_fragment_possible(const struct packet *packet)
{
	return packet->payload && packet->offset + packet->payload <= 65535 &&
	       !(packet->more_fragments && packet->payload % 8);
}

/* Of several segments that are longer together than the header can say (BIG TCP), it says 0. */
static __always_inline __u32 ip_length(const struct __sk_buff *skb, const struct iphdr *ip)
{
	if (RARELY(!ip->tot_len) && skb->gso_size)
		return skb->len - ETH_HLEN;
	return FROM_BE16(ip->tot_len);
}

/* Fills in all the rest; false: malformed. To be called after parse_addresses(). */
static __always_inline bool parse_ports(struct __sk_buff *skb, struct packet *packet)
{
	struct iphdr *ip = packet_start(skb) + ETH_HLEN;
	__u32 length;
	__u16 fragment;

	if ((void *)(ip + 1) > packet_end(skb) || ip->version != 4 || ip->ihl < 5)
		return false;
	length = ip_length(skb, ip);
	fragment = FROM_BE16(ip->frag_off);
	packet->l4 = ETH_HLEN + ip->ihl * 4;
	packet->quoted = 0;
	packet->payload = length > ip->ihl * 4 ? length - ip->ihl * 4 : 0;
	packet->offset = (fragment & IPV4_OFFSET) * 8;
	packet->more_fragments = !!(fragment & IPV4_MORE_FRAGMENTS);
	packet->source_port = 0;
	packet->destination_port = 0;
	packet->id = ip->id;
	packet->protocol = ip->protocol;
	packet->ip_protocol = ip->protocol;
	packet->port_class = class_of(ip->protocol);
	packet->tcp_flags = 0;
	packet->tos = ip->tos;
	packet->kind = KIND_PORTLESS;
	if (__builtin_expect(fragment & (IPV4_MORE_FRAGMENTS | IPV4_OFFSET), 0)) {
		if (!is_fragment_possible(packet))
			return false;
		if (packet->offset) {
			packet->kind = KIND_FRAGMENT;
			return true;
		}
	}
	return parse_transport(skb, packet);
}

/* Multicast and limited broadcast stay on the LAN, where nobody takes the sender for another host by its
 * port. */
static __always_inline bool is_multicast(__be32 address)
{
	return FROM_BE32(address) >= 0xe0000000;
}

static __always_inline bool is_loopback(__be32 address)
{
	return FROM_BE32(address) >> 24 == 127;
}

/* No router forwards what nobody can have sent (RFC 1812, section 5.3.7). */
static __always_inline bool is_martian(__be32 source)
{
	return is_loopback(source) || is_multicast(source) || !(FROM_BE32(source) >> 24);
}
