/* pages.c - see pages.h. */
#include "base/pages.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

bool page_set_reserve(struct page_set *set, size_t pages)
{
	if (pages <= set->room)
		return true;
	size_t room = (pages + pages / 8 + 63) & ~(size_t)63;
	uint64_t *index = realloc(set->index, room * sizeof *index);
	if (!index)
		return false;
	set->index = index;
	uint8_t *data = mmap(NULL, room * VCFT_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (data == MAP_FAILED)
		return false;
	if (set->data) {
		memcpy(data, set->data, set->count * VCFT_PAGE_SIZE);
		munmap(set->data, set->room * VCFT_PAGE_SIZE);
	}
	set->data = data;
	set->room = room;
	return true;
}

void page_set_free(struct page_set *set)
{
	free(set->index);
	if (set->data)
		munmap(set->data, set->room * VCFT_PAGE_SIZE);
	*set = (struct page_set){ 0 };
}
