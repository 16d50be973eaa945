/* Arithmetic of Internet checksums (RFC 1071). */
#pragma once

#include <linux/types.h>

#include <dnat/helpers.h>

/* A sum of 16-bit words in one word, carries added in; its complement is what a checksum field holds. */
static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* Sum of octets on the stack or in a map, to be folded; their number is a multiple of 4 and at most 512. */
static __always_inline __u32 add_up(void *octets, __u32 size, __u32 seed)
{
	return checksum_difference((void *)0, 0, octets, size, seed);
}

/* The checksum after one word has changed (RFC 1624, equation 3). */
static __always_inline __be16 adjust_checksum(__be16 checksum, __be16 from, __be16 to)
{
	return ~fold((__u32)(__u16)~checksum + (__u16)~from + to);
}
