/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Connections: who made them, how long they lived, what went wrong. Whose a
 * connection is, is noted where a process acts (connect(), listen()); what becomes
 * of it is told by the kernel's tracepoints of TCP. Sums for each owner and peer are
 * always counted; single events are told only if asked for.
 */
#include <linux/types.h>
#include <bpf/bpf_tracing.h>
#include "common/atomics.h"
#include "common/chunks.h"
#include "common/owner.h"
#include "common/packet.h"
#include "tcp/tcp.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Keep the records in the object's BTF: user space makes its dtypes from it. */
const struct tcp_event *event_type __attribute__((unused));
const struct tcp_row *row_type __attribute__((unused));
const struct process *process_type __attribute__((unused));
const enum tcp_what what_type __attribute__((unused));

#define SOCK_DONE   1 /* enum sock_flags: the peer's FIN has come (tcp_fin()) */
#define SOCK_STREAM 1

const volatile u32 wanted = 0;             /* bits of enum tcp_what */
const volatile u64 window_ns = 1000000000; /* between two samples of a connection */
const volatile bool with_sums = true;

u32 parity; /* which of the two maps of sums is written to */

u64 ring_full;        /* events that found no room */
u64 connections_full; /* connections whose owner and start were not noted */
u64 table_full;       /* counts that found no series */
u64 chunks_full;      /* durations that are in the sums and in no histogram */

struct connection {
	u64 start_ns;   /* of connect() */
	u64 opened_ns;  /* end of the handshake */
	u64 sampled_ns; /* last sample of the window */
	u32 pid;
	u32 owner;
	u32 side;
	u32 port; /* of this end */
	u64 cgroup_id;
};

/* By the socket's address in the kernel: 5.10 has no notes in sockets for tracepoints. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__type(key, u64);
	__type(value, struct connection);
} connections SEC(".maps");

/* Those that have just ended in the midst: the reset is sent after that (tcp_disconnect()). */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, u64);
	__type(value, struct connection);
} ended SEC(".maps");

#define ENDED_NS 100000000 /* the address is another socket's later */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, struct tcp_key);
	__type(value, struct tcp_sums);
} sums_0 SEC(".maps"), sums_1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, struct tcp_key);
	__type(value, struct chunk);
} chunks_0 SEC(".maps"), chunks_1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 22);
} events SEC(".maps");

struct tcp_sock {
	u32 srtt_us;
	u32 total_retrans;
	u64 bytes_sent;
	u64 bytes_retrans;
	u64 bytes_received;
	u32 snd_cwnd;
	u32 snd_ssthresh;
	u8 bpf_sock_ops_cb_flags;
} __attribute__((preserve_access_index));

struct sock___buffers {
	int sk_sndbuf;
	int sk_wmem_queued;
} __attribute__((preserve_access_index));

struct inet_sock {
	__be16 inet_sport;
} __attribute__((preserve_access_index));

struct tcp_skb_cb {
	u16 tcp_gso_segs;
} __attribute__((preserve_access_index));

static __always_inline bool is_wanted(u32 what)
{
	return wanted & (1U << what);
}

static __always_inline struct connection *connection_of(const struct sock *sk)
{
	u64 key = (u64)sk;

	return bpf_map_lookup_elem(&connections, &key);
}

static __always_inline void read_owner(struct tcp_event *event, const struct sock *sk,
				       const struct connection *connection)
{
	if (!connection) {
		event->cgroup_id = sock_cgroup_id(sk);
		return;
	}
	event->cgroup_id = connection->cgroup_id;
	event->pid = connection->pid;
	event->owner = connection->owner;
	event->side = connection->side;
}

static __always_inline void read_addresses(struct tcp_event *event, const struct sock *sk,
					   const struct connection *connection,
					   struct sock_head *head)
{
	sock_head_local(head, event->local);
	sock_head_peer(head, event->peer);
	event->local_port = sock_head_get(head, u16, skc_num);
	if (!event->local_port) /* the socket is closed */
		event->local_port =
			connection ? connection->port
				   : bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
	event->peer_port = bpf_ntohs(sock_head_get(head, __be16, skc_dport));
}

/* An event with all that each of them has; the connection may not be known. */
static __always_inline void begin_with(struct tcp_event *event, const struct sock *sk,
				       const struct connection *connection, struct sock_head *head)
{
	__builtin_memset(event, 0, sizeof(*event));
	event->state = sock_head_get(head, u8, skc_state);
	event->fin = sock_head_get(head, unsigned long, skc_flags) >> SOCK_DONE & 1;
	read_owner(event, sk, connection);
	read_addresses(event, sk, connection, head);
}

static __always_inline void begin(struct tcp_event *event, const struct sock *sk,
				  const struct connection *connection, u8 what)
{
	struct sock_head head;

	sock_head_read(&head, sk);
	begin_with(event, sk, connection, &head);
	event->time_ns = bpf_ktime_get_ns();
	event->what = what;
}

/* The same of a socket that the verifier knows to be one. */
static __always_inline void known_begin(struct tcp_event *event, const struct sock *sk,
					const struct connection *connection, u64 now)
{
	struct sock_head head;

	known_sock_head_read(&head, sk);
	begin_with(event, sk, connection, &head);
	event->time_ns = now;
	event->what = TCP_STATE;
}

static __always_inline void send(struct tcp_event *event)
{
	if (bpf_ringbuf_output(&events, event, sizeof(*event), BPF_RB_NO_WAKEUP))
		__sync_fetch_and_add(&ring_full, 1);
}

/* Not on the stack, which is small. */
static const struct tcp_sums none;

static __always_inline struct tcp_sums *sums_in(void *map, struct tcp_key *key)
{
	struct tcp_sums *sums = bpf_map_lookup_elem(map, key);

	if (sums)
		return sums;
	bpf_map_update_elem(map, key, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(map, key);
}

/* Where an event is counted: a series, and which of the maps it is in. */
struct place {
	struct tcp_key key;
	struct tcp_sums *sums;
	bool odd;
};

static __always_inline void find_place(struct place *place, const struct tcp_event *event)
{
	struct tcp_key *key = &place->key;

	__builtin_memset(place, 0, sizeof(*place));
	if (!with_sums)
		return;
	key->cgroup_id = event->cgroup_id;
	key->pid = event->pid;
	key->owner = event->owner;
	key->side = event->side;
	key->port = event->side == TCP_SERVER   ? event->local_port
		    : event->side == TCP_CLIENT ? event->peer_port
						: 0;
	__builtin_memcpy(key->peer, event->peer, 16);
	place->odd = *(volatile u32 *)&parity & 1;
	place->sums = place->odd ? sums_in(&sums_1, key) : sums_in(&sums_0, key);
	if (place->sums)
		return;
	__builtin_memset(key, 0, sizeof(*key));
	key->side = event->side;
	__sync_fetch_and_add(&table_full, 1);
	place->sums = place->odd ? sums_in(&sums_1, key) : sums_in(&sums_0, key);
}

/* The series that an event belongs to. */
static __always_inline struct tcp_sums *sums_of(const struct tcp_event *event)
{
	struct place place;

	find_place(&place, event);
	return place.sums;
}

#define add(series, member, n)                                                                     \
	do {                                                                                       \
		struct tcp_sums *to = series;                                                      \
                                                                                                   \
		if (to)                                                                            \
			__sync_fetch_and_add(&to->member, n);                                      \
	} while (0)

static __always_inline void let_go(const struct sock *sk, const struct connection *connection,
				   u32 old)
{
	struct connection last = {};
	u64 key = (u64)sk;

	if (!connection)
		return;
	if (old == BPF_TCP_ESTABLISHED || old == BPF_TCP_CLOSE_WAIT || old == BPF_TCP_FIN_WAIT1) {
		last.start_ns = bpf_ktime_get_ns();
		last.pid = connection->pid;
		last.owner = connection->owner;
		last.side = connection->side;
		last.cgroup_id = connection->cgroup_id;
		last.port = connection->port;
		bpf_map_update_elem(&ended, &key, &last, BPF_ANY);
	}
	bpf_map_delete_elem(&connections, &key);
}

static __always_inline void set_bytes(struct tcp_event *event, u64 sent, u64 again, u64 received)
{
	event->sent = sent - again;
	event->received = received;
	/* a FIN is counted as a byte (tcp_rcv_nxt_update()) */
	if (event->received && event->fin)
		event->received--;
}

static __always_inline void read_bytes(struct tcp_event *event, const struct sock *sk)
{
	const struct tcp_sock *tcp = (void *)sk;

	set_bytes(event, BPF_CORE_READ(tcp, bytes_sent), BPF_CORE_READ(tcp, bytes_retrans),
		  BPF_CORE_READ(tcp, bytes_received));
}

/* What is told of a connection, and not counted. */
static __always_inline void read_rest(struct tcp_event *event, const struct sock *sk)
{
	const struct tcp_sock *tcp = (void *)sk;

	event->retransmits = BPF_CORE_READ(tcp, total_retrans);
	event->srtt_us = BPF_CORE_READ(tcp, srtt_us) >> 3;
}

static __always_inline void count_connect(const struct tcp_event *event)
{
	u64 ns = event->duration_ns;
	u32 bucket = bucket_of(ns);
	struct place place;

	find_place(&place, event);
	if (!place.sums)
		return;
	add(place.sums, connects, 1);
	if (!ns)
		return; /* its beginning was not seen */
	add(place.sums, connect_ns, ns);
	add(place.sums, le[bound_of(ns, bucket) & 15], 1);
	atomic_max(&place.sums->connect_max_ns, ns);
	place.key.chunk = chunk_of(bucket);
	if (!(place.odd ? chunk_add(&chunks_1, &place.key, bucket)
			: chunk_add(&chunks_0, &place.key, bucket)))
		__sync_fetch_and_add(&chunks_full, 1);
}

static __always_inline void connect_ended(struct tcp_event *event, const struct sock *sk,
					  struct connection *connection, bool well)
{
	event->side = TCP_CLIENT;
	event->what = TCP_CONNECT;
	if (connection) {
		event->duration_ns = event->time_ns - connection->start_ns;
		connection->opened_ns = event->time_ns;
	}
	if (well) {
		count_connect(event);
	} else {
		event->error = sk->sk_err;
		add(sums_of(event), failed, 1);
	}
	if (is_wanted(TCP_CONNECT) || (!well && is_wanted(TCP_FAILED)))
		send(event);
	event->duration_ns = 0;
	event->error = 0;
}

static __always_inline void life_ended(struct tcp_event *event, struct sock *sk,
				       const struct connection *connection)
{
	const struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct tcp_sums *sums;

	event->what = TCP_LIFE;
	if (connection && connection->opened_ns)
		event->duration_ns = event->time_ns - connection->opened_ns;
	if (tcp)
		set_bytes(event, tcp->bytes_sent, tcp->bytes_retrans, tcp->bytes_received);
	sums = sums_of(event);
	add(sums, closes, 1);
	add(sums, sent, event->sent);
	add(sums, received, event->received);
	if (event->duration_ns) {
		add(sums, timed, 1);
		add(sums, duration_ns, event->duration_ns);
	}
	if (!is_wanted(TCP_LIFE))
		return;
	event->error = sk->sk_err;
	read_rest(event, sk);
	send(event);
}

/* Counts what a change of state says of a connection: that it is made, has failed, or has ended. */
static __always_inline void changed(struct tcp_event *event, struct sock *sk,
				    struct connection *connection, u32 old, u32 new)
{
	if (old == BPF_TCP_SYN_SENT && new == BPF_TCP_ESTABLISHED)
		connect_ended(event, sk, connection, true);
	if (new != BPF_TCP_CLOSE)
		return;
	if (old == BPF_TCP_SYN_SENT)
		connect_ended(event, sk, connection, false);
	else if (old != BPF_TCP_LISTEN && (old != BPF_TCP_SYN_RECV || connection))
		life_ended(event, sk, connection);
}

static __always_inline bool counts(u32 old, u32 new)
{
	return new == BPF_TCP_CLOSE || (old == BPF_TCP_SYN_SENT && new == BPF_TCP_ESTABLISHED);
}

/*
 * TP_PROTO(const struct sock *sk, const int oldstate, const int newstate), in
 * include/trace/events/sock.h. The kernel does not run it inside of itself, as where a packet
 * comes while a process connects (Linux commit 05b24ff9b2cf, in v6.2): what is to be exact is
 * counted by tcp_ends(), and here only of sockets that do not call it.
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_state, struct sock *sk, int old, int new)
{
	struct connection *connection;
	struct tcp_event event;
	struct tcp_sock *tcp;
	bool here;

	if (!is_wanted(TCP_STATE) && !counts(old, new))
		return 0;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return 0;
	here = counts(old, new) && !(tcp->bpf_sock_ops_cb_flags & BPF_SOCK_OPS_STATE_CB_FLAG);
	if (!is_wanted(TCP_STATE) && !here)
		return 0;
	connection = connection_of(sk);
	known_begin(&event, sk, connection, bpf_ktime_get_ns());
	event.old_state = old;
	event.state = new;
	/* the process is at work itself, and noted in a moment */
	if (!event.pid && (new == BPF_TCP_SYN_SENT || new == BPF_TCP_LISTEN))
		event.pid = bpf_get_current_pid_tgid() >> 32;
	if (is_wanted(TCP_STATE))
		send(&event);
	if (here)
		changed(&event, sk, connection, old, new);
	if (new == BPF_TCP_CLOSE)
		let_go(sk, connection, old);
	return 0;
}

/* A process connects or begins to listen. */
static __always_inline void begins(struct bpf_sock *sk, u32 side)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct connection connection = {};
	struct socket_note owner = {};
	struct socket_note *note;
	u64 key = (u64)tcp;

	if (!tcp)
		return;
	owner_note(&owner, (void *)bpf_get_current_task());
	connection.start_ns = bpf_ktime_get_ns();
	connection.pid = owner.pid;
	connection.owner = owner.owner;
	connection.side = side;
	connection.cgroup_id = known_sock_cgroup_id((void *)tcp);
	connection.port = sk->src_port;
	if (bpf_map_update_elem(&connections, &key, &connection, BPF_ANY))
		__sync_fetch_and_add(&connections_full, 1);
	if (side != TCP_SERVER)
		return;
	/* what is accepted takes a copy */
	note = bpf_sk_storage_get(&notes, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!note)
		return;
	note->pid = owner.pid;
	note->owner = owner.owner;
	note->listener = key;
}

/* The listener's note came with the clone; the connection is in its queue by now. */
static __always_inline void accepted(struct bpf_sock *sk)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct connection connection = {};
	const struct sock *listener;
	struct socket_note *note;
	struct tcp_event event;
	u64 key = (u64)tcp;

	if (!tcp)
		return;
	note = bpf_sk_storage_get(&notes, sk, 0, 0);
	connection.start_ns = connection.opened_ns = bpf_ktime_get_ns();
	connection.side = TCP_SERVER;
	connection.cgroup_id = known_sock_cgroup_id((void *)tcp);
	connection.port = sk->src_port;
	if (note) {
		connection.pid = note->pid;
		connection.owner = note->owner;
	}
	if (bpf_map_update_elem(&connections, &key, &connection, BPF_ANY))
		__sync_fetch_and_add(&connections_full, 1);
	known_begin(&event, (void *)tcp, &connection, connection.opened_ns);
	event.what = TCP_ACCEPT;
	add(sums_of(&event), accepts, 1);
	if (!is_wanted(TCP_ACCEPT))
		return;
	if (note && note->listener) {
		listener = (void *)note->listener;
		event.queue = BPF_CORE_READ(listener, sk_ack_backlog);
		event.limit = BPF_CORE_READ(listener, sk_max_ack_backlog);
	}
	send(&event);
}

/* The state changes: called before the tracepoint, and never left out (tcp_set_state()). */
static __always_inline void changes(struct bpf_sock *ops_sk, u32 old, u32 new)
{
	struct connection *connection;
	struct tcp_event event;
	struct sock *sk;

	if (!counts(old, new))
		return;
	sk = (struct sock *)bpf_skc_to_tcp_sock(ops_sk);
	if (!sk)
		return;
	connection = connection_of(sk);
	known_begin(&event, sk, connection, bpf_ktime_get_ns());
	event.state = new;
	changed(&event, sk, connection, old, new);
	if (new == BPF_TCP_CLOSE && !is_wanted(TCP_STATE)) /* which tells whose it was */
		let_go(sk, connection, old);
}

static __always_inline void ask_for_changes(struct bpf_sock_ops *ops)
{
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

SEC("sockops")
int tcp_ends(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;

	if (!sk)
		return 1;
	switch (ops->op) {
	case BPF_SOCK_OPS_STATE_CB:
		changes(sk, ops->args[0], ops->args[1]);
		break;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		ask_for_changes(ops);
		begins(sk, TCP_CLIENT);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		begins(sk, TCP_SERVER);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		ask_for_changes(ops);
		accepted(sk);
		break;
	}
	return 1;
}

static __always_inline int retransmitted(const struct sock *sk, const struct sk_buff *skb)
{
	struct tcp_skb_cb *cb = (void *)__builtin_preserve_access_index(&skb->cb);
	struct tcp_event event;
	u32 segments = skb ? BPF_CORE_READ(cb, tcp_gso_segs) : 1;

	begin(&event, sk, connection_of(sk), TCP_RETRANSMIT);
	event.retransmits = segments;
	add(sums_of(&event), retransmits, segments);
	if (is_wanted(TCP_RETRANSMIT))
		send(&event);
	return 0;
}

/* TP_PROTO(const struct sock *sk, const struct sk_buff *skb), in include/trace/events/tcp.h. */
SEC("raw_tp/tcp_retransmit_skb")
int tcp_retransmit(struct bpf_raw_tracepoint_args *ctx)
{
	return retransmitted((void *)ctx->args[0], (void *)ctx->args[1]);
}

/* With one more argument, int err, it is called for what could not be sent, too. */
SEC("raw_tp/tcp_retransmit_skb")
int tcp_retransmit_3(struct bpf_raw_tracepoint_args *ctx)
{
	if ((s32)ctx->args[2])
		return 0;
	return retransmitted((void *)ctx->args[0], (void *)ctx->args[1]);
}

static __always_inline int reset(const struct sock *sk, u8 what)
{
	struct connection *connection;
	struct tcp_event event;
	struct tcp_sums *sums;
	u64 key = (u64)sk;
	u8 state;

	if (!sk)
		return 0;
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state == BPF_TCP_TIME_WAIT || state == BPF_TCP_NEW_SYN_RECV || state == BPF_TCP_LISTEN)
		return 0; /* no connection, and the first two are no whole sockets */
	connection = connection_of(sk);
	if (!connection && what == TCP_RESET_SENT) {
		connection = bpf_map_lookup_elem(&ended, &key);
		if (connection && bpf_ktime_get_ns() - connection->start_ns > ENDED_NS)
			connection = NULL;
	}
	begin(&event, sk, connection, what);
	read_bytes(&event, sk);
	read_rest(&event, sk);
	sums = sums_of(&event);
	if (what == TCP_RESET_SENT)
		add(sums, resets_sent, 1);
	else
		add(sums, resets_received, 1);
	if (is_wanted(what))
		send(&event);
	return 0;
}

/* TP_PROTO(const struct sock *sk, const struct sk_buff *skb, ...) */
SEC("raw_tp/tcp_send_reset")
int tcp_reset_sent(struct bpf_raw_tracepoint_args *ctx)
{
	return reset((void *)ctx->args[0], TCP_RESET_SENT);
}

/* TP_PROTO(struct sock *sk) */
SEC("raw_tp/tcp_receive_reset")
int tcp_reset_received(struct bpf_raw_tracepoint_args *ctx)
{
	return reset((void *)ctx->args[0], TCP_RESET_RECEIVED);
}

/* Addresses of a packet that has no socket, as of who would have got it. */
static __always_inline bool read_packet(struct tcp_event *event, const struct sk_buff *skb)
{
	struct packet_ends ends = {};

	if (!packet_ends_read(&ends, skb))
		return false;
	__builtin_memcpy(event->local, ends.local, 16);
	__builtin_memcpy(event->peer, ends.peer, 16);
	event->local_port = ends.local_port;
	event->peer_port = ends.peer_port;
	event->flags = ends.flags;
	return true;
}

enum skb_drop_reason {
	SKB_DROP_REASON_QUEUE_PURGE,
};

/* A closed socket's queue was emptied: nothing was lost on the way. */
static __always_inline bool is_purge(u32 reason)
{
	return bpf_core_enum_value_exists(enum skb_drop_reason, SKB_DROP_REASON_QUEUE_PURGE) &&
	       reason == bpf_core_enum_value(enum skb_drop_reason, SKB_DROP_REASON_QUEUE_PURGE);
}

static __always_inline int dropped(const struct sk_buff *skb, u32 reason, const struct sock *sk)
{
	struct tcp_event event = {};
	u8 state = 0;

	if (!is_wanted(TCP_DROP) || is_purge(reason) || !read_packet(&event, skb))
		return 0;
	if (!sk)
		sk = BPF_CORE_READ(skb, sk);
	if (sk)
		state = BPF_CORE_READ(sk, __sk_common.skc_state);
	event.time_ns = bpf_ktime_get_ns();
	event.what = TCP_DROP;
	event.reason = reason;
	event.state = state;
	if (sk && state != BPF_TCP_TIME_WAIT && state != BPF_TCP_NEW_SYN_RECV) {
		struct connection *connection = connection_of(sk);
		struct sock_head head;

		sock_head_read(&head, sk);
		read_owner(&event, sk, connection);
		/* of a packet that was to leave, the socket's own end is the other one */
		if (state != BPF_TCP_LISTEN)
			read_addresses(&event, sk, connection, &head);
	}
	send(&event);
	return 0;
}

/*
 * TP_PROTO(struct sk_buff *skb, void *location, enum skb_drop_reason reason, struct sock *rx_sk),
 * in include/trace/events/skb.h; the socket since Linux commit c53795d48ee8 ("net: add
 * rx_sk to trace_kfree_skb") (in v6.11), the reason since c504e5c2f964 ("net: skb:
 * introduce kfree_skb_reason()") (in v5.17).
 */
SEC("raw_tp/kfree_skb")
int tcp_drop_4(struct bpf_raw_tracepoint_args *ctx)
{
	return dropped((void *)ctx->args[0], ctx->args[2], (void *)ctx->args[3]);
}

SEC("raw_tp/kfree_skb")
int tcp_drop_3(struct bpf_raw_tracepoint_args *ctx)
{
	return dropped((void *)ctx->args[0], ctx->args[2], NULL);
}

/* TP_PROTO(struct sock *sk, struct sk_buff *skb): each segment that an open connection gets. */
SEC("raw_tp/tcp_probe")
int tcp_window(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sock *sk = (void *)ctx->args[0];
	struct connection *connection = connection_of(sk);
	const struct sock___buffers *buffers = (void *)sk;
	const struct tcp_sock *tcp = (void *)sk;
	u64 now = bpf_ktime_get_ns();
	struct tcp_event event;

	if (!connection || now - connection->sampled_ns < window_ns)
		return 0;
	connection->sampled_ns = now;
	begin(&event, sk, connection, TCP_WINDOW);
	read_bytes(&event, sk);
	read_rest(&event, sk);
	event.cwnd = BPF_CORE_READ(tcp, snd_cwnd);
	event.ssthresh = BPF_CORE_READ(tcp, snd_ssthresh);
	event.sndbuf = BPF_CORE_READ(buffers, sk_sndbuf);
	event.queued = BPF_CORE_READ(buffers, sk_wmem_queued);
	send(&event);
	return 0;
}

#ifndef PODSCOPE_NO_LOOP
/* Sockets that are there already: the first process that has one open is its owner. */
SEC("iter/task_file")
int tcp_open_sockets(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct connection connection = {};
	struct file *file = ctx->file;
	struct socket_note *note;
	struct socket *socket;
	struct sock *sk;
	u8 state;
	u64 key;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket || socket->type != SOCK_STREAM)
		return 0;
	sk = socket->sk;
	if (!sk || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	note = bpf_sk_storage_get(&notes, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!note || note->pid)
		return 0;
	owner_note(note, task);
	key = (u64)sk;
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state == BPF_TCP_LISTEN)
		note->listener = key;
	if (state == BPF_TCP_CLOSE)
		return 0;
	if (state == BPF_TCP_LISTEN)
		connection.side = TCP_SERVER;
	connection.pid = note->pid;
	connection.owner = note->owner;
	connection.cgroup_id = sock_cgroup_id(sk);
	connection.port = BPF_CORE_READ(sk, __sk_common.skc_num);
	if (bpf_map_update_elem(&connections, &key, &connection, BPF_NOEXIST))
		__sync_fetch_and_add(&connections_full, 1);
	return 0;
}
#endif
