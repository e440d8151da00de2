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

/* Hides a value's origin from the compiler, so that it keeps the bound the verifier needs. */
#define opaque(x) asm volatile("" : "+r"(x))

/*
 * The compiler knows nothing of memory any more. At the head of a loop: what
 * was read in one turn does not live on in registers, so that every turn looks
 * the same to the verifier.
 */
#define forget() asm volatile("" ::: "memory")

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
#ifndef __noinline
#define __noinline __attribute__((noinline))
#endif

#endif
