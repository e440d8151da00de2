/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whose a socket is: the process that opened it. A listener's note is copied
 * to every socket accepted from it (BPF_F_CLONE), so an accepted connection
 * belongs to whoever listens.
 */
#ifndef __PODSCOPE_OWNER_H
#define __PODSCOPE_OWNER_H

#include "common/kernel.h"
#include "http/http.h"

enum socket_flag {
	SOCKET_OPENED = 1, /* seen from its handshake on: the sequence numbers below hold */
	SOCKET_SERVER = 2, /* accepted */
	SOCKET_CONNECTING = 4,
	SOCKET_IGNORED = 8, /* not HTTP, or done with */
	SOCKET_EARLY = 16,  /* bytes came to the listener, before there was a connection */
};

/* What is noted with every TCP socket, HTTP or not. */
struct socket_note {
	u32 pid;
	u32 flags;    /* enum socket_flag */
	u32 next[2];  /* first sequence number: in, out */
	u64 listener; /* SOCKET_EARLY: cookie of the listener */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct socket_note);
} notes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, u32);
	__type(value, struct process);
} processes SEC(".maps");

/* Notes the process under its thread group id, once for each executable it runs. */
static __always_inline u32 owner_note_process(struct task_struct *task, u64 cgroup_id)
{
	u32 pid = BPF_CORE_READ(task, tgid);
	struct file *exe = BPF_CORE_READ(task, mm, exe_file);
	struct process *known = bpf_map_lookup_elem(&processes, &pid);
	struct process process = {
		.start_ns = BPF_CORE_READ(task, group_leader, start_boottime),
		.cgroup_id = cgroup_id,
		.exe_file = (u64)exe,
	};
	const unsigned char *name;

	if (known && known->exe_file == process.exe_file && known->start_ns == process.start_ns)
		return pid;
	name = BPF_CORE_READ(exe, f_path.dentry, d_name.name);
	bpf_probe_read_kernel_str(process.executable, sizeof(process.executable), name);
	bpf_map_update_elem(&processes, &pid, &process, BPF_ANY);
	return pid;
}

#endif
