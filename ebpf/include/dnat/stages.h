/* Rare work of the router, in programs of its own, so that the path of an ordinary packet stays short.
 *
 * Map `stages`: enum stage -> program. Written by whoever loads the programs (dnat/dataplane/compile.py). The
 * kernel clears it with its last pin, whoever runs.
 *
 * Map `job`: what a stage has to know, one per CPU, written by the program that calls it. Both run on the
 * same CPU without a pause.
 */
#pragma once

#include <dnat/abi.h>
#include <dnat/counters.h>
#include <dnat/fragments.h>
#include <dnat/map.h>
#include <dnat/packet.h>

/* Where a packet came from. */
enum side { FROM_WAN, FROM_LAN };

struct job {
	struct fragment_key key; /* STAGE_HOLD, STAGE_RELEASE */
	__u16 mtu;               /* the others: of the way out, octets */
	__u8 side;               /* enum side */
	__u8 whole;              /* must not be cut */

	/* Parsed again by the stage: that costs the rare packet less than it would cost all others to
	 * remember. Here and not on the stack, so that the verifier does not follow every protocol apart. */
	struct packet packet;
};

MAP_SHAPE(stages, PROG_ARRAY, sizeof(__u32), sizeof(__u32), STAGES);
MAP(job, PERCPU_ARRAY, __u32, struct job, 1)

static long (*tail_call)(struct __sk_buff *skb, void *programs, __u32 index) = (void *)12;

static __always_inline struct job *current_job(void)
{
	__u32 zero = 0;

	return job_get(&zero);
}

/* Goes on with another program; comes back, with a verdict, only if there is none. The program may be of
 * another version, but not of another DNAT_ABI. */
static __always_inline int go_on(struct __sk_buff *skb, enum stage stage)
{
	tail_call(skb, (void *)MAP_HANDLE(stages), stage);
	return drop(DROP_STAGE_MISSING);
}
