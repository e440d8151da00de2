/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Puts numbered records into small rings, for tests/kernel/test_rings.py. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define MOST 1000

/* 60 bytes: no multiple of 8 */
struct record {
	__u32 sequence;
	__u32 cpu;
	__u32 words[8];
	char text[20];
};

struct record *record_type __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8192);
} records SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} others SEC(".maps");

__u32 wanted;         /* records of the next run */
__u32 discard_every;  /* every n-th is discarded; 0: none */
__u32 sequences[128]; /* by CPU */
__u64 full;

SEC("tc")
int fill(struct __sk_buff *skb)
{
	__u32 cpu = bpf_get_smp_processor_id() & 127;

	for (__u32 i = 0; i < MOST; i++) {
		struct record *record;

		if (i >= wanted)
			break;
		record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);
		if (!record) {
			__sync_fetch_and_add(&full, 1);
			break;
		}
		record->sequence = sequences[cpu]++;
		record->cpu = cpu;
		for (int word = 0; word < 8; word++)
			record->words[word] = record->sequence + word;
		__builtin_memcpy(record->text, "hello world, hello!", 20);
		if (discard_every && record->sequence % discard_every == 0)
			bpf_ringbuf_discard(record, 0);
		else
			bpf_ringbuf_submit(record, 0);
	}
	return 0;
}

/* A record of the right size, then one of another. */
SEC("tc")
int mixed(struct __sk_buff *skb)
{
	struct record right = {};
	__u64 wrong = 0;

	bpf_ringbuf_output(&others, &right, sizeof(right), 0);
	bpf_ringbuf_output(&others, &wrong, sizeof(wrong), 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
