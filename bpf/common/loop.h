/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Loops whose body the verifier sees once: bpf_loop(), since Linux kernel
 * commit e6f2dd0f8067 ("bpf: Add bpf_loop helper") (in v5.17). Before it, and on
 * the host, a plain loop of fewer turns; whoever calls goes on with another call.
 */
#ifndef __PODSCOPE_LOOP_H
#define __PODSCOPE_LOOP_H

#include "common/types.h"

#if defined(__bpf__) && !defined(PODSCOPE_NO_LOOP)
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#define LOOP_BODY                     static long
#define LOOP(turns, few, body, state) bpf_loop(turns, body, state, 0)
#else
#define LOOP_BODY static __always_inline long
#define LOOP(turns, few, body, state)                                                              \
	do {                                                                                       \
		for (u32 turn = 0; turn < (few); turn++) {                                         \
			forget();                                                                  \
			if (body(turn, state))                                                     \
				break;                                                             \
		}                                                                                  \
	} while (0)
#endif

#endif
