/* track.h - which pages has the guest written? Two answers behind one table: the kernel's (track-uffd.c) and a comparison (track-compare.c).
 *
 * T1 scan() adds every page written since the previous scan, or since the tracker was made; it may add more, never less.
 * T2 A scan that fails, or stops half way, may have forgotten pages: then everything that is populated counts as written (the caller's part).
 * T3 captured() takes a page out of a capture only if it is in the one before, as it is now.
 * The caller keeps what scan() added until it is safe in a capture: `struct vm` has one set of pending pages, and only a successful
 * capture empties it (V3). The VM is paused during scan(), unless the tracker is `live`. One thread. */
#ifndef VCFT_VM_TRACK_H
#define VCFT_VM_TRACK_H

#include "vm/bits.h"
#include "vm/memory.h"
#include "vm/track-hot.h"

#include <glib.h>
#include <sys/types.h>

struct tracker;

struct tracker_ops {
	const char *name;
	bool live;    /* scan() also holds while the guest runs: a page written after scan() looked at it is in the next scan */
	gboolean (*scan)(struct tracker *tracker, struct page_bits *out, GError **error);
	/* A capture has succeeded; `set` is what it has. NULL: the tracker has no use for that. */
	void (*captured)(struct tracker *tracker, struct page_set *set);
	void (*free)(struct tracker *tracker);
};

struct tracker { const struct tracker_ops *ops; };

/* The memory is borrowed. Takes a private copy of all that is populated. */
struct tracker *track_compare_new(const struct memory *memory, GError **error);

/* tell_fd (borrowed): where the preloaded library in process pid said what it did; must be readable at once if it did anything.
 * hot (taken, on error too): its pages are not protected; NULL: all are. */
struct tracker *track_uffd_new(const struct memory *memory, pid_t pid, int tell_fd, struct hot *hot, GError **error);
/* What is in the file now and QEMU has not looked at was put there by us: it does not count as written. A hint: without it more is found, never less. */
void track_uffd_begin(struct tracker *tracker);
/* Where QEMU waits for pages that are missing (preload.h): its userfaultfd as a descriptor of our own, to be closed, and where its RAM is. -1: it does not, or
 * the descriptor cannot be had. */
int track_uffd_missing(const struct tracker *tracker, int pidfd, uint64_t *ret_address);
/* What this kernel offers, by trying it on a page of our own. False: why not, in ret_detail. */
bool track_uffd_probe(char *ret_detail, size_t detail_bytes);
bool track_pagemap_probe(char *ret_detail, size_t detail_bytes);
bool track_missing_probe(char *ret_detail, size_t detail_bytes);

#endif
