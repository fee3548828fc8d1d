/* bits.h - a set of page numbers of one RAM, as a bitmap: 32 KiB per GiB.
 *
 * One thread at a time. A run is a maximal row of neighbouring pages that are all in the set. */
#ifndef VCFT_VM_BITS_H
#define VCFT_VM_BITS_H

#include "base/types.h"

struct page_bits { uint64_t pages; uint64_t *word; };

/* All out; false: no memory. */
bool bits_init(struct page_bits *bits, uint64_t pages);
void bits_free(struct page_bits *bits);
void bits_clear(struct page_bits *bits);
/* Pages [first, first + count) are in. What is past the end of the RAM is left out. */
void bits_add(struct page_bits *bits, uint64_t first, uint64_t count);
/* This page is out. */
void bits_remove(struct page_bits *bits, uint64_t page);
/* All of `more` (of the same size) are in as well. */
void bits_merge(struct page_bits *bits, const struct page_bits *more);
/* What `more` (of the same size) has of pages [first, end) is in as well. */
void bits_merge_range(struct page_bits *bits, const struct page_bits *more, uint64_t first, uint64_t end);
/* All pages [first, end) are in. */
bool bits_have(const struct page_bits *bits, uint64_t first, uint64_t end);
bool bits_has(const struct page_bits *bits, uint64_t page);
uint64_t bits_count(const struct page_bits *bits);
/* The first run at or after *inout_first: its start goes to *inout_first, its length is returned; 0: there is none. */
uint64_t bits_run(const struct page_bits *bits, uint64_t *inout_first);
/* As if the set ended before page `end`: takes no time for what is behind that. */
uint64_t bits_run_before(const struct page_bits *bits, uint64_t *inout_first, uint64_t end);

#endif
