/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Route: the target's path with segments that look like ids as "*". The text
 * goes up once, in the map of routes; counters only carry its hash.
 */
#ifndef __PODSCOPE_ROUTE_H
#define __PODSCOPE_ROUTE_H

#include "common/loop.h"
#include "http/conn.h"

#define ROUTE_NONE  0
#define ROUTE_OTHER 1
#define FNV_OFFSET  0xcbf29ce484222325ULL
#define FNV_PRIME   0x100000001b3ULL

struct route_key {
	u64 hash;
	u64 cgroup_id;
	u32 pid;
	u32 pad;
};

struct route_text {
	u16 len;
	char text[HTTP_ROUTE_MAX];
};

struct route_owner {
	u64 cgroup_id;
	u32 pid;
	u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct route_key);
	__type(value, struct route_text);
} routes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct route_owner);
	__type(value, u32);
} route_counts SEC(".maps");

/* The scan's state; it lives in the connection's window, behind the text. */
struct route_scan {
	struct route_text route;
	u64 hash;
	u64 segment_hash; /* before the segment */
	u32 at;           /* in the path */
	u32 segment;      /* where it begins in the route */
	u32 segment_len;  /* as sent */
	u8 other;         /* a byte that is neither digit nor letter */
	u8 digits;
	u8 letters;
	u8 not_hex;
	u8 not_uuid;
	u8 done;
	u8 slashes;
};

static __always_inline void route_segment_begin(struct route_scan *s)
{
	s->segment = s->route.len;
	s->segment_hash = s->hash;
	s->segment_len = 0;
	s->digits = 0;
	s->letters = 0;
	s->not_hex = 0;
	s->not_uuid = 0;
	s->other = 0;
}

static __always_inline void route_put(struct route_scan *s, u8 c)
{
	u32 at = s->route.len;

	if (at >= HTTP_ROUTE_MAX)
		return;
	opaque(at);
	s->route.text[at & (HTTP_ROUTE_MAX - 1)] = c;
	s->route.len = at + 1;
	s->hash = (s->hash ^ c) * FNV_PRIME;
}

static __always_inline bool route_is_id(struct route_scan *s)
{
	if (!s->digits)
		return false;
	if (!s->letters && !s->other)
		return true;
	if (!s->not_hex && s->segment_len >= 8)
		return true;
	if (!s->not_uuid && s->segment_len == 36)
		return true;
	return s->letters && s->segment_len >= 16;
}

static __always_inline void route_segment_end(struct route_scan *s)
{
	if (!route_is_id(s))
		return;
	s->route.len = s->segment;
	s->hash = s->segment_hash;
	route_put(s, '*');
}

static __always_inline void route_segment_byte(struct route_scan *s, u8 c)
{
	u32 i = s->segment_len;
	u8 lower = c | 0x20;
	bool letter = lower >= 'a' && lower <= 'z', digit = c >= '0' && c <= '9';
	bool hex = digit || (letter && lower <= 'f'),
	     dash = i == 8 || i == 13 || i == 18 || i == 23;

	if (digit)
		s->digits = 1;
	else if (letter)
		s->letters = 1;
	else
		s->other = 1;
	if (!hex)
		s->not_hex = 1;
	if (dash ? c != '-' : !hex)
		s->not_uuid = 1;
	s->segment_len = i + 1;
	route_put(s, c);
}

/* The scan at the target's start. */
static __always_inline void route_begin(struct route_scan *s, struct h1_text *t)
{
	s->route.len = 0;
	s->hash = FNV_OFFSET;
	s->at = 0;
	s->done = 0;
	/* absolute-form: the path begins at the third slash, behind scheme and authority */
	s->slashes = t->path[0] == '/' || t->path[0] == '*' ? 3 : 0;
	route_segment_begin(s);
}

static __always_inline void route_byte(struct route_scan *s, u8 c)
{
	if (c == '?' || c == '#') {
		s->done = 1;
		return;
	}
	if (s->slashes < 3) {
		s->slashes += c == '/';
		if (s->slashes < 3)
			return;
	}
	if (c != '/') {
		route_segment_byte(s, c);
		return;
	}
	route_segment_end(s);
	route_put(s, '/');
	route_segment_begin(s);
}

#define ROUTE_TURNS 24 /* bytes in one call without bpf_loop() */

struct route_run {
	struct route_scan *s;
	struct h1_text *t;
	u32 len;
};

LOOP_BODY route_turn(u32 turn, void *state)
{
	struct route_run *run = state;
	struct route_scan *s = run->s;
	u32 at = s->at;

	if (s->done || at >= run->len || at >= HTTP_PATH_MAX)
		return 1;
	s->at = at + 1;
	route_byte(s, run->t->path[at]);
	return 0;
}

static __always_inline void route_end(struct route_scan *s)
{
	route_segment_end(s);
	if (!s->route.len)
		route_put(s, '/'); /* absolute-form without a path (RFC 9112 3.2.2) */
}

static const struct route_text no_route;

/* The route's hash if this workload may use it, after putting up its text once. */
static __always_inline u64 route_publish(struct conn *conn, struct route_scan *s)
{
	struct route_key key = { .hash = s->hash, .cgroup_id = conn->cgroup_id, .pid = conn->pid };
	struct route_owner owner = { .cgroup_id = conn->cgroup_id, .pid = conn->pid };
	u32 one = 1, *count;
	struct route_text *text;

	if (bpf_map_lookup_elem(&routes, &key))
		return s->hash;
	count = bpf_map_lookup_elem(&route_counts, &owner);
	if (count && *count >= routes_per_workload)
		goto full;
	/* in two steps: before Linux 6.4 memory of an argument is no source of a map's value */
	if (bpf_map_update_elem(&routes, &key, &no_route, BPF_NOEXIST)) {
		if (bpf_map_lookup_elem(&routes, &key))
			return s->hash; /* another CPU was first */
		goto full;
	}
	text = bpf_map_lookup_elem(&routes, &key);
	if (text)
		*text = s->route;
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(&route_counts, &owner, &one, BPF_NOEXIST);
	return s->hash;
full:
	lose(HTTP_LOST_ROUTES_FULL, 1);
	return ROUTE_OTHER;
}

/* High bit set in every byte of `word` that equals '?'. */
static __always_inline u64 route_questions(u64 word)
{
	u64 x = word ^ 0x3f3f3f3f3f3f3f3fULL;

	return ~(((x & 0x7f7f7f7f7f7f7f7fULL) + 0x7f7f7f7f7f7f7f7fULL) | x | 0x7f7f7f7f7f7f7f7fULL);
}

/* A hash of the path as sent, without the query, eight bytes at a time. */
static __always_inline u64 route_raw_hash(struct h1_text *t, u32 len)
{
	u64 hash = FNV_OFFSET;

	for (u32 i = 0; i < HTTP_PATH_MAX / 8; i++) {
		u64 word, questions;

		if (i * 8 >= len)
			break;
		word = load_u64(t->path + i * 8);
		if (i * 8 + 8 > len)
			word &= (1ULL << ((len & 7) * 8)) - 1;
		questions = route_questions(word);
		if (questions) {
			/* keep the bytes below the first '?' */
			word &= ((questions & -questions) >> 7) - 1;
			len = 0;
		}
		hash = (hash ^ word) * FNV_PRIME;
		hash ^= hash >> 29;
	}
	return hash;
}

#endif
