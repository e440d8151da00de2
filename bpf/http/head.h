/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The short way through a head that stands whole in the window: eight bytes at
 * a time, looking only at line ends and at the lines that begin with C, T or U.
 * It takes what is plain, and declines the rest to the state machine of h1.h,
 * which is the truth: where head_scan() does not decline, it says the same.
 */
#ifndef __PODSCOPE_HEAD_H
#define __PODSCOPE_HEAD_H

#include "http/h1.h"

#define HEAD_WINDOW 2048 /* a longer head is left to the state machine; a power of two */
#define HEAD_PART   256  /* bytes searched in one go */
#define HEAD_SLACK  32   /* bytes behind the window that may be read, and are not used */

struct head {
	u32 first_lf; /* end of the start line */
	u32 end;      /* behind the empty line; 0: none found, HEAD_DECLINED */
	u32 length_at;
	u32 coding_at;
	u32 method_len;
};

#define HEAD_DECLINED 0xffffffffu

static __always_inline u64 head_word(const u8 *window, u32 at)
{
	opaque(at);
	at &= HEAD_WINDOW - 1;
	return load_u64(window + at);
}

#define HEAD_WORD(a, b, c, d, e, f, g, h) (H1_TOKEN(a, b, c, d, e, f, g) | (u64)(h) << 56)
#define HEAD_FOLD                         0x2020202020202020ULL

/* Position of the lowest byte that is marked in a mask of high bits. */
static __always_inline u32 head_first(u64 mask)
{
	mask >>= 7;
	return (((mask - 1) & ~mask & 0x0101010101010101ULL) * 0x0101010101010101ULL) >> 56;
}

/* A line that begins with C: is it Content-Length? */
static __always_inline void head_line_c(struct head *h, const u8 *window, u32 at)
{
	const u64 dash = 0xffULL << 56;
	u64 last;

	if ((head_word(window, at) | (HEAD_FOLD & ~dash)) !=
	    HEAD_WORD('c', 'o', 'n', 't', 'e', 'n', 't', '-'))
		return;
	last = head_word(window, at + 8);
	if (((last | HEAD_FOLD) & 0xffffffffffffULL) !=
	    HEAD_WORD('l', 'e', 'n', 'g', 't', 'h', 0, 0))
		return;
	if (((last >> 48) & 0xff) != ':' || h->length_at)
		h->end = HEAD_DECLINED;
	h->length_at = at + 15;
}

/* A line that begins with T: is it Transfer-Encoding? */
static __always_inline void head_line_t(struct head *h, const u8 *window, u32 at)
{
	u64 last;

	if ((head_word(window, at) | HEAD_FOLD) !=
		    HEAD_WORD('t', 'r', 'a', 'n', 's', 'f', 'e', 'r') ||
	    (head_word(window, at + 8) | (HEAD_FOLD & ~0xffULL)) !=
		    HEAD_WORD('-', 'e', 'n', 'c', 'o', 'd', 'i', 'n'))
		return;
	last = head_word(window, at + 16);
	if ((last & 0xff) != 'g' && (last & 0xff) != 'G')
		return;
	if (((last >> 8) & 0xff) != ':' || h->coding_at)
		h->end = HEAD_DECLINED;
	h->coding_at = at + 18;
}

/*
 * First bytes of lines that matter, by their low five bits: C, T, U, CR, LF,
 * space, tab; with them some that do not, which the switch below sorts out.
 */
#define HEAD_OF_INTEREST (1u << 3 | 1u << 20 | 1u << 21 | 1u << 13 | 1u << 10 | 1u << 0 | 1u << 9)

/* A line begins here. */
static __always_inline void head_line(struct head *h, const u8 *window, u32 at)
{
	u64 word = head_word(window, at);
	u8 c = word & 0xff;

	if (!(HEAD_OF_INTEREST >> (c & 31) & 1))
		return;
	if (c == '\r') {
		h->end = ((word >> 8) & 0xff) == '\n' ? at + 2 : HEAD_DECLINED;
		return;
	}
	switch (c | 0x20) {
	case 'c':
		head_line_c(h, window, at);
		break;
	case 't':
		head_line_t(h, window, at);
		break;
	case 'u':
		if ((word | (HEAD_FOLD & ~(0xffULL << 56))) ==
		    HEAD_WORD('u', 'p', 'g', 'r', 'a', 'd', 'e', ':'))
			h->end = HEAD_DECLINED;
		break;
	case ' ':         /* also NUL: declining is always right */
	case '\t' | 0x20: /* obs-fold; also ')' */
	case '\n' | 0x20: /* bare line feed; also '*' */
		h->end = HEAD_DECLINED;
		break;
	}
}

/* The line ends in one word: two at most, as "\r\n\r\n" has. */
static __always_inline void head_lines(struct head *h, const u8 *window, u32 at, u64 mask)
{
	u32 lf = at + head_first(mask);

	if (!h->first_lf)
		h->first_lf = lf;
	head_line(h, window, lf + 1);
	mask &= mask - 1;
	if (!mask || h->end)
		return;
	head_line(h, window, at + head_first(mask) + 1);
	mask &= mask - 1;
	if (mask && !h->end)
		h->end = HEAD_DECLINED;
}

/* No line has been seen yet. */
static __always_inline void head_begin(struct head *h)
{
	h->first_lf = 0;
	h->end = 0;
	h->length_at = 0;
	h->coding_at = 0;
}

/*
 * Looks for the head's end and the lines that matter in one part of the window,
 * which holds n bytes: all there are, or 48 or more behind the part, since it
 * looks that far into a line that begins there.
 */
static __always_inline void head_find(struct head *h, const u8 *window, u32 from, u32 n)
{
	for (u32 i = 0; i < HEAD_PART; i += 8) {
		u32 at = from + i;
		u64 mask;

		if (at >= n)
			return;
		mask = h1_newlines(head_word(window, at));
		if (!mask)
			continue;
		head_lines(h, window, at, mask);
		forget();
		if (h->end)
			return;
	}
}

/* The digits of Content-Length; false: declined. */
static __always_inline bool head_length(struct h1 *p, const u8 *window, u32 at)
{
	u64 value = 0;
	u32 i;

	opaque(at);
	at &= HEAD_WINDOW - 1;
	if (window[at] == ' ')
		at++;
	for (i = 0; i < 16; i++) {
		u8 c = window[at + i];

		if (!h1_is_digit(c))
			break;
		value = value * 10 + (c - '0');
	}
	if (!i || i == 16 || window[at + i] != '\r' || window[at + i + 1] != '\n')
		return false;
	p->length = value;
	p->flags |= H1_HAS_LENGTH;
	return true;
}

/* Transfer-Encoding is "chunked" and nothing else; false: declined. */
static __always_inline bool head_coding(struct h1 *p, const u8 *window, u32 at)
{
	opaque(at);
	at &= HEAD_WINDOW - 1;
	if (window[at] == ' ')
		at++;
	if ((head_word(window, at) | (HEAD_FOLD & ~(0xffULL << 56))) !=
	    HEAD_WORD('c', 'h', 'u', 'n', 'k', 'e', 'd', '\r'))
		return false;
	if ((head_word(window, at + 8) & 0xff) != '\n')
		return false;
	p->flags |= H1_CHUNKED;
	return true;
}

/* The method's length if it is one of the usual ones, which are told by four bytes. */
static __always_inline u32 head_method(struct h1 *p, u64 word)
{
	switch (word & 0xffffffff) {
	case 'G' | 'E' << 8 | 'T' << 16 | ' ' << 24:
		p->method = HTTP_GET;
		return 3;
	case 'P' | 'U' << 8 | 'T' << 16 | ' ' << 24:
		p->method = HTTP_PUT;
		return 3;
	case 'P' | 'O' << 8 | 'S' << 16 | 'T' << 24:
		p->method = HTTP_POST;
		return ((word >> 32) & 0xff) == ' ' ? 4 : 0;
	case 'H' | 'E' << 8 | 'A' << 16 | 'D' << 24:
		p->method = HTTP_HEAD;
		return ((word >> 32) & 0xff) == ' ' ? 4 : 0;
	case 'P' | 'A' << 8 | 'T' << 16 | 'C' << 24:
		p->method = HTTP_PATCH;
		return ((word >> 32) & 0xffff) == ('H' | ' ' << 8) ? 5 : 0;
	case 'D' | 'E' << 8 | 'L' << 16 | 'E' << 24:
		p->method = HTTP_DELETE;
		return (word >> 32 & 0xffffff) == ('T' | 'E' << 8 | ' ' << 16) ? 6 : 0;
	}
	return 0;
}

/* True if no byte of the word is a control, a space or DEL (bytes from 0x80 on are fine). */
static __always_inline bool head_is_visible(u64 word)
{
	const u64 high = 0x8080808080808080ULL, low = ~high;
	u64 seven = word & low;
	/* high bit set where the byte is 0x21 or more, and where it is 0x7f */
	u64 above = seven + 0x5f5f5f5f5f5f5f5fULL, del = seven + 0x0101010101010101ULL;

	return !(((~above | del) & ~word) & high);
}

/* Looks at each byte of the target, and copies it if there is a place; false: declined. */
static __always_inline bool head_target(struct h1_text *t, const u8 *window, u32 at, u32 end)
{
	u32 len = end - at;

	if (!len || len > HTTP_PATH_MAX)
		return false;
	if (t)
		t->path_len = len;
	for (u32 i = 0; i < HTTP_PATH_MAX; i += 8) {
		u64 word, seen;

		if (i >= len)
			break;
		word = head_word(window, at + i);
		if (t)
			store_u64(t->path + i, word);
		seen = word;
		if (len - i < 8) /* the bytes behind the target count as letters */
			seen |= ~0ULL << ((len - i) * 8 & 63);
		if (!head_is_visible(seen))
			return false;
	}
	return true;
}

/* "METHOD target HTTP/1.x\r\n" */
static __always_inline bool head_request_line(struct h1 *p, struct h1_text *t, struct head *h,
					      const u8 *window)
{
	u32 method, lf;
	u64 version;

	h->method_len = head_method(p, head_word(window, 0));
	forget();
	method = h->method_len;
	lf = h->first_lf;
	if (!method || lf < 15)
		return false;
	version = head_word(window, lf - 9);
	if (version == HEAD_WORD('H', 'T', 'T', 'P', '/', '1', '.', '1'))
		p->version = HTTP_1_1;
	else if (version == HEAD_WORD('H', 'T', 'T', 'P', '/', '1', '.', '0'))
		p->version = HTTP_1_0;
	else
		return false;
	if ((head_word(window, lf - 10) & 0xff) != ' ' ||
	    (head_word(window, lf - 1) & 0xff) != '\r' || lf < method + 12)
		return false;
	forget();
	lf = h->first_lf;
	method = h->method_len;
	return head_target(t, window, method + 1, lf - 10);
}

/* "HTTP/1.x NNN[ reason]\r\n" */
static __always_inline bool head_status_line(struct h1 *p, const u8 *window)
{
	u64 version = head_word(window, 0), rest = head_word(window, 8);
	u8 a = rest >> 8, b = rest >> 16, c = rest >> 24, after = rest >> 32;

	if (version == HEAD_WORD('H', 'T', 'T', 'P', '/', '1', '.', '1'))
		p->version = HTTP_1_1;
	else if (version == HEAD_WORD('H', 'T', 'T', 'P', '/', '1', '.', '0'))
		p->version = HTTP_1_0;
	else
		return false;
	if ((rest & 0xff) != ' ' || a < '1' || a > '9' || !h1_is_digit(b) || !h1_is_digit(c) ||
	    (after != ' ' && after != '\r'))
		return false;
	p->status = (a - '0') * 100 + (b - '0') * 10 + (c - '0');
	return true;
}

/*
 * What head_find() found, read: p is then as h1_parse() leaves it at H1_HEAD.
 * False: declined; p may be changed in fields that h1_parse() sets again.
 */
static __always_inline bool head_read(struct h1 *p, struct h1_text *t, struct head *h,
				      const u8 *window)
{
	if (p->flags & H1_IS_ANSWER) {
		if (!head_status_line(p, window))
			return false;
	} else if (!head_request_line(p, t, h, window)) {
		return false;
	}
	forget();
	if ((h->length_at && !head_length(p, window, h->length_at)) ||
	    (h->coding_at && !head_coding(p, window, h->coding_at))) {
		p->flags &= ~(H1_HAS_LENGTH | H1_CHUNKED);
		return false;
	}
	return true;
}

/*
 * Reads a whole head from the window's start, p being at H1_START. Returns its
 * length; 0: declined. The kernel's programs do the same piece by piece.
 */
static __always_inline u32 head_scan(struct h1 *p, struct h1_text *t, struct head *h,
				     const u8 *window, u32 n)
{
	head_begin(h);
	for (u32 from = 0; from < n && !h->end; from += HEAD_PART)
		head_find(h, window, from, n);
	if (!h->end || h->end > n || !head_read(p, t, h, window))
		return 0;
	return h->end;
}

#endif
