/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The records of the TCP programs: the one place where they are declared. */
#ifndef __PODSCOPE_TCP_H
#define __PODSCOPE_TCP_H

#include "common/histogram.h"

/* What one row is about. As bits they say which rows are wanted. */
enum tcp_what {
	TCP_CONNECT = 1, /* connect() has ended, well or not */
	TCP_ACCEPT,      /* a connection has come to a listener's queue */
	TCP_LIFE,        /* a connection has ended */
	TCP_STATE,       /* any change of state */
	TCP_RETRANSMIT,
	TCP_RESET_SENT,
	TCP_RESET_RECEIVED,
	TCP_DROP,   /* a packet was dropped, with the kernel's reason */
	TCP_WINDOW, /* a sample of the congestion window and send buffer */
	TCP_FAILED, /* as TCP_CONNECT, but only what failed */
};

enum tcp_side {
	TCP_SIDE_NONE = 0,
	TCP_SERVER = 1,
	TCP_CLIENT = 2,
};

/* One event. Members that do not apply are zero. Addresses are IPv6 or v4-mapped. */
struct tcp_event {
	__u64 time_ns;     /* CLOCK_MONOTONIC */
	__u64 duration_ns; /* of connect(), or from the handshake's end; 0: the start was not seen */
	__u64 sent;        /* payload bytes, without what was sent again */
	__u64 received;
	__u64 cgroup_id;
	__u32 pid;
	__u32 owner;
	__u32 retransmits; /* segments: of the connection, or of this event */
	__u32 srtt_us;
	__u32 queue; /* connections that wait for accept(), this one among them */
	__u32 limit;
	__u32 cwnd; /* segments */
	__u32 ssthresh;
	__u32 sndbuf; /* bytes */
	__u32 queued; /* bytes, in the send buffer */
	__u32 reason; /* enum skb_drop_reason; it differs from kernel to kernel */
	__u16 error;  /* errno */
	__u16 local_port;
	__u16 peer_port;
	__u8 what; /* enum tcp_what */
	__u8 side; /* enum tcp_side */
	__u8 old_state;
	__u8 state;
	__u8 flags; /* of the packet */
	__u8 fin;   /* the peer's FIN has come */
	__u8 local[16];
	__u8 peer[16];
};

/* What is counted together. */
struct tcp_key {
	__u64 cgroup_id;
	__u32 pid;
	__u32 owner;
	__u8 peer[16];
	__u16 port; /* the server's */
	__u8 side;  /* enum tcp_side */
	__u8 chunk; /* of chunks: which it is; else 0 */
	__u8 pad[4];
};

/* What is added to most comes first: it takes fewer cache lines. */
struct tcp_sums {
	__u64 connects;   /* that succeeded */
	__u64 connect_ns; /* of those whose beginning was seen, as the histogram */
	__u64 accepts;
	__u64 closes;
	__u64 timed; /* those of them whose start was seen: the durations are of these */
	__u64 duration_ns;
	__u64 sent;
	__u64 received;
	__u64 failed;
	__u64 retransmits; /* segments */
	__u64 resets_sent;
	__u64 resets_received;
	__u64 le[HISTOGRAM_BOUNDS]; /* not cumulative */
	__u64 connect_max_ns;
};

/* A series over one interval. */
struct tcp_row {
	struct tcp_key key;
	struct tcp_sums sums;
	__u32 buckets[HISTOGRAM_BUCKETS];
};

#endif
