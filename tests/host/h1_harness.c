/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The HTTP/1.x parser as a program. Reads streams from standard input, each
 * behind a line
 *
 *	requests|answers FLAGS METHODS SIZES BYTES
 *
 * FLAGS: t keeps text, r goes on after CONNECT and Upgrade, f tries the short
 * way of head.h first, - for none.
 * METHODS: numbers of enum http_method of the answers' requests: 1,2 or -.
 * SIZES: of the segments; the last one repeats, 0 is all the rest: 5,0 or -.
 * Writes a line for each message, and one that begins with "state=".
 */
#include "h1_stream.h"

#define LIST_MAX 4096

struct command {
	char kind[16];
	char flags[8];
	char methods[LIST_MAX];
	char sizes[LIST_MAX];
	size_t bytes;
};

static size_t next_number(char **list)
{
	size_t number;

	if (**list == '-')
		return 0;
	number = strtoul(*list, list, 10);
	if (**list == ',')
		(*list)++;
	return number;
}

static void run(struct command *c, const u8 *bytes)
{
	u8 methods[LIST_MAX];
	struct settings settings = {
		.answers = c->kind[0] == 'a',
		.keep_text = strchr(c->flags, 't'),
		.fast = strchr(c->flags, 'f'),
		.resume = strchr(c->flags, 'r'),
		.methods = methods,
	};
	char *list = c->methods;
	struct stream s;
	size_t size = 0;

	while (*list && *list != '-')
		methods[settings.n_methods++] = next_number(&list);
	stream_begin(&s, &settings, stdout);
	list = c->sizes;
	for (size_t at = 0; at < c->bytes; at += size) {
		if (!at || *list)
			size = next_number(&list);
		if (!size || size > c->bytes - at)
			size = c->bytes - at;
		stream_feed(&s, bytes + at, size);
	}
	stream_end(&s);
	fflush(stdout);
}

int main(void)
{
	struct command c;

	while (scanf("%15s %7s %4095s %4095s %zu", c.kind, c.flags, c.methods, c.sizes, &c.bytes) ==
	       5) {
		u8 *bytes = malloc(c.bytes + 1);

		if (!bytes || getchar() != '\n' || fread(bytes, 1, c.bytes, stdin) != c.bytes)
			return 1;
		run(&c, bytes);
		free(bytes);
	}
	return 0;
}
