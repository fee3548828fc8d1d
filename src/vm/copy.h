/* copy.h - from a set of page numbers to captured pages, and two such captures into one.
 *
 * All return false if there is no memory; the set is then as before, but for pages_copy(), which leaves it empty. */
#ifndef VCFT_VM_COPY_H
#define VCFT_VM_COPY_H

#include "base/pages.h"
#include "vm/bits.h"
#include "vm/memory.h"

/* set becomes the pages of `which`, with their contents; neighbours are copied in one piece. */
bool pages_copy(const struct memory *memory, const struct page_bits *which, struct page_set *set);
/* set becomes the pages of `which`, without contents. */
bool pages_list(const struct page_bits *which, struct page_set *set);
/* Pages of `late` replace those of set, or come in between them. */
bool pages_merge(struct page_set *set, const struct page_set *late);

#endif
