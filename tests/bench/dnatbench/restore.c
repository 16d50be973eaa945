/* Run before a program under test: puts the packet back as it was, and goes on with the program. So it can be
 * run on one packet again and again. What this costs is measured with an empty program in its place, and
 * taken off. */
#include <linux/pkt_cls.h>

#define HEADER 64
#define UDP_SOURCE 34
#define FIRST_PORT 4096

struct template {
	__u8 header[HEADER];
	__u32 ports; /* 0: the packet as it is; else the UDP source port changes, over so many ports */
	__u32 step; /* from one of them to the next */
	__u32 next;
	__u32 zero;
};

BPF_ARRAY(templates, struct template, 1);
BPF_PROG_ARRAY(tc_targets, 1);
BPF_PROG_ARRAY(xdp_targets, 1);

static __always_inline int restore(void *data, void *end)
{
	__u32 zero = 0;
	struct template *template = templates.lookup(&zero);

	if (!template || data + HEADER > end)
		return 0;
	__builtin_memcpy(data, template->header, HEADER);
	if (template->ports) {
		*(__u16 *)(data + UDP_SOURCE) = __builtin_bswap16(FIRST_PORT + template->next * template->step);
		template->next = template->next + 1 < template->ports ? template->next + 1 : 0;
	}
	return 1;
}

int tc_restore(struct __sk_buff *skb)
{
	if (restore((void *)(long)skb->data, (void *)(long)skb->data_end))
		tc_targets.call(skb, 0);
	return TC_ACT_SHOT;
}

int xdp_restore(struct xdp_md *ctx)
{
	if (restore((void *)(long)ctx->data, (void *)(long)ctx->data_end))
		xdp_targets.call(ctx, 0);
	return XDP_ABORTED;
}
