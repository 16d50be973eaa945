/* Byte order. Values in maps are in host order unless their type is __be16 or __be32. */
#pragma once

#include <linux/types.h>

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define TO_BE16(x) ((__be16)__builtin_bswap16(x))
#define TO_BE32(x) ((__be32)__builtin_bswap32(x))
#else
#define TO_BE16(x) ((__be16)(x))
#define TO_BE32(x) ((__be32)(x))
#endif
#define FROM_BE16(x) ((__u16)TO_BE16(x))
#define FROM_BE32(x) ((__u32)TO_BE32(x))
