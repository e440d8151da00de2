/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What no engine at these hooks can leave out. For each segment with bytes: its
 * headers are read, its socket's state is looked up, the clock is read and the
 * head of the message is copied once. For each second one, so once a request and
 * end: the time since the one before is accumulated. Shares no code with the
 * engine, so that a change there does not move the yardstick.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>

#define PASS     1
#define HEAD_MAX 512

/* What clang knows of a number here, the verifier may not: clang forgets it. */
#define opaque(x) asm volatile("" : "+r"(x))

struct state {
	__u64 start_ns;
	__u8 head[HEAD_MAX];
};

struct total {
	__u64 count;
	__u64 sum_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct state);
} states SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} notes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct total);
} totals SEC(".maps");

/* Storage look-ups a segment: 1 or 2. */
const volatile __u32 look_ups = 1;

/* Where the payload begins, from the IP header; 0: no TCP. */
static __always_inline __u32 payload_offset(struct __sk_buff *skb)
{
	__u8 *data = (__u8 *)(long)skb->data, *end = (__u8 *)(long)skb->data_end;
	__u32 at = 40;
	__u8 protocol;

	if (data + 40 > end)
		return 0;
	protocol = data[6];
	if (data[0] >> 4 == 4) {
		at = (data[0] & 15) * 4;
		protocol = data[9];
	}
	if (protocol != IPPROTO_TCP)
		return 0;
	opaque(at);
	at &= 63;
	if (data + at + 20 > end)
		return 0;
	return at + (data[at + 12] >> 4) * 4;
}

/* Copies the first bytes of the message. */
static __always_inline void copy_head(struct __sk_buff *skb, __u32 off, struct state *state)
{
	__u64 n = skb->len - off;

	if (n > HEAD_MAX)
		n = HEAD_MAX;
	opaque(n);
	if (n == 0)
		return;
	opaque(n);
	if (n > HEAD_MAX)
		return;
	bpf_skb_load_bytes(skb, off, state->head, n);
}

static __always_inline void accumulate(__u64 ns)
{
	__u32 slot = 0;
	struct total *total = bpf_map_lookup_elem(&totals, &slot);

	if (!total)
		return;
	total->count++;
	total->sum_ns += ns;
}

SEC("cgroup/skb")
int least(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct state *state;
	__u32 off;
	__u64 now;

	if (!sk)
		return PASS;
	off = payload_offset(skb);
	if (!off || off >= skb->len)
		return PASS;
	if (look_ups > 1 && !bpf_sk_storage_get(&notes, sk, 0, BPF_SK_STORAGE_GET_F_CREATE))
		return PASS;
	state = bpf_sk_storage_get(&states, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!state)
		return PASS;
	now = bpf_ktime_get_ns();
	copy_head(skb, off, state);
	if (!state->start_ns) {
		state->start_ns = now;
		return PASS;
	}
	accumulate(now - state->start_ns);
	state->start_ns = 0;
	return PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
