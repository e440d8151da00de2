// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A program of a tracepoint that comes to the same tracepoint again. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

unsigned int ran;

SEC("raw_tp/bpf_trace_printk")
int printed(void *ctx)
{
	static const char text[] = "again";

	__sync_fetch_and_add(&ran, 1);
	bpf_trace_printk(text, sizeof(text));
	return 0;
}

SEC("socket")
int print(void *ctx)
{
	static const char text[] = "once";

	bpf_trace_printk(text, sizeof(text));
	return 0;
}
