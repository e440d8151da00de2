/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is kept with a socket that speaks HTTP/1.x, and the settings. */
#ifndef __PODSCOPE_CONN_H
#define __PODSCOPE_CONN_H

#include "common/atomics.h"
#include "common/owner.h"
#include "http/head.h"

enum direction {
	IN = 0,
	OUT = 1,
};

/* How far the boundaries of messages are known. */
enum sync_state {
	SYNCED = 0,
	UNSYNCED, /* waiting for an answer's head at a segment's start */
	TRACKING, /* following answers, requests unknown */
	IDLE,     /* an answer has ended and no request byte came since it began */
	PROVING,  /* the next request is parsed; an answer's head right after proves it */
};

/* Where the bytes being parsed are. */
enum source {
	NOWHERE = 0,
	SEGMENT, /* in the packet */
	KEPT,    /* in the blocks kept for later */
};

/* One request on its way to an answer. */
struct exchange {
	u64 start_ns;
	u64 request_bytes;
	u64 route;
	u32 number; /* on this connection */
	u8 method;
	u8 version;
	u8 flags; /* enum exchange_flag */
	u8 pad;
};

enum exchange_flag {
	EXCHANGE_WHOLE = 1,  /* the request has arrived whole */
	EXCHANGE_LOGGED = 2, /* its head's text is kept for the log */
	EXCHANGE_BAD = 4,    /* malformed: its answer is not counted */
};

#define QUEUE_MAX 128 /* requests in flight behind the oldest; a power of two */

struct queue {
	struct exchange slot[QUEUE_MAX];
};

/* One direction: a cache line, apart from the other's. */
struct stream {
	u32 next;     /* sequence number of the next byte in order */
	u32 known;    /* next holds */
	u64 first_ns; /* of the message being read */
	struct h1 h1;
	u64 pad_apart[24];
};

/*
 * Laid out by cache lines. The two directions of a connection are often at work
 * on two CPUs. A line that both write travels between them: those are the first
 * two. What only one of them uses stands apart, since CPUs fetch the lines
 * beside one that they use, too, and so take them from each other.
 */
struct conn {
	struct word_lock spin;
	u32 lock;         /* how many are here, or have left bytes for who is */
	u8 side;          /* enum http_side; decides which stream has the requests */
	u8 sync;          /* enum sync_state */
	u8 unsync_reason; /* enum http_lost */
	u8 request_seen;  /* while tracking: request bytes since the answer began */
	u8 request_waits; /* H1_WAIT has been entered */
	u8 answered;      /* the oldest request has its answer, but has not ended */
	u8 tunnel;
	u8 over;   /* nothing more to count */
	u8 ending; /* enum http_error: the queue is being emptied */
	u8 whole;  /* the end was that of an answer which lasts until the close */
	/* written without the lock, by whoever sees it */
	volatile u8 reset;
	volatile u8 closed;
	volatile u8 has_kept;
	volatile u8 has_fin[2]; /* by direction */
	u8 direction;           /* of the run at work */
	struct exchange oldest; /* of the requests in flight */

	u32 depth;    /* the oldest, and those in the queue */
	u32 overflow; /* requests after the queue was full */
	u32 number;   /* of requests so far */
	/* the run at work */
	u32 source; /* enum source */
	u64 now_ns;
	u32 off;   /* SEGMENT: in the packet */
	u32 avail; /* bytes left of this source */
	/* the packet's bytes, put aside while kept ones that come first are read */
	u32 aside_len;
	u32 aside_seq;
	u32 aside_off;
	u32 aside_direction;
	u64 early_ns; /* when those bytes came that completed the handshake */
	u32 fin[2];   /* sequence numbers of the FINs, by direction */

	/* seldom used */
	u64 cookie;
	u64 kept_id; /* name of its kept bytes */
	u8 peer[16];
	u8 local[16];
	u16 peer_port;
	u16 local_port;
	u8 peer_class;
	u8 pad_class[3];
	u32 head; /* of the queue */
	u32 pad_names;

	u8 window[H1_WINDOW] __attribute__((aligned(8)));

	struct stream stream[2];

	/* route of the last path */
	u64 raw_path;
	u64 raw_route;
	u32 raw_epoch;
	u32 pad_raw;
	struct h1_text text;
	u64 pad_text[18];

	/* the answer to the oldest; it waits here if it came before the request's end */
	u64 answer_end_ns;
	u64 answer_first_ns;
	u64 answer_bytes;
	u16 answer_status;
	u8 answer_error;
	/* series of the last exchange */
	u8 cached_error;
	u16 cached_status;
	u8 cached_method;
	u8 cached_version;
	u32 cached_slot;
	u32 cached_epoch;
	u64 cached_route;
	u64 cgroup_id;
	u32 pid; /* of the socket's owner */
	u32 owner;
};

/* The kernel puts a word of its own before the value, at the start of a line. */
#define LINE_BEGINS(member) ((offsetof(struct conn, member) + 8) % 64 == 0)

#ifndef PODSCOPE_NO_ATOMICS
_Static_assert(LINE_BEGINS(depth) && LINE_BEGINS(cookie) && LINE_BEGINS(stream[0]) &&
		       LINE_BEGINS(stream[1]) && LINE_BEGINS(raw_path) &&
		       LINE_BEGINS(answer_end_ns),
	       "struct conn is laid out by cache lines");
#endif

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct conn);
} conns SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct queue);
} queues SEC(".maps");

/*
 * Where whole heads are read: memory of the CPU, and so warm. A program can be
 * interrupted, and preempted, by others on its CPU: each takes a place of its own.
 */
struct desk {
	u32 taken;
	struct head found;
	u8 window[H1_WINDOW + HEAD_WINDOW + HEAD_SLACK] __attribute__((aligned(8)));
};

#define DESKS 4

#ifndef PODSCOPE_NO_ATOMICS
struct desks {
	struct desk desk[DESKS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct desks);
} desks SEC(".maps");

/* A free place, or NULL: then the state machine does it in the connection's own memory. */
static __always_inline struct desk *desk_take(void)
{
	u32 zero = 0;
	struct desks *all = bpf_map_lookup_elem(&desks, &zero);

	if (!all)
		return NULL;
	for (u32 i = 0; i < DESKS; i++)
		if (!__sync_val_compare_and_swap(&all->desk[i].taken, 0, 1))
			return &all->desk[i];
	return NULL;
}

static __always_inline void desk_leave(struct desk *desk)
{
	if (desk)
		*(volatile u32 *)&desk->taken = 0;
}
#else
static __always_inline struct desk *desk_take(void)
{
	return NULL;
}

static __always_inline void desk_leave(struct desk *desk)
{
}
#endif

/*
 * How a global function gets at the connection: as an argument where the
 * verifier takes pointers to memory (Linux kernel commit e5069b9c23b3, "bpf: Support
 * pointers in global func args", in v5.13), else by looking it up again. What is
 * APART is verified on its own there: all in one is more than they verify.
 */
#ifdef PODSCOPE_NO_LOOP
#define APART __noinline
#define CONN_PARAMETER
#define CONN_ARGUMENT(conn)
#define CONN_ONLY             struct __sk_buff *skb
#define CONN_ALONE(skb, conn) skb
#define FIND_CONN(skb)                                                                             \
	struct conn *conn = (skb)->sk ? bpf_sk_storage_get(&conns, (skb)->sk, 0, 0) : NULL
#define WORK_PARAMETER
#define WORK_ARGUMENT(conn, desk)
#define FIND_WORK(skb)                                                                             \
	FIND_CONN(skb);                                                                            \
	struct desk *desk = NULL
#else
#define APART                 static __always_inline
#define CONN_PARAMETER        , struct conn *conn
#define CONN_ARGUMENT(conn)   , conn
#define CONN_ONLY             struct conn *conn /* of functions that need no packet */
#define CONN_ALONE(skb, conn) conn
#define FIND_CONN(skb)
#define WORK_PARAMETER            , struct conn *conn, struct desk *desk
#define WORK_ARGUMENT(conn, desk) , conn, desk
#define FIND_WORK(skb)
#endif

/* Settings that may change while the programs run. */
enum log_flag {
	LOG_ON = 1,
	LOG_ALL = 2,     /* every exchange that passes the filters, or 1 in one_in */
	LOG_ERRORS = 4,  /* those that failed */
	LOG_SLOW = 8,    /* those that took slower_ns or more */
	LOG_EXCEPT = 16, /* not those of the cgroups in log_except */
};

/* Whether a series has the address of its peer. */
enum peers_kept {
	PEERS_NONE = 0,
	PEERS_ALL = 1,
	PEERS_KNOWN =
		2, /* those that user space knows, and some private ones that it may learn of */
};

/* Which requests are logged. */
struct log_rules {
	u64 slower_ns;
	u32 flags; /* enum log_flag */
	u32 one_in;
	u32 sides;        /* bits by enum http_side; 0: all */
	u32 status_first; /* 0 and 0: all */
	u32 status_last;
	u32 port_first; /* 0 and 0: all */
	u32 port_last;
	u32 path_len; /* 0: all; else a glob of '*' and '?' over the path */
	char path[64];
};

/* One is in force, the other is written: no request may see a half of each. */
struct log_rules log_rules[2];
u32 log_bank;

static __always_inline const struct log_rules *log_now(void)
{
	return &log_rules[log_bank & 1];
}

u32 epoch;           /* changes when a series or a route is taken away */
u32 interval_parity; /* which of max_ns[2] is written */
u32 series_created;
u32 peers_new;  /* addresses in `peers` that user space did not name */
u64 lost[16];   /* by enum http_lost */
u64 overflowed; /* exchanges under _OTHER */

/* Settings fixed at load. */
const volatile u8 with_routes = 1;
const volatile u8 with_peers = PEERS_NONE;
const volatile u32 peers_most = 1000; /* addresses at once that user space did not name */
const volatile u32 stripes = 1;       /* copies of each counter: a power of two */
const volatile u32 routes_per_workload = 200;

static __always_inline void lose(u32 reason, u32 n)
{
	__sync_fetch_and_add(&lost[reason & 15], n);
}

static __always_inline u8 request_direction(struct conn *conn)
{
	return conn->side == HTTP_SERVER ? IN : OUT;
}

#endif
