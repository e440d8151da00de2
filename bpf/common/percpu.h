/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where each CPU keeps its part of what the kernel counts per CPU: __per_cpu_offset[cpu] is added
 * to its address (include/linux/percpu-defs.h). That array is out of reach without the
 * addresses of the kernel (CAP_SYSLOG, CONFIG_KALLSYMS_ALL). But a map per CPU is kept in the
 * same way, and says both: the address in its struct, and on each CPU that of the part.
 */
#ifndef __PODSCOPE_PERCPU_H
#define __PODSCOPE_PERCPU_H

#include "common/kernel.h"

#define MAX_CPUS 1024

struct bpf_array {
	void *pptrs[1];
} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} cpu_part SEC(".maps");

const volatile u32 cpus = 1; /* that may ever be there */

u64 cpu_offsets[MAX_CPUS]; /* and 1; 0: not known */

/* A pointer as a number: the verifier gives it up where it comes from memory. */
static __always_inline u64 as_number(volatile u64 *memory, void *pointer)
{
	*memory = (u64)pointer;
	return *memory;
}

/* Run once on each CPU, from user space. */
SEC("raw_tp")
int learn_cpu(void *ctx)
{
	u32 zero = 0, cpu = bpf_get_smp_processor_id();
	u64 *part = bpf_map_lookup_elem(&cpu_part, &zero);
	u64 address = 0, here, map;

	if (!part || cpu >= MAX_CPUS)
		return 0;
	here = as_number(part, part);
	map = as_number(part, &cpu_part);
	bpf_probe_read_kernel(&address, sizeof(address),
			      (void *)map + bpf_core_field_offset(struct bpf_array, pptrs));
	cpu_offsets[cpu] = (here - address) | 1;
	return 0;
}

/* A CPU's part of a number. False: it was never there, or cannot be read. */
static __always_inline bool cpu_read(void *value, u32 size, void *percpu, u32 cpu)
{
	u64 offset = cpu < MAX_CPUS ? *(volatile u64 *)&cpu_offsets[cpu] : 0;

	return offset && !bpf_probe_read_kernel(value, size, percpu + (offset & ~1ULL));
}

#endif
