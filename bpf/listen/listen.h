/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The record of the listeners: the one place where it is declared. */
#ifndef __PODSCOPE_LISTEN_H
#define __PODSCOPE_LISTEN_H

#define LISTEN_UNKNOWN (~0ULL)

/* One listener over one interval. */
struct listen_row {
	__u64 cgroup_id;
	__u64 netns_id; /* of its network namespace: never given twice, since Linux 5.12 */
	/*
	 * The kernel's ListenOverflows of that namespace: when the listener was first seen, and
	 * at the end of the interval if there were drops. Else, or if unknown, LISTEN_UNKNOWN.
	 */
	__u64 overflows_first;
	__u64 overflows_now;
	__u32 pid;
	__u32 owner;
	__u32 netns;          /* inode number of its network namespace */
	__u32 accept_queue;   /* connections that wait for accept(), now */
	__u32 accept_highest; /* the most that were seen in the interval */
	__u32 syn_queue;      /* handshakes that are not complete, now */
	__u32 syn_highest;
	__u32 limit; /* backlog: the accept queue may hold one more */
	__u32 drops; /* of the interval: handshakes dropped, for whatever reason */
	__u16 port;
	__u8 closed; /* it is gone: the last row */
	__u8 was;    /* enum listen_was */
	__u8 address[16];
};

/* Which queues had passed 80 % of the limit when the interval began. */
enum listen_was {
	LISTEN_ACCEPT_HIGH = 1,
	LISTEN_SYN_HIGH = 2,
};

/* Why a handshake was dropped, as the queues tell it. */
enum listen_reason {
	LISTEN_DROP_OTHER = 0,
	LISTEN_DROP_ACCEPT_QUEUE, /* it is full */
	LISTEN_DROP_SYN_QUEUE,    /* it is full, and there are no SYN cookies */
};

/* A handshake that was dropped. */
struct listen_drop {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u64 cgroup_id;
	__u32 pid; /* of the listener */
	__u32 owner;
	__u32 netns;
	__u32 drops; /* 1; more where CPUs drop at the same time */
	__u32 accept_queue;
	__u32 syn_queue;
	__u32 limit;
	__u16 port; /* of the listener */
	__u16 peer_port;
	__u8 reason; /* enum listen_reason */
	__u8 pad[3];
	__u8 address[16]; /* of the listener */
	__u8 peer[16];    /* who began the handshake */
};

#endif
