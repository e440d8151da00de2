/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What iterators over maps are given. */
#ifndef __PODSCOPE_ITER_H
#define __PODSCOPE_ITER_H

#include "common/kernel.h"

struct bpf_iter_meta {
	struct seq_file *seq;
} __attribute__((preserve_access_index));

struct bpf_iter__bpf_map_elem {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	void *key;
	void *value;
} __attribute__((preserve_access_index));

#endif
