/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Stands in for bpf/http/conn.h where a pure part of the engine is built for the host. */
#ifndef __PODSCOPE_CONN_H
#define __PODSCOPE_CONN_H

#include "http/h1.h"

#define SEC(name)
#define __uint(name, value)   int(*name)[value]
#define __type(name, value)   typeof(value) *name
#define BPF_MAP_TYPE_HASH     1
#define BPF_MAP_TYPE_LRU_HASH 9
#define BPF_NOEXIST           1

struct conn {
	u64 cgroup_id;
	u32 pid;
};

static const u32 routes_per_workload = 200;

static inline void *bpf_map_lookup_elem(void *map, const void *key)
{
	(void)map;
	(void)key;
	return NULL;
}

static inline long bpf_map_update_elem(void *map, const void *key, const void *value, u64 flags)
{
	(void)map;
	(void)key;
	(void)value;
	(void)flags;
	return 0;
}

static inline void lose(u32 reason, u32 n)
{
	(void)reason;
	(void)n;
}

#endif
