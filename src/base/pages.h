/* pages.h - a set of captured pages: page numbers, ascending, each once, and their contents in one buffer that is kept for the next epoch.
 *
 * Written by one thread, then read by others: whoever hands it on does not touch it until it comes back. */
#ifndef VCFT_BASE_PAGES_H
#define VCFT_BASE_PAGES_H

#include "base/types.h"

struct page_set {
	size_t count, room;      /* pages used; pages for which there is memory */
	uint64_t *index;         /* page numbers in the region */
	uint8_t *data;           /* count * VCFT_PAGE_SIZE bytes, page-aligned; prefaulted when grown */
};

/* Make room for at least `pages` (keeps what is there); false: no memory, its pages are as before. */
bool page_set_reserve(struct page_set *set, size_t pages);
void page_set_free(struct page_set *set);

#endif
