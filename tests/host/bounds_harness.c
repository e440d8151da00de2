/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reads times in nanoseconds, writes for each its bucket and its bound. */
#include <inttypes.h>
#include <stdio.h>

#include "common/bounds.h"

int main(void)
{
	uint64_t ns;

	while (scanf("%" SCNu64, &ns) == 1) {
		u32 bucket = bucket_of(ns);

		printf("%u %u\n", bucket, bound_of(ns, bucket));
	}
	return 0;
}
