/* memory.h - a guest's RAM: a file on tmpfs, mapped by QEMU and by us.
 *
 * R1 A hole of the file is a page of zeros: nothing here reads holes through the mapping, for that would make them pages like any other.
 * R2 An existing file keeps its contents; a file of another size is refused.
 * R3 That there is room for all of it in the file system is seen before anybody touches it, and then it is taken (RM1): before a guest is powered on; of a
 *    guest that is put back, which has waited long enough, while it runs. Should somebody else have been quicker then, QEMU may end by a SIGBUS, and
 *    is recovered as one that ended. What is taken and was never written counts as a hole. No hole is touched by us (R1), so we do not end.
 * One thread at a time. */
#ifndef VCFT_VM_MEMORY_H
#define VCFT_VM_MEMORY_H

#include "base/types.h"
#include "vm/bits.h"

#include <glib.h>

struct memory { int fd; uint64_t bytes; uint8_t *map; };

/* Open or make (0600) the file and map it shared, if there is room for it (R3). On error *memory is as memory_close() leaves it. */
gboolean memory_open(struct memory *memory, const char *path, uint64_t bytes, GError **error);
/* Take its room. stop: as room_take() has it. Any thread until memory_close(). */
gboolean memory_reserve(const struct memory *memory, const bool *stop, GError **error);
/* Unmap and close; the file stays. */
void memory_close(struct memory *memory);
uint64_t memory_pages(const struct memory *memory);
/* The next row of pages that are not holes, at or after *inout_first: its start goes there, its length is returned; 0: none. */
uint64_t memory_data(const struct memory *memory, uint64_t *inout_first);
/* Add all pages that are not holes. */
void memory_populated(const struct memory *memory, struct page_bits *out);
/* Add those of pages [first, end) that are not holes; takes time by these, however much data is behind them. */
void memory_add_data(const struct memory *memory, uint64_t first, uint64_t end, struct page_bits *out);
/* How many pages are not holes. */
uint64_t memory_populated_count(const struct memory *memory);
/* Make our page tables for what is populated, so that copying it takes no faults. */
void memory_prefault(const struct memory *memory);
/* XXH3-128 of all bytes: {low, high}. The VM is paused. */
void memory_hash(const struct memory *memory, uint64_t ret_hash[static 2]);

#endif
