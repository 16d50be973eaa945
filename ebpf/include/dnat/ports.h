/* Which ports are this host's own.
 *
 * Map `config` (host): one entry. Written by user space.
 *
 * Map `ports`: port / 16 -> for each of sixteen ports and each class, whether it is ours as it is, whether it
 * is ours to translate to. Written by user space, one word at a time, so that a port that stays ours is ours
 * throughout. 4,096 entries cover every port: an array look-up, no hash. Programs note in it which ports have
 * a binding; that is a hint, `bindings_in` decides.
 */
#pragma once

#include <dnat/abi.h>
#include <dnat/map.h>

#define PORT_WORDS 4096

MAP(config, ARRAY, __u32, struct host_config, 1)
MAP(ports, ARRAY, __u32, struct port_word, PORT_WORDS)

static __always_inline const struct host_config *host_config(void)
{
	__u32 zero = 0;

	return config_get(&zero);
}

static __always_inline __u64 port_bit(enum port_class port_class, __u16 port)
{
	return 1ULL << ((port & 15) * 4 + port_class);
}

static __always_inline bool is_native(enum port_class port_class, __u16 port)
{
	__u32 index = port >> 4;
	const struct port_word *word = ports_get(&index);

	return word && (word->native & port_bit(port_class, port));
}

static __always_inline bool is_in_pool(enum port_class port_class, __u16 port)
{
	__u32 index = port >> 4;
	const struct port_word *word = ports_get(&index);

	return word && (word->pool & port_bit(port_class, port));
}
