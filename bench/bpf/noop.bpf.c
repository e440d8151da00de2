/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Does nothing: what bpf_stats says of it is the cost of looking. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("cgroup/skb")
int noop(struct __sk_buff *skb)
{
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
