/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The kernel's own socket, as far as it is read here (CO-RE). */
#ifndef __PODSCOPE_SOCK_H
#define __PODSCOPE_SOCK_H

#include <linux/in.h>
#include <linux/in6.h>
#include "common/kernel.h"

#define AF_INET  2
#define AF_INET6 10

typedef struct {
	int counter;
} atomic_t;

struct kernfs_node {
	u64 id;
} __attribute__((preserve_access_index));

struct cgroup {
	struct kernfs_node *kn;
} __attribute__((preserve_access_index));

/* Linux commit 8520e224f547 ("bpf, cgroups: Fix cgroup v2 fallback ...") (in v5.15). */
struct sock_cgroup_data {
	struct cgroup *cgroup;
} __attribute__((preserve_access_index));

struct sock_cgroup_data___word {
	u64 val;
} __attribute__((preserve_access_index));

struct ns_common {
	unsigned int inum;
} __attribute__((preserve_access_index));

struct netns_ipv4 {
	u8 sysctl_tcp_syncookies;
	int sysctl_max_syn_backlog;
} __attribute__((preserve_access_index));

struct netns_mib {
	void *net_statistics; /* for each CPU: struct linux_mib */
} __attribute__((preserve_access_index));

struct net {
	u64 net_cookie;
	struct ns_common ns;
	struct netns_mib mib;
	struct netns_ipv4 ipv4;
} __attribute__((preserve_access_index));

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	unsigned long skc_flags;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
} __attribute__((preserve_access_index));

struct sock {
	struct sock_common __sk_common;
	atomic_t sk_drops;
	u32 sk_ack_backlog;
	u32 sk_max_ack_backlog;
	int sk_err;
	u16 sk_protocol;
	struct sock_cgroup_data sk_cgrp_data;
} __attribute__((preserve_access_index));

struct request_sock_queue {
	atomic_t qlen;
} __attribute__((preserve_access_index));

struct inet_connection_sock {
	struct request_sock_queue icsk_accept_queue;
} __attribute__((preserve_access_index));

/* What bpf_sk_cgroup_id() gives; sock_cgroup_ptr() in include/linux/cgroup.h. */
static __always_inline u64 sock_cgroup_id(const struct sock *sk)
{
	struct sock_cgroup_data___word *word;
	struct cgroup *cgroup;
	u64 value;

	if (bpf_core_field_exists(sk->sk_cgrp_data.cgroup))
		return BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn, id);
	word = (void *)__builtin_preserve_access_index(&sk->sk_cgrp_data);
	value = BPF_CORE_READ(word, val);
	if (!value || value & 3)
		return 1; /* the root */
	cgroup = (struct cgroup *)value;
	return BPF_CORE_READ(cgroup, kn, id);
}

/* The same of a socket that the verifier knows to be one: plain loads, a tenth of the time. */
static __always_inline u64 known_sock_cgroup_id(const struct sock *sk)
{
	if (bpf_core_field_exists(sk->sk_cgrp_data.cgroup))
		return sk->sk_cgrp_data.cgroup->kn->id;
	return sock_cgroup_id(sk);
}

static __always_inline void mapped_ip4(u8 *out, __be32 address)
{
	__builtin_memset(out, 0, 10);
	out[10] = 0xff;
	out[11] = 0xff;
	__builtin_memcpy(out + 12, &address, 4);
}

/* The beginning of a socket, read at once: of all that is there each read costs as much. */
struct sock_head {
	u8 raw[128] __attribute__((aligned(8)));
};

static __always_inline void sock_head_read(struct sock_head *head, const struct sock *sk)
{
	bpf_probe_read_kernel(head->raw, sizeof(head->raw), sk);
}

#define sock_head_at(head, member)                                                                 \
	((void *)((head)->raw + bpf_core_field_offset(struct sock, __sk_common.member)))

#define sock_head_get(head, type, member) (*(type *)sock_head_at(head, member))

/* Not in kernels without CONFIG_IPV6. */
#define HAS_IPV6 bpf_core_field_exists(struct sock, __sk_common.skc_v6_daddr)

#define sock_head_set(head, sk, type, member)                                                      \
	(*(type *)sock_head_at(head, member) = (sk)->__sk_common.member)

/* Of a socket that the verifier knows to be one: what is asked for below, by plain loads. */
static __always_inline void known_sock_head_read(struct sock_head *head, const struct sock *sk)
{
	sock_head_set(head, sk, u16, skc_family);
	sock_head_set(head, sk, u16, skc_num);
	sock_head_set(head, sk, __be16, skc_dport);
	sock_head_set(head, sk, u8, skc_state);
	sock_head_set(head, sk, unsigned long, skc_flags);
	if (sk->__sk_common.skc_family == AF_INET) {
		sock_head_set(head, sk, __be32, skc_daddr);
		sock_head_set(head, sk, __be32, skc_rcv_saddr);
	} else if (HAS_IPV6) {
		sock_head_set(head, sk, struct in6_addr, skc_v6_daddr);
		sock_head_set(head, sk, struct in6_addr, skc_v6_rcv_saddr);
	}
}

/* IPv6, or IPv4 mapped into it. */
static __always_inline void sock_head_local(struct sock_head *head, u8 *out)
{
	if (sock_head_get(head, u16, skc_family) == AF_INET)
		mapped_ip4(out, sock_head_get(head, __be32, skc_rcv_saddr));
	else if (HAS_IPV6)
		__builtin_memcpy(out, sock_head_at(head, skc_v6_rcv_saddr), 16);
}

static __always_inline void sock_head_peer(struct sock_head *head, u8 *out)
{
	if (sock_head_get(head, u16, skc_family) == AF_INET)
		mapped_ip4(out, sock_head_get(head, __be32, skc_daddr));
	else if (HAS_IPV6)
		__builtin_memcpy(out, sock_head_at(head, skc_v6_daddr), 16);
}

#endif
