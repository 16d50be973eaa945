/* What the programs and user space agree on: counters, limits, and the keys and values of the maps.
 *
 * dnat/dataplane/abi.py mirrors this file. Every compilation asserts that numbers, sizes and offsets are the
 * same. Raise DNAT_ABI when the shape or the meaning of a map changes: programs with another number get fresh
 * maps.
 */
#pragma once

#include <linux/types.h>

#define DNAT_ABI 4

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
	DROP_REWRITE_FAILED = 6,    /* the kernel refused to write into the packet */
	DROP_FRAGMENT_UNKNOWN = 7,  /* a later fragment whose first one has not been seen */
	DROP_NO_OWNER = 8,          /* router: nobody holds the destination port */
	DROP_NOT_OWNER = 9,         /* router: the sender does not hold the source port */
	DROP_TTL_EXPIRED = 10,      /* router */
	DROP_FRAGMENT_NO_ROOM = 11, /* router: ahead of its first one, and too long or too many to be held */
	DROP_FRAGMENT_OVERLAP = 12, /* a fragment that contradicts the first one of its datagram */
	DROP_TOO_BIG = 13,          /* router: does not fit the way out */
	DROP_SPOOFED = 14,          /* router: from the WAN with a source of this side; from nobody */
	DROP_ERROR_UNMAPPED = 15,   /* router: ICMP that speaks about no port */
	DROP_STAGE_MISSING = 16,    /* router: the program that has to go on with it is not loaded */
	DROP_UNBOUND = 20,          /* host: for a port of the pool that no binding uses */
	DROP_FILTERED = 21,         /* host: from an address that the binding has not sent to */
	DROP_QUOTE_DAMAGED = 22,    /* host: an ICMP error that quotes an IP header whose checksum is wrong */

	HOST_OUT_NATIVE = 32, /* sent from a port of our own, untouched */
	HOST_OUT_TRANSLATED = 33,
	HOST_OUT_FRAGMENT = 34, /* later fragments sent */
	HOST_IN_NATIVE = 35,    /* received, untouched */
	HOST_IN_TRANSLATED = 36,
	HOST_HAIRPIN = 37, /* to another host behind our address, by way of the router */
	HOST_LOCAL = 38,   /* from us to us */
	HOST_BINDING_CREATED = 39,
	HOST_BINDING_TAKEN_OVER = 40, /* the port of an expired binding was given to another */
	HOST_REFUSED = 41,            /* dropped, and the program that sent it told so by ICMP */
	HOST_ID_REPLACED = 42,        /* could be fragmented: got an IP identification of our own */
	HOST_POOL_LOW = 43,           /* bindings made while few ports of the pool were free */

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

/* Runs of sixteen ports that translations draw from: 4,096 ports, twice what a server grants one host by
 * default. A bound the verifier can walk. */
#define POOL_WORDS_MAX 256

/* IP identifications that a host may use: one for each port that is its own whatever the protocol. */
#define IDS_MAX 4096

/* Bindings at one time, all classes. A table of 8,192 costs about 1.5 MB for both directions. */
#define BINDINGS_MAX 8192

/* Translations of the current tick, in each direction: 32 kB. A power of two, of which 65,536 is 16 times as
 * many at most (recent.h keeps the rest of a port in four bits). */
#define RECENT_MAX 4096

/* Where a translation is noted. Programs use the same numbers with TCP and with UDP, so these lie apart. */
#define RECENT_INDEX(port_class, port) (((port) ^ (port_class) * (RECENT_MAX / CLASSES)) % RECENT_MAX)

/* Remote addresses that bindings have sent to, if inbound packets are filtered by address; the least recently
 * used one makes room. About 1.5 MB, and only filled when the filter is on. */
#define PEERS_MAX 16384

/* Bytes for events that user space has not read yet. A power of two pages. */
#define POOL_EVENTS_SIZE 4096

/* Seconds without an outbound packet until a binding may go, by default. */
#define UDP_SECONDS 300              /* RFC 4787, REQ-5: recommended */
#define TCP_ESTABLISHED_SECONDS 7440 /* RFC 5382, REQ-5: at least 2 h 4 min */
#define TCP_TRANSITORY_SECONDS \
	240             /* RFC 5382, REQ-5: at least 4 min; RFC 7857, section 2.2: also after RST */
#define ICMP_SECONDS 60 /* RFC 5508, REQ-2: at least 60 s */

/* Idle seconds of a binding that stays until it is removed. */
#define IDLE_FOR_EVER 0xffffffff

enum idle_timer {
	IDLE_UDP = 0,
	IDLE_TCP_ESTABLISHED = 1,
	IDLE_TCP_TRANSITORY = 2,
	IDLE_ICMP = 3,
};
#define IDLE_TIMERS 4

enum host_flag {
	HOST_FILTERS_BY_ADDRESS = 1, /* a binding receives only from addresses that it has sent to */
	HOST_INBOUND_REFRESHES = 2,  /* inbound packets count as use of a binding (RFC 4787, REQ-6) */
	HOST_ANSWERS_REFUSALS = 4,   /* programs are told by ICMP what is dropped for good */
	HOST_CANNOT_GET_PORTS = 8,   /* the pool will not grow: an exhausted one is for good */
};

struct host_config {
	__be32 external; /* 0: not configured, everything passes */
	__be32 router;   /* its LAN address */
	__u32 lan_ifindex;
	__u32 flags;                          /* enum host_flag */
	__u32 pool_words;                     /* used entries of `pool` */
	__u32 pool_ports[TRANSLATED_CLASSES]; /* in the pool */
	__u32 low_water;                      /* free ports of a class at which user space is told */
	__u32 id_count;                       /* used entries of `ids`; 0: identifications stay as they are */
	__u32 idle_seconds[IDLE_TIMERS];
};

/* Sixteen consecutive ports; bit (port % 16) * 4 + class. */
struct port_word {
	__u64 native; /* ours, used as they are */
	__u64 pool;   /* ours, for translations */
	__u64 bound;  /* have a binding: a hint, set by programs without locking, set right by user space */
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

/* A connection's other end, in one word. */
#define TCP_PEER(address, port) ((address) ^ (__u32)(port) * 0x10001)

/* Value of `bindings_out`; the key holds the local port. */
struct binding {
	__u64 created_ns;   /* CLOCK_MONOTONIC */
	__u64 seen_ns;      /* of the last outbound packet; inbound ones refresh nothing (RFC 4787, REQ-6) */
	__u32 idle_seconds; /* after seen_ns, until it may go */
	__u16 port;         /* locally unique */
	__u8 state;         /* enum tcp_state */
	__u8 flags;         /* enum binding_flag */
	__u32 seen_tick;    /* low half of the kernel's tick count when seen_ns was set */
	__u32 peer;         /* TCP_PEER of the connection that the state is of; 0: any */
};

enum binding_flag {
	BINDING_STATIC = 1, /* made by user space, which alone removes it */
};

/* Value of `bindings_in`; the key holds the locally unique port. */
struct inward {
	__u64 created_ns;
	__u16 port; /* local */
	__u8 zero[6];
};

/* How much of the pool one class of protocols uses. */
struct pool_usage {
	__u32 bound; /* ports with a binding: counted up by programs, set right by user space */
	__u32 zero;
	__u64 told_ns; /* CLOCK_MONOTONIC of the last event */
};

/* What user space is told, at most once a second for each class. */
struct pool_event {
	__u32 port_class;
	__u32 free; /* ports left; 0: a packet was dropped for want of one */
};

struct peer_key {
	__be32 address;
	__u16 port; /* locally unique */
	__u8 port_class;
	__u8 zero;
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

enum address_flag {
	ADDRESS_EXTERNAL = 1, /* shared by hosts */
	ADDRESS_LOCAL = 2,    /* the router's own */
};

struct address {
	__u16 flags; /* enum address_flag */
	__u16 slot;  /* ADDRESS_EXTERNAL: index into `owners` */
};

/* An entry of `addresses`, key and value. */
struct near_address {
	__be32 ipv4; /* 0: none */
	struct address is;
};

/* Entries of `addresses` that the configuration repeats, where they are found by comparison: external ones
 * first. Most routers have no more. */
#define NEAR_ADDRESSES 4

struct router_config {
	__u32 lan_ifindex; /* 0: not configured, everything passes */
	__u32 wan_ifindex;
	__be32 lan_network;
	__be32 lan_mask;
	__u64 address_bits; /* one for each entry of `addresses`, by ADDRESS_BIT */
	struct near_address near[NEAR_ADDRESSES];
	__u32 wan_mtu;      /* octets; 0: no limit */
	__be32 lan_address; /* source of ICMP errors to hosts */
	__be32 wan_address; /* source of ICMP errors to the outside; 0: the address that was asked for */
	__u8 lan_mac[6];    /* the LAN interface's own */
	__u8 zero[6];
};

/* Most packets come from or go to none of `addresses`; this spares them the look-up. */
#define ADDRESS_BIT(ipv4) (((__u32)(ipv4) * 2654435761U) >> 26)

/* Who owns one port of one external address: an index into `hosts` for each class, 0 for nobody. */
struct owner {
	__u16 host[CLASSES];
};

struct host {
	__be32 address; /* on the LAN */
	__u32 ifindex;  /* LAN interface */
	__u8 mac[6];    /* all zero: not known yet */
	__u16 mtu;      /* of the LAN interface, octets; 0: no limit */
	__u64 asked;    /* ticks when the kernel last had to find this neighbour by itself */
};

/* Interfaces that XDP may send by, index into `links`. */
#define LINK_LAN 0
#define LINK_WAN 1
#define LINKS 2

struct link {
	__u32 ifindex; /* 0: not by XDP */
	__u8 mac[6];   /* the interface's own */
	__u8 zero[2];
};

/* Ways out of the WAN that are remembered, on each CPU: 32 kB. A power of two. */
#define WAYS_MAX 1024

/* Ticks that a way is good for, at most a second, whatever HZ is. The packet after that takes the kernel's
 * way, which finds changes of routes and asks now and then whether a neighbour is still there. */
#define WAY_TICKS 100

/* Way of all packets with these addresses. */
struct way {
	__be32 source;
	__be32 destination;
	__u64 expires; /* ticks */
	__u8 to[6];    /* link address of the next hop */
	__u8 from[6];  /* of the WAN interface */
	__u8 tos;
	__u8 passed; /* XDP has left it to TC to look again */
	__u8 zero[2];
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
	STAGE_ANSWER = 2,  /* cannot go on as it is: an ICMP error back to the sender, or STAGE_CUT */
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
