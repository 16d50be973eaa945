/* Fragments that came ahead of their first one wait until it tells the owner (RFC 4787, REQ-14).
 *
 * Map `waiting`: slot -> one frame. Written and deleted by the programs. A slot belongs to a bucket of
 * sources, so that one source cannot take the room of all. There is an entry for every slot, so the map is
 * never full; what nobody came for is overwritten once its time is over.
 *
 * Map `holding`: one frame per CPU, on its way into `waiting`.
 *
 * No packet can be kept in the kernel itself. So its octets are kept, and when the first fragment comes,
 * copies of that are given these octets and enter the interface again: they are parsed and checked like any
 * other packet, and nothing but their own headers decides where they go.
 */
#pragma once

#include <dnat/abi.h>
#include <dnat/counters.h>
#include <dnat/fragments.h>
#include <dnat/helpers.h>
#include <dnat/map.h>
#include <dnat/partial.h>
#include <dnat/stages.h>

MAP(waiting, HASH, __u32, struct held, WAITING_MAX)
MAP(holding, PERCPU_ARRAY, __u32, struct held, 1)

#define HELD_OCTETS_MIN (ETH_HLEN + sizeof(struct iphdr))

/* First slot of a source: a host by its link address, the outside by IP address. */
static __always_inline __u32 waiting_bucket(const struct fragment_key *key)
{
	__u32 low;
	__u16 high;

	__builtin_memcpy(&low, key->mac, sizeof(low));
	__builtin_memcpy(&high, key->mac + sizeof(low), sizeof(high));
	/* Knuth's multiplicative hash. */
	return ((key->source ^ low ^ high) * 2654435761U) / (0xffffffffU / WAITING_BUCKETS + 1) *
	       WAITING_SLOTS;
}

static __always_inline bool same_datagram(const struct fragment_key *one, const struct fragment_key *other)
{
	const __u32 *left = (const void *)one, *right = (const void *)other;

	_Static_assert(sizeof(*one) == 20, "compared as five words");
	return left[0] == right[0] && left[1] == right[1] && left[2] == right[2] && left[3] == right[3] &&
	       left[4] == right[4];
}

/* Whether a slot is free, or has become so because its time is over. */
static __always_inline bool vacate(const __u32 *slot, __u64 now)
{
	const struct held *held = waiting_get(slot);

	if (!held)
		return true;
	if (now <= held->expires_ns || waiting_delete(slot))
		return false;
	count(DROP_FRAGMENT_UNKNOWN);
	return true;
}

/* Puts a frame into a slot of its source; returns the slot, WAITING_MAX: no room. */
static __always_inline __u32 take_slot(const struct held *held, __u64 now)
{
	__u32 bucket = waiting_bucket(&held->key);
	__u32 slot;

	for (int i = 0; i < WAITING_SLOTS; i++) {
		slot = bucket + i;
		if (vacate(&slot, now) && waiting_put(&slot, held, BPF_NOEXIST) == 0)
			return slot;
	}
	return WAITING_MAX;
}

/* Says that fragments of this datagram are held; false: its first one has been here already. */
static __always_inline bool await_first(const struct fragment_key *key, __u64 now)
{
	struct fragment awaited = {
		.expires_ns = now + WAITING_SECONDS * NANOSECONDS,
		.state = FRAGMENT_AWAITED,
	};
	struct fragment *known;

	if (fragments_put(key, &awaited, BPF_NOEXIST) == 0)
		return true;
	known = fragments_get(key);
	if (known && known->state != FRAGMENT_AWAITED && now <= known->expires_ns)
		return false;
	fragments_put(key, &awaited, BPF_ANY);
	return true;
}

static __always_inline int hold(struct __sk_buff *skb, const struct fragment_key *key)
{
	__u64 now = bpf_ktime_get_ns();
	__u64 length = skb->len;
	__u32 zero = 0, slot;
	struct held *held = holding_get(&zero);

	if (!held || !WITHIN(length, HELD_OCTETS_MIN, WAITING_OCTETS))
		return drop(DROP_FRAGMENT_NO_ROOM);
	held->expires_ns = now + WAITING_SECONDS * NANOSECONDS;
	held->key = *key;
	held->length = length;
	if (bpf_skb_load_bytes(skb, 0, held->frame, length))
		return drop(DROP_MALFORMED);
	slot = take_slot(held, now);
	if (slot == WAITING_MAX)
		return drop(DROP_FRAGMENT_NO_ROOM);
	count(ROUTER_FRAGMENT_HELD);
	/* Not lost: what it said is kept. (tcx has no verdict for that.) */
	if (await_first(key, now) || waiting_delete(&slot))
		return VERDICT_DROP;
	count(ROUTER_FRAGMENT_RELEASED);
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

/* Gives the packet the octets of a held frame. */
static __always_inline bool become(struct __sk_buff *skb, struct held *held)
{
	__u64 length = held->length;

	return WITHIN(length, HELD_OCTETS_MIN, WAITING_OCTETS) && bpf_skb_change_tail(skb, length, 0) == 0 &&
	       bpf_skb_store_bytes(skb, 0, held->frame, length, BPF_F_RECOMPUTE_CSUM) == 0;
}

/* Lets the first fragment and those that waited for it enter again, in this order. */
static __always_inline int release(struct __sk_buff *skb, const struct packet *packet,
				   const struct fragment_key *key)
{
	bool partial = is_checksum_partial(skb, packet);
	__u32 bucket = waiting_bucket(key);
	__u64 now = bpf_ktime_get_ns();
	struct held *held;
	__u32 slot;

	if (partial)
		return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
	bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
	/* What the device verified was another packet. */
	bpf_csum_level(skb, BPF_CSUM_LEVEL_RESET);
	for (int i = 0; i < WAITING_SLOTS; i++) {
		slot = bucket + i;
		held = waiting_get(&slot);
		if (!held || now > held->expires_ns || !same_datagram(&held->key, key) || !become(skb, held))
			continue;
		/* Somebody else may be at it; the slot is taken by whoever deletes it. */
		if (waiting_delete(&slot))
			continue;
		count(ROUTER_FRAGMENT_RELEASED);
		bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
	}
	return VERDICT_DROP;
}
