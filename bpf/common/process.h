/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The record that says who an owner is; what finds it out is in common/owner.h. */
#ifndef __PODSCOPE_PROCESS_H
#define __PODSCOPE_PROCESS_H

/* Who opened a socket: a process while it runs one program. */
struct process {
	__u64 start_ns;      /* CLOCK_BOOTTIME, with exec the same */
	__u64 exe_file;      /* the kernel's file, to notice an exec */
	__u32 pid;           /* thread group */
	__u32 owner;         /* its number here, never given twice */
	char executable[64]; /* base name of the executable's path */
};

#endif
