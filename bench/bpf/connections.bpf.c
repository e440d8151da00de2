/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What counting connections cannot do without: the hooks, and for each end of each
 * connection one entry that is made when it opens and taken away when it closes.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

const volatile int with_entry = 0; /* 0: do nothing at all */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__type(key, __u64);
	__type(value, __u64);
} open SEC(".maps");

SEC("raw_tp/inet_sock_set_state")
int state(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 key = ctx->args[0];

	if (with_entry && ctx->args[2] == BPF_TCP_CLOSE)
		bpf_map_delete_elem(&open, &key);
	return 0;
}

SEC("sockops")
int ends(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	__u64 key, now;

	if (!sk)
		return 1;
	if (ops->op != BPF_SOCK_OPS_TCP_CONNECT_CB &&
	    ops->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	/* changes of state: a tracepoint's program is left out where it runs already */
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	if (!with_entry)
		return 1;
	key = (__u64)bpf_skc_to_tcp_sock(sk);
	now = bpf_ktime_get_ns();
	bpf_map_update_elem(&open, &key, &now, BPF_ANY);
	return 1;
}
