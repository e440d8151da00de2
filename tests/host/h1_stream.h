/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * One direction of a connection on the host: feeds bytes to the parser the way
 * bpf/http.bpf.c does, and writes one line for each message.
 */
#ifndef __PODSCOPE_H1_STREAM_H
#define __PODSCOPE_H1_STREAM_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "http/head.h"

#define FRAMING (H1_HAS_LENGTH | H1_CHUNKED | H1_OTHER_CODING | H1_HAS_UPGRADE)

struct settings {
	bool answers;
	bool keep_text;
	bool fast;         /* try head_scan() first */
	bool resume;       /* after CONNECT or Upgrade: go on as if it was refused */
	const u8 *methods; /* answers: enum http_method of the requests, in turn */
	size_t n_methods;
};

struct stream {
	struct settings settings;
	struct h1 h1;
	struct h1_text text;
	FILE *out;
	size_t answered;
	u64 offset;       /* bytes taken */
	u64 head;         /* offset behind the open message's head; 0: no head yet */
	size_t shortcuts; /* heads that head_scan() took */
	u8 framing;
	bool bad;
};

static const char *const state_names[] = {
	[H1_START] = "START",
	[H1_METHOD] = "METHOD",
	[H1_TARGET] = "TARGET",
	[H1_VERSION] = "VERSION",
	[H1_VERSION_END] = "VERSION_END",
	[H1_VERSION_LF] = "VERSION_LF",
	[H1_STATUS_VERSION] = "STATUS_VERSION",
	[H1_STATUS] = "STATUS",
	[H1_STATUS_END] = "STATUS_END",
	[H1_LINE] = "LINE",
	[H1_NAME] = "NAME",
	[H1_SKIP] = "SKIP",
	[H1_LENGTH] = "LENGTH",
	[H1_LENGTH_END] = "LENGTH_END",
	[H1_CODING] = "CODING",
	[H1_TEXT] = "TEXT",
	[H1_HEAD_LF] = "HEAD_LF",
	[H1_CHUNK_SIZE] = "CHUNK_SIZE",
	[H1_CHUNK_EXTENSION] = "CHUNK_EXTENSION",
	[H1_CHUNK_LF] = "CHUNK_LF",
	[H1_CHUNK_END] = "CHUNK_END",
	[H1_CHUNK_END_LF] = "CHUNK_END_LF",
	[H1_TRAILER] = "TRAILER",
	[H1_TRAILER_SKIP] = "TRAILER_SKIP",
	[H1_TRAILER_LF] = "TRAILER_LF",
	[H1_BODY] = "BODY",
	[H1_CHUNK] = "CHUNK",
	[H1_BODY_CLOSE] = "BODY_CLOSE",
	[H1_WAIT] = "WAIT",
	[H1_OPAQUE] = "OPAQUE",
};

static void stream_begin(struct stream *s, const struct settings *settings, FILE *out)
{
	memset(s, 0, sizeof(*s));
	s->settings = *settings;
	s->out = out;
	s->h1.flags = settings->answers ? H1_IS_ANSWER : 0;
	if (settings->keep_text)
		s->h1.flags |= H1_KEEP_TEXT;
	/* Nothing may hang on what an earlier message left here. */
	memset(&s->text, 0xaa, sizeof(s->text));
}

static void print_text(FILE *out, const char *name, const char *text, u32 len, u32 max)
{
	fprintf(out, " %s=", name);
	for (u32 i = 0; i < len && i < max; i++)
		fprintf(out, "%02x", (u8)text[i]);
	fprintf(out, " %s_len=%u", name, len);
}

/* One message: `kind` is request, answer, interim, tunnel, or open (not yet ended). */
static void print_message(struct stream *s, const char *kind)
{
	const struct h1_text *t = &s->text;

	fprintf(s->out, "kind=%s version=%u framing=%u length=%llu body=%llu head=%llu end=%llu",
		kind, s->h1.version, s->framing, (unsigned long long)s->h1.length,
		(unsigned long long)s->h1.body, (unsigned long long)s->head,
		(unsigned long long)s->offset);
	if (s->settings.answers) {
		fprintf(s->out, " status=%u\n", s->h1.status);
		return;
	}
	fprintf(s->out, " method=%u", s->h1.method);
	print_text(s->out, "target", t->path, t->path_len, sizeof(t->path));
	if (!s->settings.keep_text) {
		fputc('\n', s->out);
		return;
	}
	print_text(s->out, "name", t->method, t->method_len, sizeof(t->method));
	print_text(s->out, "host", t->host, t->host_len, sizeof(t->host));
	print_text(s->out, "agent", t->agent, t->agent_len, sizeof(t->agent));
	print_text(s->out, "trace", t->trace, t->trace_len, H1_TRACE_MAX);
	fputc('\n', s->out);
}

static void message_end(struct stream *s, const char *kind)
{
	bool waits = !s->settings.answers && !s->settings.resume &&
		     ((s->h1.flags & H1_HAS_UPGRADE) || s->h1.method == HTTP_CONNECT);

	print_message(s, kind);
	s->head = 0;
	h1_reset(&s->h1);
	if (waits)
		s->h1.state = H1_WAIT;
}

static u8 answered_method(struct stream *s)
{
	return s->answered < s->settings.n_methods ? s->settings.methods[s->answered] : HTTP_GET;
}

static void head_end(struct stream *s)
{
	bool answers = s->settings.answers;
	int body;

	s->head = s->offset;
	s->framing = s->h1.flags & FRAMING;
	body = answers ? h1_answer_body(&s->h1, answered_method(s)) : h1_request_body(&s->h1);
	if (answers && body != H1_BODY_INTERIM)
		s->answered++;
	switch (body) {
	case H1_BODY_NONE:
		message_end(s, answers ? "answer" : "request");
		break;
	case H1_BODY_BAD:
		s->bad = true;
		break;
	case H1_BODY_INTERIM:
		message_end(s, "interim");
		break;
	case H1_BODY_TUNNEL:
		message_end(s, "tunnel");
		s->h1.state = H1_OPAQUE;
		break;
	}
}

/* Bytes that are taken by count; returns how many, 0 if the parser is to read. */
static size_t skip(struct stream *s, size_t n)
{
	struct h1 *p = &s->h1;

	switch (p->state) {
	case H1_BODY:
	case H1_CHUNK:
		if (n > p->remaining)
			n = p->remaining;
		p->remaining -= n;
		p->body += n;
		s->offset += n;
		if (p->remaining)
			return n;
		if (p->state == H1_CHUNK)
			p->state = H1_CHUNK_END;
		else
			message_end(s, s->settings.answers ? "answer" : "request");
		return n;
	case H1_BODY_CLOSE:
		p->body += n;
		s->offset += n;
		return n;
	case H1_WAIT:
	case H1_OPAQUE:
		return n;
	}
	return 0;
}

/* head_scan() on copies, with these bytes behind the window's. */
static u32 scan(struct h1 *p, struct h1_text *t, const u8 *window, u32 n, const char *behind)
{
	u8 slack[H1_WINDOW + HEAD_SLACK];
	struct head head;

	memset(&head, 0xaa, sizeof(head));
	for (size_t i = 0; i < sizeof(slack); i++)
		slack[i] = behind[i % strlen(behind)];
	memcpy(slack, window, n);
	return head_scan(p, t, &head, slack, n);
}

/* The head's length by the short way, 0: declined. What lies behind the window changes nothing. */
static u32 short_way(struct stream *s, const u8 *window, u32 n)
{
	static const char *const behind[] = { "\n", "\r\n", "1", " HTTP/1.1\r\n\r\n" };
	struct h1 before = s->h1;
	u32 taken = scan(&s->h1, &s->text, window, n, "\xff");

	for (size_t i = 0; i < sizeof(behind) / sizeof(*behind); i++) {
		struct h1_text text;
		struct h1 p = before;

		memset(&text, 0xaa, sizeof(text));
		if (scan(&p, &text, window, n, behind[i]) != taken)
			abort();
		if (!taken)
			continue;
		if (memcmp(&p, &s->h1, sizeof(p)))
			abort();
		if (!s->settings.answers && (text.path_len != s->text.path_len ||
					     memcmp(text.path, s->text.path, text.path_len)))
			abort();
	}
	return taken;
}

static int window_parse(struct stream *s, const u8 *window, u32 n)
{
	int event = H1_MORE;

	if (s->settings.fast && !s->settings.keep_text && s->h1.state == H1_START) {
		s->h1.at = short_way(s, window, n);
		s->shortcuts += !!s->h1.at;
		if (s->h1.at)
			return H1_HEAD;
	}

	s->h1.at = 0;
	for (u32 i = 0; i < H1_WINDOW / H1_TURNS && event == H1_MORE && s->h1.at < n; i++)
		event = h1_parse(&s->h1, &s->text, window, n);
	return event;
}

/* One window, in memory of just its size, so that a byte too far is found. */
static size_t parse(struct stream *s, const u8 *bytes, size_t n)
{
	u32 len = n < H1_WINDOW ? n : H1_WINDOW;
	u8 *window = malloc(len);
	int event;

	if (!window)
		abort();
	memcpy(window, bytes, len);
	event = window_parse(s, window, len);
	free(window);
	if (!s->h1.at || s->h1.at > len || (event == H1_MORE && s->h1.at != len))
		abort(); /* it must go on, stay inside, and use up what it can */
	s->offset += s->h1.at;
	len = s->h1.at;
	if (event == H1_HEAD)
		head_end(s);
	else if (event == H1_END)
		message_end(s, s->settings.answers ? "answer" : "request");
	else if (event == H1_BAD)
		s->bad = true;
	return len;
}

/* The next n bytes, as one segment. */
static void stream_feed(struct stream *s, const u8 *bytes, size_t n)
{
	while (n && !s->bad) {
		size_t taken = skip(s, n);

		if (!taken)
			taken = parse(s, bytes, n);
		bytes += taken;
		n -= taken;
	}
}

/* No more bytes come: what is open, and where the parser stands. */
static void stream_end(struct stream *s)
{
	if (!s->bad && s->head)
		print_message(s, "open");
	fprintf(s->out, "state=%s at=%llu shortcuts=%zu\n",
		s->bad ? "BAD" : state_names[s->h1.state], (unsigned long long)s->offset,
		s->shortcuts);
}

#endif
