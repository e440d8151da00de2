/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Listeners and their two queues: handshakes that are not complete (SYN queue) and
 * connections that wait for accept() (accept queue). Each listener of the machine has
 * a note in its socket, made when it begins to listen, or by one walk at the start. An
 * iterator over the notes reads all of them at once, whatever their network namespace.
 * The kernel's own counter of the socket says what was dropped (tcp_listendrop()).
 */
#include <linux/ptrace.h>
#include <bpf/bpf_tracing.h>
#include "common/atomics.h"
#include "common/iter.h"
#include "common/owner.h"
#include "common/packet.h"
#include "common/percpu.h"
#include "listen/listen.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Keep the records in the object's BTF: user space makes its dtypes from it. */
const struct listen_row *row_type __attribute__((unused));
const struct process *process_type __attribute__((unused));
const enum listen_was was_type __attribute__((unused));
const struct listen_drop *drop_type __attribute__((unused));

#define SOCK_STREAM 1

const volatile bool with_drops = false;   /* each drop is told, too */
const volatile u32 mib_overflows = 0;     /* LINUX_MIB_LISTENOVERFLOWS, another in each kernel */
const volatile bool with_counter = false; /* whether that is known */

/* What is noted with a listener. */
struct listener {
	u32 pid;
	u32 owner;
	u32 drops; /* of the socket, when they were last told */
	u32 was;
	u64 overflows; /* of its network namespace, when it was first seen */
	u64 seen;      /* what is above holds */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct listener);
} listeners SEC(".maps");

struct highest {
	u32 accept;
	u32 syn;
};

/* The longest queues of the interval, by the listener's address in the kernel. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, u64);
	__type(value, struct highest);
} highest SEC(".maps");

/*
 * Listeners of MPTCP that were there before the start: what listens is the first subflow,
 * a socket that no descriptor leads to, and that takes no note (the verifier does not
 * trust a pointer that was read). By its address, and told only while it is the same.
 */
struct subflow {
	struct listener listener;
	u32 netns;
	u32 port;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u64);
	__type(value, struct subflow);
} subflows SEC(".maps");

/* Last rows of listeners that were closed within an interval. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} closed SEC(".maps");

/* Listeners by their address, for programs that notes in sockets are out of reach for. */
struct known {
	u32 pid;
	u32 owner;
	u32 told; /* drops that were told one by one, or are of before the start */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, u64);
	__type(value, struct known);
} known SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} drops SEC(".maps");

u64 ring_full;       /* last rows that found no room */
u64 drops_ring_full; /* drops that found no room */
u64 no_memory;       /* listeners without a note */

struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	struct sock *sk;
	void *value;
} __attribute__((preserve_access_index));

static __always_inline u32 netns_of(const struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
}

/*
 * What the kernel has counted in a network namespace, as /proc/net/netstat shows it to who is in
 * there. An overflow is counted before the drop that it is: read it after the drops.
 */
static __noinline u64 overflows_of(const struct sock *sk)
{
	void *counters = BPF_CORE_READ(sk, __sk_common.skc_net.net, mib.net_statistics);
	u64 sum = 0, part;

	if (!with_counter)
		return LISTEN_UNKNOWN;
	for (u32 cpu = 0; cpu < MAX_CPUS && cpu < cpus; cpu++) {
		if (cpu_read(&part, sizeof(part), counters + mib_overflows * sizeof(part), cpu))
			sum += part;
	}
	return sum;
}

static __always_inline u64 netns_id(const struct sock *sk)
{
	struct net *net = BPF_CORE_READ(sk, __sk_common.skc_net.net);

	/* Linux commit 3d368ab87cf6 ("net: initialize net->net_cookie at netns setup"), in v5.12 */
	if (bpf_core_field_exists(net->net_cookie))
		return BPF_CORE_READ(net, net_cookie);
	return BPF_CORE_READ(net, ns.inum);
}

/* A listener is seen for the first time: what was dropped before is nobody's. */
static __always_inline void begin(struct listener *listener, const struct sock *sk)
{
	listener->drops = BPF_CORE_READ(sk, sk_drops.counter);
	listener->overflows = overflows_of(sk);
	listener->seen = 1;
}

static __always_inline u32 accept_queue(const struct sock *sk)
{
	return BPF_CORE_READ(sk, sk_ack_backlog);
}

static __always_inline u32 syn_queue(const struct sock *sk)
{
	return BPF_CORE_READ((struct inet_connection_sock *)sk, icsk_accept_queue.qlen.counter);
}

/* From now on each drop of a listener is told. */
static __always_inline void know(u64 key, struct listener *listener, u32 drops, u64 how)
{
	struct known value = { .pid = listener->pid, .owner = listener->owner, .told = drops };

	if (!with_drops || (how == BPF_NOEXIST && bpf_map_lookup_elem(&known, &key)))
		return;
	if (bpf_map_update_elem(&known, &key, &value, how))
		__sync_fetch_and_add(&no_memory, 1);
}

static __always_inline void fill(struct listen_row *row, const struct sock *sk,
				 struct listener *listener)
{
	u64 key = (u64)sk;
	struct highest *most = bpf_map_lookup_elem(&highest, &key);
	struct sock_head head;
	u32 drops;

	if (!listener->seen) /* noted from user space */
		begin(listener, sk);
	drops = BPF_CORE_READ(sk, sk_drops.counter);
	sock_head_read(&head, sk);
	__builtin_memset(row, 0, sizeof(*row));
	row->cgroup_id = sock_cgroup_id(sk);
	row->pid = listener->pid;
	row->owner = listener->owner;
	row->netns = netns_of(sk);
	row->accept_queue = accept_queue(sk);
	row->syn_queue = syn_queue(sk);
	row->accept_highest = row->accept_queue;
	row->syn_highest = row->syn_queue;
	if (most) {
		if (most->accept > row->accept_highest)
			row->accept_highest = most->accept;
		if (most->syn > row->syn_highest)
			row->syn_highest = most->syn;
		bpf_map_delete_elem(&highest, &key);
	}
	row->limit = BPF_CORE_READ(sk, sk_max_ack_backlog);
	row->drops = drops - listener->drops;
	row->netns_id = netns_id(sk);
	row->overflows_first = listener->overflows;
	row->overflows_now = row->drops ? overflows_of(sk) : LISTEN_UNKNOWN;
	know(key, listener, drops, BPF_NOEXIST);
	row->port = sock_head_get(&head, u16, skc_num);
	row->was = listener->was;
	sock_head_local(&head, row->address);
	listener->drops = drops;
	listener->was = 0;
	if (row->accept_highest && row->accept_highest * 5ULL >= row->limit * 4ULL)
		listener->was |= LISTEN_ACCEPT_HIGH;
	if (row->syn_highest && row->syn_highest * 5ULL >= row->limit * 4ULL)
		listener->was |= LISTEN_SYN_HIGH;
}

/* A row for each listener; the next interval begins. */
SEC("iter/bpf_sk_storage_map")
int listen_rows(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct listener *listener = ctx->value;
	struct sock *sk = ctx->sk;
	struct listen_row row;

	if (!sk || !listener || BPF_CORE_READ(sk, __sk_common.skc_state) != BPF_TCP_LISTEN ||
	    BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	fill(&row, sk, listener);
	bpf_seq_write(seq, &row, sizeof(row));
	return 0;
}

/* The same for the subflows. */
SEC("iter/bpf_map_elem")
int listen_subflow_rows(struct bpf_iter__bpf_map_elem *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct subflow *subflow = ctx->value;
	struct listen_row row;
	u64 *key = ctx->key;
	struct sock *sk;

	if (!key || !subflow || !subflow->listener.pid)
		return 0;
	sk = (struct sock *)*key;
	if (BPF_CORE_READ(sk, __sk_common.skc_state) != BPF_TCP_LISTEN ||
	    BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP ||
	    BPF_CORE_READ(sk, __sk_common.skc_num) != subflow->port ||
	    netns_of(sk) != subflow->netns) {
		subflow->listener.pid = 0; /* it is gone; what took its place is known by itself */
		return 0;
	}
	fill(&row, sk, &subflow->listener);
	bpf_seq_write(seq, &row, sizeof(row));
	return 0;
}

static __always_inline void begins(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct listener *listener;
	struct socket_note *note;

	listener = bpf_sk_storage_get(&listeners, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	note = bpf_sk_storage_get(&notes, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!tcp || !listener || !note) {
		__sync_fetch_and_add(&no_memory, 1);
		return;
	}
	owner_note(note, (void *)bpf_get_current_task());
	note->listener = (u64)tcp;
	/* of who had this address before */
	bpf_map_delete_elem(&subflows, &note->listener);
	bpf_map_delete_elem(&highest, &note->listener);
	listener->pid = note->pid;
	listener->owner = note->owner;
	begin(listener, (struct sock *)tcp);
	know(note->listener, listener, listener->drops, BPF_ANY);
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/*
 * A connection is complete: it is in the accept queue by now (tcp_check_req() puts it
 * there before the child gets its packet). The listener's note came with the clone.
 */
static __always_inline void accepted(struct bpf_sock *sk)
{
	struct socket_note *note = bpf_sk_storage_get(&notes, sk, 0, 0);
	struct highest now = {}, *most;
	struct sock *listener;
	u64 key;

	if (!note || !note->listener)
		return;
	key = note->listener;
	listener = (struct sock *)key;
	now.accept = accept_queue(listener);
	now.syn = syn_queue(listener);
	most = bpf_map_lookup_elem(&highest, &key);
	if (!most) {
		bpf_map_update_elem(&highest, &key, &now, BPF_ANY);
		return;
	}
	if (now.accept > most->accept)
		most->accept = now.accept;
	if (now.syn > most->syn)
		most->syn = now.syn;
}

static __always_inline void ends(struct bpf_sock *sk)
{
	struct listener *listener = bpf_sk_storage_get(&listeners, sk, 0, 0);
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct listen_row *row;
	u64 key = (u64)tcp;

	if (!listener || !tcp)
		return;
	row = bpf_ringbuf_reserve(&closed, sizeof(*row), 0);
	if (!row) {
		__sync_fetch_and_add(&ring_full, 1);
	} else {
		fill(row, (struct sock *)tcp, listener);
		row->closed = 1;
		bpf_ringbuf_submit(row, BPF_RB_NO_WAKEUP);
	}
	if (with_drops)
		bpf_map_delete_elem(&known, &key);
}

SEC("sockops")
int listen_socket(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;

	if (!sk)
		return 1;
	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		begins(ops, sk);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		accepted(sk);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ops->args[0] == BPF_TCP_LISTEN)
			ends(sk);
		break;
	}
	return 1;
}

/* Those drops of a listener that nobody has told: each is taken once. */
static __always_inline u32 take_drops(struct known *listener, const struct sock *sk)
{
	u32 drops = BPF_CORE_READ(sk, sk_drops.counter), told = *(volatile u32 *)&listener->told;

#ifdef PODSCOPE_NO_ATOMICS
	/* two at once may tell one twice: then the next one is not told, the sum stays right */
	if ((s32)(drops - told) <= 0)
		return 0;
	__sync_fetch_and_add(&listener->told, drops - told);
	return drops - told;
#else
	for (int i = 0; i < 8 && (s32)(drops - told) > 0; i++) {
		u32 before = __sync_val_compare_and_swap(&listener->told, told, drops);

		if (before == told)
			return drops - told;
		told = before;
	}
	return 0;
#endif
}

/* As tcp_conn_request() and tcp_v4_syn_recv_sock() decide; full is > (sk_acceptq_is_full()). */
static __always_inline u8 reason_of(const struct listen_drop *drop, const struct sock *sk)
{
	const struct net *net = BPF_CORE_READ(sk, __sk_common.skc_net.net);
	u32 most;

	if (drop->accept_queue > drop->limit)
		return LISTEN_DROP_ACCEPT_QUEUE;
	if (BPF_CORE_READ(net, ipv4.sysctl_tcp_syncookies))
		return LISTEN_DROP_OTHER;
	/* the last quarter is for who is known already */
	most = BPF_CORE_READ(net, ipv4.sysctl_max_syn_backlog);
	if (drop->syn_queue >= drop->limit || drop->syn_queue + (most >> 2) > most)
		return LISTEN_DROP_SYN_QUEUE;
	return LISTEN_DROP_OTHER;
}

/* A function of the kernel that may drop a handshake has ended. */
static __always_inline int handshake(const struct sock *sk, const struct sk_buff *skb)
{
	struct packet_ends ends = {};
	struct listen_drop drop = {};
	struct sock_head head;
	struct known *listener;
	u64 key = (u64)sk;

	listener = bpf_map_lookup_elem(&known, &key);
	if (!listener)
		return 0;
	drop.drops = take_drops(listener, sk);
	if (!drop.drops)
		return 0;
	sock_head_read(&head, sk);
	drop.time_ns = bpf_ktime_get_ns();
	drop.cgroup_id = sock_cgroup_id(sk);
	drop.pid = listener->pid;
	drop.owner = listener->owner;
	drop.netns = netns_of(sk);
	drop.accept_queue = accept_queue(sk);
	drop.syn_queue = syn_queue(sk);
	drop.limit = BPF_CORE_READ(sk, sk_max_ack_backlog);
	drop.port = sock_head_get(&head, u16, skc_num);
	drop.reason = reason_of(&drop, sk);
	sock_head_local(&head, drop.address);
	if (packet_ends_read(&ends, skb)) {
		__builtin_memcpy(drop.peer, ends.peer, 16);
		drop.peer_port = ends.peer_port;
	}
	if (bpf_ringbuf_output(&drops, &drop, sizeof(drop), BPF_RB_NO_WAKEUP))
		__sync_fetch_and_add(&drops_ring_full, drop.drops);
	return 0;
}

/*
 * Where handshakes are dropped (tcp_listendrop()): a SYN in tcp_conn_request(), the ACK that
 * completes one in tcp_v4_syn_recv_sock() and tcp_v6_syn_recv_sock(). Loaded if drops are asked
 * for: at their exits (fexit), or where the kernel has no trampolines with kprobes.
 */
SEC("?fexit/tcp_conn_request")
int BPF_PROG(drop_syn_exit, void *ops, void *more, struct sock *sk, struct sk_buff *skb)
{
	return handshake(sk, skb);
}

SEC("?fexit/tcp_v4_syn_recv_sock")
int BPF_PROG(drop_ack4_exit, struct sock *sk, struct sk_buff *skb)
{
	return handshake(sk, skb);
}

SEC("?fexit/tcp_v6_syn_recv_sock")
int BPF_PROG(drop_ack6_exit, struct sock *sk, struct sk_buff *skb)
{
	return handshake(sk, skb);
}

struct arguments {
	u64 sk;
	u64 skb;
};

enum { SYN, ACK4, ACK6, FUNCTIONS };

/* Of the calls that a CPU is in: packets are handled without preemption, one after the other. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FUNCTIONS);
	__type(key, u32);
	__type(value, struct arguments);
} calls SEC(".maps");

static __always_inline int entered(u32 function, u64 sk, u64 skb)
{
	struct arguments *call = bpf_map_lookup_elem(&calls, &function);

	if (call) {
		call->sk = sk;
		call->skb = skb;
	}
	return 0;
}

static __always_inline int returned(u32 function)
{
	struct arguments *call = bpf_map_lookup_elem(&calls, &function);

	return call && call->sk ? handshake((void *)call->sk, (void *)call->skb) : 0;
}

SEC("?kprobe/tcp_conn_request")
int BPF_KPROBE(drop_syn_entry, void *ops, void *more, u64 sk, u64 skb)
{
	return entered(SYN, sk, skb);
}

SEC("?kretprobe/tcp_conn_request")
int BPF_KRETPROBE(drop_syn_return)
{
	return returned(SYN);
}

SEC("?kprobe/tcp_v4_syn_recv_sock")
int BPF_KPROBE(drop_ack4_entry, u64 sk, u64 skb)
{
	return entered(ACK4, sk, skb);
}

SEC("?kretprobe/tcp_v4_syn_recv_sock")
int BPF_KRETPROBE(drop_ack4_return)
{
	return returned(ACK4);
}

SEC("?kprobe/tcp_v6_syn_recv_sock")
int BPF_KPROBE(drop_ack6_entry, u64 sk, u64 skb)
{
	return entered(ACK6, sk, skb);
}

SEC("?kretprobe/tcp_v6_syn_recv_sock")
int BPF_KRETPROBE(drop_ack6_return)
{
	return returned(ACK6);
}

#ifndef PODSCOPE_NO_LOOP
struct mptcp_sock {
	struct sock *first;
} __attribute__((preserve_access_index));

static __always_inline void note_subflow(struct sock *sk, struct task_struct *task)
{
	struct socket_note owner = {};
	struct subflow subflow = {};
	struct sock *first;
	u64 key;

	if (!bpf_core_field_exists(((struct mptcp_sock *)sk)->first))
		return;
	first = BPF_CORE_READ((struct mptcp_sock *)sk, first);
	key = (u64)first;
	if (!first || bpf_map_lookup_elem(&subflows, &key))
		return;
	owner_note(&owner, task);
	subflow.listener.pid = owner.pid;
	subflow.listener.owner = owner.owner;
	begin(&subflow.listener, first);
	subflow.netns = netns_of(first);
	subflow.port = BPF_CORE_READ(first, __sk_common.skc_num);
	if (bpf_map_update_elem(&subflows, &key, &subflow, BPF_NOEXIST))
		__sync_fetch_and_add(&no_memory, 1);
}

/* Listeners that are there already: the first process that has one open is its owner. */
SEC("iter/task_file")
int listen_open_sockets(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct listener *listener;
	struct socket_note *note;
	struct socket *socket;
	struct sock *sk;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket || socket->type != SOCK_STREAM)
		return 0;
	sk = socket->sk;
	if (!sk || BPF_CORE_READ(sk, __sk_common.skc_state) != BPF_TCP_LISTEN)
		return 0;
	if (BPF_CORE_READ(sk, sk_protocol) == IPPROTO_MPTCP)
		note_subflow(sk, task);
	if (BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	listener = bpf_sk_storage_get(&listeners, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	note = bpf_sk_storage_get(&notes, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!listener || !note || listener->pid)
		return 0;
	owner_note(note, task);
	note->listener = (u64)sk;
	listener->pid = note->pid;
	listener->owner = note->owner;
	begin(listener, sk);
	return 0;
}
#endif
