/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whose a socket is: the process that opened it. A listener's note is copied
 * to every socket accepted from it (BPF_F_CLONE), so an accepted connection
 * belongs to whoever listens.
 */
#ifndef __PODSCOPE_OWNER_H
#define __PODSCOPE_OWNER_H

#include "common/kernel.h"
#include "common/process.h"

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
	u32 owner;
	u32 flags;   /* enum socket_flag */
	u32 next[2]; /* first sequence number: in, out */
	u32 pad;
	u64 listener; /* SOCKET_EARLY: cookie of the listener */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct socket_note);
} notes SEC(".maps");

/* What runs as a thread group now, or ran there last. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, u32);
	__type(value, struct process);
} processes SEC(".maps");

/* The same by number: a pid is another program's after an exec, or another process's. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, u32);
	__type(value, struct process);
} owners SEC(".maps");

#ifdef PODSCOPE_NO_ATOMICS
struct owner_count {
	struct bpf_spin_lock spin;
	u32 last;
};
#else
struct owner_count {
	u32 last;
};
#endif

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct owner_count);
} owner_count SEC(".maps");

static __always_inline u32 owner_number(void)
{
	u32 zero = 0, number;
	struct owner_count *count = bpf_map_lookup_elem(&owner_count, &zero);

	if (!count)
		return 0;
#ifdef PODSCOPE_NO_ATOMICS
	bpf_spin_lock(&count->spin);
	number = ++count->last;
	bpf_spin_unlock(&count->spin);
#else
	number = __sync_fetch_and_add(&count->last, 1) + 1;
#endif
	return number;
}

/* Notes who opens a socket: a new number for each program that a process runs. */
static __always_inline void owner_note(struct socket_note *note, struct task_struct *task)
{
	u32 pid = BPF_CORE_READ(task, tgid);
	struct file *exe = BPF_CORE_READ(task, mm, exe_file);
	struct process *known = bpf_map_lookup_elem(&processes, &pid);
	struct process process = {
		.start_ns = BPF_CORE_READ(task, group_leader, start_boottime),
		.exe_file = (u64)exe,
		.pid = pid,
	};
	const unsigned char *name;

	note->pid = pid;
	if (known && known->exe_file == process.exe_file && known->start_ns == process.start_ns) {
		note->owner = known->owner;
		return;
	}
	name = BPF_CORE_READ(exe, f_path.dentry, d_name.name);
	bpf_probe_read_kernel_str(process.executable, sizeof(process.executable), name);
	process.owner = owner_number();
	note->owner = process.owner;
	bpf_map_update_elem(&owners, &process.owner, &process, BPF_ANY);
	bpf_map_update_elem(&processes, &pid, &process, BPF_ANY);
}

#endif
