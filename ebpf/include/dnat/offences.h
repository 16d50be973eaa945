/* Hosts that send from ports which are not theirs.
 *
 * Map `offences`: a ring of struct offence, written by the programs, read by the daemon, which tells the host
 * by PAP INVALIDATE.
 *
 * Map `offence_budget`: one entry, how many were reported in the current second. Written by the programs.
 */
#pragma once

#include <linux/if_ether.h>

#include <dnat/abi.h>
#include <dnat/budget.h>
#include <dnat/counters.h>
#include <dnat/map.h>
#include <dnat/owners.h>
#include <dnat/packet.h>
#include <dnat/parse.h>

MAP_SHAPE(offences, RINGBUF, 0, 0, OFFENCES_SIZE);
MAP(offence_budget, ARRAY, __u32, struct offence_budget, 1)

static __always_inline bool within_budget(void)
{
	__u32 zero = 0;

	return spend(offence_budget_get(&zero), OFFENCES_PER_SECOND);
}

static __always_inline void report_offence(const struct __sk_buff *skb, const struct packet *packet)
{
	struct offence offence = {
		.external = packet->source,
		.port = packet->source_port,
		.protocol = packet->protocol,
	};
	struct ethhdr *ethernet = packet_start(skb);

	if ((void *)(ethernet + 1) > packet_end(skb))
		return;
	__builtin_memcpy(offence.mac, ethernet->h_source, sizeof(offence.mac));
	if (!within_budget() ||
	    bpf_ringbuf_output((void *)MAP_HANDLE(offences), &offence, sizeof(offence), 0))
		count(ROUTER_OFFENCE_UNREPORTED);
}

/* Hosts that share an address differ only in their link address. One that is not known yet is taken on trust.
 */
static __always_inline bool is_sent_by(const struct __sk_buff *skb, __u16 index)
{
	const struct host *host = host_at(index);
	struct ethhdr *ethernet = packet_start(skb);
	__u32 known_low, sent_low;
	__u16 known_high, sent_high;

	if (!index || !host || (void *)(ethernet + 1) > packet_end(skb))
		return false;
	__builtin_memcpy(&known_low, host->mac, sizeof(known_low));
	__builtin_memcpy(&known_high, host->mac + sizeof(known_low), sizeof(known_high));
	if (!known_low && !known_high) {
		count(ROUTER_MAC_UNKNOWN);
		return true;
	}
	__builtin_memcpy(&sent_low, ethernet->h_source, sizeof(sent_low));
	__builtin_memcpy(&sent_high, ethernet->h_source + sizeof(sent_low), sizeof(sent_high));
	return known_low == sent_low && known_high == sent_high;
}
