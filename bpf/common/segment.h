/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A TCP segment as the cgroup_skb hooks see it: from the IP header on. */
#ifndef __PODSCOPE_SEGMENT_H
#define __PODSCOPE_SEGMENT_H

#include <linux/in.h>
#include <linux/in6.h>
#include "common/kernel.h"

enum tcp_flag {
	TCP_FIN = 1,
	TCP_SYN = 2,
	TCP_RST = 4,
};

struct segment {
	u32 seq;   /* of the first payload byte */
	u32 off;   /* of the payload, from the IP header */
	u32 len;   /* of the payload */
	u32 flags; /* enum tcp_flag */
};

#define IPV6_EXTENSIONS 4

/*
 * Offset of the TCP header, or 0 if this is no TCP. Walks the few extension
 * headers that a host's own TCP may carry (hop-by-hop, routing, destination).
 */
static __always_inline u32 segment_tcp_offset(u8 *data, u8 *end)
{
	u32 off = 40;
	u8 next;

	if (data + 20 > end)
		return 0;
	if (data[0] >> 4 == 4)
		return data[9] == IPPROTO_TCP ? (data[0] & 15) * 4 : 0;
	if (data[0] >> 4 != 6 || data + 40 > end)
		return 0;
	next = data[6];
	for (int i = 0; i < IPV6_EXTENSIONS && next != IPPROTO_TCP; i++) {
		u8 *header = data + (off & 2047);

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS)
			return 0;
		if (header + 2 > end)
			return 0;
		next = header[0];
		off += 8 + header[1] * 8;
	}
	return next == IPPROTO_TCP ? off : 0;
}

/* False if it is no TCP, or a segment that says nothing: no bytes, no end. */
static __always_inline bool segment_parse(struct __sk_buff *skb, struct segment *s)
{
	u8 *data = (u8 *)(long)skb->data, *end = (u8 *)(long)skb->data_end;
	u32 at = segment_tcp_offset(data, end), flags;
	u8 *tcp;

	if (!at)
		return false;
	opaque(at);
	tcp = data + (at & 2047);
	if (tcp + 20 > end)
		return false;
	flags = tcp[13];
	s->off = (at & 2047) + (tcp[12] >> 4) * 4;
	s->len = skb->len > s->off ? skb->len - s->off : 0;
	s->flags = flags;
	s->seq = bpf_ntohl(*(__be32 *)(tcp + 4)) + (flags & TCP_SYN ? 1 : 0);
	return s->len || (flags & (TCP_FIN | TCP_RST));
}

/*
 * Copies 1..max bytes of the packet, max being a power of two; false: none.
 * Older verifiers learn nothing from a test against 0, so the length is put in
 * a form whose bounds they see.
 */
static __always_inline bool load_bytes(struct __sk_buff *skb, u32 off, void *to, u64 n, u64 max)
{
	u64 last = n - 1;

	if (!n || n > max)
		return false;
	opaque(last);
	last &= max - 1;
	return !bpf_skb_load_bytes(skb, off, to, last + 1);
}

#endif
