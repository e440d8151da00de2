/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The request log: chosen in the kernel, sent up one record an exchange. */
#ifndef __PODSCOPE_LOG_H
#define __PODSCOPE_LOG_H

#include "common/loop.h"
#include "http/conn.h"

#define NO_WAKEUP BPF_RB_NO_WAKEUP

struct detail_key {
	u64 cookie;
	u64 number;
};

/* The texts of requests in flight that may be logged. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct detail_key);
	__type(value, struct h1_text);
} details SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} request_ring SEC(".maps");

/* Whose exchanges are not logged; those of cgroups that user space does not know yet are. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, u64);
	__type(value, u8);
} log_except SEC(".maps");

u32 log_sampled[4]; /* requests seen by side, to take one in one_in of each */

struct glob {
	u32 text, pattern;   /* positions */
	u32 star, star_text; /* behind the last '*', and where it was tried */
	u32 len;
	u32 verdict;
	u32 bank; /* of log_rules, from the first step to the last */
};

/* 0 behind its end. */
static __always_inline u8 glob_pattern(struct glob *g, u32 at)
{
	const struct log_rules *rules = &log_rules[g->bank & 1];

	return at < 64 && at < rules->path_len ? rules->path[at & 63] : 0;
}

struct glob_run {
	struct glob *g;
	struct h1_text *t;
	u32 decided;
};

/* One step of a match that goes back to the last '*'; true when decided. */
static __always_inline bool glob_step(struct glob *g, struct h1_text *t)
{
	u32 text = g->text, pattern = g->pattern;
	u8 p = glob_pattern(g, pattern);

	if (text >= g->len || text >= HTTP_PATH_MAX) {
		if (p == '*') {
			g->pattern = pattern + 1;
			return false;
		}
		g->verdict = pattern >= log_rules[g->bank & 1].path_len;
		return true;
	}
	if (p == '*') {
		g->star = pattern + 1;
		g->star_text = text;
		g->pattern = pattern + 1;
		return false;
	}
	if (p && (p == '?' || p == t->path[text])) {
		g->text = text + 1;
		g->pattern = pattern + 1;
		return false;
	}
	if (!g->star) {
		g->verdict = 0;
		return true;
	}
	g->pattern = g->star;
	g->star_text++;
	g->text = g->star_text;
	return false;
}

LOOP_BODY glob_turn(u32 turn, void *state)
{
	struct glob_run *run = state;

	run->decided = glob_step(run->g, run->t);
	return run->decided;
}

/* Length of the path: up to the query. */
static __always_inline u32 log_path_length(struct h1_text *t)
{
	u32 len = t->path_len;

	if (len > HTTP_PATH_MAX)
		len = HTTP_PATH_MAX;
	for (u32 i = 0; i < HTTP_PATH_MAX; i++) {
		forget();
		if (i >= len || t->path[i] == '?')
			return i;
	}
	return len;
}

#define GLOB_STEPS 512

/* Does the path match? Where that takes too long to say, yes: user space looks again. */
__noinline int log_path_matches(CONN_ONLY)
{
	FIND_CONN(skb);
	struct glob_run run = {};
	struct glob *g;

	if (!conn)
		return 0;
	g = (struct glob *)conn->window; /* free between two parses */
	__builtin_memset(g, 0, sizeof(*g));
	g->len = log_path_length(&conn->text);
	g->bank = log_bank;
	run.g = g;
	run.t = &conn->text;
	LOOP(GLOB_STEPS, GLOB_STEPS / 4, glob_turn, &run);
	return run.decided ? g->verdict : 1;
}

static __always_inline u16 server_port(struct conn *conn)
{
	return conn->side == HTTP_SERVER ? conn->local_port : conn->peer_port;
}

/* Before a request's head is read: may it be logged, so that its texts are wanted? */
static __always_inline bool log_wants(struct conn *conn)
{
	const struct log_rules *rules = log_now();
	u32 port = server_port(conn), one_in = rules->one_in;

	if (!(rules->flags & LOG_ON))
		return false;
	if (rules->sides && !(rules->sides & (1 << (conn->side & 3))))
		return false;
	if (rules->port_last && (port < rules->port_first || port > rules->port_last))
		return false;
	if ((rules->flags & LOG_EXCEPT) && bpf_map_lookup_elem(&log_except, &conn->cgroup_id))
		return false;
	if (one_in > 1) {
#ifdef PODSCOPE_NO_ATOMICS
		return log_sampled[conn->side & 3]++ % one_in == 0;
#else
		return __sync_fetch_and_add(&log_sampled[conn->side & 3], 1) % one_in == 0;
#endif
	}
	return true;
}

static const struct h1_text no_text;

/* After the head: keeps its texts until the answer, if the path is wanted. */
static __always_inline u8 log_keep(struct __sk_buff *skb, struct conn *conn, u32 number)
{
	struct detail_key key = { .cookie = conn->cookie, .number = number };
	struct h1_text *text;

	if (!(conn->stream[request_direction(conn) & 1].h1.flags & H1_KEEP_TEXT))
		return 0;
	if (log_now()->path_len && !log_path_matches(CONN_ALONE(skb, conn)))
		return 0;
	/* in two steps: before Linux 6.4 memory of an argument is no source of a map's value */
	bpf_map_update_elem(&details, &key, &no_text, BPF_ANY);
	text = bpf_map_lookup_elem(&details, &key);
	if (text)
		*text = conn->text;
	return EXCHANGE_LOGGED;
}

static __always_inline bool log_is_error(struct conn *conn, u16 status, u8 error)
{
	return error || status >= 500 || (conn->side == HTTP_CLIENT && status >= 400);
}

/* At the end: is this one asked for? */
static __always_inline bool log_takes(struct conn *conn, u64 ns, u16 status, u8 error)
{
	const struct log_rules *rules = log_now();
	u32 flags = rules->flags;

	if (rules->status_last && (status < rules->status_first || status > rules->status_last))
		return false;
	if (flags & LOG_ALL)
		return true;
	if ((flags & LOG_ERRORS) && log_is_error(conn, status, error))
		return true;
	return (flags & LOG_SLOW) && ns >= rules->slower_ns;
}

/*
 * The value of a lower-case hexadecimal digit (W3C Trace Context 2.2), or 255.
 * By a table of values plus one: branches for every digit are too many for the verifier.
 */
static const u8 trace_digits[256] = {
	['0'] = 1,  ['1'] = 2,  ['2'] = 3,  ['3'] = 4,  ['4'] = 5,  ['5'] = 6,
	['6'] = 7,  ['7'] = 8,  ['8'] = 9,  ['9'] = 10, ['a'] = 11, ['b'] = 12,
	['c'] = 13, ['d'] = 14, ['e'] = 15, ['f'] = 16,
};

static __always_inline u8 trace_digit(u8 c)
{
	return trace_digits[c] - 1;
}

static __always_inline bool trace_bytes(struct h1_text *t, u32 at, u8 *out, u32 n)
{
	u8 bad = 0;

	for (u32 i = 0; i < 16; i++) {
		u8 high, low;

		if (i >= n)
			break;
		high = trace_digit(t->trace[(at + 2 * i) & 63]);
		low = trace_digit(t->trace[(at + 2 * i + 1) & 63]);
		bad |= (high | low) & 16;
		out[i] = high << 4 | (low & 15);
	}
	return !bad;
}

/* traceparent: 00-<trace id>-<span id>-<flags>; anything else is left out. */
static __always_inline void log_trace(struct http_request *r, struct h1_text *t)
{
	if (t->trace_len != H1_TRACE_MAX || t->trace[2] != '-' || t->trace[35] != '-' ||
	    t->trace[52] != '-')
		return;
	if (trace_bytes(t, 3, r->trace_id, 16) && trace_bytes(t, 36, r->span_id, 8) &&
	    trace_bytes(t, 53, &r->trace_flags, 1))
		return;
	__builtin_memset(r->trace_id, 0, sizeof(r->trace_id));
	__builtin_memset(r->span_id, 0, sizeof(r->span_id));
	r->trace_flags = 0;
}

static __always_inline void log_texts(struct http_request *r, struct h1_text *t)
{
	r->path_len = t->path_len;
	r->host_len = t->host_len;
	r->agent_len = t->agent_len;
	r->method_len = t->method_len;
	__builtin_memcpy(r->method_text, t->method, sizeof(r->method_text));
	__builtin_memcpy(r->path, t->path, sizeof(r->path));
	__builtin_memcpy(r->host, t->host, sizeof(r->host));
	__builtin_memcpy(r->agent, t->agent, sizeof(r->agent));
	log_trace(r, t);
}

#endif
