/* The peers that are programs: drops, and redirects that look at nothing. TARGET is the interface to leave
 * by. */
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

BPF_ARRAY(arrived, __u64, 1);

static __always_inline void count_arrival(void)
{
	__u32 zero = 0;
	__u64 *count = arrived.lookup(&zero);

	if (count)
		*count += 1;
}

int xdp_drop(struct xdp_md *ctx)
{
	count_arrival();
	return XDP_DROP;
}

int xdp_redirect(struct xdp_md *ctx)
{
	return bpf_redirect(TARGET, 0);
}

/* What any program of a router has to do first. */
int xdp_parse(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + ETH_HLEN;

	if ((void *)(ip + 1) + sizeof(struct udphdr) > end || ip->version != 4 || ip->ihl != 5)
		return XDP_ABORTED;
	return ((struct udphdr *)(ip + 1))->dest & 1 ? XDP_PASS : XDP_TX;
}

int xdp_empty(struct xdp_md *ctx)
{
	return XDP_PASS;
}

/* Only our packets: neighbour discovery is to be left alone. */
int tc_drop(struct __sk_buff *skb)
{
	if (skb->protocol != __builtin_bswap16(ETH_P_IP))
		return TC_ACT_OK;
	count_arrival();
	return TC_ACT_SHOT;
}

int tc_redirect(struct __sk_buff *skb)
{
	return bpf_redirect(TARGET, 0);
}

int tc_parse(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + ETH_HLEN;

	if (skb->protocol != __builtin_bswap16(ETH_P_IP))
		return TC_ACT_UNSPEC;
	if ((void *)(ip + 1) + sizeof(struct udphdr) > end || ip->version != 4 || ip->ihl != 5)
		return TC_ACT_SHOT;
	return ((struct udphdr *)(ip + 1))->dest & 1 ? TC_ACT_UNSPEC : TC_ACT_OK;
}

int tc_empty(struct __sk_buff *skb)
{
	return TC_ACT_UNSPEC;
}
