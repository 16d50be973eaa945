/* A packet that may be fragmented and is too big for the way out is cut, and its pieces enter the interface
 * again (RFC 791, section 2.3).
 *
 * Map `cutting`: room for the octets of one packet, per CPU.
 */
#pragma once

#include <dnat/abi.h>
#include <dnat/counters.h>
#include <dnat/helpers.h>
#include <dnat/map.h>
#include <dnat/order.h>
#include <dnat/packet.h>
#include <dnat/parse.h>

/* Octets after the IP header: a jumbo frame's. */
#define CUT_OCTETS 9216

/* Of 576 octets each, the least that every link is asked to carry, a jumbo frame makes 17. */
#define CUT_PIECES 18

struct cutting {
	/* Twice as much as is used: the verifier adds the highest start to the highest length. */
	__u8 octets[2 * CUT_OCTETS];
};

MAP(cutting, PERCPU_ARRAY, __u32, struct cutting, 1)

#define CUT_HEADERS (ETH_HLEN + sizeof(struct iphdr))

static __always_inline bool replace_field(struct __sk_buff *skb, __u32 offset, __be16 value)
{
	__be16 old;

	return bpf_skb_load_bytes(skb, offset, &old, sizeof(old)) == 0 &&
	       bpf_l3_csum_replace(skb, ETH_HLEN + __builtin_offsetof(struct iphdr, check), old, value,
				   sizeof(value)) == 0 &&
	       bpf_skb_store_bytes(skb, offset, &value, sizeof(value), BPF_F_RECOMPUTE_CSUM) == 0;
}

/* Makes the packet one piece of itself. */
static __always_inline bool become_piece(struct __sk_buff *skb, struct cutting *cutting, __u64 start,
					 __u64 length, __be16 fragment)
{
	return bpf_skb_change_tail(skb, CUT_HEADERS + length, 0) == 0 &&
	       bpf_skb_store_bytes(skb, CUT_HEADERS, cutting->octets + start, length, BPF_F_RECOMPUTE_CSUM) ==
		       0 &&
	       replace_field(skb, ETH_HLEN + __builtin_offsetof(struct iphdr, tot_len),
			     TO_BE16(sizeof(struct iphdr) + length)) &&
	       replace_field(skb, ETH_HLEN + __builtin_offsetof(struct iphdr, frag_off), fragment);
}

/* Options would have to be sorted into those that every fragment repeats and those that only the first has:
 * such packets are not cut. */
static __always_inline int cut(struct __sk_buff *skb, const struct packet *packet, __u16 mtu)
{
	__u64 payload = packet->payload, start = 0, length;
	__u32 zero = 0, most = (mtu - sizeof(struct iphdr)) & ~7U;
	struct cutting *cutting = cutting_get(&zero);
	__u16 fragment;
	bool last;

	if (!cutting || packet->l4 != CUT_HEADERS || mtu < 68 || !WITHIN(payload, 1, CUT_OCTETS) ||
	    bpf_skb_load_bytes(skb, CUT_HEADERS, cutting->octets, payload))
		return drop(DROP_TOO_BIG);
	count(ROUTER_CUT);
	bpf_csum_level(skb, BPF_CSUM_LEVEL_RESET);
	for (int i = 0; i < CUT_PIECES; i++) {
		if (!WITHIN(start, 0, CUT_OCTETS) || start >= payload)
			break;
		length = payload - start;
		last = length <= most;
		if (!last)
			length = most;
		if (!WITHIN(length, 1, CUT_OCTETS))
			break;
		fragment = (packet->offset + start) / 8;
		if (!last || packet->more_fragments)
			fragment |= IPV4_MORE_FRAGMENTS;
		if (!become_piece(skb, cutting, start, length, TO_BE16(fragment)))
			break;
		if (last)
			return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
		bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
		start += length;
	}
	return drop(DROP_TOO_BIG);
}
