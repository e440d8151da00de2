/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What follows a head, as bpf/http/exchange.h decides it. */
#ifndef __PODSCOPE_H1_BODY_H
#define __PODSCOPE_H1_BODY_H

#include "http/h1.h"

enum h1_body {
	H1_BODY_NONE,    /* the message ends with its head */
	H1_BODY_FOLLOWS, /* the state says how it is read */
	H1_BODY_BAD,     /* its end cannot be known */
	H1_BODY_INTERIM, /* an answer before the answer: 1xx */
	H1_BODY_TUNNEL,  /* what follows is another protocol, in both directions */
};

static __always_inline int h1_chunked_body(struct h1 *p)
{
	p->state = H1_CHUNK_SIZE;
	p->flags &= ~H1_DIGITS;
	p->number = 0;
	return H1_BODY_FOLLOWS;
}

static __always_inline int h1_counted_body(struct h1 *p)
{
	if (!p->length)
		return H1_BODY_NONE;
	p->state = H1_BODY;
	p->remaining = p->length;
	return H1_BODY_FOLLOWS;
}

/* A request's head has ended; CONNECT has no content (RFC 9110 9.3.6). */
static __always_inline int h1_request_body(struct h1 *p)
{
	if (p->method == HTTP_CONNECT)
		return H1_BODY_NONE;
	if (p->flags & H1_OTHER_CODING)
		return H1_BODY_BAD;
	if (p->flags & H1_CHUNKED)
		return h1_chunked_body(p);
	return h1_counted_body(p);
}

/* An answer's head has ended; `method` is that of its request (RFC 9112 6.3). */
static __always_inline int h1_answer_body(struct h1 *p, u8 method)
{
	if (p->status < 200 && p->status != 101)
		return H1_BODY_INTERIM;
	if (p->status == 101 || (method == HTTP_CONNECT && p->status < 300))
		return H1_BODY_TUNNEL;
	if (method == HTTP_HEAD || p->status == 204 || p->status == 304)
		return H1_BODY_NONE;
	if (p->flags & H1_CHUNKED)
		return h1_chunked_body(p);
	if (!(p->flags & H1_OTHER_CODING) && (p->flags & H1_HAS_LENGTH))
		return h1_counted_body(p);
	p->state = H1_BODY_CLOSE;
	return H1_BODY_FOLLOWS;
}

#endif
