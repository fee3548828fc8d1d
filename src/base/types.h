/* types.h - numbers that must not mix have a type of their own.
 *
 * An epoch is the run of a VM between two of its checkpoints, numbered per cluster from 1; checkpoint r is the end of epoch r.
 * Checkpoint 0 is the power-off state: a VM recovered to 0 boots from its disk. A generation is raised by every recovery.
 * A host is a member of the group, known by its node id (1..VCFT_HOST_MAX); a set of hosts is a bit mask, bit n for host n. */
#ifndef VCFT_BASE_TYPES_H
#define VCFT_BASE_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VCFT_PAGE_SIZE 4096u       /* bytes; the unit of dirty tracking, of RAM and of disks alike */
#define VCFT_HOST_MAX 63u          /* highest node id: a host set fits 64 bits */
#ifndef VCFT_VM_MAX                /* bench/scale.c asks what more would cost */
#define VCFT_VM_MAX 256u           /* VMs of one cluster */
#endif
#define VCFT_NETWORK_MAX 64u       /* networks of one cluster */
#define VCFT_DISK_MAX 8u           /* disks of one VM */
#define VCFT_NIC_MAX 8u            /* NICs of one VM */
#define VCFT_NAME_MAX 63u          /* bytes of a host's, VM's or network's name, without the end */
#define VCFT_NUMBER_MAX (UINT64_MAX >> 1)   /* highest epoch or generation that is believed of others: counting on never wraps */
#define VCFT_FRAME_MAX 65535u      /* bytes of one Ethernet frame (with the guest's offloads off: 1514) */

struct epoch_id { uint64_t n; };
struct generation { uint64_t n; };
struct host_id { uint32_t n; };    /* 0: no host */
struct vm_id { uint32_t n; };      /* index in the cluster's list of VMs */

typedef uint64_t host_mask;

static inline struct epoch_id epoch_of(uint64_t n) { return (struct epoch_id){ n }; }
static inline struct epoch_id epoch_next(struct epoch_id e) { return (struct epoch_id){ e.n + 1 }; }
/* <0, 0, >0 as a is before, at, or after b: never subtract unsigned numbers to compare them. */
static inline int epoch_cmp(struct epoch_id a, struct epoch_id b) { return (a.n > b.n) - (a.n < b.n); }
static inline int generation_cmp(struct generation a, struct generation b) { return (a.n > b.n) - (a.n < b.n); }

static inline host_mask host_bit(struct host_id h) { return h.n ? UINT64_C(1) << h.n : 0; }
static inline bool host_in(host_mask set, struct host_id h) { return (set & host_bit(h)) != 0; }
static inline unsigned host_count(host_mask set) { return (unsigned)__builtin_popcountll(set); }
/* The lowest host of a set, the leader by definition; {0} for the empty set. */
static inline struct host_id host_lowest(host_mask set) { return (struct host_id){ set ? (uint32_t)__builtin_ctzll(set) : 0 }; }

#endif
