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

/* A member of the map's value itself: Linux 5.10 looks no deeper. */
#ifdef PODSCOPE_NO_ATOMICS
#define word_lock bpf_spin_lock
#else
struct word_lock {
};
#endif

/* Adds, and returns what the word held before. */
static __always_inline u32 fetch_add(u32 *word, struct word_lock *spin, s32 n)
{
#ifdef PODSCOPE_NO_ATOMICS
	u32 before;

	bpf_spin_lock(spin);
	before = *word;
	*word = before + n;
	bpf_spin_unlock(spin);
	return before;
#else
	return __sync_fetch_and_add(word, n);
#endif
}

/* Raises a word to a higher number. Without the instruction two at once may leave the lower one. */
static __always_inline void atomic_max(u64 *max, u64 ns)
{
	u64 seen = *(volatile u64 *)max;

#ifdef PODSCOPE_NO_ATOMICS
	if (ns > seen)
		*max = ns;
#else
	for (int i = 0; i < 8 && ns > seen; i++) {
		u64 before = __sync_val_compare_and_swap(max, seen, ns);

		if (before == seen)
			return;
		seen = before;
	}
#endif
}

#endif
