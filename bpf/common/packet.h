/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The kernel's own packet, as far as it is read here (CO-RE). */
#ifndef __PODSCOPE_PACKET_H
#define __PODSCOPE_PACKET_H

#include "common/sock.h"

#define ETH_P_IP   0x0800
#define ETH_P_IPV6 0x86dd
#define NO_HEADER  0xffff

struct sk_buff {
	struct sock *sk;
	char cb[48];
	__be16 protocol;
	u16 transport_header;
	u16 network_header;
	unsigned char *head;
} __attribute__((preserve_access_index));

/* Both ends of a packet, as of who gets it. Addresses are IPv6 or v4-mapped. */
struct packet_ends {
	u8 local[16];
	u8 peer[16];
	u16 local_port;
	u16 peer_port;
	u8 flags; /* of TCP */
};

/* False: it is no packet of TCP. */
static __always_inline bool packet_ends_read(struct packet_ends *ends, const struct sk_buff *skb)
{
	u8 *head = BPF_CORE_READ(skb, head);
	u16 network = BPF_CORE_READ(skb, network_header);
	u16 transport = BPF_CORE_READ(skb, transport_header);
	u16 protocol = bpf_ntohs(BPF_CORE_READ(skb, protocol));
	__be16 ports[2] = {};
	__be32 address = 0;
	u8 next = 0;

	if (!transport || transport == NO_HEADER || transport <= network)
		return false;
	bpf_probe_read_kernel(&next, 1, head + network + (protocol == ETH_P_IP ? 9 : 6));
	if ((protocol != ETH_P_IP && protocol != ETH_P_IPV6) || next != IPPROTO_TCP)
		return false;
	if (protocol == ETH_P_IP) {
		bpf_probe_read_kernel(&address, 4, head + network + 12);
		mapped_ip4(ends->peer, address);
		bpf_probe_read_kernel(&address, 4, head + network + 16);
		mapped_ip4(ends->local, address);
	} else {
		bpf_probe_read_kernel(ends->peer, 16, head + network + 8);
		bpf_probe_read_kernel(ends->local, 16, head + network + 24);
	}
	bpf_probe_read_kernel(ports, 4, head + transport);
	ends->peer_port = bpf_ntohs(ports[0]);
	ends->local_port = bpf_ntohs(ports[1]);
	bpf_probe_read_kernel(&ends->flags, 1, head + transport + 13);
	return true;
}

#endif
