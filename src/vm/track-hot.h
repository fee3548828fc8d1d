/* track-hot.h - pages that the guest writes in every epoch: left without protection, and compared instead.
 *
 *   cold ──captured HOT_AFTER times running──► hot ──HOT_UNCHANGED captures without a change──► cooling ──the next capture──► cold
 *   protected after each scan                  not protected, in every scan, compared           protected by the next scan, compared
 *
 * The first write to a protected page costs the guest a fault; a page that will be written in any case is better copied in any case. Whether
 * it has changed is found out when the guest runs again: the pause has the copy only, as it would have for any written page.
 *
 * H1 A page is hot from when HOT_AFTER successful captures running had it, until HOT_UNCHANGED of them running found it unchanged.
 * H2 Every page of hot_pages() is in every successful capture: whoever scans adds them all, and leaves their protection off. Checked.
 * H3 The copy of a page is what the last successful capture that had it found. While a page has a copy, no successful capture misses a change
 *    of it: a hot one by H2; one that is cooling was never protected again, so that the next scan finds it written; unless nobody has written it since it
 *    became hot, when it is protected still, and the next capture does not have it.
 * H4 hot_captured() takes a page out of a capture only if it equals its copy. A failed capture changes nothing here (V3).
 * H5 At most HOT_MAX pages, and a quarter of the RAM, are hot or cooling: 32 MiB of copies; beside that 1 MiB per GiB of RAM.
 * One thread. */
#ifndef VCFT_VM_TRACK_HOT_H
#define VCFT_VM_TRACK_HOT_H

#include "base/pages.h"
#include "vm/bits.h"

#define HOT_AFTER 3u
#define HOT_UNCHANGED 8u
#define HOT_MAX 8192u

struct hot;

/* For a RAM of so many pages; NULL: no memory. */
struct hot *hot_new(uint64_t pages);
void hot_free(struct hot *hot);
/* What is not to be protected, and belongs to the result of every scan (H2). */
const struct page_bits *hot_pages(const struct hot *hot);
/* A capture has succeeded, `set` is what it found: learn from it, and take out what it need not have (H4). The guest may run. */
void hot_captured(struct hot *hot, struct page_set *set);

#endif
