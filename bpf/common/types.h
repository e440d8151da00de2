/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Names for integers, and what the parsers need to build on the host as well. */
#ifndef __PODSCOPE_TYPES_H
#define __PODSCOPE_TYPES_H

#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
#ifndef __noinline
#define __noinline __attribute__((noinline))
#endif

/* Keeps what is rare out of the way: the path of most packets should fill few cache lines. */
#ifndef likely
#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#endif

/* Hides a value's origin from the compiler, so that it keeps the bound the verifier needs. */
#define opaque(x) asm volatile("" : "+r"(x))

/*
 * Eight bytes from anywhere. For BPF the compiler would put them together one
 * by one, since it assumes that words are aligned; the machines it runs on do not.
 */
static __always_inline u64 load_u64(const void *at)
{
#ifdef __bpf__
	return *(const u64 *)at;
#else
	u64 word;

	__builtin_memcpy(&word, at, sizeof(word));
	return word;
#endif
}

static __always_inline void store_u64(void *at, u64 word)
{
#ifdef __bpf__
	*(u64 *)at = word;
#else
	__builtin_memcpy(at, &word, sizeof(word));
#endif
}

/*
 * The compiler knows nothing of memory any more. At the head of a loop: what
 * was read in one turn does not live on in registers, so that every turn looks
 * the same to the verifier.
 */
#define forget() asm volatile("" ::: "memory")

#endif
