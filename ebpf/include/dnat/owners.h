/* Who owns which port, as the router knows it.
 *
 * Map `config` (router): one entry. Written by user space.
 *
 * Map `addresses`: IPv4 address -> what it is to this router. Written and deleted by user space: external
 * addresses and the router's own. The first few are in `config`, too.
 *
 * Map `owners`: slot of an external address -> map of 65,536 struct owner, one per port. Written and deleted
 * by user space. Only as many inner maps as there are external addresses take memory, and a look-up costs the
 * same however many flows there are: it takes no hash, and no call of the kernel.
 *
 * Map `hosts`: index -> a LAN host that owns ports. Written by user space; entry 0 is nobody.
 */
#pragma once

#include <dnat/abi.h>
#include <dnat/map.h>
#include <dnat/packet.h>

MAP(config, ARRAY, __u32, struct router_config, 1)
MAP(addresses, HASH, __be32, struct address, ADDRESSES_MAX)
MAP_OF_MAPS(owners, ARRAY_OF_MAPS, __u32, EXTERNALS_MAX)
MAP(hosts, ARRAY, __u32, struct host, HOSTS_MAX)

static __always_inline const struct router_config *router_config(void)
{
	__u32 zero = 0;

	return config_get(&zero);
}

/* What an address is to this router; most are nothing. */
static __always_inline const struct address *address_at(const struct router_config *config, __be32 ipv4)
{
	if (!(config->address_bits >> ADDRESS_BIT(ipv4) & 1))
		return (void *)0;
#pragma unroll
	for (int at = 0; at < NEAR_ADDRESSES; at++)
		if (config->near[at].ipv4 == ipv4)
			return &config->near[at].is;
	return addresses_get(&ipv4);
}

static __always_inline __u32 address_flags(const struct router_config *config, __be32 ipv4)
{
	const struct address *address = address_at(config, ipv4);

	return address ? address->flags : 0;
}

/* The ports of an address for owner_of(); none unless it is an external one. */
static __always_inline void *ports_of(const struct router_config *config, __be32 ipv4)
{
	const struct address *address = address_at(config, ipv4);
	__u32 slot;

	if (!address || !(address->flags & ADDRESS_EXTERNAL))
		return (void *)0;
	slot = address->slot;
	return owners_get(&slot);
}

/* Index of the host that owns a port of an external address; 0: nobody. */
static __always_inline __u16 owner_of(void *ports, __u8 port_class, __u16 port)
{
	__u32 index = port;
	const struct owner *owner = bpf_map_lookup_elem(ports, &index);

	return owner ? owner->host[port_class & (CLASSES - 1)] : 0;
}

static __always_inline struct host *host_at(__u16 index)
{
	__u32 key = index;

	return hosts_get(&key);
}
