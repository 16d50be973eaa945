/* What the programs and user space agree on: counters, limits, and the keys and values of the maps.
 *
 * dnat/dataplane/abi.py mirrors this file. Every compilation asserts that numbers, sizes and offsets are the
 * same. Raise DNAT_ABI when the shape or the meaning of a map changes: programs with another number get fresh
 * maps.
 */
#pragma once

#include <linux/types.h>

#define DNAT_ABI 1

/* Who may use a port is kept for each class of protocols; a lease for "any" covers them all. */
enum port_class {
	CLASS_TCP = 0,
	CLASS_UDP = 1,   /* and UDP-Lite */
	CLASS_ICMP = 2,  /* identifiers of ICMP queries */
	CLASS_OTHER = 3, /* ports of DCCP and SCTP: never translated */
};
#define CLASSES 4
#define TRANSLATED_CLASSES 3

/* Index into the map `counters`, and a name in `dnatctl show counters`. Numbers never change; those of
 * retired counters stay unused. Drops come first, then what went well. */
enum counter {
	DROP_MALFORMED = 1,         /* headers cut short, or a first fragment too small to hold its ports */
	DROP_POOL_EXHAUSTED = 2,    /* host: no port to translate to */
	DROP_TABLE_FULL = 3,        /* host: no room for another binding */
	DROP_NOT_TRANSLATABLE = 4,  /* host: not our port, and a protocol whose ports cannot be rewritten */
	DROP_ERROR_UNBOUND = 5,     /* host: an ICMP error about a port that is not ours */
	DROP_REWRITE_FAILED = 6,    /* host: the kernel refused to write into the packet */
	DROP_FRAGMENT_UNKNOWN = 7,  /* a later fragment whose first one has not been seen */
	DROP_NO_OWNER = 8,          /* router: nobody holds the destination port */
	DROP_NOT_OWNER = 9,         /* router: the sender does not hold the source port */
	DROP_TTL_EXPIRED = 10,      /* router */
	DROP_FRAGMENT_NO_ROOM = 11, /* router: ahead of its first one, and too long or too many to be held */
	DROP_FRAGMENT_OVERLAP = 12, /* a fragment that contradicts the first one of its datagram */
	DROP_TOO_BIG = 13,          /* router: does not fit the way out */
	DROP_SPOOFED = 14,          /* router: from the WAN with a source of this side */
	DROP_ERROR_UNMAPPED = 15,   /* router: ICMP that speaks about no port */

	HOST_OUT_NATIVE = 32, /* sent from a port of our own, untouched */
	HOST_OUT_TRANSLATED = 33,
	HOST_OUT_FRAGMENT = 34, /* later fragments sent */
	HOST_IN_NATIVE = 35,    /* received, untouched */
	HOST_IN_TRANSLATED = 36,
	HOST_HAIRPIN = 37, /* to another host behind our address, by way of the router */
	HOST_LOCAL = 38,   /* from us to us */
	HOST_BINDING_CREATED = 39,
	HOST_BINDING_TAKEN_OVER = 40, /* the port of an expired binding was given to another */

	ROUTER_IN = 48,                 /* from the WAN to the owner */
	ROUTER_OUT = 49,                /* from its owner out of the WAN */
	ROUTER_HAIRPIN = 50,            /* from the LAN to the owner */
	ROUTER_TO_SELF = 51,            /* to the router's own stack */
	ROUTER_FROM_SELF = 52,          /* from the router's own stack to the owner */
	ROUTER_MAC_UNKNOWN = 53,        /* sender taken on trust: its link address is not known yet */
	ROUTER_OFFENCE_UNREPORTED = 54, /* DROP_NOT_OWNER without an event: budget used up or nobody reads */
	ROUTER_FRAGMENT_HELD = 55, /* came ahead of its first one; what is never released counts as 7 later */
	ROUTER_FRAGMENT_RELEASED = 56,    /* its first one came */
	ROUTER_CUT = 57,                  /* too big for the way out, cut into fragments */
	ROUTER_TIME_EXCEEDED = 58,        /* ICMP 11/0 sent, for DROP_TTL_EXPIRED */
	ROUTER_FRAGMENTATION_NEEDED = 59, /* ICMP 3/4 sent, for DROP_TOO_BIG */
	ROUTER_ERROR_UNSENT = 60,         /* the same without an error: not allowed, or budget used up */
};
#define COUNTERS 64

/* Host. */

/* Ports of one class and parity that translations may draw from. 4,096 even and 4,096 odd ones are far more
 * than the 2,048 ports a server grants one host by default, and cost 200 kB. */
#define POOL_LIST_MAX 4096
#define POOL_LISTS (TRANSLATED_CLASSES * 2)

/* Bindings at one time, all classes. A table of 8,192 costs about 1.5 MB for both directions. */
#define BINDINGS_MAX 8192

/* Seconds without an outbound packet until a binding may go. */
#define UDP_SECONDS 300              /* RFC 4787, REQ-5: recommended */
#define TCP_ESTABLISHED_SECONDS 7440 /* RFC 5382, REQ-5: at least 2 h 4 min */
#define TCP_TRANSITORY_SECONDS \
	240             /* RFC 5382, REQ-5: at least 4 min; RFC 7857, section 2.2: also after RST */
#define ICMP_SECONDS 60 /* RFC 5508, REQ-2: at least 60 s */

struct host_config {
	__be32 external; /* 0: not configured, everything passes */
	__be32 router;   /* its LAN address */
	__u32 lan_ifindex;
	__u32 pool_count[POOL_LISTS]; /* used entries of `pool`, by class * 2 + parity */
};

/* Sixteen consecutive ports; bit (port % 16) * 4 + class. */
struct port_word {
	__u64 native; /* ours, used as they are */
	__u64 pool;   /* ours, for translations */
};

struct port_key {
	__u16 port;
	__u8 port_class;
	__u8 zero;
};

enum tcp_state {
	TCP_ESTABLISHED = 1, /* we sent something beyond a SYN */
	TCP_FIN_SENT = 2,
	TCP_FIN_RECEIVED = 4,
	TCP_RESET = 8,   /* and nothing sent since */
	TCP_SHARED = 16, /* several connections: one that ends does not end the binding */
};

/* Value of `bindings_out`; the key holds the local port. */
struct binding {
	__u64 created_ns;   /* CLOCK_MONOTONIC */
	__u64 seen_ns;      /* of the last outbound packet; inbound ones refresh nothing (RFC 4787, REQ-6) */
	__u32 idle_seconds; /* after seen_ns, until it may go */
	__u16 port;         /* locally unique */
	__u8 state;         /* enum tcp_state */
	__u8 zero;
};

/* Value of `bindings_in`; the key holds the locally unique port. */
struct inward {
	__u64 created_ns;
	__u16 port; /* local */
	__u8 zero[6];
};

/* Router. */

/* External addresses that one router serves; each costs 512 kB. */
#define EXTERNALS_MAX 256

/* External addresses and the router's own addresses. */
#define ADDRESSES_MAX 1024

/* LAN hosts that own ports; index 0 stands for nobody. */
#define HOSTS_MAX 8192

/* Bytes for offences that user space has not read yet: about 2,000. A power of two pages. */
#define OFFENCES_SIZE 65536

/* Offences reported in one second: enough to tell who, too few to be a load. */
#define OFFENCES_PER_SECOND 20

struct router_config {
	__u32 lan_ifindex; /* 0: not configured, everything passes */
	__u32 wan_ifindex;
	__be32 lan_network;
	__be32 lan_mask;
	__be32 lan_address; /* source of ICMP errors to hosts */
	__be32 wan_address; /* source of ICMP errors to the outside; 0: the address that was asked for */
	__u32 wan_mtu;      /* octets; 0: no limit */
	__u32 zero;
	__u64 address_bits; /* one for each entry of `addresses`, by ADDRESS_BIT */
};

/* Most packets come from or go to none of `addresses`; this spares them the look-up. */
#define ADDRESS_BIT(ipv4) (((__u32)(ipv4) * 2654435761U) >> 26)

/* Who owns one port of one external address: an index into `hosts` for each class, 0 for nobody. */
struct owner {
	__u16 host[CLASSES];
};

enum address_flag {
	ADDRESS_EXTERNAL = 1, /* shared by hosts */
	ADDRESS_LOCAL = 2,    /* the router's own */
};

struct address {
	__u32 flags; /* enum address_flag */
};

struct host {
	__be32 address; /* on the LAN */
	__u32 ifindex;  /* LAN interface */
	__u8 mac[6];    /* all zero: not known yet */
	__u16 mtu;      /* of the LAN interface, octets; 0: no limit */
};

/* Interfaces that XDP may send by, index into `links`. */
#define LINK_LAN 0
#define LINK_WAN 1
#define LINKS 2

struct link {
	__u32 ifindex; /* 0: not by XDP */
	__u8 mac[6];   /* the interface's own */
	__u8 zero[2];
	__u64 neighbour_used; /* jiffies when a packet last went out by way of TC */
};

struct offence {
	__be32 external;
	__u16 port;
	__u8 protocol; /* of the IP header */
	__u8 zero;
	__u8 mac[6]; /* of the sender */
	__u8 zero2[2];
};

struct offence_budget {
	__u64 second;
	__u32 used;
	__u32 zero;
};

/* Programs for rare work, index into the map `stages`. */
enum stage {
	STAGE_HOLD = 0,    /* keep a fragment that came ahead of its first one */
	STAGE_RELEASE = 1, /* the first one is here: let the others go */
	STAGE_ANSWER = 2,  /* an ICMP error back to the sender */
	STAGE_CUT = 3,     /* fragment a packet that is too big for the way out */
};
#define STAGES 4

/* ICMP errors sent in one second, for each of the kinds: what Linux allowed all of them together for long
 * (icmp_msgs_per_sec). Apart, so that a flood of one kind cannot silence path-MTU discovery. */
#define ERRORS_PER_SECOND 1000
enum error_kind { ERROR_TIME_EXCEEDED = 0, ERROR_FRAGMENTATION_NEEDED = 1 };
#define ERROR_KINDS 2

/* Room for fragments that came ahead of their first one: sources share WAITING_BUCKETS, by hash, and each
 * bucket has WAITING_SLOTS. So one source takes at most 24 kB of 1.6 MB, and a datagram whose fragments come
 * in reverse may have 17 of them. */
#define WAITING_BUCKETS 64
#define WAITING_SLOTS 16
#define WAITING_MAX (WAITING_BUCKETS * WAITING_SLOTS)

/* Octets of the longest frame that is held: Ethernet's, with room for a tag. */
#define WAITING_OCTETS 1536

/* Seconds that a fragment waits for its first one: reordering takes milliseconds, and the shorter, the less
 * an IP identification can repeat meanwhile (RFC 4963). */
#define WAITING_SECONDS 1

/* Both. */

/* Datagrams whose fragments are on their way. */
#define FRAGMENTS_MAX 4096

/* Seconds that later fragments are recognized. Short, because IP identifications repeat (RFC 4963) and a
 * fragment must never follow the first one of another datagram; in order, they arrive within milliseconds. */
#define FRAGMENT_SECONDS 2

struct fragment_key {
	__be32 source;
	__be32 destination;
	__be16 id;
	__u8 protocol;
	__u8 zero;
	__u8 mac[6]; /* of the sender on a LAN whose hosts share `source`; else zero */
	__u8 zero2[2];
};

struct fragment {
	__u64 expires_ns; /* CLOCK_MONOTONIC */
	__u32 seen;       /* octets of the datagram so far */
	__u32 total;      /* octets of the datagram, 0 before its last fragment */
	__u32 first;      /* octets in its first fragment */
	__u16 target;     /* where its packets go; what that means is the program's business */
	__u8 state;       /* enum fragment_state */
	__u8 zero;
};

enum fragment_state {
	FRAGMENT_KNOWN = 0,
	FRAGMENT_AWAITED = 1,  /* others are held until the first one comes */
	FRAGMENT_CONFLICT = 2, /* two first ones disagree: none of it is safe to forward */
};

/* Value of `waiting`; the key is the slot. */
struct held {
	__u64 expires_ns; /* CLOCK_MONOTONIC */
	struct fragment_key key;
	__u32 length; /* used octets of `frame` */
	__u8 frame[WAITING_OCTETS];
};
