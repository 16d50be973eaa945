/* Packets whose checksum the device completes when they leave (CHECKSUM_PARTIAL).
 *
 * From a sender on the same machine, or from GRO. The kernel remembers where their checksum is and what it
 * covers, and no program can make it forget: such a packet must not become another one.
 */
#pragma once

#include <dnat/packet.h>
#include <dnat/rewrite.h>

/* No program can see it either; but the kernel leaves the field alone that is yet to be filled in. */
static __always_inline bool is_checksum_partial(struct __sk_buff *skb, const struct packet *packet)
{
	__u32 field = packet->l4 + checksum_offset(packet->ip_protocol);
	__be16 before, after;

	if (packet->offset || !has_ports(packet->ip_protocol) ||
	    bpf_skb_load_bytes(skb, field, &before, sizeof(before)) ||
	    bpf_l4_csum_replace(skb, field, 0, TO_BE16(1), sizeof(before)) ||
	    bpf_skb_load_bytes(skb, field, &after, sizeof(after)))
		return false;
	if (before == after)
		return true;
	bpf_skb_store_bytes(skb, field, &before, sizeof(before), 0);
	return false;
}
