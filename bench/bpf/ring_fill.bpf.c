/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Fills a ring: each run of the program submits RECORDS_A_RUN records of 64 bytes. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define RECORDS_A_RUN 1024

struct record {
	__u64 sequence;
	__u64 time_ns;
	__u64 words[6];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16 << 20);
} records SEC(".maps");

struct record *record_type __attribute__((unused));
__u64 submitted;
__u64 refused;

SEC("tc")
int fill(struct __sk_buff *skb)
{
	for (int i = 0; i < RECORDS_A_RUN; i++) {
		struct record *record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);

		if (!record) {
			refused++;
			return 0;
		}
		record->sequence = submitted++;
		record->time_ns = 0;
		for (int word = 0; word < 6; word++)
			record->words[word] = i;
		bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	}
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
