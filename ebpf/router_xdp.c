/* Router: the same decisions as router.c for plain packets, at XDP, where the drivers of both interfaces can
 * send what is redirected. In the same translation unit, on the same maps. What is refused here is not
 * dropped but passed on, so the programs at TC have the last word, and count. */
#include <dnat/xdp.h>

/* WAN interface: to the owner of the destination port. */
int router_wan_xdp(struct xdp_md *ctx)
{
	const struct router_config *config = router_config();
	__u32 key = LINK_WAN;
	const struct link *link = links_get(&key);
	struct packet packet;
	void *ports;
	__u16 index;

	if (!config || !is_usable(link) || !parse_plain(ctx, link, &packet))
		return XDP_PASS;
	ports = ports_of(config, packet.destination);
	if (!ports || is_spoofed(&packet, config))
		return XDP_PASS;
	index = owner_of(ports, packet.port_class, packet.destination_port);
	return index ? send_to_host(ctx, index, ROUTER_IN) : XDP_PASS;
}

/* LAN interface: from the owner of the source port, out of the WAN or to another owner. */
int router_lan_xdp(struct xdp_md *ctx)
{
	const struct router_config *config = router_config();
	__u32 key = LINK_LAN;
	const struct link *link = links_get(&key);
	const struct host *sender;
	struct packet packet;
	void *ports;
	__u16 index, target;

	if (!config || !is_usable(link) || !parse_plain(ctx, link, &packet) ||
	    is_multicast(packet.destination))
		return XDP_PASS;
	ports = ports_of(config, packet.source);
	if (!ports)
		return XDP_PASS;
	index = owner_of(ports, packet.port_class, packet.source_port);
	sender = host_at(index);
	if (!index || !sender || !is_from(ctx, sender->mac))
		return XDP_PASS;
	target = lan_target(&packet, ports, address_flags(config, packet.destination), config);
	if (target == TARGET_WAN)
		return send_to_wan(ctx, &packet, config->wan_mtu);
	return target == TARGET_STACK ? XDP_PASS : send_to_host(ctx, target, ROUTER_HAIRPIN);
}
