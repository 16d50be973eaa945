/* Writing a port into a packet, with every checksum that covers it.
 *
 * Always by a helper, never in place: before a program that writes in place the kernel unshares each packet
 * (bpf_unclone_prologue), also those that it does not write into, and TCP sends nothing but clones. Ordinary
 * packets take one helper, for port and checksum together; so do those whose checksum the device has yet to
 * complete (CHECKSUM_PARTIAL). What is not ordinary takes two, which know what a checksum field means.
 */
#pragma once

#include <linux/icmp.h>
#include <linux/in.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include <dnat/checksum.h>
#include <dnat/helpers.h>
#include <dnat/order.h>
#include <dnat/packet.h>
#include <dnat/parse.h>
#include <dnat/pseudo.h>

enum which_port { SOURCE_PORT, DESTINATION_PORT };

#define QUERY_ID_OFFSET 4
#define QUOTED_HEADER_MAX 60
#define ICMP_CHECKSUM_OFFSET 2
#define UDP_CHECKSUM_OFFSET 6
#define TCP_CHECKSUM_OFFSET 16

static __always_inline __u32 checksum_offset(__u8 protocol)
{
	if (protocol == IPPROTO_TCP)
		return TCP_CHECKSUM_OFFSET;
	return protocol == IPPROTO_ICMP ? ICMP_CHECKSUM_OFFSET : UDP_CHECKSUM_OFFSET;
}

/* Where a port lies in its transport header. */
static __always_inline __u32 port_offset(__u8 protocol, enum which_port which)
{
	if (protocol == IPPROTO_ICMP)
		return QUERY_ID_OFFSET;
	return which == SOURCE_PORT ? 0 : 2;
}

static __always_inline bool is_udp(__u8 protocol)
{
	return protocol == IPPROTO_UDP || protocol == PROTOCOL_UDPLITE;
}

/* A checksum of zero says that there is none (RFC 768): it stays zero, and none becomes zero. */
static __always_inline bool rewrite_transport(struct __sk_buff *skb, const struct packet *packet,
					      enum which_port which, __be16 from, __be16 to)
{
	__u64 flags = sizeof(to) | (is_udp(packet->protocol) ? BPF_F_MARK_MANGLED_0 : 0);

	return bpf_l4_csum_replace(skb, packet->l4 + checksum_offset(packet->protocol), from, to, flags) ==
		       0 &&
	       bpf_skb_store_bytes(skb, packet->l4 + port_offset(packet->protocol, which), &to, sizeof(to),
				   0) == 0;
}

/* A checksum of zero on UDP says that there is none. */
static __always_inline __be16 adjust_udp_checksum(__be16 checksum, __be16 from, __be16 to)
{
	if (!checksum)
		return 0;
	checksum = adjust_checksum(checksum, from, to);
	return checksum ? checksum : 0xffff;
}

/* The same for a packet whose checksum seems to be only begun; false: it is whole, and nothing is written.
 *
 * Such a checksum says nothing about ports, but only the kernel knows whether it is one. There, and only
 * there, BPF_F_PSEUDO_HDR has the helper replace a word in a sum that is not complemented, and a port is such
 * a sum: of itself. In a packet with a whole checksum anything but ``to`` comes of it, to be undone.
 */
static __always_inline bool rewrite_begun(struct __sk_buff *skb, __u64 l4, __u8 protocol,
					  enum which_port which, __be16 from, __be16 to)
{
	__u64 offset = l4 + port_offset(protocol, which);
	__u64 flags = sizeof(to) | BPF_F_PSEUDO_HDR;
	__be16 *port;

	if (bpf_l4_csum_replace(skb, offset, from, to, flags))
		return false;
	port = packet_start(skb) + offset;
	if ((void *)(port + 1) <= packet_end(skb) && *port == to)
		return true;
	bpf_l4_csum_replace(skb, offset, to, from, flags);
	return false;
}

/* The same at once; false: not a packet for that, and nothing is written. */
static __always_inline bool rewrite_at_once(struct __sk_buff *skb, const struct packet *packet,
					    enum which_port which, __be16 from, __be16 to)
{
	void *start, *end = packet_end(skb);
	__u64 l4 = packet->l4;
	struct udphdr udp;
	struct tcphdr tcp;

	if (RARELY(packet->more_fragments || skb->gso_size) || !WITHIN(l4, ETH_HLEN, NETWORK_HEADERS_MAX))
		return false;
	start = packet_start(skb) + l4;
	if (packet->ip_protocol == IPPROTO_UDP && start + sizeof(udp) <= end) {
		udp = *(struct udphdr *)start;
		if (is_begun(packet, IPPROTO_UDP, udp.check))
			return rewrite_begun(skb, l4, IPPROTO_UDP, which, from, to);
		udp.check = adjust_udp_checksum(udp.check, from, to);
		*(which == SOURCE_PORT ? &udp.source : &udp.dest) = to;
		return bpf_skb_store_bytes(skb, l4, &udp, sizeof(udp), 0) == 0;
	}
	if (packet->ip_protocol == IPPROTO_TCP && start + sizeof(tcp) <= end) {
		tcp = *(struct tcphdr *)start;
		if (is_begun(packet, IPPROTO_TCP, tcp.check))
			return rewrite_begun(skb, l4, IPPROTO_TCP, which, from, to);
		tcp.check = adjust_checksum(tcp.check, from, to);
		*(which == SOURCE_PORT ? &tcp.source : &tcp.dest) = to;
		return bpf_skb_store_bytes(skb, l4, &tcp, sizeof(tcp), 0) == 0;
	}
	return false;
}

/* Whether the checksum of the quoted IP header is right (RFC 5508, REQ-3a). */
static __always_inline bool is_quote_intact(struct __sk_buff *skb, const struct packet *packet)
{
	__u32 start = packet->l4 + sizeof(struct icmphdr);
	__u64 length = packet->quoted - start;
	__u8 header[QUOTED_HEADER_MAX] = {};

	if (!WITHIN(length, sizeof(struct iphdr), QUOTED_HEADER_MAX) ||
	    bpf_skb_load_bytes(skb, start, header, length))
		return false;
	return fold(add_up(header, sizeof(header), 0)) == 0xffff;
}

/* The quoted packet went the other way, so its ports are the other way round. The error's own checksum covers
 * the quoted port and the quoted checksum; the latter is often cut off (RFC 792 asks for eight octets only).
 */
static __always_inline bool rewrite_quoted(struct __sk_buff *skb, const struct packet *packet,
					   enum which_port which, __be16 from, __be16 to)
{
	__u32 port = packet->quoted +
		     port_offset(packet->protocol, which == SOURCE_PORT ? DESTINATION_PORT : SOURCE_PORT);
	__u32 quoted_checksum = packet->quoted + checksum_offset(packet->protocol);
	__u32 own_checksum = packet->l4 + ICMP_CHECKSUM_OFFSET;
	__be16 old, new;

	if (bpf_l4_csum_replace(skb, own_checksum, from, to, sizeof(to)) ||
	    bpf_skb_store_bytes(skb, port, &to, sizeof(to), 0))
		return false;
	if (quoted_checksum + sizeof(old) > packet->l4 + packet->payload ||
	    bpf_skb_load_bytes(skb, quoted_checksum, &old, sizeof(old)) ||
	    (is_udp(packet->protocol) && old == 0))
		return true;
	new = is_udp(packet->protocol) ? adjust_udp_checksum(old, from, to) : adjust_checksum(old, from, to);
	return bpf_l4_csum_replace(skb, own_checksum, old, new, sizeof(new)) == 0 &&
	       bpf_skb_store_bytes(skb, quoted_checksum, &new, sizeof(new), 0) == 0;
}

/* Gives the packet another source or destination port (host order); false: the kernel refused. */
static __always_inline bool rewrite_port(struct __sk_buff *skb, const struct packet *packet,
					 enum which_port which, __u16 port)
{
	__be16 from = TO_BE16(which == SOURCE_PORT ? packet->source_port : packet->destination_port);
	__be16 to = TO_BE16(port);

	if (from == to)
		return true;
	if (packet->kind == KIND_ERROR)
		return rewrite_quoted(skb, packet, which, from, to);
	return rewrite_at_once(skb, packet, which, from, to) ||
	       rewrite_transport(skb, packet, which, from, to);
}
