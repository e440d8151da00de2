/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * DNS lookups (RFC 1035) over UDP and TCP, port 53, as each socket's own packets show
 * them: a query that leaves is a client's, one that arrives a server's. A response
 * belongs to the query of the same socket, peer, id and name. Nothing is ever changed.
 */
#include <linux/in6.h>
#include "common/atomics.h"
#include "common/chunks.h"
#include "common/owner.h"
#include "common/segment.h"
#include "common/storage.h"
#include "dns/dns.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Keep the records in the object's BTF: user space makes its dtypes from it. */
const struct dns_row *row_type __attribute__((unused));
const struct dns_lookup *lookup_type __attribute__((unused));
const struct process *process_type __attribute__((unused));

#define PASS        1
#define DNS_PORT    53
#define HEADER      12
#define QR          0x8000 /* it is a response */
#define OPCODE      0x7800
#define NAME_OTHER  1
#define FNV_BASIS   0xcbf29ce484222325ULL /* FNV-1a, 64 bits */
#define FNV_PRIME   0x100000001b3ULL
#define OLD_NS      5000000000ULL /* resolvers ask again after as long (RES_TIMEOUT) */
#define MESSAGES    4             /* of one segment */
#define SOCK_DGRAM  2
#define SOCK_STREAM 1

const volatile bool with_sums = true;
const volatile bool with_events = false;
const volatile bool only_errors = false;

u32 parity; /* which of the maps is written to */

u64 ring_full;    /* lookups that were not told one by one */
u64 table_full;   /* lookups counted together, because of too many series */
u64 chunks_full;  /* durations that are in the sums and in no histogram */
u64 names_full;   /* lookups counted under the name _OTHER */
u64 queries_full; /* queries that were not noted */
u64 replaced;     /* queries whose id was used again before a response came */
u64 unasked;      /* responses to no query that was noted */
u64 malformed;    /* messages that are none */
u64 tcp_unparsed; /* segments whose messages could not be told apart */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct dns_query_key);
	__type(value, struct dns_query);
} queries SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct dns_key);
	__type(value, struct dns_sums);
} sums_0 SEC(".maps"), sums_1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct dns_key);
	__type(value, struct chunk);
} chunks_0 SEC(".maps"), chunks_1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u64);
	__type(value, struct dns_name);
} names_0 SEC(".maps"), names_1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 21);
} lookups SEC(".maps");

/* Where a connection's messages begin, by direction. */
struct stream {
	u32 next[2]; /* sequence number */
	u32 left[2]; /* bytes of a message that are still to come */
	u8 known[2];
	u8 length[2]; /* its length has come alone */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct stream);
} streams SEC(".maps");

enum { IN, OUT };

struct packet {
	u32 off; /* of the transport's payload */
	u32 len;
	u32 seq;
	u16 source;
	u16 target;
	u8 tcp;
	u8 v6;
};

static __always_inline bool packet_parse(struct __sk_buff *skb, struct packet *p)
{
	u8 *data = (u8 *)(long)skb->data, *end = (u8 *)(long)skb->data_end;
	u32 at = 40, total;
	u8 next, *head;

	if (data + 20 > end)
		return false;
	p->v6 = data[0] >> 4 == 6;
	if (!p->v6) {
		at = (data[0] & 15) * 4;
		next = data[9];
		/* only a first fragment has ports */
		if (*(__be16 *)(data + 6) & bpf_htons(0x1fff))
			return false;
	} else {
		if (data + 40 > end)
			return false;
		next = data[6];
	}
	if (next != IPPROTO_UDP && next != IPPROTO_TCP)
		return false;
	opaque(at);
	head = data + (at & 127);
	if (head + 8 > end)
		return false;
	p->source = bpf_ntohs(*(__be16 *)head);
	p->target = bpf_ntohs(*(__be16 *)(head + 2));
	if (p->source != DNS_PORT && p->target != DNS_PORT)
		return false;
	p->tcp = next == IPPROTO_TCP;
	total = 8;
	if (p->tcp) {
		if (head + 20 > end)
			return false;
		p->seq = bpf_ntohl(*(__be32 *)(head + 4));
		total = (head[12] >> 4) * 4;
	}
	p->off = (at & 127) + total;
	p->len = skb->len > p->off ? skb->len - p->off : 0;
	return p->len > 0;
}

/*
 * The name of a question, from its labels: each is a length and as many bytes, the last
 * length is 0 (RFC 1035, section 4.1.2). They are in the place of the text, one byte
 * further on. Returns the bytes they take, 0 if it is no name.
 */
static __always_inline u32 name_read(struct dns_name *name, u32 len, u64 *hash)
{
	u32 left = 0, at = 0;
	u64 h = FNV_BASIS;

	for (u32 i = 0; i < DNS_NAME_MAX; i++) {
		u8 c = name->text[i];

		if (i >= len)
			return 0;
		at = i;
		if (!left) {
			if (!c)
				break;
			if (c > 63)
				return 0;
			left = c;
			c = '.';
		} else {
			left--;
			if (c >= 'A' && c <= 'Z')
				c += 'a' - 'A';
		}
		if (i) {
			name->text[i - 1] = c;
			h = (h ^ c) * FNV_PRIME;
		}
		if (i == DNS_NAME_MAX - 1)
			name->cut = 1;
	}
	name->text[at & (DNS_NAME_MAX - 1)] = 0;
	if (at)
		name->text[(at - 1) & (DNS_NAME_MAX - 1)] = 0;
	name->len = at ? at - 1 : 0;
	*hash = h > NAME_OTHER ? h : h + 2;
	return at + 1;
}

static __always_inline void peer_address(struct __sk_buff *skb, bool v6, u32 direction, u8 *out)
{
	u32 word = 0;

	if (v6) {
		bpf_skb_load_bytes(skb, direction == IN ? 8 : 24, out, 16);
		return;
	}
	bpf_skb_load_bytes(skb, direction == IN ? 12 : 16, &word, 4);
	out[10] = 0xff;
	out[11] = 0xff;
	__builtin_memcpy(out + 12, &word, 4);
}

/* Not on the stack, which is small. */
static const struct dns_sums none;

static __always_inline struct dns_sums *sums_in(void *map, struct dns_key *key)
{
	struct dns_sums *sums = bpf_map_lookup_elem(map, key);

	if (sums)
		return sums;
	bpf_map_update_elem(map, key, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(map, key);
}

static __always_inline bool name_keep(void *map, u64 hash, struct dns_name *name)
{
	return bpf_map_lookup_elem(map, &hash) || !bpf_map_update_elem(map, &hash, name, BPF_ANY);
}

/* The key is changed. */
static __always_inline void count(struct dns_key *key, struct dns_name *name, u64 ns)
{
	bool odd = *(volatile u32 *)&parity & 1;
	u32 bucket = bucket_of(ns);
	struct dns_sums *sums;
	u8 side = key->side;

	if (!(odd ? name_keep(&names_1, key->name, name) : name_keep(&names_0, key->name, name))) {
		key->name = NAME_OTHER;
		__sync_fetch_and_add(&names_full, 1);
	}
	sums = odd ? sums_in(&sums_1, key) : sums_in(&sums_0, key);
	if (!sums) {
		__sync_fetch_and_add(&table_full, 1);
		__builtin_memset(key, 0, sizeof(*key));
		key->name = NAME_OTHER;
		key->side = side;
		sums = odd ? sums_in(&sums_1, key) : sums_in(&sums_0, key);
	}
	if (!sums)
		return;
	__sync_fetch_and_add(&sums->count, 1);
	__sync_fetch_and_add(&sums->sum_ns, ns);
	__sync_fetch_and_add(&sums->le[bound_of(ns, bucket) & 15], 1);
	atomic_max(&sums->max_ns, ns);
	key->chunk = chunk_of(bucket);
	if (!(odd ? chunk_add(&chunks_1, key, bucket) : chunk_add(&chunks_0, key, bucket)))
		__sync_fetch_and_add(&chunks_full, 1);
}

static __always_inline void tell(struct dns_key *key, struct dns_query_key *at,
				 struct dns_query *query, u64 ns)
{
	struct dns_lookup *lookup = bpf_ringbuf_reserve(&lookups, sizeof(*lookup), 0);

	if (!lookup) {
		__sync_fetch_and_add(&ring_full, 1);
		return;
	}
	lookup->time_ns = query->time_ns;
	lookup->duration_ns = ns;
	lookup->key = *key;
	__builtin_memcpy(lookup->peer, at->peer, 16);
	lookup->peer_port = at->peer_port;
	lookup->id = at->id;
	lookup->repeats = query->repeats;
	lookup->name = query->name;
	bpf_ringbuf_submit(lookup, BPF_RB_NO_WAKEUP);
}

struct message {
	__be16 id;
	__be16 flags;
	__be16 questions;
	__be16 answers;
	__be16 authorities;
	__be16 more;
};

static __always_inline void asked(struct __sk_buff *skb, struct bpf_sock *sk,
				  struct dns_query_key *key, struct dns_query *query)
{
	struct socket_note *note = bpf_sk_storage_get(&notes, sk, 0, 0);
	struct dns_query *before = bpf_map_lookup_elem(&queries, key);

	if (before && before->hash == query->hash && query->time_ns - before->time_ns < OLD_NS) {
		before->repeats++;
		return;
	}
	if (before)
		__sync_fetch_and_add(&replaced, 1);
	query->cgroup_id = bpf_sk_cgroup_id(sk);
	if (note) {
		query->pid = note->pid;
		query->owner = note->owner;
	}
	if (bpf_map_update_elem(&queries, key, query, BPF_ANY))
		__sync_fetch_and_add(&queries_full, 1);
}

static __noinline void answered(struct dns_query_key *at, u64 now, u64 hash, u32 flags)
{
	struct dns_query *query = bpf_map_lookup_elem(&queries, at);
	struct dns_key key = {};
	u64 ns;

	if (!query || query->hash != hash) {
		__sync_fetch_and_add(&unasked, 1);
		return;
	}
	ns = now - query->time_ns;
	key.cgroup_id = query->cgroup_id;
	key.name = query->hash;
	key.pid = query->pid;
	key.owner = query->owner;
	key.type = query->type;
	key.code = flags & 15;
	key.side = at->side;
	key.tcp = at->tcp;
	if (at->side == DNS_CLIENT)
		__builtin_memcpy(key.peer, at->peer, 16);
	if (with_events && (key.code || !only_errors))
		tell(&key, at, query, ns);
	if (with_sums)
		count(&key, &query->name, ns);
	bpf_map_delete_elem(&queries, at);
}

/*
 * One message. A function of its own, verified once. False: it is none.
 * how: direction, 2: TCP, 4: IPv6.
 */
__noinline int dns_message(struct __sk_buff *skb, u32 off, u32 len, u32 how, u32 ports)
{
	u32 direction = how & 1, source = ports >> 16, target = ports & 0xffff, took;
	struct bpf_sock *sk = skb->sk;
	struct dns_query_key key = {};
	struct dns_query query = {};
	struct message message;
	__be16 type;
	bool answer;
	u32 have;

	if (!sk || len < HEADER + 5 || off > 4095)
		return 0;
	if (bpf_skb_load_bytes(skb, off, &message, sizeof(message)))
		return 0;
	if (bpf_ntohs(message.flags) & OPCODE || message.questions != bpf_htons(1))
		return 0;
	answer = bpf_ntohs(message.flags) & QR;
	if ((answer ? source : target) != DNS_PORT)
		return 0;
	have = len - HEADER;
	if (have > DNS_NAME_MAX)
		have = DNS_NAME_MAX;
	if (!load_bytes(skb, off + HEADER, query.name.text, have, DNS_NAME_MAX))
		return 0;
	took = name_read(&query.name, have, &query.hash);
	if (!took)
		return 0;
	if (!query.name.cut && !bpf_skb_load_bytes(skb, off + HEADER + took, &type, 2))
		query.type = bpf_ntohs(type);
	query.time_ns = bpf_ktime_get_ns();
	key.cookie = bpf_get_socket_cookie(skb);
	key.id = bpf_ntohs(message.id);
	key.tcp = how >> 1 & 1;
	/* a query that leaves, or a response that comes in */
	key.side = answer == (direction == IN) ? DNS_CLIENT : DNS_SERVER;
	key.peer_port = direction == IN ? source : target;
	peer_address(skb, how & 4, direction, key.peer);
	if (answer)
		answered(&key, query.time_ns, query.hash, bpf_ntohs(message.flags));
	else
		asked(skb, sk, &key, &query);
	return 1;
}

/* Lost track: the next segment that begins with a plausible message is taken as a beginning. */
static __always_inline void unparsed(struct stream *stream, u32 direction)
{
	stream->known[direction] = 0;
	stream->left[direction] = 0;
	stream->length[direction] = 0;
	__sync_fetch_and_add(&tcp_unparsed, 1);
}

/* Each message of a connection has its length before it (RFC 1035, section 4.2.2). */
static __always_inline void tcp_messages(struct __sk_buff *skb, struct packet *p, u32 direction)
{
	u32 off = p->off, len = p->len, how = direction | 2 | p->v6 << 2;
	u32 ports = p->source << 16 | p->target;
	struct bpf_sock *sk = skb->sk;
	struct stream *stream;
	__be16 raw;

	if (!sk)
		return;
	stream = storage_made(&streams, sk);
	if (!stream)
		return;
	if (stream->known[direction] && p->seq != stream->next[direction]) {
		if ((s32)(p->seq - stream->next[direction]) < 0)
			return; /* it came before */
		unparsed(stream, direction);
	}
	stream->known[direction] = 1;
	stream->next[direction] = p->seq + len;
	if (stream->left[direction]) {
		u32 rest = stream->left[direction];

		if (rest >= len) {
			stream->left[direction] -= len;
			return;
		}
		stream->left[direction] = 0;
		off += rest;
		len -= rest;
	}
	for (u32 i = 0; i < MESSAGES && len; i++) {
		u32 size;

		if (!stream->length[direction]) {
			if (len < 2 || bpf_skb_load_bytes(skb, off, &raw, 2)) {
				unparsed(stream, direction);
				return;
			}
			size = bpf_ntohs(raw);
			off += 2;
			len -= 2;
			if (!len) {
				stream->length[direction] = 1;
				stream->left[direction] = 0;
				return;
			}
		} else {
			stream->length[direction] = 0;
			size = len; /* a message follows its length in one segment, or is lost */
		}
		if (!dns_message(skb, off, size < len ? size : len, how, ports)) {
			unparsed(stream, direction);
			return;
		}
		if (size >= len) {
			stream->left[direction] = size - len;
			return;
		}
		off += size;
		len -= size;
	}
	if (len)
		unparsed(stream, direction);
}

SEC("cgroup/skb")
int dns_packet(struct __sk_buff *skb)
{
	u32 direction = skb->ingress_ifindex ? IN : OUT;
	struct packet p = {};

	if (!packet_parse(skb, &p))
		return PASS;
	if (p.tcp) {
		tcp_messages(skb, &p, direction);
		return PASS;
	}
	if (skb->sk &&
	    !dns_message(skb, p.off, p.len, direction | p.v6 << 2, p.source << 16 | p.target))
		__sync_fetch_and_add(&malformed, 1);
	return PASS;
}

/* Every new socket: who opens it. */
SEC("cgroup/sock_create")
int dns_socket(struct bpf_sock *sk)
{
	struct socket_note *note;

	if (sk->type != SOCK_DGRAM && sk->type != SOCK_STREAM)
		return 1;
	note = bpf_sk_storage_get(&notes, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (note)
		owner_note(note, (void *)bpf_get_current_task());
	return 1;
}

#ifndef PODSCOPE_NO_LOOP
/* Sockets that are there already: the first process that has one open is its owner. */
SEC("iter/task_file")
int dns_open_sockets(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket_note *note;
	struct socket *socket;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket || (socket->type != SOCK_DGRAM && socket->type != SOCK_STREAM))
		return 0;
	note = bpf_sk_storage_get(&notes, socket->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (note && !note->pid)
		owner_note(note, task);
	return 0;
}
#endif
