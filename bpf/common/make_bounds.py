# SPDX-License-Identifier: Apache-2.0
"""Writes bounds.h: the limits of the histograms' buckets in nanoseconds, exact."""

from decimal import Decimal
from decimal import getcontext
from math import ceil
from math import floor

getcontext().prec = 60
ADVISED = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
OFFSET = -160

HEAD = """/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Made by make_bounds.py: the limits of the histograms' buckets, in nanoseconds. */
#ifndef __PODSCOPE_BOUNDS_H
#define __PODSCOPE_BOUNDS_H

#include "common/types.h"
#include "common/histogram.h"
"""

CODE = """
/* Position of the highest bit that is set; BPF has no instruction for it. */
static __always_inline u32 log2_u64(u64 v)
{
	u32 r = 0;

	if (v >> 32) {
		v >>= 32;
		r = 32;
	}
	if (v >> 16) {
		v >>= 16;
		r += 16;
	}
	if (v >> 8) {
		v >>= 8;
		r += 8;
	}
	if (v >> 4) {
		v >>= 4;
		r += 4;
	}
	if (v >> 2) {
		v >>= 2;
		r += 2;
	}
	return r + (v >> 1);
}

/* 1 if a > b, both below 2^63; without a branch, which would often be foretold wrong. */
static __always_inline u32 is_above(u64 a, u64 b)
{
	return (b - a) >> 63;
}

/*
 * The bucket whose limits (below, up to and with] hold the time. A first
 * guess from the top four bits of the number is at most one too low or high.
 */
static __always_inline u32 bucket_of(u64 ns)
{
	u32 power, at, guess;

	if (ns <= bucket_limit[0])
		return 0;
	if (ns > bucket_limit[HISTOGRAM_BUCKETS - 2])
		return HISTOGRAM_BUCKETS - 1;
	power = log2_u64(ns);
	at = (power - FIRST_POWER) << 4 | ((ns >> (power - 4)) & 15);
	opaque(at); /* its bound stays the last step: Linux 5.10 understands no other */
	guess = bucket_guess[at & (GUESSES - 1)];
	guess += is_above(ns, bucket_limit[guess & (HISTOGRAM_BUCKETS - 1)]);
	guess += is_above(ns, bucket_limit[guess & (HISTOGRAM_BUCKETS - 1)]);
	return guess & (HISTOGRAM_BUCKETS - 1);
}

/* The advised bound that holds the time: a bucket has at most one bound inside. */
static __always_inline u32 bound_of(u64 ns, u32 bucket)
{
	u32 bound = bound_guess[bucket & (HISTOGRAM_BUCKETS - 1)];

	return bound + is_above(ns & ~(1ULL << 63), bound_limit[bound & 15]);
}

#endif
"""


def table(name: str, kind: str, values: list[int], size: str) -> str:
    """One C array."""
    suffix = "ULL" if kind == "u64" else ""
    lines = []
    for i in range(0, len(values), 8):
        lines.append("\t" + " ".join(f"{v}{suffix}," for v in values[i : i + 8]))
    return f"\nstatic const {kind} {name}[{size}] = {{\n" + "\n".join(lines) + "\n};\n"


def main() -> None:
    limits = [Decimal(10) ** 9 * Decimal(2) ** (Decimal(OFFSET + 1 + i) / 8) for i in range(256)]
    whole = [floor(v) for v in limits]
    bounds = [int(Decimal(str(b)) * 10**9) for b in ADVISED]
    first_power = whole[0].bit_length() - 1
    powers = whole[254].bit_length() - first_power
    guesses = 1 << (powers * 16 - 1).bit_length()
    guess = [0] * guesses
    for i in range(powers * 16):
        lowest = ceil((16 + i % 16) * 2.0 ** (first_power + i // 16 - 4))
        found = next(j for j in range(256) if j == 255 or lowest <= whole[j])
        guess[i] = found
    bound_guess = []
    for i in range(256):
        below = whole[i - 1] if i else -1
        bound_guess.append(next((j for j in range(14) if bounds[j] > below), 14))
    print(HEAD, end="")
    print(f"\n#define FIRST_POWER {first_power}\n#define GUESSES {guesses}")
    print(table("bucket_limit", "u64", whole, "HISTOGRAM_BUCKETS"), end="")
    print(table("bucket_guess", "u8", guess, "GUESSES"), end="")
    print(table("bound_guess", "u8", bound_guess, "HISTOGRAM_BUCKETS"), end="")
    print(table("bound_limit", "u64", [*bounds, (1 << 63) - 1, 0], "16"), end="")
    print(CODE, end="")


main()
