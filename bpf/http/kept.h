/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Bytes that came before their turn: segments out of order, segments that
 * another CPU was in the way of, and what follows CONNECT or Upgrade until the
 * answer. They stand in blocks by their place in the stream; a socket's ranges
 * say which are there. A range says what is kept, so blocks need no cleaning:
 * the least recently used go.
 */
#ifndef __PODSCOPE_KEPT_H
#define __PODSCOPE_KEPT_H

#include "common/loop.h"
#include "common/segment.h"
#include "common/storage.h"
#include "http/conn.h"

#define BLOCK      1024         /* a power of two */
#define KEEP_MAX   (512 * 1024) /* bytes of one segment (BIG TCP) */
#define RANGES_MAX 64

struct block_key {
	u64 id;    /* of the connection: its cookie, or early_id() */
	u32 block; /* sequence number / BLOCK */
	u32 direction;
};

struct block {
	u8 data[BLOCK];
	u8 slack[BLOCK]; /* never used: lets the verifier see that a copy ends inside */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct block_key);
	__type(value, struct block);
} blocks SEC(".maps");

struct range {
	u32 start; /* sequence numbers */
	u32 end;
};

struct ranges {
	struct bpf_spin_lock spin;
	u32 n[2];
	/* for the loops below: in memory, so that every turn looks the same to the verifier */
	volatile u32 out;
	volatile u32 start;
	volatile u32 end;
	struct range range[2][RANGES_MAX];
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct ranges);
} kept SEC(".maps");

static const struct block no_block;

static __always_inline bool seq_before(u32 a, u32 b)
{
	return (s32)(a - b) < 0;
}

static __always_inline void ranges_put(struct ranges *r, u32 d, struct range range)
{
	u32 out = r->out;

	r->range[d][out & (RANGES_MAX - 1)] = range;
	r->out = out + 1;
}

/* Adds [start, end) to the ranges of one direction, merging what touches. False: no room. */
static __always_inline bool ranges_add(struct ranges *r, u32 direction, u32 start, u32 end)
{
	u32 d = direction & 1;
	bool room;

	bpf_spin_lock(&r->spin);
	r->out = 0;
	r->start = start;
	r->end = end;
	for (u32 i = 0; i < RANGES_MAX; i++) {
		struct range old = r->range[d][i];

		if (i >= r->n[d])
			break;
		if (seq_before(r->end, old.start) || seq_before(old.end, r->start)) {
			ranges_put(r, d, old);
			continue;
		}
		if (seq_before(old.start, r->start))
			r->start = old.start;
		if (seq_before(r->end, old.end))
			r->end = old.end;
	}
	room = r->out < RANGES_MAX;
	if (room)
		ranges_put(r, d, (struct range){ .start = r->start, .end = r->end });
	r->n[d] = r->out;
	bpf_spin_unlock(&r->spin);
	return room;
}

/* Bytes kept from `next` on; ranges that lie before it are dropped. */
static __always_inline u32 ranges_ready(struct ranges *r, u32 direction, u32 next)
{
	u32 d = direction & 1, ready;

	bpf_spin_lock(&r->spin);
	r->out = 0;
	r->end = next;
	for (u32 i = 0; i < RANGES_MAX; i++) {
		struct range old = r->range[d][i];

		if (i >= r->n[d])
			break;
		if (!seq_before(next, old.end))
			continue;
		if (!seq_before(next, old.start))
			r->end = old.end;
		ranges_put(r, d, old);
	}
	ready = r->end - next;
	r->n[d] = r->out;
	bpf_spin_unlock(&r->spin);
	return ready;
}

/* Copies one piece of the packet to its block; returns its length, 0 on failure. */
static __always_inline u32 block_fill(struct __sk_buff *skb, struct block_key *key, u32 seq,
				      u32 off, u32 len)
{
	u32 in = seq & (BLOCK - 1);
	struct block *block;
	u32 n;

	key->block = seq / BLOCK;
	block = bpf_map_lookup_elem(&blocks, key);
	/* a full LRU map may find nothing to give up while other CPUs are at it */
	for (u32 i = 0; i < 3 && !block; i++) {
		bpf_map_update_elem(&blocks, key, &no_block, BPF_NOEXIST);
		block = bpf_map_lookup_elem(&blocks, key);
	}
	if (!block)
		return 0;
	n = BLOCK - in;
	if (n > len)
		n = len;
	return load_bytes(skb, off, block->data + in, n, BLOCK) ? n : 0;
}

/* block_fill() for a connection: a global function is verified once, not in every turn. */
__noinline int keep_piece(struct __sk_buff *skb, u32 direction, u32 seq, u32 off, u32 len)
{
	struct conn *conn = skb->sk ? bpf_sk_storage_get(&conns, skb->sk, 0, 0) : NULL;
	struct block_key key = { .direction = direction };

	if (!conn)
		return 0;
	key.id = conn->kept_id;
	return block_fill(skb, &key, seq, off, len);
}

/*
 * Keeps the packet's payload from `off` on. Called with and without the
 * connection's lock. 0: some of it could not be kept.
 */
__noinline int keep(struct __sk_buff *skb, u32 direction, u32 seq, u32 off, u32 len)
{
	struct bpf_sock *sk = skb->sk;
	struct conn *conn = sk ? bpf_sk_storage_get(&conns, sk, 0, 0) : NULL;
	u32 start = seq, end = seq + len;
	struct ranges *r;

	if (!conn)
		return 0;
	r = storage_made(&kept, sk);
	if (!r)
		return 0;
	for (u32 i = 0; i < KEEP_MAX / BLOCK + 2; i++) {
		u32 n;

		if (!len)
			break;
		n = keep_piece(skb, direction, seq, off, len);
		if (!n)
			return 0;
		seq += n;
		off += n;
		len -= n;
	}
	if (len || !ranges_add(r, direction, start, end))
		return 0;
	conn->has_kept = 1;
	return 1;
}

struct kept_copy {
	struct conn *conn;
	struct block *block;
	u32 in;
	u32 n;
};

LOOP_BODY kept_byte(u32 turn, void *state)
{
	struct kept_copy *copy = state;

	if (turn >= copy->n || turn >= H1_WINDOW)
		return 1;
	copy->conn->window[turn] = copy->block->data[(copy->in + turn) & (BLOCK - 1)];
	return 0;
}

/* Copies kept bytes from the stream's next one on to the window; returns how many. */
APART int kept_load(CONN_ONLY, u32 len)
{
	FIND_CONN(skb);
	struct kept_copy copy = { .conn = conn };
	struct block_key key = {};
	u32 n, next;

	if (!conn)
		return 0;
	next = conn->stream[conn->direction & 1].next;
	key.id = conn->kept_id;
	key.direction = conn->direction;
	key.block = next / BLOCK;
	copy.in = next & (BLOCK - 1);
	n = BLOCK - copy.in;
	copy.block = bpf_map_lookup_elem(&blocks, &key);
	if (!copy.block)
		return 0;
	if (n > len)
		n = len;
	if (n > H1_WINDOW)
		n = H1_WINDOW;
	copy.n = n;
	LOOP(H1_WINDOW, H1_WINDOW, kept_byte, &copy);
	return n;
}

/*
 * Bytes that complete a handshake: the hook sees them on the listener, before
 * the connection has a socket (TCP_NEW_SYN_RECV in tcp_v4_rcv()). They are kept
 * under the listener's cookie and the other end's address.
 */
struct early {
	u32 start; /* sequence numbers */
	u32 end;
	u64 ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, struct early);
} earlies SEC(".maps");

static __always_inline u64 early_mix(u64 hash, u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
	return hash ^ (hash >> 32);
}

static __always_inline u64 early_id(u64 listener, const u8 *peer, const u8 *local, u32 ports)
{
	u64 word[4];

	__builtin_memcpy(word, peer, 16);
	__builtin_memcpy(word + 2, local, 16);
	listener = early_mix(early_mix(listener, word[0]), word[1]);
	listener = early_mix(early_mix(listener, word[2]), word[3]);
	return early_mix(listener, ports) | 1ULL << 63;
}

struct early_run {
	struct __sk_buff *skb;
	struct block_key key;
	u32 seq;
	u32 off;
	u32 len;
	u32 failed;
};

LOOP_BODY early_piece(u32 turn, void *state)
{
	struct early_run *run = state;
	u32 n;

	if (!run->len)
		return 1;
	n = block_fill(run->skb, &run->key, run->seq, run->off, run->len);
	if (!n) {
		run->failed = 1;
		return 1;
	}
	run->seq += n;
	run->off += n;
	run->len -= n;
	return 0;
}

#define EARLY_PIECES 66 /* of a segment of 64 KB */

/* Keeps a segment that came to a listener. */
static __always_inline void early_keep(struct __sk_buff *skb, u64 id, struct segment *s)
{
	struct early early = { .start = s->seq, .end = s->seq + s->len }, *known;
	struct early_run run = {
		.skb = skb,
		.key = { .id = id, .direction = 0 },
		.seq = s->seq,
		.off = s->off,
		.len = s->len,
	};

	known = bpf_map_lookup_elem(&earlies, &id);
	if (known && !seq_before(s->seq, known->start) && !seq_before(known->end, early.end))
		return; /* the same again */
	LOOP(EARLY_PIECES, 4, early_piece, &run);
	if (run.failed || run.len) {
		lose(HTTP_LOST_HOLE, 1);
		return;
	}
	if (known && known->end == s->seq) {
		known->end = early.end;
		return;
	}
	early.ns = bpf_ktime_get_ns();
	bpf_map_update_elem(&earlies, &id, &early, BPF_ANY);
}

/* Takes over what came before the connection had a socket. */
static __always_inline void early_take(struct __sk_buff *skb, struct conn *conn, u64 id)
{
	struct early *early = bpf_map_lookup_elem(&earlies, &id);
	struct bpf_sock *sk = skb->sk;
	struct ranges *r;

	if (!early || !sk)
		return;
	r = storage_made(&kept, sk);
	if (!r || !ranges_add(r, 0, early->start, early->end))
		return;
	conn->kept_id = id;
	conn->has_kept = 1;
	conn->early_ns = early->ns;
	bpf_map_delete_elem(&earlies, &id);
}

#endif
