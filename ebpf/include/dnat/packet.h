/* What the programs know about a packet after parsing. Offsets, no pointers: helpers that write into a packet
 * invalidate pointers. */
#pragma once

#include <dnat/abi.h>

enum packet_kind {
	/* TCP, UDP, UDP-Lite, DCCP, SCTP. */
	KIND_PORTS,
	/* ICMP echo or timestamp; the identifier stands for both ports (RFC 5508, section 3). */
	KIND_QUERY,
	/* An ICMP error speaks about a packet that went the other way, so its source port is the destination
	 * port of the packet it quotes, and the other way round. */
	KIND_ERROR,
	/* A fragment other than the first: carries no ports. */
	KIND_FRAGMENT,
	/* Nothing that could tell the hosts behind one address apart; both ports are 0. */
	KIND_PORTLESS,
};

struct packet {
	__be32 source;
	__be32 destination;
	__u32 l4;               /* offset of the transport header */
	__u32 quoted;           /* KIND_ERROR: offset of the quoted transport header */
	__u32 payload;          /* octets after the IP header */
	__u32 offset;           /* octets before this fragment */
	__u16 source_port;      /* host order */
	__u16 destination_port; /* host order */
	__be16 id;
	__u8 protocol; /* of the transport header that the ports come from */
	__u8 ip_protocol;
	__u8 port_class; /* enum port_class */
	__u8 kind;       /* enum packet_kind */
	__u8 tcp_flags;
	__u8 more_fragments;
	__u8 tos;
};
