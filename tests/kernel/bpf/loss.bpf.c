// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Loses one in some packets of those that come to a cgroup and are not small. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

unsigned int one_in = 10;
unsigned int seen;

SEC("cgroup_skb/ingress")
int lose(struct __sk_buff *skb)
{
	if (skb->len < 200)
		return 1;
	seen++;
	return seen % one_in != 0;
}
