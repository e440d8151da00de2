/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Counters: each series has a number (its slot), found by a hash of its key
 * and remembered with the socket. Slots and histogram chunks come from stacks
 * that user space fills, and goes on filling with those of expired series.
 * Counters stand in `stripes` copies, chosen by CPU, to keep CPUs apart; every
 * update is atomic, since a program in process context can be interrupted by
 * one in soft interrupt, and moved by preemption.
 */
#ifndef __PODSCOPE_SERIES_H
#define __PODSCOPE_SERIES_H

#include "common/atomics.h"
#include "common/bounds.h"
#include "http/conn.h"

#define MAX_SERIES 10000

struct series_info {
	struct http_series_key key;
	u32 live;
	u32 pad;
	u32 chunk[CHUNKS]; /* 0: none yet */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SERIES);
	__type(key, struct http_series_key);
	__type(value, u32);
} series_slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_SERIES);
	__type(key, u32);
	__type(value, struct series_info);
} series_info SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_SERIES);
	__type(key, u32);
	__type(value, struct http_series_value);
} series_values SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_SERIES);
	__type(key, u32);
	__type(value, struct chunk);
} chunks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, MAX_SERIES);
	__uint(value_size, sizeof(u32));
} free_slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, MAX_SERIES);
	__uint(value_size, sizeof(u32));
} free_chunks SEC(".maps");

#ifdef PODSCOPE_NO_ATOMICS
struct chunk_lock {
	struct bpf_spin_lock spin;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct chunk_lock);
} chunk_lock SEC(".maps");
#endif

/* Cgroups that are not to be watched; a change comes with a new epoch. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, u64);
	__type(value, u8);
} ignored SEC(".maps");

#define SLOT_IGNORED 0xffffffffu

/* Addresses that series tell apart, where they do not tell all: 1: named by user space. */
struct address {
	u8 bytes[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct address);
	__type(value, u8);
} peers SEC(".maps");

enum peer_kept {
	PEER_CLASS_ONLY = 0,
	PEER_KEPT = 1,
	PEER_NO_ROOM = 2,
};

/*
 * Is the peer's address a part of the key? One that user space does not know may be a new pod's,
 * if it is private; there are only so many of them.
 */
static __always_inline u32 peer_kept(struct conn *conn)
{
	struct address address;
	u8 fresh = 0;

	if (with_peers != PEERS_KNOWN)
		return with_peers == PEERS_ALL ? PEER_KEPT : PEER_CLASS_ONLY;
	__builtin_memcpy(&address, conn->peer, sizeof(address));
	if (bpf_map_lookup_elem(&peers, &address))
		return PEER_KEPT;
	if (conn->peer_class != HTTP_PEER_PRIVATE)
		return PEER_CLASS_ONLY;
	if (*(volatile u32 *)&peers_new >= peers_most) {
		lose(HTTP_LOST_PEERS_FULL, 1);
		return PEER_NO_ROOM;
	}
	if (!bpf_map_update_elem(&peers, &address, &fresh, BPF_NOEXIST))
		__sync_fetch_and_add(&peers_new, 1);
	return PEER_KEPT;
}

/* Slots 1 and 2 hold what found no free slot: server side, client side. */
static __always_inline u32 series_overflow(u8 side)
{
	lose(HTTP_LOST_TABLE_FULL, 1);
	return side == HTTP_SERVER ? 1 : 2;
}

static __always_inline u32 series_slot(const struct http_series_key *key)
{
	u32 *known = bpf_map_lookup_elem(&series_slots, key), slot;
	struct series_info *info;

	if (known)
		return *known;
	if (bpf_map_pop_elem(&free_slots, &slot))
		return series_overflow(key->side);
	info = bpf_map_lookup_elem(&series_info, &slot);
	if (!info)
		return series_overflow(key->side);
	info->key = *key;
	if (bpf_map_update_elem(&series_slots, key, &slot, BPF_NOEXIST)) {
		bpf_map_push_elem(&free_slots, &slot, 0);
		known = bpf_map_lookup_elem(&series_slots, key);
		return known ? *known : series_overflow(key->side);
	}
	info->live = 1;
	__sync_fetch_and_add(&series_created, 1);
	return slot;
}

/* Makes `fresh` the chunk at `place` unless there is one; returns the one in force. */
static __always_inline u32 chunk_publish(u32 *place, u32 fresh)
{
#ifdef PODSCOPE_NO_ATOMICS
	u32 zero = 0, before;
	struct chunk_lock *lock = bpf_map_lookup_elem(&chunk_lock, &zero);

	if (!lock)
		return 0;
	bpf_spin_lock(&lock->spin);
	before = *place;
	if (!before)
		*place = fresh;
	bpf_spin_unlock(&lock->spin);
#else
	u32 before = __sync_val_compare_and_swap(place, 0, fresh);
#endif
	if (!before)
		return fresh;
	bpf_map_push_elem(&free_chunks, &fresh, 0);
	return before;
}

static __always_inline u32 series_chunk(struct series_info *info, u32 bucket)
{
	u32 *place = &info->chunk[(bucket / CHUNK_BUCKETS) & (CHUNKS - 1)], fresh;

	if (*place)
		return *place;
	if (bpf_map_pop_elem(&free_chunks, &fresh))
		return 0;
	return chunk_publish(place, fresh);
}

/* Adds one exchange. Chunk 0 takes what found no free chunk. */
static __always_inline void series_add(u32 slot, u64 ns, u64 ttfb_ns, u64 request_bytes,
				       u64 response_bytes)
{
	u32 stripe = bpf_get_smp_processor_id() & (stripes - 1);
	u32 index = slot * stripes + stripe, bucket = bucket_of(ns), at;
	struct series_info *info = bpf_map_lookup_elem(&series_info, &slot);
	struct http_series_value *value = bpf_map_lookup_elem(&series_values, &index);
	struct chunk *chunk;

	if (!info || !value)
		return;
	__sync_fetch_and_add(&value->sum_ns, ns);
	if (ns != ttfb_ns)
		__sync_fetch_and_add(&value->body_sum_ns, ns - ttfb_ns);
	if (request_bytes)
		__sync_fetch_and_add(&value->request_bytes, request_bytes);
	if (response_bytes)
		__sync_fetch_and_add(&value->response_bytes, response_bytes);
	__sync_fetch_and_add(&value->le[bound_of(ns, bucket) & 15], 1);
	atomic_max(&value->max_ns[interval_parity & 1], ns);
	at = series_chunk(info, bucket) * stripes + stripe;
	chunk = bpf_map_lookup_elem(&chunks, &at);
	if (chunk)
		__sync_fetch_and_add(&chunk->n[bucket & (CHUNK_BUCKETS - 1)], 1);
}

#endif
