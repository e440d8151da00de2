/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The record of the OOM program: the one place where it is declared. */
#ifndef __PODSCOPE_OOM_H
#define __PODSCOPE_OOM_H

#define OOM_LEVELS   10  /* of the victim's memory cgroup, from the innermost */
#define OOM_NAME_MAX 128 /* of a cgroup's name; "cri-containerd-", 64 digits and ".scope" are 85 */
#define OOM_FRAMES   48

/* One process that the kernel's OOM killer has killed. Sizes are bytes. */
struct oom_kill {
	__u64 time_ns;            /* CLOCK_MONOTONIC */
	__u64 boot_ns;            /* the same moment, CLOCK_BOOTTIME */
	__u64 start_ns;           /* of the process, CLOCK_BOOTTIME */
	__u64 container_start_ns; /* of its first process; 0: it has no pid namespace of its own */
	__u64 cgroup_id;          /* of version 2 */
	__u64 memory_cgroup_id;   /* of the memory controller, of whichever version */
	__u64 limit;              /* of the memory cgroup with the least room; all ones: none */
	__u64 usage;              /* of the same */
	__u64 anon;
	__u64 file;
	__u64 shmem;
	__u64 virtual;
	__u64 page_tables;
	__u64 trigger_cgroup_id;
	__u32 pid;
	__u32 owner; /* number of the kill */
	__u32 uid;
	__u32 trigger_pid;
	__s32 score_adj;
	__u32 frames; /* of the stack */
	char comm[16];
	char trigger_comm[16];
	char executable[64];
	__u64 stack[OOM_FRAMES]; /* the kernel's, of whoever ran out of memory */
	char names[OOM_LEVELS][OOM_NAME_MAX];
};

#endif
