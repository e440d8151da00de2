/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What tests/kernel/test_objects.py loads: constants, globals, programs of several kinds. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

enum color { RED = 1, GREEN, BLUE = 40 };

struct seen {
	__u64 packets;
	__u32 bytes;
	enum color color;
};

const volatile __u32 factor = 1;
const volatile __u8 table[4];
const volatile __s16 shift;
const volatile char label[8];

__u64 runs;
__u64 sums[3];
__u32 start = 7;
struct seen seen;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct seen);
} table_map SEC(".maps");

SEC("tc")
int multiply(struct __sk_buff *skb)
{
	runs++;
	sums[1] += table[2] + shift;
	seen.packets++;
	seen.bytes = skb->len;
	seen.color = label[0] == 'b' ? BLUE : GREEN;
	return start * factor;
}

SEC("cgroup_skb/egress")
int count_egress(struct __sk_buff *skb)
{
	__sync_fetch_and_add(&runs, 1);
	return 1;
}

struct task_struct;
struct bpf_iter_meta {
	struct seq_file *seq;
};
struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

SEC("iter/task")
int tasks(struct bpf_iter__task *ctx)
{
	if (!ctx->task)
		return 0;
	runs++;
	bpf_seq_write(ctx->meta->seq, "task", 4);
	return 0;
}

SEC("raw_tp/sched_switch")
int switches(void *ctx)
{
	__sync_fetch_and_add(&runs, 1);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
