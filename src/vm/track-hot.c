/* track-hot.c - see track-hot.h. A page with a copy has a slot: the place of its copy. Slots that are free are a stack. */
#include "vm/track-hot.h"

#include "base/must.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define NO_SLOT 0u            /* slots are counted from 1 */

struct hot {
	struct page_bits hot;         /* H2 */
	struct page_bits before, now; /* pages of the last capture; of the one that is looked at */
	struct { uint16_t slot; uint8_t running; } *page;   /* running: captures up to the last one that had it, up to HOT_AFTER */
	uint8_t *copy;                /* of slot s: page s - 1 of this */
	uint8_t *unchanged;           /* of slot s: captures running that found it unchanged; HOT_UNCHANGED: it is cooling */
	uint16_t *free;
	uint64_t *cooling;            /* pages that have become so; some may be cold again */
	unsigned slots, free_count, cooling_count;
	uint64_t count;               /* pages in `hot` */
};

static_assert(HOT_MAX < UINT16_MAX && HOT_UNCHANGED < UINT8_MAX, "slots and counts fit");

static bool allocate(struct hot *h, uint64_t pages)
{
	void *copy = mmap(NULL, (size_t)h->slots * VCFT_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	h->copy = copy == MAP_FAILED ? NULL : copy;
	h->page = calloc(pages, sizeof *h->page);
	h->unchanged = calloc(h->slots + 1, sizeof *h->unchanged);
	h->free = calloc(h->slots, sizeof *h->free);
	h->cooling = calloc(h->slots, sizeof *h->cooling);
	return h->copy && h->page && h->unchanged && h->free && h->cooling && bits_init(&h->hot, pages) && bits_init(&h->before, pages) && bits_init(&h->now, pages);
}

struct hot *hot_new(uint64_t pages)
{
	struct hot *h = calloc(1, sizeof *h);
	if (!h)
		return NULL;
	h->slots = pages / 4 < HOT_MAX ? (unsigned)(pages / 4) + 1 : HOT_MAX;
	if (!allocate(h, pages)) {
		hot_free(h);
		return NULL;
	}
	for (h->free_count = 0; h->free_count < h->slots; h->free_count++)
		h->free[h->free_count] = (uint16_t)(h->slots - h->free_count);
	return h;
}

void hot_free(struct hot *h)
{
	if (!h)
		return;
	if (h->copy)
		munmap(h->copy, (size_t)h->slots * VCFT_PAGE_SIZE);
	bits_free(&h->hot);
	bits_free(&h->before);
	bits_free(&h->now);
	free(h->page);
	free(h->unchanged);
	free(h->free);
	free(h->cooling);
	free(h);
}

const struct page_bits *hot_pages(const struct hot *h)
{
	return &h->hot;
}

static uint8_t *copy_of(const struct hot *h, uint64_t page)
{
	return h->copy + (size_t)(h->page[page].slot - 1) * VCFT_PAGE_SIZE;
}

/* H1; H5: with no slot left it stays cold, and is asked again by the next capture that has it. */
static void count_running(struct hot *h, uint64_t page, const uint8_t *data)
{
	unsigned running = bits_has(&h->before, page) ? h->page[page].running + 1u : 1u;
	h->page[page].running = (uint8_t)(running < HOT_AFTER ? running : HOT_AFTER);
	if (running < HOT_AFTER || h->free_count == 0)
		return;
	h->page[page].slot = h->free[--h->free_count];
	h->unchanged[h->page[page].slot] = 0;
	memcpy(copy_of(h, page), data, VCFT_PAGE_SIZE);
	bits_add(&h->hot, page, 1);
	h->count++;
}

/* Its copy's memory is given back: after a busy hour there would be 32 MiB of them. */
static void become_cold(struct hot *h, uint64_t page)
{
	madvise(copy_of(h, page), VCFT_PAGE_SIZE, MADV_DONTNEED);
	h->free[h->free_count++] = h->page[page].slot;
	h->page[page].slot = NO_SLOT;
	h->page[page].running = 0;
}

/* H1, H3: compare and keep, in one pass. True: the page is as it was. */
static bool compare(struct hot *h, uint64_t page, const uint8_t *data)
{
	uint8_t *copy = copy_of(h, page), *unchanged = &h->unchanged[h->page[page].slot];
	bool cooling = *unchanged == HOT_UNCHANGED, same = memcmp(copy, data, VCFT_PAGE_SIZE) == 0;
	if (!same)
		memcpy(copy, data, VCFT_PAGE_SIZE);
	if (cooling) {
		become_cold(h, page);
		return same;
	}
	*unchanged = same ? *unchanged + 1 : 0;
	if (*unchanged == HOT_UNCHANGED) {
		bits_remove(&h->hot, page);
		h->count--;
		h->cooling[h->cooling_count++] = page;
	}
	return same;
}

/* Those that were cooling before this capture: it had them, or they are protected (H3). */
static void end_cooling(struct hot *h, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		if (h->page[h->cooling[i]].slot != NO_SLOT)
			become_cold(h, h->cooling[i]);
	h->cooling_count -= count;
	memmove(h->cooling, h->cooling + count, h->cooling_count * sizeof *h->cooling);
}

void hot_captured(struct hot *h, struct page_set *set)
{
	uint64_t expected = h->count, seen = 0;
	unsigned cooling = h->cooling_count;
	size_t kept = 0;
	bits_clear(&h->now);
	for (size_t i = 0; i < set->count; i++) {
		uint64_t page = set->index[i];
		const uint8_t *data = set->data + i * VCFT_PAGE_SIZE;
		bits_add(&h->now, page, 1);
		seen += bits_has(&h->hot, page);
		bool known = h->page[page].slot != NO_SLOT;
		if (known && compare(h, page, data))
			continue;
		if (!known)
			count_running(h, page, data);
		if (kept != i)
			memcpy(set->data + kept * VCFT_PAGE_SIZE, data, VCFT_PAGE_SIZE);
		set->index[kept++] = page;
	}
	MUST("H2", seen == expected);
	set->count = kept;
	end_cooling(h, cooling);
	struct page_bits before = h->before;
	h->before = h->now;
	h->now = before;
}
