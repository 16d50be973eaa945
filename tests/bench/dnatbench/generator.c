/* Writes a packet of the next flow over whatever the frame holds, and sends it out of an interface: run on
 * frames of the kernel's own (BPF_F_TEST_XDP_LIVE_FRAMES), that is a sender of many million packets a second.
 *
 * One plan at a time, and one CPU: `next` is counted without care for others.
 */
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>

#define PORTS_PER_ADDRESS 4096
#define FIRST_PORT 1024

struct plan {
	__u32 ifindex; /* 0: drop, to measure the generator alone */
	__u32 flows;
	__u32 next;
	__u32 vary_source; /* 1: flows differ in their source, 0: in their destination */
	__u32 source;      /* host order, of the first flow */
	__u32 destination;
	__u16 source_port; /* of the side that does not vary, drawn from `ports` consecutive ones */
	__u16 destination_port;
	__u16 ports;
	__u16 length; /* of the frame */
	__u8 mac_destination[6];
	__u8 mac_source[6];
};

BPF_ARRAY(plans, struct plan, 1);

static __always_inline __u16 swap16(__u16 x)
{
	return __builtin_bswap16(x);
}

int generate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = data;
	struct iphdr *ip = data + ETH_HLEN;
	struct udphdr *udp = (void *)(ip + 1);
	struct plan *plan;
	__u32 zero = 0, flow, sum, address;
	__u16 varying, fixed;

	plan = plans.lookup(&zero);
	if (!plan || (void *)(udp + 1) > end)
		return XDP_ABORTED;
	flow = plan->next;
	plan->next = flow + 1 >= plan->flows ? 0 : flow + 1;
	address = flow / PORTS_PER_ADDRESS;
	varying = FIRST_PORT + flow % PORTS_PER_ADDRESS;
	fixed = flow % plan->ports;

	__builtin_memcpy(ethernet->h_dest, plan->mac_destination, 6);
	__builtin_memcpy(ethernet->h_source, plan->mac_source, 6);
	ethernet->h_proto = swap16(ETH_P_IP);
	*(__u16 *)ip = swap16(0x4500);
	ip->tot_len = swap16(plan->length - ETH_HLEN);
	ip->id = 0;
	ip->frag_off = swap16(0x4000);
	ip->ttl = 64;
	ip->protocol = IPPROTO_UDP;
	ip->check = 0;
	if (plan->vary_source) {
		ip->saddr = __builtin_bswap32(plan->source + address);
		ip->daddr = __builtin_bswap32(plan->destination);
		udp->source = swap16(varying);
		udp->dest = swap16(plan->destination_port + fixed);
	} else {
		ip->saddr = __builtin_bswap32(plan->source);
		ip->daddr = __builtin_bswap32(plan->destination + address);
		udp->source = swap16(plan->source_port + fixed);
		udp->dest = swap16(varying);
	}
	udp->len = swap16(plan->length - ETH_HLEN - sizeof(*ip));
	udp->check = 0;
	sum = 0;
#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += ((__u16 *)ip)[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = ~sum;
	return plan->ifindex ? bpf_redirect(plan->ifindex, 0) : XDP_DROP;
}
