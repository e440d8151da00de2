/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Histograms of series that are kept in a hash map: a map beside it holds the pieces, each by
 * the key of its series with the number of the piece in it.
 */
#ifndef __PODSCOPE_CHUNKS_H
#define __PODSCOPE_CHUNKS_H

#include "common/bounds.h"
#include "common/kernel.h"

static const struct chunk empty_chunk;

/* Number of the piece that a bucket is in. */
static __always_inline u8 chunk_of(u32 bucket)
{
	return bucket / CHUNK_BUCKETS;
}

/* Counts one in a bucket; the key has the piece's number. False: there is no room. */
static __always_inline bool chunk_add(void *map, const void *key, u32 bucket)
{
	struct chunk *chunk = bpf_map_lookup_elem(map, key);

	if (!chunk) {
		bpf_map_update_elem(map, key, &empty_chunk, BPF_NOEXIST);
		chunk = bpf_map_lookup_elem(map, key);
	}
	if (!chunk)
		return false;
	__sync_fetch_and_add(&chunk->n[bucket & (CHUNK_BUCKETS - 1)], 1);
	return true;
}

#endif
