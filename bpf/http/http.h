/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The records of the HTTP programs: the one place where they are declared.
 * User space makes its NumPy dtypes from the BTF of the compiled object.
 */
#ifndef __PODSCOPE_HTTP_H
#define __PODSCOPE_HTTP_H

#include "common/histogram.h"
#include "common/process.h"

/* http_server: request bytes arrive on the socket; http_client: they leave. */
enum http_side {
	HTTP_SIDE_NONE = 0,
	HTTP_SERVER = 1,
	HTTP_CLIENT = 2,
};

/* The methods that semantic conventions know (RFC 9110, RFC 5789, QUERY). */
enum http_method {
	HTTP_OTHER = 0,
	HTTP_GET,
	HTTP_HEAD,
	HTTP_POST,
	HTTP_PUT,
	HTTP_DELETE,
	HTTP_CONNECT,
	HTTP_OPTIONS,
	HTTP_TRACE,
	HTTP_PATCH,
	HTTP_QUERY,
};

enum http_version {
	HTTP_1_0 = 10,
	HTTP_1_1 = 11,
};

/* Why an exchange ended without a whole answer. */
enum http_error {
	HTTP_ERROR_NONE = 0,
	HTTP_ERROR_CLOSED, /* FIN before or inside the answer */
	HTTP_ERROR_RESET,  /* RST before or inside the answer */
};

enum http_peer {
	HTTP_PEER_LOOPBACK = 1,
	HTTP_PEER_PRIVATE, /* RFC 1918, RFC 6598, RFC 2544, RFC 4193, link-local */
	HTTP_PEER_PUBLIC,
};

/* What could not be counted, by reason; the names are those of the output. */
enum http_lost {
	HTTP_LOST_JOINED,       /* answers on connections that were open before the start */
	HTTP_LOST_MALFORMED,    /* messages that break RFC 9112's framing */
	HTTP_LOST_QUEUE_FULL,   /* requests in flight on one connection beyond the queue */
	HTTP_LOST_TABLE_FULL,   /* exchanges put under _OTHER: no free series */
	HTTP_LOST_ROUTES_FULL,  /* requests put under route _OTHER: workload's cap */
	HTTP_LOST_RING_FULL,    /* request log records */
	HTTP_LOST_DETAILS_FULL, /* request log records that lost their head's text */
	HTTP_LOST_WORK_BOUND,   /* segments with more messages than one run may parse */
	HTTP_LOST_HOLE,         /* bytes that never came, or that could not be kept */
	HTTP_LOST_NO_MEMORY,    /* connections without state */
	HTTP_LOST_UNREQUESTED,  /* answers to no request */
	HTTP_LOST_PEERS_FULL,   /* exchanges counted without their peer: too many addresses */
	HTTP_LOST_MAX,
};

#define HTTP_PATH_MAX  192
#define HTTP_HOST_MAX  64
#define HTTP_AGENT_MAX 64
#define HTTP_ROUTE_MAX 128

/* What makes a series. Addresses are IPv6 or v4-mapped; zeros: not kept. */
struct http_series_key {
	__u64 cgroup_id;
	__u64 route;     /* hash of the route's text; 0: none, 1: _OTHER */
	__u8 peer[16];   /* address of the other end */
	__u32 pid;       /* thread group of the socket's owner */
	__u32 owner;     /* which program that was: a pid has several, one after the other */
	__u16 port;      /* the server's port, on both sides */
	__u16 status;    /* 0: no answer */
	__u8 side;       /* enum http_side */
	__u8 method;     /* enum http_method */
	__u8 version;    /* enum http_version, of the request */
	__u8 error;      /* enum http_error */
	__u8 peer_class; /* enum http_peer */
	__u8 pad[7];
};

/* One CPU's share of a series, read through mmap. */
struct http_series_value {
	__u64 sum_ns;
	__u64 body_sum_ns; /* from an answer's first byte to its end */
	__u64 request_bytes;
	__u64 response_bytes;
	__u64 max_ns[2]; /* by parity of the interval */
	__u64 le[HISTOGRAM_BOUNDS];
	__u64 pad[3];
};

/* A series over one interval: what a batch of kind "http" holds. */
struct http_row {
	struct http_series_key key;
	__u64 count;
	__u64 sum_ns;
	__u64 ttfb_sum_ns;
	__u64 request_bytes;
	__u64 response_bytes;
	__u64 max_ns;
	__u64 le[HISTOGRAM_BOUNDS]; /* not cumulative */
	__u32 buckets[HISTOGRAM_BUCKETS];
};

/* One exchange: what a batch of kind "request" holds. */
struct http_request {
	__u64 time_ns; /* CLOCK_MONOTONIC, first byte of the request */
	__u64 duration_ns;
	__u64 ttfb_ns;
	__u64 request_bytes;
	__u64 response_bytes;
	__u64 cgroup_id;
	__u64 route;
	__u8 local[16];
	__u8 peer[16];
	__u16 local_port;
	__u16 peer_port;
	__u32 pid;
	__u32 owner;
	__u16 status;
	__u8 side;
	__u8 method;
	__u8 version;
	__u8 error;
	__u8 peer_class;
	__u8 trace_flags;
	__u8 trace_id[16]; /* W3C Trace Context; zeros: none */
	__u8 span_id[8];
	__u16 path_len; /* of the target as sent; the text may be cut */
	__u16 host_len;
	__u16 agent_len;
	__u8 method_len;
	__u8 pad[5];
	char method_text[16];
	char path[HTTP_PATH_MAX];
	char host[HTTP_HOST_MAX];
	char agent[HTTP_AGENT_MAX];
};

#endif
