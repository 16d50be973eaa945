/* Kernel helpers that bcc does not declare, or declares wrongly, and the verdicts. */
#pragma once

#include <linux/pkt_cls.h>
#include <linux/types.h>

/* Not TC_ACT_OK: the filters of other software on the same hook shall still see the packet. */
#define VERDICT_PASS TC_ACT_UNSPEC
#define VERDICT_DROP TC_ACT_SHOT

#define ADDRESS_FAMILY_IPV4 2

/* Keeps what is rare out of the way of what is common. */
#define RARELY(condition) __builtin_expect(!!(condition), 0)

/* Whether the number, of 64 bits, lies between two others; where it does not, it is of no use any more. One
 * comparison, of the distance to the lower bound: from a comparison with 1, which the compiler makes one with
 * 0, Linux 5.10 learns nothing. It must not go on with another copy of the number. */
#define WITHIN(number, least, most)                      \
	({                                               \
		bool within_ = false;                    \
		number -= (least);                       \
		asm volatile("" : "+r"(number));         \
		if (number <= (most) - (least)) {        \
			asm volatile("" : "+r"(number)); \
			number += (least);               \
			asm volatile("" : "+r"(number)); \
			within_ = true;                  \
		}                                        \
		within_;                                 \
	})

/* PACKET_HOST of linux/if_packet.h. */
#define PACKET_TO_US 0

/* struct bpf_redir_neigh of linux/bpf.h (since 5.10), which bcc's copy need not have. */
struct next_hop {
	__u32 family;
	union {
		__be32 ipv4;
		__u32 ipv6[4];
	};
};

/* bcc 0.26 declares helper 152 with three arguments; it has four. */
static long (*redirect_to_neighbour)(__u32 ifindex, struct next_hop *hop, int size,
				     __u64 flags) = (void *)152;

/* bcc 0.26 declares helper 28 as of type int, and what it adds up fills 32 bits in Linux before 6.13. */
static __u64 (*checksum_difference)(void *from, __u64 from_size, void *to, __u64 to_size,
				    __u64 seed) = (void *)28;

/* Ticks since boot, milliseconds long; one load where the JIT knows it, ten times quicker than a clock. */
static __u64 (*ticks)(void) = (void *)118;

static __always_inline int send_to(__u32 ifindex, __be32 address)
{
	struct next_hop hop = {.family = ADDRESS_FAMILY_IPV4, .ipv4 = address};

	return redirect_to_neighbour(ifindex, &hop, sizeof(hop), 0);
}

/* The next hop is what the routing table says for this interface. */
static __always_inline int send_by_route(__u32 ifindex)
{
	return redirect_to_neighbour(ifindex, (void *)0, 0, 0);
}
