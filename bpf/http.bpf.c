/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * HTTP/1.x on every TCP socket below a cgroup: counted, timed and, where asked
 * for, logged. The hooks see each socket's bytes in both directions; sequence
 * numbers say what is new. Nothing is ever changed: every program lets the
 * packet pass.
 */
#include "http/exchange.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Keep the records in the object's BTF: user space makes its dtypes from it. */
const struct http_row *row_type __attribute__((unused));
const struct http_request *request_type __attribute__((unused));
const struct process *process_type __attribute__((unused));
const enum http_lost lost_type __attribute__((unused));
const enum http_method method_type __attribute__((unused));
const enum http_error error_type __attribute__((unused));
const enum http_peer peer_type __attribute__((unused));
const enum http_side side_type __attribute__((unused));
const enum log_flag log_type __attribute__((unused));

#define PASS      1
#define STEPS_MAX 1024 /* of parsing in one run */

static __always_inline void ip4_mapped(u8 *out, u32 address)
{
	__builtin_memset(out, 0, 10);
	out[10] = 0xff;
	out[11] = 0xff;
	__builtin_memcpy(out + 12, &address, 4);
}

static __always_inline u8 peer_class_v4(u32 address)
{
	u32 a = bpf_ntohl(address);

	if (a >> 24 == 127)
		return HTTP_PEER_LOOPBACK;
	if (a >> 24 == 10 || a >> 20 == 0xac1 || a >> 16 == 0xc0a8 || a >> 22 == 0x6440 >> 6 ||
	    a >> 16 == 0xa9fe || a >> 17 == 0xc612 >> 1)
		return HTTP_PEER_PRIVATE;
	return HTTP_PEER_PUBLIC;
}

static __always_inline u8 peer_class(const u8 *a)
{
	u64 high;
	u32 third, fourth;

	__builtin_memcpy(&high, a, 8);
	__builtin_memcpy(&third, a + 8, 4);
	__builtin_memcpy(&fourth, a + 12, 4);
	if (!high && third == bpf_htonl(0xffff))
		return peer_class_v4(fourth);
	if (!high && !third && fourth == bpf_htonl(1))
		return HTTP_PEER_LOOPBACK;
	if ((a[0] & 0xfe) == 0xfc || (a[0] == 0xfe && (a[1] & 0xc0) == 0x80))
		return HTTP_PEER_PRIVATE;
	return HTTP_PEER_PUBLIC;
}

static __always_inline void conn_addresses(struct conn *conn, struct bpf_sock *sk)
{
	if (sk->family == 2) { /* AF_INET */
		ip4_mapped(conn->local, sk->src_ip4);
		ip4_mapped(conn->peer, sk->dst_ip4);
	} else {
		u32 *local = (u32 *)conn->local, *peer = (u32 *)conn->peer;

		local[0] = sk->src_ip6[0];
		local[1] = sk->src_ip6[1];
		local[2] = sk->src_ip6[2];
		local[3] = sk->src_ip6[3];
		peer[0] = sk->dst_ip6[0];
		peer[1] = sk->dst_ip6[1];
		peer[2] = sk->dst_ip6[2];
		peer[3] = sk->dst_ip6[3];
	}
	conn->local_port = sk->src_port;
	conn->peer_port = bpf_ntohs(sk->dst_port);
	conn->peer_class = peer_class(conn->peer);
}

static __always_inline void set_side(struct conn *conn, u8 side)
{
	conn->side = side;
	request_stream(conn)->h1.flags = 0;
	answer_stream(conn)->h1.flags = H1_IS_ANSWER;
}

static __always_inline void stream_begin(struct stream *stream, u32 seq)
{
	stream->next = seq;
	stream->known = 1;
}

/* May a connection that starts with this byte be HTTP? Requests come first. */
static __always_inline bool may_be_http(struct __sk_buff *skb, struct segment *s, u32 direction,
					u8 side)
{
	u8 first;

	if (bpf_skb_load_bytes(skb, s->off, &first, 1))
		return false;
	if (direction == (side == HTTP_SERVER ? IN : OUT))
		return h1_is_tchar(first) || first == '\r' || first == '\n';
	return first == 'H';
}

/* Addresses of a packet that came in, as those of the socket it will get. */
static __always_inline bool packet_addresses(struct __sk_buff *skb, u8 *peer, u8 *local, u32 *port)
{
	u8 first;
	__be16 source;

	if (bpf_skb_load_bytes(skb, 0, &first, 1))
		return false;
	if (first >> 4 == 4) {
		u32 v4 = 0;

		if (bpf_skb_load_bytes(skb, 12, &v4, 4))
			return false;
		ip4_mapped(peer, v4);
		if (bpf_skb_load_bytes(skb, 16, &v4, 4))
			return false;
		ip4_mapped(local, v4);
		if (bpf_skb_load_bytes(skb, (first & 15) * 4, &source, 2))
			return false;
	} else {
		if (bpf_skb_load_bytes(skb, 8, peer, 16) ||
		    bpf_skb_load_bytes(skb, 24, local, 16) ||
		    bpf_skb_load_bytes(skb, 40, &source, 2))
			return false;
	}
	*port = bpf_ntohs(source);
	return true;
}

/* Bytes that came to a listener: its next connection takes them over. */
static __always_inline void listener_segment(struct __sk_buff *skb, struct bpf_sock *sk,
					     struct socket_note *note, struct segment *s)
{
	u8 peer[16], local[16];
	u32 port;

	if (!packet_addresses(skb, peer, local, &port))
		return;
	note->listener = bpf_get_socket_cookie(skb);
	note->flags |= SOCKET_EARLY;
	early_keep(skb, early_id(note->listener, peer, local, port), s);
}

/* State for a connection whose first bytes these are. */
__noinline int conn_open(struct __sk_buff *skb, u32 direction)
{
	struct bpf_sock *sk = skb->sk;
	struct socket_note *note;
	struct segment s = {};
	struct conn *conn;
	bool opened;
	u8 side;

	if (!sk || !segment_parse(skb, &s) || !s.len)
		return 0;
	note = storage_made(&notes, sk);
	if (!note) {
		lose(HTTP_LOST_NO_MEMORY, 1);
		return 0;
	}
	if (sk->state == BPF_TCP_LISTEN) {
		if (direction == IN)
			listener_segment(skb, sk, note, &s);
		return 0;
	}
	if (note->flags & SOCKET_IGNORED)
		return 0;
	opened = note->flags & (SOCKET_OPENED | SOCKET_CONNECTING);
	side = note->flags & SOCKET_SERVER ? HTTP_SERVER : HTTP_CLIENT;
	if (opened && s.seq == note->next[direction & 1] &&
	    !may_be_http(skb, &s, direction, side)) {
		note->flags |= SOCKET_IGNORED;
		return 0;
	}
	conn = bpf_sk_storage_get(&conns, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!conn && bpf_sk_storage_get(&conns, sk, 0, 0)) {
		lose(HTTP_LOST_HOLE, 1); /* another CPU has just made it, and it may not be ready */
		return 0;
	}
	if (!conn) {
		lose(HTTP_LOST_NO_MEMORY, 1);
		note->flags |= SOCKET_IGNORED;
		return 0;
	}
	conn->cookie = bpf_get_socket_cookie(skb);
	conn->kept_id = conn->cookie;
	conn->cgroup_id = bpf_sk_cgroup_id(sk);
	conn->pid = note->pid;
	conn->owner = note->owner;
	conn_addresses(conn, sk);
	if (!opened) {
		unsync(conn, HTTP_LOST_JOINED);
		return 1;
	}
	set_side(conn, side);
	if (note->flags & SOCKET_OPENED) {
		stream_begin(&conn->stream[IN], note->next[IN]);
		stream_begin(&conn->stream[OUT], note->next[OUT]);
		if (note->flags & SOCKET_EARLY)
			early_take(
				skb, conn,
				early_id(note->listener, conn->peer, conn->local, conn->peer_port));
	} else {
		stream_begin(&conn->stream[OUT], s.seq);
	}
	return 1;
}

/* Nothing more will be counted here: the socket goes without state. */
static __always_inline void conn_forget(struct bpf_sock *sk, struct conn *conn)
{
	struct socket_note *note;

	conn->over = 1;
	if (!sk)
		return;
	note = bpf_sk_storage_get(&notes, sk, 0, 0);
	if (note)
		note->flags |= SOCKET_IGNORED;
}

/* The bytes are no HTTP/1.x. */
static __noinline void conn_bad(struct __sk_buff *skb, struct conn *conn, struct stream *stream)
{
	bool is_request = stream == request_stream(conn);

	if (conn->sync != SYNCED) {
		unsync(conn, conn->unsync_reason);
		return;
	}
	if (!conn->number && !conn->depth && !h1_is_begun(&stream->h1, conn->text.path_len)) {
		/* nothing but this has been said: another protocol */
		conn_forget(skb->sk, conn);
		return;
	}
	lose(HTTP_LOST_MALFORMED, 1);
	if (is_request) {
		struct exchange e = { .flags = EXCHANGE_BAD | EXCHANGE_WHOLE };

		if (!queue_push(skb, conn, &e))
			conn->overflow++;
		stream->h1.state = H1_OPAQUE;
		return;
	}
	conn_forget(skb->sk, conn);
}

/*
 * Bytes of a connection whose boundaries are not known. Only an answer's head
 * at a segment's start is taken as a beginning; see enum sync_state.
 */
static __always_inline bool unsynced_begins_answer(struct __sk_buff *skb, struct conn *conn)
{
	u8 head[12];

	if (conn->source != SEGMENT || conn->avail < sizeof(head))
		return false;
	if (bpf_skb_load_bytes(skb, conn->off, head, sizeof(head)))
		return false;
	for (u32 i = 0; i < 7; i++)
		if (head[i] != h1_version_char(i))
			return false;
	return h1_is_digit(head[7]) && head[8] == ' ' && head[9] >= '1' && head[9] <= '5' &&
	       h1_is_digit(head[10]) && h1_is_digit(head[11]);
}

/* Takes n bytes of the source as read. */
static __always_inline void advance(struct conn *conn, struct stream *stream, u32 n)
{
	stream->next += n;
	conn->off += n;
	conn->avail -= n;
}

/* True: the bytes at hand have been dealt with. */
static __noinline bool unsynced_step(struct __sk_buff *skb, struct conn *conn,
				     struct stream *stream)
{
	bool is_answer = conn->side && stream == answer_stream(conn);

	if (conn->sync == UNSYNCED || (conn->sync == TRACKING && !is_answer)) {
		if (unsynced_begins_answer(skb, conn)) {
			set_side(conn, conn->direction == IN ? HTTP_CLIENT : HTTP_SERVER);
			h1_reset(&conn->stream[0].h1);
			h1_reset(&conn->stream[1].h1);
			conn->sync = TRACKING;
			conn->request_seen = 0;
			return false;
		}
		conn->request_seen = 1;
		advance(conn, stream, conn->avail);
		return true;
	}
	if (conn->sync == TRACKING && conn->request_seen && stream->h1.state != H1_START &&
	    unsynced_begins_answer(skb, conn)) {
		/* the last answer was none, or one to HEAD */
		h1_reset(&stream->h1);
		conn->request_seen = 0;
		return false;
	}
	if (conn->sync == TRACKING && stream->h1.state == H1_START)
		conn->request_seen = 0;
	if (conn->sync == IDLE && is_answer) {
		/* an answer that nobody asked for: start again */
		conn->sync = UNSYNCED;
		return false;
	}
	if (conn->sync == PROVING && !is_answer && conn->depth &&
	    (stream->h1.state == H1_START || stream->h1.state == H1_WAIT)) {
		/* bytes between a request and its answer: it may have been none */
		unsync(conn, conn->unsync_reason);
		return false;
	}
	return false;
}

/* Fills the window from the source; returns the bytes there. */
static __always_inline u32 load_window(struct __sk_buff *skb, struct conn *conn,
				       struct stream *stream)
{
	u64 n = conn->avail;

	if (n > H1_WINDOW)
		n = H1_WINDOW;
	if (conn->source == KEPT)
		return kept_load(CONN_ALONE(skb, conn), n);
	return load_bytes(skb, conn->off, conn->window, n, H1_WINDOW) ? n : 0;
}

/* Bytes that are skipped by count. True: the message has ended. */
static __always_inline bool skip(struct conn *conn, struct stream *stream)
{
	struct h1 *p = &stream->h1;
	u32 n = conn->avail;

	if (p->state != H1_BODY && p->state != H1_CHUNK) {
		p->body += n;
		advance(conn, stream, n);
		return false;
	}
	if (n > p->remaining)
		n = p->remaining;
	p->remaining -= n;
	p->body += n;
	advance(conn, stream, n);
	if (p->remaining)
		return false;
	if (p->state == H1_BODY)
		return true;
	p->state = H1_CHUNK_END;
	return false;
}

/* Runs the state machine over the n bytes in the window; enum h1_event. */
__noinline int window_parse(CONN_ONLY, u32 n)
{
	FIND_CONN(skb);

	if (!conn)
		return H1_BAD;
	return h1_parse(&conn->stream[conn->direction & 1].h1, &conn->text, conn->window, n);
}

#ifdef PODSCOPE_NO_LOOP
/* Left out: with all the rest it is more than older kernels verify. */
static __always_inline u32 short_way(struct __sk_buff *skb, struct conn *conn, struct desk *desk)
{
	return 0;
}
#else
/* The parts of a head behind the first, one in each call. */
__noinline int long_head(struct desk *desk, u32 from, u32 n)
{
	if (desk)
		head_find(&desk->found, desk->window, from, n);
	return 0;
}

/* Searches the parts behind the first. Up to H1_WINDOW bytes are there already. */
static __always_inline void search_rest(struct __sk_buff *skb, struct conn *conn, struct desk *desk,
					u32 n)
{
	if (n > H1_WINDOW && !load_bytes(skb, conn->off + H1_WINDOW, desk->window + H1_WINDOW,
					 n - H1_WINDOW, HEAD_WINDOW))
		return;
	for (u32 i = 1; i < HEAD_WINDOW / HEAD_PART; i++) {
		if (i * HEAD_PART >= n || desk->found.end)
			return;
		long_head(desk, i * HEAD_PART, n);
	}
}

/* Length of a plain head that stands whole at the start of the segment; 0: there is none. */
static __always_inline u32 short_way(struct __sk_buff *skb, struct conn *conn, struct desk *desk)
{
	struct head *found;
	u64 n = conn->avail;

	if (conn->source != SEGMENT || !desk)
		return 0;
	found = &desk->found;
	if (n > HEAD_WINDOW)
		n = HEAD_WINDOW;
	if (!load_bytes(skb, conn->off, desk->window, n < H1_WINDOW ? n : H1_WINDOW, H1_WINDOW))
		return 0;
	head_begin(found);
	head_find(found, desk->window, 0, n);
	if (unlikely(!found->end) && n > HEAD_PART)
		search_rest(skb, conn, desk, n);
	if (!found->end || found->end > n)
		return 0;
	if (!head_read(&conn->stream[conn->direction & 1].h1, with_routes ? &conn->text : NULL,
		       found, desk->window))
		return 0;
	return found->end;
}
#endif

/* Are the texts of the request that begins here wanted? Makes room for them. */
APART int text_begin(CONN_ONLY)
{
	FIND_CONN(skb);

	if (!conn || !log_wants(conn))
		return 0;
	__builtin_memset(&conn->text, 0, sizeof(conn->text));
	return 1;
}

/* A message may begin here: notes the time, and whether its texts are wanted. */
static __always_inline void message_begin(struct __sk_buff *skb, struct conn *conn,
					  struct stream *stream, bool is_request)
{
	struct h1 *p = &stream->h1;

	stream->first_ns = conn->now_ns;
	if (!is_request)
		return;
	if (unlikely(conn->early_ns)) {
		stream->first_ns = conn->early_ns;
		conn->early_ns = 0;
	}
	if (unlikely(p->flags & H1_KEEP_TEXT))
		p->flags &= ~H1_KEEP_TEXT;
	if (unlikely(log_now()->flags & LOG_ON) && text_begin(CONN_ALONE(skb, conn)))
		p->flags |= H1_KEEP_TEXT;
}

/* A head has ended. True: so has its message. */
static __always_inline bool head_ended(struct __sk_buff *skb, struct conn *conn,
				       struct stream *stream, bool is_request)
{
	u32 after = is_request ? request_head(skb, conn, stream) : answer_head(conn, stream);

	if (unlikely(after == H1_BODY_BAD))
		conn_bad(skb, conn, stream);
	return after == H1_BODY_NONE;
}

/* Reads one window up to the first event; enum h1_event. */
static __noinline int long_way(struct __sk_buff *skb, struct conn *conn)
{
	struct stream *stream = &conn->stream[conn->direction & 1];
	struct h1 *p = &stream->h1;
	u32 n = load_window(skb, conn, stream);
	int event = H1_MORE;

	if (!n) {
		unsync_lost(conn, HTTP_LOST_HOLE);
		advance(conn, stream, conn->avail);
		return H1_MORE;
	}
	p->at = 0;
	for (u32 i = 0; i < H1_WINDOW / H1_TURNS && event == H1_MORE && p->at < n; i++)
		event = window_parse(CONN_ALONE(skb, conn), n);
	advance(conn, stream, p->at < n ? p->at : n);
	return event;
}

/* Reads up to the end of a head or of what can be looked at. True: a message has ended. */
static __always_inline bool parse(struct __sk_buff *skb, struct conn *conn, struct desk *desk,
				  struct stream *stream, bool is_request)
{
	struct h1 *p = &stream->h1;
	int event = H1_HEAD;
	u32 n = 0;

	if (likely(p->state == H1_START)) {
		message_begin(skb, conn, stream, is_request);
		n = p->flags & H1_KEEP_TEXT ? 0 : short_way(skb, conn, desk);
	}
	if (likely(n))
		advance(conn, stream, n);
	else
		event = long_way(skb, conn);
	if (event == H1_HEAD)
		return head_ended(skb, conn, stream, is_request);
	if (event == H1_BAD)
		conn_bad(skb, conn, stream);
	return event == H1_END;
}

/* Goes on with the packet's bytes that were put aside. */
static __always_inline bool take_aside(struct conn *conn)
{
	u32 old, len = conn->aside_len;

	conn->aside_len = 0;
	if (!len)
		return false;
	old = conn->stream[conn->aside_direction & 1].next - conn->aside_seq;
	if (old >= len)
		return false;
	conn->source = SEGMENT;
	conn->direction = conn->aside_direction;
	conn->off = conn->aside_off + old;
	conn->avail = len - old;
	return true;
}

/* Looks for kept bytes that are due, requests first, then for those put aside. */
static __noinline bool find_more(struct __sk_buff *skb, struct conn *conn)
{
	struct ranges *r;

	conn->source = NOWHERE;
	r = conn->has_kept && skb->sk ? bpf_sk_storage_get(&kept, skb->sk, 0, 0) : NULL;
	for (u32 i = 0; r && i < 2; i++) {
		u32 d = (request_direction(conn) ^ i) & 1;

		if (!conn->stream[d].known || conn->stream[d].h1.state == H1_WAIT)
			continue;
		conn->avail = ranges_ready(r, d, conn->stream[d].next);
		if (!conn->avail)
			continue;
		conn->source = KEPT;
		conn->direction = d;
		return true;
	}
	return take_aside(conn);
}

static __always_inline bool answers_have_fin(struct conn *conn)
{
	return conn->has_fin[(request_direction(conn) ^ 1) & 1];
}

/* Has the end of a stream, or of the connection, been reached? */
static __always_inline void find_end(struct conn *conn)
{
	u32 direction = (request_direction(conn) ^ 1) & 1;
	struct stream *answers = &conn->stream[direction];

	if (conn->reset) {
		conn->ending = HTTP_ERROR_RESET;
	} else if (conn->has_fin[direction] && answers->known &&
		   conn->fin[direction] == answers->next) {
		conn->ending = HTTP_ERROR_CLOSED;
		conn->whole = answers->h1.state == H1_BODY_CLOSE;
	} else if (conn->closed) {
		conn->ending = HTTP_ERROR_CLOSED;
	}
}

/* Is there anything but the bytes at hand that may want work? */
static __always_inline bool has_more(struct conn *conn)
{
	return conn->avail || conn->has_kept || conn->aside_len || conn->reset || conn->closed ||
	       conn->ending || answers_have_fin(conn);
}

/* Goes through the bytes at hand up to the end of a message, or of the window. */
static __always_inline u32 read_bytes(struct __sk_buff *skb, struct conn *conn, struct desk *desk,
				      struct stream *stream)
{
	bool is_request = stream == request_stream(conn), ended = false;

	if (stream->h1.state < H1_BODY)
		ended = parse(skb, conn, desk, stream, is_request);
	if (!ended && conn->avail && stream->h1.state >= H1_BODY && stream->h1.state != H1_WAIT)
		ended = skip(conn, stream);
	if (!ended)
		return STAYS;
	return is_request ? request_end(skb, conn) : answer_end(conn, HTTP_ERROR_NONE);
}

/* Request bytes that may turn out to be of another protocol: kept until the answer. */
static __always_inline void keep_rest(struct __sk_buff *skb, struct conn *conn,
				      struct stream *stream)
{
	if (conn->source == SEGMENT &&
	    !keep(skb, conn->direction, stream->next, conn->off, conn->avail))
		unsync_lost(conn, HTTP_LOST_HOLE);
	conn->avail = 0;
}

/* One step of the work at hand; 1 when there is none left. */
__noinline int http_step(struct __sk_buff *skb WORK_PARAMETER)
{
	FIND_WORK(skb);
	struct bpf_sock *sk = skb->sk;
	struct stream *stream;
	u32 what;

	if (!conn || !sk || conn->over)
		return 1;
	if (unlikely(conn->ending)) {
		what = ending_step(conn);
		finish(sk, conn, what);
		if (what == STAYS && !conn->answered)
			conn_forget(sk, conn);
		return what == STAYS && !conn->answered;
	}
	if (unlikely(!conn->avail) && !find_more(skb, conn)) {
		find_end(conn);
		return !conn->ending;
	}
	stream = &conn->stream[conn->direction & 1];
	if (unlikely(conn->sync != SYNCED) && unsynced_step(skb, conn, stream))
		return 0;
	if (unlikely(stream->h1.state == H1_WAIT)) {
		keep_rest(skb, conn, stream);
		return 0;
	}
	what = read_bytes(skb, conn, desk, stream);
	finish(sk, conn, what);
	if (unlikely(conn->sync == IDLE) && !conn->avail && stream == request_stream(conn))
		unsync(conn, conn->unsync_reason); /* a whole head in one segment is the proof */
	return !has_more(conn);
}

struct work {
	struct __sk_buff *skb;
	struct conn *conn;
	struct desk *desk;
};

LOOP_BODY work_turn(u32 turn, void *state)
{
	struct work *work = state;
	int done = http_step(work->skb WORK_ARGUMENT(work->conn, work->desk));

	opaque(done); /* else the compiler knows that it is 0 or 1, and the verifier does not */
	return done ? 1 : 0;
}

/* Does all the work at hand. */
__noinline int http_work(struct __sk_buff *skb WORK_PARAMETER)
{
	FIND_WORK(skb);
	struct work work = { .skb = skb, .conn = conn, .desk = desk };

	if (!conn)
		return 0;
	LOOP(STEPS_MAX, STEPS_MAX / 2, work_turn, &work);
	put_aside(conn);
	if (conn->aside_len && !conn->over) {
		unsync_lost(conn, HTTP_LOST_WORK_BOUND);
		conn->stream[conn->aside_direction & 1].next = conn->aside_seq + conn->aside_len;
		conn->aside_len = 0;
	}
	return 0;
}

/*
 * The segment becomes the work at hand, as far as it is new. Kept for later if
 * bytes before it are missing.
 */
static __always_inline void take_segment(struct __sk_buff *skb, struct conn *conn,
					 struct segment *s, u32 direction)
{
	struct stream *stream = &conn->stream[direction & 1];
	u32 len = s->len, off = s->off, seq = s->seq;

	conn->avail = 0;
	if (unlikely(conn->aside_len))
		conn->aside_len = 0;
	if (unlikely(s->flags & TCP_FIN)) {
		conn->fin[direction & 1] = seq + len;
		conn->has_fin[direction & 1] = 1;
	}
	if (!len)
		return;
	if (unlikely(!stream->known))
		stream_begin(stream, seq);
	if (unlikely(conn->sync == UNSYNCED) && seq_before(stream->next, seq))
		stream->next = seq;
	if (unlikely(seq_before(seq, stream->next))) {
		u32 old = stream->next - seq;

		if (old >= len)
			return;
		seq += old;
		off += old;
		len -= old;
	}
	if (unlikely(seq != stream->next)) {
		if (!keep(skb, direction, seq, off, len)) {
			unsync_lost(conn, HTTP_LOST_HOLE);
			stream->next = seq + len;
		}
		return;
	}
	conn->source = SEGMENT;
	conn->direction = direction;
	conn->off = off;
	conn->avail = len;
	if (unlikely(conn->has_kept))
		put_aside(conn); /* what came before it goes first */
}

/*
 * Lets go of the connection. Whoever came meanwhile has kept its bytes and
 * counted itself in the lock: their work is done here.
 */
static __always_inline void leave(struct __sk_buff *skb, struct conn *conn, struct desk *desk)
{
	u32 mine = 1;

	for (u32 i = 0; i < 32; i++) {
		u32 held = fetch_add(&conn->lock, &conn->spin, -mine);

		if (likely(held == mine))
			return;
		mine = held - mine;
		conn->avail = 0;
		http_work(skb WORK_ARGUMENT(conn, desk));
	}
	conn_forget(skb->sk, conn);
	lose(HTTP_LOST_WORK_BOUND, 1);
}

/* Is the socket known to be of no interest? */
static __always_inline bool is_ignored(struct bpf_sock *sk)
{
	struct socket_note *note = bpf_sk_storage_get(&notes, sk, 0, 0);

	return note && note->flags & SOCKET_IGNORED;
}

/* The state of a connection of no interest goes, before its socket does. */
static __noinline void conn_free(struct bpf_sock *sk)
{
	bpf_sk_storage_delete(&conns, sk);
	bpf_sk_storage_delete(&kept, sk);
	bpf_sk_storage_delete(&queues, sk);
}

/* The connection is in use elsewhere: leave the bytes there. True: it is ours now. */
static __always_inline bool enter_later(struct __sk_buff *skb, struct conn *conn, struct segment *s,
					u32 direction)
{
	if (s->flags & TCP_FIN) {
		conn->fin[direction & 1] = s->seq + s->len;
		conn->has_fin[direction & 1] = 1;
	}
	if (s->len && !keep(skb, direction, s->seq, s->off, s->len))
		lose(HTTP_LOST_HOLE, 1);
	return fetch_add(&conn->lock, &conn->spin, 1) == 0;
}

static __always_inline int on_segment(struct __sk_buff *skb, u32 direction)
{
	struct bpf_sock *sk = skb->sk;
	struct segment s = {};
	struct conn *conn;
	struct desk *desk;

	if (!sk || !segment_parse(skb, &s))
		return PASS;
	conn = bpf_sk_storage_get(&conns, sk, 0, 0);
	if (unlikely(!conn)) {
		if (!s.len || is_ignored(sk) || !conn_open(skb, direction))
			return PASS;
		conn = bpf_sk_storage_get(&conns, sk, 0, 0);
		if (!conn)
			return PASS;
	}
	if (unlikely(conn->over))
		return PASS;
	if (unlikely(s.flags & TCP_RST))
		conn->reset = 1;
	desk = desk_take();
	if (unlikely(*(volatile u32 *)&conn->lock || fetch_add(&conn->lock, &conn->spin, 1))) {
		if (!enter_later(skb, conn, &s, direction)) {
			desk_leave(desk);
			return PASS;
		}
		conn->avail = 0;
	} else {
		take_segment(skb, conn, &s, direction);
	}
	/* TCP notes when it sends, on the same clock (skb_mstamp_ns): a clock read less */
	conn->now_ns = direction == OUT && skb->tstamp ? skb->tstamp : bpf_ktime_get_ns();
	if (unlikely(!http_step(skb WORK_ARGUMENT(conn, desk))))
		http_work(skb WORK_ARGUMENT(conn, desk));
	leave(skb, conn, desk);
	desk_leave(desk);
	if (unlikely(conn->over))
		conn_free(sk);
	return PASS;
}

/*
 * One program for both directions: loaded, and verified, once. A packet that
 * came in has an ingress interface, one that this host makes has none.
 */
SEC("cgroup/skb")
int http_segment(struct __sk_buff *skb)
{
	return on_segment(skb, skb->ingress_ifindex ? IN : OUT);
}

/* The oldest exchange of a connection that has ended leaves. 1: none is left. */
__noinline int ending_turn(struct bpf_sock_ops *ops CONN_PARAMETER)
{
	FIND_CONN(ops);
	struct bpf_sock *sk = ops->sk;
	u32 what;

	if (!conn || !sk)
		return 1;
	what = ending_step(conn);
	finish(sk, conn, what);
	return what == STAYS && !conn->answered;
}

/*
 * The socket is closed, perhaps without a last packet: a peer that went away,
 * or an end that did not wait for its answer. Counts what is left.
 */
static __always_inline void socket_closed(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	struct conn *conn = bpf_sk_storage_get(&conns, sk, 0, 0);

	if (!conn || conn->over)
		return;
	conn->closed = 1;
	if (fetch_add(&conn->lock, &conn->spin, 1))
		return; /* whoever is at work there finds it closed */
	conn->ending = ops->args[0] == BPF_TCP_ESTABLISHED ? HTTP_ERROR_RESET : HTTP_ERROR_CLOSED;
	conn->now_ns = bpf_ktime_get_ns();
	for (u32 i = 0; i < QUEUE_MAX + 4; i++)
		if (ending_turn(ops CONN_ARGUMENT(conn)))
			break;
	conn->over = 1;
}

/* Handshakes: which end this is, and the first sequence numbers. */
SEC("sockops")
int http_handshake(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	struct socket_note *note;

	if (!sk)
		return 1;
	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		note = bpf_sk_storage_get(&notes, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (note)
			note->flags = SOCKET_CONNECTING;
		/* the socket may have had another connection before */
		bpf_sk_storage_delete(&conns, sk);
		bpf_sk_storage_delete(&kept, sk);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		note = bpf_sk_storage_get(&notes, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (!note)
			break;
		note->next[IN] = ops->rcv_nxt;
		note->next[OUT] = ops->snd_nxt;
		note->flags = SOCKET_OPENED | (note->flags & SOCKET_EARLY);
		if (ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
			note->flags |= SOCKET_SERVER;
		bpf_sock_ops_cb_flags_set(ops,
					  ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ops->args[1] == BPF_TCP_CLOSE)
			socket_closed(ops, sk);
		break;
	}
	return 1;
}

/* Every new socket: who opens it. */
SEC("cgroup/sock_create")
int http_socket(struct bpf_sock *sk)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct socket_note *note;

	if (sk->type != 1) /* SOCK_STREAM */
		return 1;
	note = bpf_sk_storage_get(&notes, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (note)
		owner_note(note, task);
	return 1;
}

#ifndef PODSCOPE_NO_LOOP
/*
 * Sockets that are there already: the first process that has one open is its
 * owner. bpf_sock_from_file() since Linux kernel commit 4f19cab76136 ("bpf: Add a
 * bpf_sock_from_file helper") (in v5.11), so older than what this object needs.
 */
SEC("iter/task_file")
int http_open_sockets(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket_note *note;
	struct socket *socket;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket || socket->type != 1)
		return 0;
	note = bpf_sk_storage_get(&notes, socket->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (note && !note->pid)
		owner_note(note, task);
	return 0;
}
#endif
