/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Names of the kernel's functions. /proc/kallsyms has addresses only for those with CAP_SYSLOG,
 * but programs may print names: bpf_seq_printf() knows %pB since Linux commit aec31930cfb0 ("bpf:
 * Allow %pB in bpf_seq_printf() and bpf_trace_printk()"), in v5.9.
 */
#ifndef __PODSCOPE_SYMBOLS_H
#define __PODSCOPE_SYMBOLS_H

#include "common/iter.h"

#define SYMBOLS 64

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SYMBOLS);
	__type(key, u32);
	__type(value, u64);
} addresses SEC(".maps");

/* A line for each of the addresses. */
SEC("iter/bpf_map_elem")
int print_symbols(struct bpf_iter__bpf_map_elem *ctx)
{
	static const char line[] = "%pB\n";
	struct seq_file *seq = ctx->meta->seq;
	u64 *value = ctx->value;
	u64 address;

	if (!value)
		return 0;
	address = *value;
	bpf_seq_printf(seq, line, sizeof(line), &address, sizeof(address));
	return 0;
}

#endif
