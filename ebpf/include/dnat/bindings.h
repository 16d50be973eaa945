/* Bindings: local port <-> locally unique port, one per class and local port whatever the destination (RFC
 * 4787, REQ-1).
 *
 * Map `bindings_out`: (class, local port) -> struct binding. Map `bindings_in`: (class, locally unique port)
 * -> struct inward. Both are written by the programs; entries go when user space sweeps expired ones or takes
 * ports away, or when a new binding takes over the port of an expired one. BINDINGS_MAX entries each; a full
 * table refuses.
 *
 * A pair comes into being `bindings_in` first. That insertion decides between CPUs that want the same port,
 * the one into `bindings_out` between CPUs that serve the same local port. Who deletes from `bindings_out`
 * may reuse the port.
 */
#pragma once

#include <dnat/abi.h>
#include <dnat/counters.h>
#include <dnat/map.h>
#include <dnat/recent.h>

MAP(bindings_out, HASH, struct port_key, struct binding, BINDINGS_MAX)
MAP(bindings_in, HASH, struct port_key, struct inward, BINDINGS_MAX)

#define NANOSECONDS 1000000000ULL
#define KERNEL_EEXIST 17

static __always_inline struct port_key port_key(__u8 port_class, __u16 port)
{
	struct port_key key = {.port = port, .port_class = port_class};

	return key;
}

static __always_inline __u32 first_idle_seconds(const struct host_config *config, __u8 port_class)
{
	if (port_class == CLASS_TCP)
		return config->idle_seconds[IDLE_TCP_TRANSITORY];
	return config->idle_seconds[port_class == CLASS_UDP ? IDLE_UDP : IDLE_ICMP];
}

static __always_inline bool is_expired(const struct binding *binding, __u64 now)
{
	return now > binding->seen_ns + binding->idle_seconds * NANOSECONDS;
}

/* The binding that holds a unique port; none while another CPU is making or removing it. */
static __always_inline struct binding *holder(const struct port_key *unique, struct port_key *local)
{
	const struct inward *inward = bindings_in_get(unique);
	struct binding *binding;

	if (!inward)
		return (void *)0;
	*local = port_key(unique->port_class, inward->port);
	binding = bindings_out_get(local);
	return binding && binding->port == unique->port ? binding : (void *)0;
}

static __always_inline bool is_free(__u8 port_class, __u16 port, __u64 now)
{
	struct port_key unique = port_key(port_class, port);
	const struct binding *binding;
	struct port_key local;

	if (!bindings_in_get(&unique))
		return true;
	binding = holder(&unique, &local);
	return binding && is_expired(binding, now);
}

/* Whether the expired binding that held a unique port is gone, by our hand. */
static __always_inline bool remove_expired(const struct port_key *unique, __u64 now)
{
	struct port_key local;
	const struct binding *binding = holder(unique, &local);

	return binding && is_expired(binding, now) && bindings_out_delete(&local) == 0;
}

enum claim {
	CLAIM_MADE,
	CLAIM_TAKEN_OVER, /* made, in place of an expired one */
	CLAIM_TAKEN,      /* the unique port is somebody else's */
	CLAIM_LATE,       /* another CPU has just made a binding for this local port */
	CLAIM_FULL,
};

static __always_inline enum claim claim_port(const struct host_config *config, __u8 port_class,
					     __u16 local_port, __u16 unique_port, __u32 peer, __u64 now)
{
	struct port_key local = port_key(port_class, local_port);
	struct port_key unique = port_key(port_class, unique_port);
	struct inward inward = {.created_ns = now, .port = local_port};
	struct binding binding = {.created_ns = now, .seen_ns = now, .port = unique_port, .peer = peer};
	struct recent former = recent_in(port_class, unique_port);
	enum claim made = CLAIM_MADE;
	int error = bindings_in_put(&unique, &inward, BPF_NOEXIST);

	if (error == -KERNEL_EEXIST) {
		if (!remove_expired(&unique, now))
			return CLAIM_TAKEN;
		made = CLAIM_TAKEN_OVER;
		count(HOST_BINDING_TAKEN_OVER);
		error = bindings_in_put(&unique, &inward, BPF_ANY);
	}
	if (error)
		return CLAIM_FULL;
	binding.idle_seconds = first_idle_seconds(config, port_class);
	error = bindings_out_put(&local, &binding, BPF_NOEXIST);
	if (!error) {
		forget_recent(&former);
		count(HOST_BINDING_CREATED);
		return made;
	}
	bindings_in_delete(&unique);
	return error == -KERNEL_EEXIST ? CLAIM_LATE : CLAIM_FULL;
}
