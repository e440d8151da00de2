/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The records of the DNS programs: the one place where they are declared. */
#ifndef __PODSCOPE_DNS_H
#define __PODSCOPE_DNS_H

#include "common/histogram.h"

#define DNS_NAME_MAX  128  /* bytes kept of a name; RFC 1035 allows 255 */
#define DNS_NO_ANSWER 0xff /* as a response code: none came */

enum dns_side {
	DNS_SIDE_NONE = 0,
	DNS_SERVER = 1,
	DNS_CLIENT = 2,
};

/* What is counted together. Addresses are IPv6 or v4-mapped. */
struct dns_key {
	__u64 cgroup_id;
	__u64 name; /* hash of the name's text; 1: _OTHER */
	__u32 pid;
	__u32 owner;
	__u8 peer[16]; /* the server, of a client's lookups; else zero */
	__u16 type;
	__u8 code; /* response code (RFC 6895), or DNS_NO_ANSWER */
	__u8 side; /* enum dns_side */
	__u8 tcp;
	__u8 chunk; /* of chunks: which it is; else 0 */
	__u8 pad[2];
};

/* Durations are of lookups that a response came to. */
struct dns_sums {
	__u64 count;
	__u64 sum_ns;
	__u64 le[HISTOGRAM_BOUNDS]; /* not cumulative */
	__u64 max_ns;
};

struct dns_row {
	struct dns_key key;
	struct dns_sums sums;
	__u32 buckets[HISTOGRAM_BUCKETS];
};

/* A name as text: labels with dots between them, in small letters. */
struct dns_name {
	__u16 len;
	__u8 cut; /* it is longer */
	char text[DNS_NAME_MAX];
};

/* One lookup. */
struct dns_lookup {
	__u64 time_ns; /* CLOCK_MONOTONIC, of the query */
	__u64 duration_ns;
	struct dns_key key;
	__u8 peer[16]; /* the other end */
	__u16 peer_port;
	__u16 id;
	__u32 repeats; /* the query came again so often before the response */
	struct dns_name name;
};

/* A query that waits for its response. */
struct dns_query_key {
	__u64 cookie; /* of the socket */
	__u8 peer[16];
	__u16 peer_port;
	__u16 id;
	__u8 side;
	__u8 tcp;
	__u8 pad[2];
};

struct dns_query {
	__u64 time_ns;
	__u64 cgroup_id;
	__u64 hash;
	__u32 pid;
	__u32 owner;
	__u32 repeats;
	__u16 type;
	struct dns_name name;
};

#endif
