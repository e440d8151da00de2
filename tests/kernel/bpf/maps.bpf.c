/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The maps that tests/kernel/test_maps.py fills and reads; one program, to fill a per-CPU one. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct key {
	__u32 number;
	__u16 port;
	__u16 pad;
};

struct value {
	__u64 count;
	__u32 parts[3];
	__u32 pad;
};

struct odd {
	__u32 words[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 40000);
	__type(key, struct key);
	__type(value, struct value);
} hash SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
} per_cpu SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 5);
	__type(key, __u32);
	__type(value, __u64);
} per_cpu_array SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 600);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct value);
} mapped SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct odd);
} mapped_odd SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} array SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, 100);
	__type(value, struct value);
} stack SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 100);
	__type(value, __u32);
} queue SEC(".maps");

SEC("tc")
int count(struct __sk_buff *skb)
{
	__u32 key = 3;
	__u64 *mine = bpf_map_lookup_elem(&per_cpu, &key);
	struct value *value = bpf_map_lookup_elem(&mapped, &key);

	if (mine)
		*mine += 1;
	if (value)
		value->count++;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
