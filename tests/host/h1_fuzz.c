/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * libFuzzer: a stream cut into segments anywhere, and one read the short way of
 * head.h, must read like the same stream in one piece. The first bytes of the
 * input say how it is cut.
 */
#include "h1_stream.h"

#define CUTS 4

struct cut {
	u8 settings;   /* 1: answers, 2: keep text, 4: resume; upper half: the first method */
	u8 size[CUTS]; /* of the segments, in turn; 0 is 256 */
};

static char *read_stream(const struct cut *cut, const u8 *bytes, size_t n, bool whole, bool fast)
{
	u8 methods[2] = { cut->settings >> 4, HTTP_HEAD };
	struct settings settings = {
		.answers = cut->settings & 1,
		.keep_text = cut->settings & 2,
		.resume = cut->settings & 4,
		.fast = fast,
		.methods = methods,
		.n_methods = sizeof(methods),
	};
	struct stream s;
	char *text = NULL;
	size_t len, size = n;
	FILE *out = open_memstream(&text, &len);

	if (!out)
		abort();
	stream_begin(&s, &settings, out);
	for (size_t at = 0, i = 0; at < n; at += size, i++) {
		if (!whole)
			size = cut->size[i % CUTS] ? cut->size[i % CUTS] : 256;
		if (size > n - at)
			size = n - at;
		stream_feed(&s, bytes + at, size);
	}
	s.shortcuts = 0;
	stream_end(&s);
	fclose(out);
	return text;
}

static void check_same(char *truth, char *other)
{
	if (strcmp(truth, other)) {
		fprintf(stderr, "whole:\n%sother:\n%s", truth, other);
		abort();
	}
	free(other);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t n);

int LLVMFuzzerTestOneInput(const u8 *data, size_t n)
{
	const struct cut *cut = (const struct cut *)data;
	const u8 *bytes = data + sizeof(*cut);
	char *truth;

	if (n < sizeof(*cut))
		return 0;
	n -= sizeof(*cut);
	truth = read_stream(cut, bytes, n, true, false);
	check_same(truth, read_stream(cut, bytes, n, false, false));
	check_same(truth, read_stream(cut, bytes, n, true, true));
	check_same(truth, read_stream(cut, bytes, n, false, true));
	free(truth);
	return 0;
}
