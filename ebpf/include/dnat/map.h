/* How maps are declared.
 *
 * User space creates the maps (dnat/dataplane/loader.py), because bcc neither checks the type of a pin that
 * it adopts nor knows maps declared in headers. It hands over, for each map, MAP_FD_name, and its own idea of
 * type, sizes and entries, so that no program can be compiled against a map of another shape.
 *
 * MAP(name, type, key, value, entries) gives name_get(&key), name_put(&key, &value, flags) and
 * name_delete(&key).
 */
#pragma once

#include <linux/types.h>

#define MAP_HANDLE(name) bpf_pseudo_fd(1, MAP_FD_##name)

#define MAP_SHAPE(name, type, key_size, value_size, entries)                                        \
	_Static_assert(BPF_MAP_TYPE_##type == MAP_TYPE_##name && (key_size) == MAP_KEY_##name &&    \
			       (value_size) == MAP_VALUE_##name && (entries) == MAP_ENTRIES_##name, \
		       "dnat/dataplane/objects.py has another idea of the map " #name)

#define MAP(name, type, key_t, value_t, entries)                                                   \
	MAP_SHAPE(name, type, sizeof(key_t), sizeof(value_t), entries);                            \
	static __always_inline value_t *name##_get(const key_t *key)                               \
	{                                                                                          \
		return bpf_map_lookup_elem_(MAP_HANDLE(name), (void *)key);                        \
	}                                                                                          \
	static __always_inline int name##_put(const key_t *key, const value_t *value, __u64 flags) \
	{                                                                                          \
		return bpf_map_update_elem_(MAP_HANDLE(name), (void *)key, (void *)value, flags);  \
	}                                                                                          \
	static __always_inline int name##_delete(const key_t *key)                                 \
	{                                                                                          \
		return bpf_map_delete_elem_(MAP_HANDLE(name), (void *)key);                        \
	}

/* A map whose values are maps: name_get() gives a map for inner_get(). */
#define MAP_OF_MAPS(name, type, key_t, entries)                             \
	MAP_SHAPE(name, type, sizeof(key_t), sizeof(__u32), entries);       \
	static __always_inline void *name##_get(const key_t *key)           \
	{                                                                   \
		return bpf_map_lookup_elem_(MAP_HANDLE(name), (void *)key); \
	}
