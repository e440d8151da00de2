/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * HTTP/1.x framing (RFC 9112) as a state machine that can stop and go on at
 * any byte. It reads a window of bytes and keeps all it knows in struct h1;
 * bodies never come here: the caller skips them by count. Pure C: the same
 * code is built for the kernel and, for tests and fuzzing, for the host.
 */
#ifndef __PODSCOPE_H1_H
#define __PODSCOPE_H1_H

#include "common/loop.h"
#include "http/http.h"

#define H1_WINDOW     512 /* bytes looked at in one go; a power of two */
#define H1_TURNS      32  /* bytes of it taken in one call without bpf_loop() */
#define H1_TRACE_MAX  55  /* W3C Trace Context: 00-<32>-<16>-<2> */
#define H1_METHOD_MAX 64  /* a longer first token is not HTTP */
#define H1_LENGTH_MAX (1ULL << 60)

enum h1_state {
	H1_START = 0, /* between two messages; empty lines are skipped (RFC 9112 2.2) */
	H1_METHOD,
	H1_TARGET,
	H1_VERSION,     /* of a request: "HTTP/1." DIGIT */
	H1_VERSION_END, /* CR or LF must follow */
	H1_VERSION_LF,
	H1_STATUS_VERSION, /* of an answer */
	H1_STATUS,
	H1_STATUS_END,
	H1_LINE, /* first byte of a header line */
	H1_NAME,
	H1_SKIP, /* to the end of the line */
	H1_LENGTH,
	H1_LENGTH_END,
	H1_CODING,
	H1_TEXT, /* a value that is kept */
	H1_HEAD_LF,
	H1_CHUNK_SIZE,
	H1_CHUNK_EXTENSION,
	H1_CHUNK_LF,
	H1_CHUNK_END,
	H1_CHUNK_END_LF,
	H1_TRAILER,
	H1_TRAILER_SKIP,
	H1_TRAILER_LF,
	/* From here on the caller takes bytes by count. */
	H1_BODY,       /* Content-Length: `remaining` bytes */
	H1_CHUNK,      /* chunk data: `remaining` bytes */
	H1_BODY_CLOSE, /* until the connection ends */
	H1_WAIT,       /* request side after CONNECT or Upgrade: the answer decides */
	H1_OPAQUE,     /* tunnel, or given up */
};

enum h1_event {
	H1_MORE = 0, /* the window is used up */
	H1_HEAD,     /* a head has ended; the caller sets the body's framing */
	H1_END,      /* a message has ended */
	H1_DATA,     /* chunk data follow */
	H1_BAD,      /* not HTTP/1.x, or framing that RFC 9112 forbids */
};

/* Header fields that matter; bits of h1.mask, and of the name table. */
enum h1_field {
	H1_F_LENGTH = 1,
	H1_F_CODING = 2,
	H1_F_UPGRADE = 4,
	H1_F_HOST = 8,
	H1_F_AGENT = 16,
	H1_F_TRACE = 32,
};

enum h1_flag {
	H1_HAS_LENGTH = 1,
	H1_CHUNKED = 2,      /* the last transfer coding is chunked */
	H1_OTHER_CODING = 4, /* the last transfer coding is another one */
	H1_HAS_UPGRADE = 8,
	H1_FOLD_IS_BAD = 16, /* the last field was one of framing */
	H1_DIGITS = 32,      /* the number being read has digits */
	H1_IS_ANSWER = 64,
	H1_KEEP_TEXT = 128, /* keep host, user agent, traceparent */
};

/* One direction of a connection. */
struct h1 {
	u8 state;
	u8 flags;
	u8 index; /* position in the literal, name or number being read */
	u8 mask;  /* enum h1_field: names that still match; then the field kept */
	u8 version;
	u8 method;
	u16 status;
	u32 at; /* position in the window */
	u32 pad;
	u64 number;    /* being read: Content-Length, chunk size, or a method's first eight bytes */
	u64 length;    /* Content-Length */
	u64 remaining; /* bytes to skip in H1_BODY and H1_CHUNK */
	u64 body;      /* content bytes of this message so far */
};

/* What is kept of a request's head. */
struct h1_text {
	char host[HTTP_HOST_MAX];
	char agent[HTTP_AGENT_MAX];
	char trace[64];
	char method[16];
	u16 path_len; /* as sent; the text may be cut */
	u16 host_len;
	u16 agent_len;
	u8 method_len;
	u8 trace_len;
	char path[HTTP_PATH_MAX];
} __attribute__((aligned(8)));

/* tchar (RFC 9110 5.6.2), as a bit map over ASCII. */
static __always_inline int h1_is_tchar(u8 c)
{
	if (c < 64)
		return (0x03ff6cfa00000000ULL >> c) & 1;
	return c < 128 && ((0x57ffffffc7fffffeULL >> (c - 64)) & 1);
}

static __always_inline int h1_is_digit(u8 c)
{
	return c >= '0' && c <= '9';
}

static __always_inline u8 h1_lower(u8 c)
{
	return c >= 'A' && c <= 'Z' ? c | 0x20 : c;
}

/* "HTTP/1." */
static __always_inline u8 h1_version_char(u32 i)
{
	return (0x2e312f50545448ULL >> (8 * (i & 7))) & 0xff;
}

#define H1_TOKEN(a, b, c, d, e, f, g)                                                              \
	((u64)(a) | (u64)(b) << 8 | (u64)(c) << 16 | (u64)(d) << 24 | (u64)(e) << 32 |             \
	 (u64)(f) << 40 | (u64)(g) << 48)

/* The method's number from its first eight bytes; methods are case-sensitive. */
static __always_inline u8 h1_method(u64 token)
{
	switch (token) {
	case H1_TOKEN('G', 'E', 'T', 0, 0, 0, 0):
		return HTTP_GET;
	case H1_TOKEN('H', 'E', 'A', 'D', 0, 0, 0):
		return HTTP_HEAD;
	case H1_TOKEN('P', 'O', 'S', 'T', 0, 0, 0):
		return HTTP_POST;
	case H1_TOKEN('P', 'U', 'T', 0, 0, 0, 0):
		return HTTP_PUT;
	case H1_TOKEN('D', 'E', 'L', 'E', 'T', 'E', 0):
		return HTTP_DELETE;
	case H1_TOKEN('C', 'O', 'N', 'N', 'E', 'C', 'T'):
		return HTTP_CONNECT;
	case H1_TOKEN('O', 'P', 'T', 'I', 'O', 'N', 'S'):
		return HTTP_OPTIONS;
	case H1_TOKEN('T', 'R', 'A', 'C', 'E', 0, 0):
		return HTTP_TRACE;
	case H1_TOKEN('P', 'A', 'T', 'C', 'H', 0, 0):
		return HTTP_PATCH;
	case H1_TOKEN('Q', 'U', 'E', 'R', 'Y', 0, 0):
		return HTTP_QUERY;
	}
	return HTTP_OTHER;
}

/* Which of the fields' names have this letter at this place. */
static const u8 h1_names[17][32] = {
	/* Index: letter & 31; '-' is 13, as 'm', which no name has in its place. */
	[0] = { ['c' & 31] = H1_F_LENGTH,
		['t' & 31] = H1_F_CODING | H1_F_TRACE,
		['u' & 31] = H1_F_UPGRADE | H1_F_AGENT,
		['h' & 31] = H1_F_HOST },
	[1] = { ['o' & 31] = H1_F_LENGTH | H1_F_HOST,
		['r' & 31] = H1_F_CODING | H1_F_TRACE,
		['p' & 31] = H1_F_UPGRADE,
		['s' & 31] = H1_F_AGENT },
	[2] = { ['n' & 31] = H1_F_LENGTH,
		['a' & 31] = H1_F_CODING | H1_F_TRACE,
		['g' & 31] = H1_F_UPGRADE,
		['e' & 31] = H1_F_AGENT,
		['s' & 31] = H1_F_HOST },
	[3] = { ['t' & 31] = H1_F_LENGTH | H1_F_HOST,
		['n' & 31] = H1_F_CODING,
		['c' & 31] = H1_F_TRACE,
		['r' & 31] = H1_F_UPGRADE | H1_F_AGENT },
	[4] = { ['e' & 31] = H1_F_LENGTH | H1_F_TRACE,
		['s' & 31] = H1_F_CODING,
		['a' & 31] = H1_F_UPGRADE,
		['-' & 31] = H1_F_AGENT },
	[5] = { ['n' & 31] = H1_F_LENGTH,
		['f' & 31] = H1_F_CODING,
		['p' & 31] = H1_F_TRACE,
		['d' & 31] = H1_F_UPGRADE,
		['a' & 31] = H1_F_AGENT },
	[6] = { ['t' & 31] = H1_F_LENGTH,
		['e' & 31] = H1_F_CODING | H1_F_UPGRADE,
		['a' & 31] = H1_F_TRACE,
		['g' & 31] = H1_F_AGENT },
	[7] = { ['-' & 31] = H1_F_LENGTH,
		['r' & 31] = H1_F_CODING | H1_F_TRACE,
		['e' & 31] = H1_F_AGENT },
	[8] = { ['l' & 31] = H1_F_LENGTH,
		['-' & 31] = H1_F_CODING,
		['e' & 31] = H1_F_TRACE,
		['n' & 31] = H1_F_AGENT },
	[9] = { ['e' & 31] = H1_F_LENGTH | H1_F_CODING,
		['n' & 31] = H1_F_TRACE,
		['t' & 31] = H1_F_AGENT },
	[10] = { ['n' & 31] = H1_F_LENGTH | H1_F_CODING, ['t' & 31] = H1_F_TRACE },
	[11] = { ['g' & 31] = H1_F_LENGTH, ['c' & 31] = H1_F_CODING },
	[12] = { ['t' & 31] = H1_F_LENGTH, ['o' & 31] = H1_F_CODING },
	[13] = { ['h' & 31] = H1_F_LENGTH, ['d' & 31] = H1_F_CODING },
	[14] = { ['i' & 31] = H1_F_CODING },
	[15] = { ['n' & 31] = H1_F_CODING },
	[16] = { ['g' & 31] = H1_F_CODING },
};

/* The fields whose whole name is this long. */
static __always_inline u8 h1_fields_of_length(u32 length)
{
	switch (length) {
	case 4:
		return H1_F_HOST;
	case 7:
		return H1_F_UPGRADE;
	case 10:
		return H1_F_AGENT;
	case 11:
		return H1_F_TRACE;
	case 14:
		return H1_F_LENGTH;
	case 17:
		return H1_F_CODING;
	}
	return 0;
}

/*
 * Is what was read before it went wrong the beginning of HTTP/1.x, and of nothing
 * else? A line of method and target alone may be Redis, OPTIONS that of RTSP or SIP.
 */
static __always_inline int h1_is_begun(const struct h1 *p, u32 path_len)
{
	if (p->flags & H1_IS_ANSWER)
		return p->state > H1_STATUS_VERSION;
	if (p->method == HTTP_OTHER || p->method == HTTP_OPTIONS)
		return 0;
	return p->state > H1_TARGET || (p->state == H1_TARGET && !path_len);
}

/* Ready for the next message in this direction. */
static __always_inline void h1_reset(struct h1 *p)
{
	p->state = H1_START;
	p->flags &= H1_IS_ANSWER | H1_KEEP_TEXT;
	p->index = 0;
	p->mask = 0;
	p->number = 0;
	p->length = 0;
	p->remaining = 0;
	p->body = 0;
}

/* What follows a head. */
enum h1_body {
	H1_BODY_NONE,    /* the message ends with its head */
	H1_BODY_FOLLOWS, /* the state says how it is read */
	H1_BODY_BAD,     /* its end cannot be known */
	H1_BODY_INTERIM, /* an answer before the answer: 1xx */
	H1_BODY_TUNNEL,  /* what follows is another protocol, in both directions */
};

/* Sets up the body that the head's fields announce. */
static __always_inline u32 h1_body_begin(struct h1 *p)
{
	if (p->flags & H1_CHUNKED) {
		p->state = H1_CHUNK_SIZE;
		p->flags &= ~H1_DIGITS;
		p->number = 0;
		return H1_BODY_FOLLOWS;
	}
	if (!p->length)
		return H1_BODY_NONE;
	p->state = H1_BODY;
	p->remaining = p->length;
	return H1_BODY_FOLLOWS;
}

/* A request's head has ended; CONNECT has no content (RFC 9110 9.3.6). */
static __always_inline u32 h1_request_body(struct h1 *p)
{
	if (unlikely(p->method == HTTP_CONNECT))
		return H1_BODY_NONE;
	if (unlikely(p->flags & H1_OTHER_CODING))
		return H1_BODY_BAD;
	return h1_body_begin(p);
}

/* An answer's head has ended; `method` is that of its request (RFC 9112 6.3). */
static __always_inline u32 h1_answer_body(struct h1 *p, u8 method)
{
	if (unlikely(p->status < 200) && p->status != 101)
		return H1_BODY_INTERIM;
	if (unlikely(p->status == 101) || (method == HTTP_CONNECT && p->status < 300))
		return H1_BODY_TUNNEL;
	if (method == HTTP_HEAD || p->status == 204 || p->status == 304)
		return H1_BODY_NONE;
	if ((p->flags & (H1_CHUNKED | H1_HAS_LENGTH)) && !(p->flags & H1_OTHER_CODING))
		return h1_body_begin(p);
	p->state = H1_BODY_CLOSE;
	return H1_BODY_FOLLOWS;
}

/* One Content-Length value has ended; equal ones may repeat (RFC 9110 8.6). */
static __always_inline int h1_length_value(struct h1 *p)
{
	if (!(p->flags & H1_DIGITS))
		return H1_BAD;
	if ((p->flags & H1_HAS_LENGTH) && p->length != p->number)
		return H1_BAD;
	p->flags |= H1_HAS_LENGTH;
	p->flags &= ~H1_DIGITS;
	p->length = p->number;
	p->number = 0;
	return H1_MORE;
}

/* "chunked" */
static __always_inline u8 h1_chunked_char(u32 i)
{
	return (0x64656b6e756863ULL >> (8 * (i & 7))) & 0xff;
}

/*
 * One list element of Transfer-Encoding. index: letters of "chunked" that
 * matched, 8: element began otherwise, 16 added: white space after it.
 */
static __always_inline void h1_coding_value(struct h1 *p)
{
	u8 matched = p->index & 15;

	p->index = 0;
	if (!matched)
		return; /* an empty element changes nothing (RFC 9110 5.6.1) */
	p->flags &= ~(H1_CHUNKED | H1_OTHER_CODING);
	p->flags |= matched == 7 ? H1_CHUNKED : H1_OTHER_CODING;
}

static __always_inline int h1_coding_byte(struct h1 *p, u8 c)
{
	if (c == '\n') {
		h1_coding_value(p);
		p->state = H1_LINE;
		return H1_MORE;
	}
	if (c == ',') {
		h1_coding_value(p);
		return H1_MORE;
	}
	/* a bare CR reads as a space (RFC 9112 2.2), and so does NUL (RFC 9110 5.5) */
	if (c == ' ' || c == '\t' || c == '\r' || !c) {
		if (p->index & 15)
			p->index |= 16;
		return H1_MORE;
	}
	if (!(p->index & 24) && p->index < 7 && h1_lower(c) == h1_chunked_char(p->index))
		p->index++;
	else
		p->index = 8;
	return H1_MORE;
}

static __always_inline int h1_length_byte(struct h1 *p, u8 c)
{
	if (h1_is_digit(c)) {
		if (p->state == H1_LENGTH_END)
			return H1_BAD;
		if (p->number >= H1_LENGTH_MAX / 16)
			return H1_BAD;
		p->number = p->number * 10 + (c - '0');
		p->flags |= H1_DIGITS;
		return H1_MORE;
	}
	if (c == ' ' || c == '\t') {
		if (p->flags & H1_DIGITS)
			p->state = H1_LENGTH_END;
		return H1_MORE;
	}
	if (c == ',') {
		p->state = H1_LENGTH;
		return h1_length_value(p);
	}
	if (c == '\r') {
		if (p->flags & H1_DIGITS)
			p->state = H1_LENGTH_END;
		return H1_MORE;
	}
	if (c == '\n') {
		p->state = H1_LINE;
		return h1_length_value(p);
	}
	return H1_BAD;
}

static __always_inline void h1_keep(struct h1 *p, struct h1_text *t, u8 c)
{
	if (p->mask == H1_F_HOST) {
		if (t->host_len < HTTP_HOST_MAX)
			t->host[t->host_len & (HTTP_HOST_MAX - 1)] = c;
		t->host_len++;
	} else if (p->mask == H1_F_AGENT) {
		if (t->agent_len < HTTP_AGENT_MAX)
			t->agent[t->agent_len & (HTTP_AGENT_MAX - 1)] = c;
		t->agent_len++;
	} else {
		if (t->trace_len < H1_TRACE_MAX)
			t->trace[t->trace_len & 63] = c;
		if (t->trace_len <= H1_TRACE_MAX)
			t->trace_len++;
	}
}

/* The name has ended at ':': which field is it, and what is read next. */
static __always_inline void h1_field(struct h1 *p, struct h1_text *t)
{
	u8 field = p->mask & h1_fields_of_length(p->index);

	p->index = 0;
	p->mask = 0;
	p->state = H1_SKIP;
	if (field == H1_F_LENGTH) {
		p->state = H1_LENGTH;
		p->flags |= H1_FOLD_IS_BAD;
		p->flags &= ~H1_DIGITS;
		p->number = 0;
	} else if (field == H1_F_CODING) {
		p->state = H1_CODING;
		p->flags |= H1_FOLD_IS_BAD;
	} else if (field == H1_F_UPGRADE) {
		p->flags |= H1_HAS_UPGRADE;
	} else if (field && (p->flags & H1_KEEP_TEXT)) {
		p->mask = field;
		p->state = H1_TEXT;
		if (field == H1_F_HOST)
			t->host_len = 0;
		else if (field == H1_F_AGENT)
			t->agent_len = 0;
		else
			t->trace_len = 0;
	}
}

/* The value of a hexadecimal digit, or 16. */
static __always_inline u32 h1_hex(u8 c)
{
	if (h1_is_digit(c))
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : 16;
}

static __always_inline int h1_start_byte(struct h1 *p, struct h1_text *t, u8 c)
{
	if (c == '\r' || c == '\n')
		return H1_MORE;
	if (p->flags & H1_IS_ANSWER) {
		p->state = H1_STATUS_VERSION;
		p->index = 1;
		return c == 'H' ? H1_MORE : H1_BAD;
	}
	if (!h1_is_tchar(c))
		return H1_BAD;
	p->state = H1_METHOD;
	p->index = 1;
	p->number = c;
	t->path_len = 0;
	t->host_len = 0;
	t->agent_len = 0;
	t->trace_len = 0;
	t->method_len = 1;
	t->method[0] = c;
	return H1_MORE;
}

static __always_inline int h1_method_byte(struct h1 *p, struct h1_text *t, u8 c)
{
	u32 i = p->index;

	if (c == ' ') {
		p->state = H1_TARGET;
		p->method = h1_method(i < 8 ? p->number : 0);
		p->number = 0;
		return H1_MORE;
	}
	if (!h1_is_tchar(c) || i >= H1_METHOD_MAX)
		return H1_BAD;
	if (i < 8)
		p->number |= (u64)c << (8 * (i & 7));
	if (i < sizeof(t->method))
		t->method[i & (sizeof(t->method) - 1)] = c;
	p->index = i + 1;
	t->method_len = i + 1;
	return H1_MORE;
}

static __always_inline int h1_target_byte(struct h1 *p, struct h1_text *t, u8 c)
{
	u32 i = t->path_len;

	if (c == ' ') {
		p->state = H1_VERSION;
		p->index = 0;
		return i ? H1_MORE : H1_BAD;
	}
	if (c < 0x21 || c == 0x7f)
		return H1_BAD;
	if (i < HTTP_PATH_MAX)
		t->path[i] = c;
	if (i < 0xffff)
		t->path_len = i + 1;
	return H1_MORE;
}

/* "HTTP/1." DIGIT of a request or an answer; the major version must be 1. */
static __always_inline int h1_version_byte(struct h1 *p, u8 c, u8 next)
{
	if (p->index < 7) {
		if (c != h1_version_char(p->index))
			return H1_BAD;
		p->index++;
		return H1_MORE;
	}
	if (!h1_is_digit(c))
		return H1_BAD;
	p->version = c == '0' ? HTTP_1_0 : HTTP_1_1;
	p->index = 0;
	p->status = 0;
	p->state = next;
	return H1_MORE;
}

static __always_inline int h1_status_byte(struct h1 *p, u8 c)
{
	if (!p->index) {
		p->index = 1;
		return c == ' ' ? H1_MORE : H1_BAD;
	}
	if (!h1_is_digit(c))
		return H1_BAD;
	p->status = p->status * 10 + (c - '0');
	p->index++;
	if (p->index < 4)
		return H1_MORE;
	p->state = H1_STATUS_END;
	return p->status >= 100 ? H1_MORE : H1_BAD; /* 600 to 999: odd, and seen (RFC 9110 15) */
}

static __always_inline int h1_line_byte(struct h1 *p, u8 c)
{
	if (c == '\r') {
		p->state = H1_HEAD_LF;
		return H1_MORE;
	}
	if (c == '\n')
		return H1_HEAD;
	if (c == ' ' || c == '\t') {
		/* obs-fold (RFC 9112 5.2): it may not go on a field of framing */
		p->state = H1_SKIP;
		return p->flags & H1_FOLD_IS_BAD ? H1_BAD : H1_MORE;
	}
	p->flags &= ~H1_FOLD_IS_BAD;
	p->index = 1;
	p->mask = c < 64 || c > 127 ? 0 : h1_names[0][c & 31];
	p->state = p->mask ? H1_NAME : H1_SKIP;
	return H1_MORE;
}

static __always_inline int h1_name_byte(struct h1 *p, struct h1_text *t, u8 c)
{
	u32 i = p->index;

	if (c == ':') {
		h1_field(p, t);
		return H1_MORE;
	}
	if ((c == ' ' || c == '\t' || c == '\r' || c == '\n') &&
	    (p->mask & h1_fields_of_length(i) & (H1_F_LENGTH | H1_F_CODING)))
		return H1_BAD; /* white space before the colon (RFC 9112 5.1) */
	if (c == '\n') {
		p->state = H1_LINE;
		return H1_MORE;
	}
	if (i >= 17 || !(c == '-' || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'))) {
		p->state = H1_SKIP;
		return H1_MORE;
	}
	p->mask &= h1_names[i][c & 31];
	/* '-' and 'm' share a place in the table; no name has an 'm' */
	if ((c | 0x20) == 'm')
		p->mask = 0;
	p->index = i + 1;
	if (!p->mask)
		p->state = H1_SKIP;
	return H1_MORE;
}

static __always_inline int h1_chunk_size_byte(struct h1 *p, u8 c)
{
	u32 digit = h1_hex(c);

	if (digit < 16) {
		if (p->number >= H1_LENGTH_MAX / 16)
			return H1_BAD;
		p->number = p->number * 16 + digit;
		p->flags |= H1_DIGITS;
		return H1_MORE;
	}
	if (!(p->flags & H1_DIGITS))
		return H1_BAD;
	if (c == '\r') {
		p->state = H1_CHUNK_LF;
		return H1_MORE;
	}
	if (c == ';' || c == ' ' || c == '\t') {
		p->state = H1_CHUNK_EXTENSION;
		return H1_MORE;
	}
	if (c != '\n')
		return H1_BAD;
	p->state = H1_CHUNK_LF;
	return H1_DATA;
}

/* The chunk's line has ended: data, or the trailers after the last chunk. */
static __always_inline int h1_chunk_line(struct h1 *p)
{
	p->remaining = p->number;
	p->number = 0;
	p->flags &= ~H1_DIGITS;
	p->index = 0;
	if (!p->remaining) {
		p->state = H1_TRAILER;
		return H1_MORE;
	}
	p->state = H1_CHUNK;
	return H1_DATA;
}

/* One byte of a head, chunk line or trailer. */
static __always_inline int h1_byte(struct h1 *p, struct h1_text *t, u8 c)
{
	switch (p->state) {
	case H1_START:
		return h1_start_byte(p, t, c);
	case H1_METHOD:
		return h1_method_byte(p, t, c);
	case H1_TARGET:
		return h1_target_byte(p, t, c);
	case H1_VERSION:
		return h1_version_byte(p, c, H1_VERSION_END);
	case H1_VERSION_END:
		if (c == '\r') {
			p->state = H1_VERSION_LF;
			return H1_MORE;
		}
		/* fallthrough */
	case H1_VERSION_LF:
		p->state = H1_LINE;
		return c == '\n' ? H1_MORE : H1_BAD;
	case H1_STATUS_VERSION:
		return h1_version_byte(p, c, H1_STATUS);
	case H1_STATUS:
		return h1_status_byte(p, c);
	case H1_STATUS_END:
		if (c == '\n') {
			p->state = H1_LINE;
			return H1_MORE;
		}
		p->state = H1_SKIP;
		return c == ' ' || c == '\r' ? H1_MORE : H1_BAD;
	case H1_LINE:
		return h1_line_byte(p, c);
	case H1_NAME:
		return h1_name_byte(p, t, c);
	case H1_SKIP:
		if (c == '\n')
			p->state = H1_LINE;
		return H1_MORE;
	case H1_LENGTH:
	case H1_LENGTH_END:
		return h1_length_byte(p, c);
	case H1_CODING:
		return h1_coding_byte(p, c);
	case H1_TEXT:
		if (c == '\n')
			p->state = H1_LINE;
		else if (c != '\r' && !(c == ' ' && !p->index)) {
			p->index = 1;
			h1_keep(p, t, c);
		}
		return H1_MORE;
	case H1_HEAD_LF:
		return c == '\n' ? H1_HEAD : H1_BAD;
	case H1_CHUNK_SIZE: {
		int event = h1_chunk_size_byte(p, c);

		return event == H1_DATA ? h1_chunk_line(p) : event;
	}
	case H1_CHUNK_EXTENSION:
		return c == '\n' ? h1_chunk_line(p) : H1_MORE;
	case H1_CHUNK_LF:
		return c == '\n' ? h1_chunk_line(p) : H1_BAD;
	case H1_CHUNK_END:
		if (c == '\r') {
			p->state = H1_CHUNK_END_LF;
			return H1_MORE;
		}
		/* fallthrough */
	case H1_CHUNK_END_LF:
		p->state = H1_CHUNK_SIZE;
		return c == '\n' ? H1_MORE : H1_BAD;
	case H1_TRAILER:
		if (c == '\n')
			return H1_END;
		p->state = c == '\r' ? H1_TRAILER_LF : H1_TRAILER_SKIP;
		return H1_MORE;
	case H1_TRAILER_SKIP:
		if (c == '\n')
			p->state = H1_TRAILER;
		return H1_MORE;
	case H1_TRAILER_LF:
		return c == '\n' ? H1_END : H1_BAD;
	}
	return H1_BAD;
}

/* High bit set in every byte of `word` that equals '\n'; exact, no false ones. */
static __always_inline u64 h1_newlines(u64 word)
{
	u64 x = word ^ 0x0a0a0a0a0a0a0a0aULL;

	return ~(((x & 0x7f7f7f7f7f7f7f7fULL) + 0x7f7f7f7f7f7f7f7fULL) | x | 0x7f7f7f7f7f7f7f7fULL);
}

/* States in which everything up to the next line end is of no interest. */
static __always_inline int h1_skips_line(u8 state)
{
	return state == H1_SKIP || state == H1_TRAILER_SKIP || state == H1_CHUNK_EXTENSION;
}

/* Steps over eight bytes without a line end; false if there are none such. */
static __always_inline int h1_skip_word(struct h1 *p, const u8 *window, u32 at, u32 n)
{
	if (at + 8 > n || at > H1_WINDOW - 8)
		return 0;
	if (h1_newlines(load_u64(window + at)))
		return 0;
	p->at = at + 8;
	return 1;
}

struct h1_run {
	struct h1 *p;
	struct h1_text *t;
	const u8 *window;
	u32 n;
	int event;
};

LOOP_BODY h1_turn(u32 turn, void *state)
{
	struct h1_run *run = state;
	struct h1 *p = run->p;
	u32 at = p->at;
	u8 c;

	if (at >= run->n || at >= H1_WINDOW)
		return 1;
	if (h1_skips_line(p->state) && h1_skip_word(p, run->window, at, run->n))
		return 0;
	c = run->window[at];
	p->at = at + 1;
	run->event = h1_byte(p, run->t, c);
	return run->event != H1_MORE;
}

/*
 * Reads window[p->at .. n): stops after the byte that gives an event, with
 * p->at behind it, or with H1_MORE when its turns or the bytes are used up.
 */
static __always_inline int h1_parse(struct h1 *p, struct h1_text *t, const u8 *window, u32 n)
{
	struct h1_run run = { .p = p, .t = t, .window = window, .n = n, .event = H1_MORE };

	LOOP(H1_WINDOW, H1_TURNS, h1_turn, &run);
	return run.event;
}

#endif
