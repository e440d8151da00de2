/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Notes in sockets, made where there is none. */
#ifndef __PODSCOPE_STORAGE_H
#define __PODSCOPE_STORAGE_H

#include "common/kernel.h"

/*
 * Where two CPUs make a note in one socket, the later one gets NULL, as it is there already
 * (bpf_sk_storage_get() in net/core/bpf_sk_storage.c asks for BPF_NOEXIST): it takes that. For
 * notes that hold from their making on, all zeros.
 */
static __always_inline void *storage_made(void *map, struct bpf_sock *sk)
{
	void *note = bpf_sk_storage_get(map, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	return note ?: bpf_sk_storage_get(map, sk, 0, 0);
}

#endif
