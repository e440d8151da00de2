/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Atomic operations that give a value back. Since Linux kernel commits
 * 5ca419f2864a and 5ffa25502b5a ("bpf: Add BPF_FETCH field / create atomic_fetch_add",
 * "bpf: Add instructions for atomic_[cmp]xchg") (in v5.12). Before them a spin lock
 * beside the word does the same: PODSCOPE_NO_ATOMICS.
 */
#ifndef __PODSCOPE_ATOMICS_H
#define __PODSCOPE_ATOMICS_H

#include "common/kernel.h"

struct counter_word {
#ifdef PODSCOPE_NO_ATOMICS
	struct bpf_spin_lock spin;
#endif
	u32 value;
};

/* Adds, and returns what the word held before. */
static __always_inline u32 fetch_add(struct counter_word *word, s32 n)
{
#ifdef PODSCOPE_NO_ATOMICS
	u32 before;

	bpf_spin_lock(&word->spin);
	before = word->value;
	word->value = before + n;
	bpf_spin_unlock(&word->spin);
	return before;
#else
	return __sync_fetch_and_add(&word->value, n);
#endif
}

#endif
