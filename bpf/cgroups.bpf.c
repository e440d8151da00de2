/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Cgroups that come and go: a record for each one made and each one removed, so
 * that even the shortest life leaves a name behind. Nothing later than Linux
 * 5.10 is used. Cgroups of version 2 are never renamed (cgroup_kf_syscall_ops
 * has no rename).
 */
#include "common/kernel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define PATH_MAX_KEPT     512
#define DEFAULT_HIERARCHY 0 /* cgroup_init() gives cgrp_dfl_root the first number */

enum cgroup_event_kind {
	CGROUP_MADE = 1,
	CGROUP_REMOVED = 2,
};

struct cgroup_event {
	__u64 id; /* what bpf_sk_cgroup_id() returns, and the directory's inode number */
	__u64 parent;
	__u32 level;    /* below the machine's root, which has 0 */
	__u16 kind;     /* enum cgroup_event_kind */
	__u16 path_len; /* of the whole; the kernel itself cuts at 1023 (TRACE_CGROUP_PATH_LEN) */
	/*
	 * From the machine's root, whatever cgroup namespace the reader is in. Of
	 * a longer one the last bytes: what a cgroup is called stands at the end.
	 * Bytes after the final NUL have no meaning.
	 */
	char path[PATH_MAX_KEPT];
};

/* Keep the records in the object's BTF: user space makes its dtypes from it. */
const struct cgroup_event *event_type __attribute__((unused));
const enum cgroup_event_kind kind_type __attribute__((unused));

struct kernfs_node {
	__u64 id;
} __attribute__((preserve_access_index));

struct cgroup_root {
	int hierarchy_id;
} __attribute__((preserve_access_index));

struct cgroup;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
} __attribute__((preserve_access_index));

struct cgroup {
	struct cgroup_subsys_state self;
	int level;
	struct kernfs_node *kn;
	struct cgroup_root *root;
} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

__u64 ring_full; /* records that found no room */

/*
 * The kernel's buffer is a static one of 1024 bytes, so there is something to
 * read behind the first 511 also where the path ends before.
 */
static __always_inline void copy_path(struct cgroup_event *event, const char *path)
{
	const u32 kept = sizeof(event->path) - 1;
	long more = bpf_probe_read_kernel_str(event->path, sizeof(event->path), path + kept) - 1;
	long len = bpf_probe_read_kernel_str(event->path, sizeof(event->path), path) - 1;

	if (len < 0)
		len = event->path[0] = 0;
	if (len == kept && more > 0) {
		bpf_probe_read_kernel_str(event->path, sizeof(event->path), path + more);
		len += more;
	}
	event->path_len = len;
}

/* TP_PROTO(struct cgroup *cgrp, const char *path), in include/trace/events/cgroup.h. */
static __always_inline int send(struct bpf_raw_tracepoint_args *ctx, u16 kind)
{
	struct cgroup *cgroup = (struct cgroup *)ctx->args[0];
	struct cgroup_event *event;

	/* On hybrid hosts the hierarchies of version 1 make events too. */
	if (BPF_CORE_READ(cgroup, root, hierarchy_id) != DEFAULT_HIERARCHY)
		return 0;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		__sync_fetch_and_add(&ring_full, 1);
		return 0;
	}
	event->id = BPF_CORE_READ(cgroup, kn, id);
	event->parent = BPF_CORE_READ(cgroup, self.parent, cgroup, kn, id);
	event->level = BPF_CORE_READ(cgroup, level);
	event->kind = kind;
	copy_path(event, (const char *)ctx->args[1]);
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 0;
}

/* Runs before the directory can be seen (cgroup_mkdir() activates it later). */
SEC("raw_tp/cgroup_mkdir")
int cgroup_made(struct bpf_raw_tracepoint_args *ctx)
{
	return send(ctx, CGROUP_MADE);
}

SEC("raw_tp/cgroup_rmdir")
int cgroup_removed(struct bpf_raw_tracepoint_args *ctx)
{
	return send(ctx, CGROUP_REMOVED);
}
