/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Histograms of durations, of all kinds of rows: how they are laid out. */
#ifndef __PODSCOPE_HISTOGRAM_H
#define __PODSCOPE_HISTOGRAM_H

#include <linux/types.h>

#define HISTOGRAM_BOUNDS  15     /* 14 advised bounds and +Inf */
#define HISTOGRAM_BUCKETS 256    /* base-2 exponential, scale 3: bucket 0 ends at 2^(-20 + 1/8) s */
#define HISTOGRAM_OFFSET  (-160) /* OpenTelemetry index of bucket 0 */

/* Most buckets are empty: the kernel holds them in pieces. */
#define CHUNK_BUCKETS 16
#define CHUNKS        (HISTOGRAM_BUCKETS / CHUNK_BUCKETS)

struct chunk {
	__u32 n[CHUNK_BUCKETS];
};

#endif
