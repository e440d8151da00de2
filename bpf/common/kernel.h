/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What every kernel program here needs: types, helpers, and the parts of the
 * kernel's own structs that are read (relocated at load time, CO-RE).
 */
#ifndef __PODSCOPE_KERNEL_H
#define __PODSCOPE_KERNEL_H

#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include "common/types.h"

#ifndef __noinline
#define __noinline __attribute__((noinline))
#endif

struct qstr {
	const unsigned char *name;
} __attribute__((preserve_access_index));

struct dentry {
	struct qstr d_name;
} __attribute__((preserve_access_index));

struct path {
	struct dentry *dentry;
} __attribute__((preserve_access_index));

struct file {
	struct path f_path;
} __attribute__((preserve_access_index));

struct mm_struct {
	struct file *exe_file;
} __attribute__((preserve_access_index));

struct task_struct {
	int pid;
	int tgid;
	__u64 start_boottime;
	struct mm_struct *mm;
	struct task_struct *group_leader;
} __attribute__((preserve_access_index));

struct sock;

struct socket {
	short type;
	struct sock *sk;
} __attribute__((preserve_access_index));

struct bpf_iter__task_file {
	struct task_struct *task;
	struct file *file;
} __attribute__((preserve_access_index));

#endif
