/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reads request targets, each behind a line with its length; writes for each
 * its route's length and the route.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host_conn.h"
#include "http/route.h"

static void read_target(struct h1_text *t, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		int c = getchar();

		if (i < HTTP_PATH_MAX)
			t->path[i] = c;
	}
	t->path_len = len;
}

int main(void)
{
	size_t len;

	while (scanf("%zu", &len) == 1) {
		struct h1_text *text = calloc(1, sizeof(*text));
		struct route_scan scan;
		struct route_run run = { .s = &scan, .t = text };

		if (!text || getchar() != '\n')
			return 1;
		memset(&scan, 0xaa, sizeof(scan));
		read_target(text, len);
		run.len = len < HTTP_PATH_MAX ? len : HTTP_PATH_MAX;
		route_begin(&scan, text);
		for (u32 turn = 0; !route_turn(turn, &run);)
			turn++;
		route_end(&scan);
		printf("%u %llx %llx\n", scan.route.len, (unsigned long long)scan.hash,
		       (unsigned long long)route_raw_hash(text, run.len));
		fwrite(scan.route.text, 1, scan.route.len, stdout);
		fflush(stdout);
		free(text);
	}
	return 0;
}
