/* Checksums that are only begun: the device is to complete them (CHECKSUM_PARTIAL).
 *
 * No program can see that it is so. But the field then holds the sum of the pseudo header, uncomplemented,
 * which says nothing about ports. Of checksums that are whole, one in 65,536 looks the same; it shall be
 * treated in a way that suits both.
 */
#pragma once

#include <dnat/checksum.h>
#include <dnat/order.h>
#include <dnat/packet.h>

/* Whether a checksum of TCP or UDP may be only begun, by addresses and payload of a packet. */
static __always_inline bool is_begun(const struct packet *packet, __u8 protocol, __be16 checksum)
{
	__u64 sum = (__u64)packet->source + packet->destination + TO_BE16(packet->payload) +
		    TO_BE16(protocol) + (__u16)~checksum;

	return fold(sum) == 0xffff;
}
