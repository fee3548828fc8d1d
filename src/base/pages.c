/* pages.c - see pages.h. */
#include "base/pages.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/param.h>

#define PIECE (16u << 20)     /* bytes */
#define MORE_MOST 4096u       /* pages beyond what is asked for */

/* Piece by piece, for each call keeps all other threads from mapping anything: of a few GiB at once they stand still for seconds. A kernel that cannot
 * (before 5.14) takes the pages when they are written. */
static void populate(uint8_t *data, size_t bytes)
{
	for (size_t at = 0; at < bytes; at += PIECE)
		if (madvise(data + at, MIN(bytes - at, PIECE), MADV_POPULATE_WRITE) != 0)
			return;
}

static void drop_data(struct page_set *set)
{
	for (size_t n, left = set->room * VCFT_PAGE_SIZE; left > 0; left -= n) {
		n = MIN(left, PIECE);
		munmap(set->data + left - n, n);
	}
	set->data = NULL;
	set->room = 0;
}

bool page_set_reserve(struct page_set *set, size_t pages)
{
	if (pages <= set->room)
		return true;
	size_t room = (pages + MIN(pages / 8, MORE_MOST) + 63) & ~(size_t)63;
	uint64_t *index = realloc(set->index, room * sizeof *index);
	if (!index)
		return false;
	set->index = index;
	if (!set->count)
		drop_data(set);   /* not both at once */
	uint8_t *data = mmap(NULL, room * VCFT_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (data == MAP_FAILED)
		return false;
	populate(data, room * VCFT_PAGE_SIZE);
	if (set->count)
		memcpy(data, set->data, set->count * VCFT_PAGE_SIZE);
	drop_data(set);
	set->data = data;
	set->room = room;
	return true;
}

void page_set_free(struct page_set *set)
{
	free(set->index);
	drop_data(set);
	*set = (struct page_set){ 0 };
}
