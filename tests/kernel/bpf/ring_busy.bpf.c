/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Holds a reserved record until user space lets go, with two whole ones around it. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} records SEC(".maps");

__u32 holding;
__u32 release;

static long wait(__u32 index, void *context)
{
	return *(volatile __u32 *)&release & 1;
}

static long wait_long(__u32 index, void *context)
{
	bpf_loop(1 << 23, wait, NULL, 0);
	return *(volatile __u32 *)&release & 1;
}

SEC("tc")
int hold(struct __sk_buff *skb)
{
	__u64 *record, number = 1;

	bpf_ringbuf_output(&records, &number, sizeof(number), 0);
	record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);
	if (!record)
		return 0;
	*record = 2;
	number = 3;
	bpf_ringbuf_output(&records, &number, sizeof(number), 0);
	*(volatile __u32 *)&holding = 1;
	bpf_loop(100, wait_long, NULL, 0);
	bpf_ringbuf_submit(record, 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
