/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Kills by the kernel's OOM killer, each once. __oom_kill_process() in mm/oom_kill.c
 * sends SIGKILL to the victim as the kernel itself, then marks it as a victim. Both
 * have a tracepoint. The first one gives the task (the second does so only since
 * Linux commit 72ba14deb40a, "mm: update mark_victim tracepoints fields", in v6.9;
 * before it there is a pid alone). Both together leave out what is marked only because
 * it is about to end by itself (task_will_free_mem()), which the kernel does not count
 * as a kill either. No kprobe is needed, and nothing later than Linux 5.10.
 *
 * All is read while the killer holds the victim, so that nothing of it is gone yet.
 */
#include "common/kernel.h"
#include "common/percpu.h"
#include "common/symbols.h"
#include "oom/oom.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Keep the record in the object's BTF: user space makes its dtype from it. */
const struct oom_kill *kill_type __attribute__((unused));

#define SIGKILL       9
#define SEND_SIG_PRIV 1 /* include/linux/sched/signal.h: who sends is the kernel */
#define UNLIMITED     (~0ULL)

/* include/linux/mm_types_task.h */
enum { MM_FILEPAGES, MM_ANONPAGES, MM_SWAPENTS, MM_SHMEMPAGES };

const volatile u32 page_size = 4096;

typedef struct {
	s64 counter;
} atomic_long_t;

typedef struct {
	u32 val;
} kuid_t;

struct cred {
	kuid_t uid;
} __attribute__((preserve_access_index));

struct signal_struct {
	short oom_score_adj;
} __attribute__((preserve_access_index));

struct pid_namespace {
	struct task_struct *child_reaper;
	unsigned int level;
} __attribute__((preserve_access_index));

struct nsproxy {
	struct pid_namespace *pid_ns_for_children;
} __attribute__((preserve_access_index));

struct kernfs_node {
	u64 id;
	const char *name;
	struct kernfs_node *parent;
} __attribute__((preserve_access_index));

/*
 * Linux commit 633488947ef6 ("kernfs: Use RCU to access kernfs_node::parent.") (in
 * v6.15) renamed the member.
 */
struct kernfs_node___rcu {
	struct kernfs_node *__parent;
} __attribute__((preserve_access_index));

struct cgroup {
	struct kernfs_node *kn;
} __attribute__((preserve_access_index));

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
} __attribute__((preserve_access_index));

struct css_set {
	struct cgroup_subsys_state *subsys[1];
	struct cgroup *dfl_cgrp;
} __attribute__((preserve_access_index));

enum cgroup_subsys_id {
	memory_cgrp_id,
};

struct page_counter {
	atomic_long_t usage;
	unsigned long max;
} __attribute__((preserve_access_index));

struct mem_cgroup {
	struct cgroup_subsys_state css;
	struct page_counter memory;
} __attribute__((preserve_access_index));

struct task_struct___oom {
	char comm[16];
	const struct cred *cred;
	struct signal_struct *signal;
	struct nsproxy *nsproxy;
	struct css_set *cgroups;
} __attribute__((preserve_access_index));

struct mm_struct___sizes {
	unsigned long total_vm;
	atomic_long_t pgtables_bytes;
} __attribute__((preserve_access_index));

struct mm_rss_stat {
	atomic_long_t count[4];
} __attribute__((preserve_access_index));

struct mm_struct___one {
	struct mm_rss_stat rss_stat;
} __attribute__((preserve_access_index));

struct percpu_counter {
	s64 count;
	s32 *counters;
} __attribute__((preserve_access_index));

/* Linux commit f1a7941243c1 ("mm: convert mm's rss stats into percpu_counter") (in v6.2). */
struct mm_struct___percpu {
	struct percpu_counter rss_stat[4];
} __attribute__((preserve_access_index));

struct victim {
	u64 task;
	u32 pid; /* of the thread */
	u32 pad;
};

/* Whom each thread has sent SIGKILL last, as the kernel. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u32);
	__type(value, struct victim);
} killed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} kills SEC(".maps");

u64 ring_full; /* kills that found no room */
u32 kill_count;

static __always_inline u64 bytes(s64 pages)
{
	return pages > 0 ? pages * page_size : 0;
}

/* The exact sum: the counter itself may be short by a batch for each CPU. */
static __always_inline s64 percpu_sum(struct percpu_counter *counter)
{
	s32 *counters = BPF_CORE_READ(counter, counters);
	s64 sum = BPF_CORE_READ(counter, count);

	for (u32 cpu = 0; cpu < MAX_CPUS && cpu < cpus; cpu++) {
		s32 part = 0;

		cpu_read(&part, sizeof(part), counters, cpu);
		sum += part;
	}
	return sum;
}

/* A macro: the place in the array is relocated only where it is a constant. */
#define RSS(mm, which)                                                                             \
	({                                                                                         \
		struct mm_struct___one *one = (void *)(mm);                                        \
		struct mm_struct___percpu *percpu = (void *)(mm);                                  \
		s64 pages = 0;                                                                     \
                                                                                                   \
		if (bpf_core_field_exists(one->rss_stat.count))                                    \
			bpf_core_read(&pages, sizeof(pages), &one->rss_stat.count[which]);         \
		else                                                                               \
			pages = percpu_sum(                                                        \
				__builtin_preserve_access_index(&percpu->rss_stat[which]));        \
		bytes(pages);                                                                      \
	})

static __always_inline void read_sizes(struct oom_kill *kill, struct mm_struct *mm)
{
	struct mm_struct___sizes *sizes = (void *)mm;

	kill->anon = RSS(mm, MM_ANONPAGES);
	kill->file = RSS(mm, MM_FILEPAGES);
	kill->shmem = RSS(mm, MM_SHMEMPAGES);
	kill->virtual = bytes(BPF_CORE_READ(sizes, total_vm));
	kill->page_tables = BPF_CORE_READ(sizes, pgtables_bytes.counter);
}

static __always_inline struct kernfs_node *parent_of(struct kernfs_node *node)
{
	struct kernfs_node___rcu *newer = (void *)node;

	if (bpf_core_field_exists(newer->__parent))
		return BPF_CORE_READ(newer, __parent);
	return BPF_CORE_READ(node, parent);
}

/* Names from the cgroup up; that of the root is empty. */
static __always_inline void read_names(struct oom_kill *kill, struct kernfs_node *node)
{
	for (u32 i = 0; i < OOM_LEVELS; i++) {
		kill->names[i][0] = 0;
		if (!node)
			continue;
		bpf_probe_read_kernel_str(kill->names[i], OOM_NAME_MAX, BPF_CORE_READ(node, name));
		node = parent_of(node);
	}
}

static __always_inline struct cgroup_subsys_state *memory_of(struct css_set *set)
{
	u32 id = bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);
	struct cgroup_subsys_state *css = NULL;
	void *first = __builtin_preserve_access_index(&set->subsys);

	bpf_probe_read_kernel(&css, sizeof(css), first + id * sizeof(css));
	return css;
}

/* Of the memory cgroup and those above it, the one that can grow least. */
static __always_inline void read_limit(struct oom_kill *kill, struct cgroup_subsys_state *css)
{
	u64 least = UNLIMITED, most = UNLIMITED / 2 / page_size;

	kill->limit = UNLIMITED;
	kill->usage = 0;
	for (u32 i = 0; i < OOM_LEVELS && css; i++) {
		struct mem_cgroup *memcg =
			(void *)css - bpf_core_field_offset(struct mem_cgroup, css);
		u64 max = BPF_CORE_READ(memcg, memory.max);
		u64 usage = BPF_CORE_READ(memcg, memory.usage.counter);
		u64 room = max > usage ? max - usage : 0;

		/* PAGE_COUNTER_MAX is LONG_MAX pages, or as many as give LONG_MAX bytes */
		if (max < most / 2 && room < least) {
			least = room;
			kill->limit = max * page_size;
			kill->usage = usage * page_size;
		}
		css = BPF_CORE_READ(css, parent);
	}
}

static __always_inline void read_cgroups(struct oom_kill *kill, struct css_set *set)
{
	struct cgroup_subsys_state *css = memory_of(set);
	struct kernfs_node *node = BPF_CORE_READ(css, cgroup, kn);

	kill->cgroup_id = BPF_CORE_READ(set, dfl_cgrp, kn, id);
	kill->memory_cgroup_id = BPF_CORE_READ(node, id);
	read_limit(kill, css);
	read_names(kill, node);
}

static __always_inline void read_process(struct oom_kill *kill, struct task_struct *task)
{
	struct task_struct___oom *more = (void *)task;
	struct pid_namespace *pids = BPF_CORE_READ(more, nsproxy, pid_ns_for_children);
	const unsigned char *name = BPF_CORE_READ(task, mm, exe_file, f_path.dentry, d_name.name);

	kill->pid = BPF_CORE_READ(task, tgid);
	kill->start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	kill->container_start_ns = 0;
	if (BPF_CORE_READ(pids, level))
		kill->container_start_ns = BPF_CORE_READ(pids, child_reaper, start_boottime);
	kill->uid = BPF_CORE_READ(more, cred, uid.val);
	kill->score_adj = BPF_CORE_READ(more, signal, oom_score_adj);
	bpf_probe_read_kernel(kill->comm, sizeof(kill->comm),
			      __builtin_preserve_access_index(&more->comm));
	kill->executable[0] = 0;
	bpf_probe_read_kernel_str(kill->executable, sizeof(kill->executable), name);
}

/*
 * TP_PROTO(int sig, struct kernel_siginfo *info, struct task_struct *task, int group,
 * int result), in include/trace/events/signal.h.
 */
SEC("raw_tp/signal_generate")
int oom_signal(struct bpf_raw_tracepoint_args *ctx)
{
	struct victim victim = {};
	struct task_struct *task;
	u32 thread;

	if ((u32)ctx->args[0] != SIGKILL || ctx->args[1] != SEND_SIG_PRIV)
		return 0;
	task = (struct task_struct *)ctx->args[2];
	thread = bpf_get_current_pid_tgid();
	victim.task = (u64)task;
	victim.pid = BPF_CORE_READ(task, pid);
	bpf_map_update_elem(&killed, &thread, &victim, BPF_ANY);
	return 0;
}

/* TP_PROTO(struct task_struct *task, uid_t uid), and before v6.9 TP_PROTO(int pid). */
SEC("raw_tp/mark_victim")
int oom_victim(struct bpf_raw_tracepoint_args *ctx)
{
	u32 thread = bpf_get_current_pid_tgid();
	struct victim *victim = bpf_map_lookup_elem(&killed, &thread);
	u64 marked = ctx->args[0];
	struct task_struct *task;
	struct oom_kill *kill;
	long size;

	if (!victim || (marked != victim->task && (u32)marked != victim->pid))
		return 0;
	task = (struct task_struct *)victim->task;
	bpf_map_delete_elem(&killed, &thread);
	kill = bpf_ringbuf_reserve(&kills, sizeof(*kill), 0);
	if (!kill) {
		__sync_fetch_and_add(&ring_full, 1);
		return 0;
	}
	kill->time_ns = bpf_ktime_get_ns();
	kill->boot_ns = bpf_ktime_get_boot_ns();
	/* the kernel kills one after the other: oom_lock is held */
	kill->owner = ++kill_count;
	kill->trigger_pid = bpf_get_current_pid_tgid() >> 32;
	kill->trigger_cgroup_id = bpf_get_current_cgroup_id();
	bpf_get_current_comm(kill->trigger_comm, sizeof(kill->trigger_comm));
	read_process(kill, task);
	read_sizes(kill, BPF_CORE_READ(task, mm));
	read_cgroups(kill, BPF_CORE_READ((struct task_struct___oom *)task, cgroups));
	size = bpf_get_stack(ctx, kill->stack, sizeof(kill->stack), 0);
	kill->frames = size > 0 ? size / sizeof(u64) : 0;
	bpf_ringbuf_submit(kill, BPF_RB_NO_WAKEUP);
	return 0;
}
