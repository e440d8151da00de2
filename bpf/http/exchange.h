/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Requests and their answers: the queue of one connection, and what is counted. */
#ifndef __PODSCOPE_EXCHANGE_H
#define __PODSCOPE_EXCHANGE_H

#include "http/kept.h"
#include "http/log.h"
#include "http/route.h"
#include "http/series.h"

static __always_inline struct stream *request_stream(struct conn *conn)
{
	return &conn->stream[request_direction(conn) & 1];
}

static __always_inline struct stream *answer_stream(struct conn *conn)
{
	return &conn->stream[(request_direction(conn) ^ 1) & 1];
}

/* Sends the oldest exchange up to the log, if it is asked for. */
static __noinline void exchange_log(struct conn *conn, u64 ns, u64 ttfb_ns, bool wanted)
{
	struct exchange *e = &conn->oldest;
	struct detail_key key = { .cookie = conn->cookie, .number = e->number };
	u16 status = conn->answer_status;
	u8 error = conn->answer_error;
	struct h1_text *text;
	struct http_request *r;

	if (!wanted || !log_takes(conn, ns, status, error))
		goto out;
	r = bpf_ringbuf_reserve(&request_ring, sizeof(*r), 0);
	if (!r) {
		lose(HTTP_LOST_RING_FULL, 1);
		goto out;
	}
	__builtin_memset(r, 0, sizeof(*r));
	r->time_ns = e->start_ns;
	r->duration_ns = ns;
	r->ttfb_ns = ttfb_ns;
	r->request_bytes = e->request_bytes;
	r->response_bytes = conn->answer_bytes;
	r->cgroup_id = conn->cgroup_id;
	r->route = e->route;
	__builtin_memcpy(r->local, conn->local, sizeof(r->local));
	__builtin_memcpy(r->peer, conn->peer, sizeof(r->peer));
	r->local_port = conn->local_port;
	r->peer_port = conn->peer_port;
	r->pid = conn->pid;
	r->owner = conn->owner;
	r->status = status;
	r->side = conn->side;
	r->method = e->method;
	r->version = e->version;
	r->error = error;
	r->peer_class = conn->peer_class;
	text = bpf_map_lookup_elem(&details, &key);
	if (text)
		log_texts(r, text);
	else
		lose(HTTP_LOST_DETAILS_FULL, 1);
	bpf_ringbuf_submit(r, NO_WAKEUP);
out:
	bpf_map_delete_elem(&details, &key);
}

static __always_inline bool cache_fits(struct conn *conn, struct exchange *e, u16 status, u8 error)
{
	return conn->cached_slot && conn->cached_epoch == epoch && conn->cached_route == e->route &&
	       conn->cached_status == status && conn->cached_method == e->method &&
	       conn->cached_version == e->version && conn->cached_error == error;
}

/* The owner of a socket that was there before the start is found a little later. */
static __always_inline void find_owner(struct bpf_sock *sk, struct conn *conn)
{
	struct socket_note *note = bpf_sk_storage_get(&notes, sk, 0, 0);

	if (!note)
		return;
	conn->pid = note->pid;
	conn->owner = note->owner;
}

static __noinline u32 exchange_find_slot(struct conn *conn, u16 status, u8 error)
{
	struct exchange *e = &conn->oldest;
	struct http_series_key key = {
		.cgroup_id = conn->cgroup_id,
		.route = e->route,
		.pid = conn->pid,
		.owner = conn->owner,
		.port = server_port(conn),
		.status = status,
		.side = conn->side,
		.method = e->method,
		.version = e->version,
		.error = error,
		.peer_class = conn->peer_class,
	};
	/* before the look-ups: what they find may be taken away meanwhile */
	u32 slot, now_epoch = *(volatile u32 *)&epoch;

	u32 kept = peer_kept(conn);

	if (kept == PEER_KEPT)
		__builtin_memcpy(key.peer, conn->peer, sizeof(key.peer));
	if (bpf_map_lookup_elem(&ignored, &key.cgroup_id))
		slot = SLOT_IGNORED;
	else
		slot = series_slot(&key);
	/* an exchange under _OTHER, or without its peer, looks again: there may be room by then */
	conn->cached_slot = slot > 2 && kept != PEER_NO_ROOM ? slot : 0;
	conn->cached_epoch = now_epoch;
	conn->cached_route = e->route;
	conn->cached_status = status;
	conn->cached_method = e->method;
	conn->cached_version = e->version;
	conn->cached_error = error;
	return slot;
}

static __always_inline u32 exchange_slot(struct conn *conn, struct exchange *e, u16 status,
					 u8 error)
{
	if (likely(cache_fits(conn, e, status, error)))
		return conn->cached_slot;
	return exchange_find_slot(conn, status, error);
}

/* Counts the oldest exchange with the answer noted in conn. All times are on one clock. */
static __always_inline void exchange_count(struct bpf_sock *sk, struct conn *conn)
{
	struct exchange *e = &conn->oldest;
	u16 status = conn->answer_status;
	u8 error = conn->answer_error;
	u64 ns, ttfb_ns;
	u32 slot;

	if (unlikely(e->flags & EXCHANGE_BAD))
		return;
	if (unlikely(!conn->pid))
		find_owner(sk, conn);
	ns = conn->answer_end_ns > e->start_ns ? conn->answer_end_ns - e->start_ns : 0;
	ttfb_ns = conn->answer_first_ns > e->start_ns ? conn->answer_first_ns - e->start_ns : 0;
	slot = exchange_slot(conn, e, status, error);
	if (likely(slot != SLOT_IGNORED))
		series_add(slot, ns, ttfb_ns, e->request_bytes, conn->answer_bytes);
	if (unlikely(e->flags & EXCHANGE_LOGGED))
		exchange_log(conn, ns, ttfb_ns, slot != SLOT_IGNORED);
}

/* The oldest request leaves; the next one takes its place. */
static __always_inline void queue_pop(struct bpf_sock *sk, struct conn *conn)
{
	struct queue *q;

	if (unlikely(!conn->depth)) {
		if (conn->overflow)
			conn->overflow--;
		return;
	}
	conn->depth--;
	if (likely(!conn->depth))
		return;
	q = bpf_sk_storage_get(&queues, sk, 0, 0);
	if (!q)
		return;
	conn->oldest = q->slot[conn->head & (QUEUE_MAX - 1)];
	conn->head++;
}

/* The request that is still arriving, or arrived last. */
static __always_inline struct exchange *queue_newest(struct __sk_buff *skb, struct conn *conn)
{
	struct queue *q;

	if (likely(conn->depth <= 1))
		return conn->depth ? &conn->oldest : NULL;
	q = skb->sk ? bpf_sk_storage_get(&queues, skb->sk, 0, 0) : NULL;
	return q ? &q->slot[(conn->head + conn->depth - 2) & (QUEUE_MAX - 1)] : NULL;
}

static __always_inline bool queue_push(struct __sk_buff *skb, struct conn *conn, struct exchange *e)
{
	struct queue *q;

	if (unlikely(conn->overflow || conn->depth > QUEUE_MAX))
		return false;
	if (likely(!conn->depth)) {
		conn->oldest = *e;
		conn->depth = 1;
		return true;
	}
	q = skb->sk ? bpf_sk_storage_get(&queues, skb->sk, 0, BPF_SK_STORAGE_GET_F_CREATE) : NULL;
	if (!q)
		return false;
	q->slot[(conn->head + conn->depth - 1) & (QUEUE_MAX - 1)] = *e;
	conn->depth++;
	return true;
}

/* Boundaries are no longer known: nothing is counted until they are proved again. */
static __always_inline void unsync(struct conn *conn, u8 reason)
{
	conn->sync = UNSYNCED;
	conn->unsync_reason = reason;
	conn->depth = 0;
	conn->overflow = 0;
	conn->answered = 0;
	conn->request_seen = 1;
	h1_reset(&conn->stream[0].h1);
	h1_reset(&conn->stream[1].h1);
}

/* Unsynced by a loss that is counted now, with the requests that were in flight. */
static __always_inline void unsync_lost(struct conn *conn, u8 reason)
{
	lose(reason, conn->depth + conn->overflow ? conn->depth + conn->overflow : 1);
	unsync(conn, reason);
}

/* What becomes of the oldest exchange. */
enum finish {
	STAYS,
	LEAVES,  /* uncounted */
	COUNTED, /* and leaves */
};

/* A request has arrived whole. */
static __always_inline u32 request_end(struct __sk_buff *skb, struct conn *conn)
{
	struct stream *stream = request_stream(conn);
	struct exchange *e = queue_newest(skb, conn);
	bool waits = (stream->h1.flags & H1_HAS_UPGRADE) || stream->h1.method == HTTP_CONNECT;
	u64 bytes = stream->h1.body;

	h1_reset(&stream->h1);
	if (unlikely(conn->overflow || !e))
		return STAYS;
	e->request_bytes = bytes;
	e->flags |= EXCHANGE_WHOLE;
	if (unlikely(conn->answered))
		return COUNTED;
	if (unlikely(waits)) {
		stream->h1.state = H1_WAIT;
		conn->request_waits = 1;
	}
	return STAYS;
}

/* Some bytes of the route; verified on its own. */
__noinline int route_part(CONN_ONLY, u32 len)
{
	FIND_CONN(skb);
	struct route_run run = { .len = len };

	if (!conn)
		return 0;
	run.s = (struct route_scan *)conn->window;
	run.t = &conn->text;
	LOOP(HTTP_PATH_MAX, ROUTE_TURNS, route_turn, &run);
	return 0;
}

/* Finds the route of the target just read; most often it is that of the one before. */
__noinline int request_route(CONN_ONLY)
{
	FIND_CONN(skb);
	struct route_scan *scan;
	u32 len, now_epoch;
	u64 raw;

	if (!conn)
		return 0;
	len = conn->text.path_len;
	if (len > HTTP_PATH_MAX)
		len = HTTP_PATH_MAX;
	raw = route_raw_hash(&conn->text, len);
	if (raw == conn->raw_path && conn->raw_route && conn->raw_epoch == epoch)
		return 0;
	now_epoch = *(
		volatile u32 *)&epoch; /* before the look-up: a route may be taken away meanwhile */
	scan = (struct route_scan *)conn->window; /* free between two parses */
	route_begin(scan, &conn->text);
	for (u32 i = 0; i < HTTP_PATH_MAX / ROUTE_TURNS && scan->at < len && !scan->done; i++)
		route_part(CONN_ALONE(skb, conn), len);
	route_end(scan);
	conn->raw_route = route_publish(conn, scan);
	conn->raw_path = conn->raw_route == ROUTE_OTHER ? 0 : raw;
	conn->raw_epoch = now_epoch;
	return 0;
}

/* A request's head has ended. */
static __always_inline u32 request_head(struct __sk_buff *skb, struct conn *conn,
					struct stream *stream)
{
	struct h1 *p = &stream->h1;
	u32 body = h1_request_body(p);
	struct exchange e = {
		.start_ns = stream->first_ns,
		.number = conn->number++,
		.method = p->method,
		.version = p->version,
	};

	if (unlikely(conn->sync == IDLE))
		conn->sync = PROVING;
	if (unlikely(body == H1_BODY_BAD))
		return body;
	if (with_routes && p->method != HTTP_CONNECT) {
		request_route(CONN_ALONE(skb, conn));
		e.route = conn->raw_route;
	}
	if (unlikely(p->flags & H1_KEEP_TEXT))
		e.flags = log_keep(skb, conn, e.number);
	if (unlikely(!queue_push(skb, conn, &e))) {
		lose(HTTP_LOST_QUEUE_FULL, 1);
		conn->overflow++;
		if (p->method == HTTP_HEAD || p->method == HTTP_CONNECT) {
			/* the answer's framing hangs on a method that is not kept */
			unsync_lost(conn, HTTP_LOST_QUEUE_FULL);
			return H1_BODY_FOLLOWS;
		}
	}
	return body;
}

/* An answer has ended, whole or (with an error) not. */
static __always_inline u32 answer_end(struct conn *conn, u8 error)
{
	struct stream *stream = answer_stream(conn);
	struct h1 *p = &stream->h1;

	conn->answer_end_ns = conn->now_ns;
	conn->answer_first_ns = stream->first_ns;
	conn->answer_bytes = p->body;
	conn->answer_status = p->status;
	conn->answer_error = error;
	h1_reset(p);
	if (unlikely(conn->tunnel)) {
		/* CONNECT was granted, or the protocol was switched */
		conn->stream[0].h1.state = H1_OPAQUE;
		conn->stream[1].h1.state = H1_OPAQUE;
	}
	if (unlikely(conn->sync == TRACKING)) {
		if (!conn->request_seen) {
			conn->sync = IDLE;
			h1_reset(&request_stream(conn)->h1);
		}
		return STAYS;
	}
	if (unlikely(!conn->depth))
		return LEAVES;
	if (unlikely(!(conn->oldest.flags & EXCHANGE_WHOLE))) {
		conn->oldest.request_bytes = request_stream(conn)->h1.body;
		conn->answered = !error;
		return error ? COUNTED : STAYS;
	}
	return COUNTED;
}

/* Puts the packet's bytes aside: others come first. */
static __always_inline void put_aside(struct conn *conn)
{
	if (conn->source == SEGMENT && conn->avail) {
		conn->aside_seq = conn->stream[conn->direction & 1].next;
		conn->aside_off = conn->off;
		conn->aside_len = conn->avail;
		conn->aside_direction = conn->direction;
	}
	conn->avail = 0;
}

/*
 * The request stream may go on: the answer was no switch of protocols. What
 * was kept of it meanwhile is read before the answers that follow.
 */
static __always_inline void request_resume(struct conn *conn)
{
	struct h1 *p = &request_stream(conn)->h1;

	if (likely(!conn->request_waits) || p->state != H1_WAIT || conn->depth > 1)
		return;
	conn->request_waits = 0;
	h1_reset(p);
	if (conn->has_kept)
		put_aside(conn);
}

/* Method of the request that this answer belongs to. */
static __always_inline u8 answered_method(struct conn *conn)
{
	if (conn->sync == TRACKING)
		return HTTP_GET;
	return conn->depth ? conn->oldest.method : HTTP_GET;
}

/* An answer's head has ended (RFC 9112 6.3). */
static __always_inline u32 answer_head(struct conn *conn, struct stream *stream)
{
	struct h1 *p = &stream->h1;
	u32 body = h1_answer_body(p, answered_method(conn));

	if (unlikely(body == H1_BODY_INTERIM)) {
		h1_reset(p);
		return H1_BODY_FOLLOWS;
	}
	if (unlikely(conn->sync == PROVING)) {
		if (!(conn->oldest.flags & EXCHANGE_WHOLE)) {
			lose(conn->unsync_reason, 1);
			unsync(conn, conn->unsync_reason);
			return H1_BODY_FOLLOWS;
		}
		conn->sync = SYNCED;
	}
	if (unlikely(conn->sync == TRACKING))
		lose(conn->unsync_reason, 1);
	else if (unlikely(!conn->depth) && !conn->overflow)
		lose(HTTP_LOST_UNREQUESTED, 1);
	if (unlikely(body == H1_BODY_TUNNEL)) {
		conn->tunnel = 1;
		return H1_BODY_NONE;
	}
	request_resume(conn);
	return body;
}

/* Is an answer's head behind us and its body not yet whole? */
static __always_inline bool answer_is_open(struct h1 *p)
{
	return p->status && p->state >= H1_CHUNK_SIZE && p->state <= H1_BODY_CLOSE;
}

/* One step of emptying the queue when the connection ends; STAYS: all done. */
static __always_inline u32 ending_step(struct conn *conn)
{
	struct h1 *p = &answer_stream(conn)->h1;

	if (conn->sync != SYNCED)
		return STAYS;
	if (conn->answered) {
		conn->oldest.request_bytes = request_stream(conn)->h1.body;
		return COUNTED;
	}
	if (answer_is_open(p))
		return answer_end(conn, conn->whole ? HTTP_ERROR_NONE : conn->ending);
	if (!conn->depth)
		return STAYS;
	conn->answer_end_ns = conn->now_ns;
	conn->answer_first_ns = 0;
	conn->answer_bytes = 0;
	conn->answer_status = 0;
	conn->answer_error = conn->ending;
	return conn->oldest.flags & EXCHANGE_WHOLE ? COUNTED : LEAVES;
}

/* Counts the oldest exchange where that is due, and lets it go. */
static __always_inline void finish(struct bpf_sock *sk, struct conn *conn, u32 what)
{
	if (what == STAYS)
		return;
	if (what == COUNTED)
		exchange_count(sk, conn);
	conn->answered = 0;
	queue_pop(sk, conn);
}

#endif
