/* copy.c - see copy.h. */
#include "vm/copy.h"

#include <string.h>

static uint8_t *page_at(const struct page_set *set, size_t i)
{
	return set->data + i * VCFT_PAGE_SIZE;
}

static bool for_each_run(const struct memory *memory, const struct page_bits *which, struct page_set *set)
{
	set->count = 0;
	if (!page_set_reserve(set, bits_count(which)))
		return false;
	uint64_t n;
	for (uint64_t first = 0; (n = bits_run(which, &first)); first += n) {
		if (memory)
			memcpy(page_at(set, set->count), memory->map + first * VCFT_PAGE_SIZE, n * VCFT_PAGE_SIZE);
		for (uint64_t i = 0; i < n; i++)
			set->index[set->count++] = first + i;
	}
	return true;
}

bool pages_copy(const struct memory *memory, const struct page_bits *which, struct page_set *set)
{
	return for_each_run(memory, which, set);
}

bool pages_list(const struct page_bits *which, struct page_set *set)
{
	return for_each_run(NULL, which, set);
}

/* How many pages of b are not in a. */
static size_t count_missing(const struct page_set *a, const struct page_set *b)
{
	size_t missing = 0;
	for (size_t i = 0, j = 0; j < b->count; j++) {
		while (i < a->count && a->index[i] < b->index[j])
			i++;
		missing += i == a->count || a->index[i] != b->index[j];
	}
	return missing;
}

/* From the end to the start, so that each page of set is moved once, into room that is free already. */
bool pages_merge(struct page_set *set, const struct page_set *late)
{
	size_t missing = count_missing(set, late);
	if (!page_set_reserve(set, set->count + missing))
		return false;
	size_t i = set->count, j = late->count, to = set->count + missing;
	set->count = to;
	while (j > 0) {
		to--;
		if (i > 0 && set->index[i - 1] > late->index[j - 1]) {
			i--;
			set->index[to] = set->index[i];
			if (to != i)
				memcpy(page_at(set, to), page_at(set, i), VCFT_PAGE_SIZE);
			continue;
		}
		j--;
		i -= i > 0 && set->index[i - 1] == late->index[j];
		set->index[to] = late->index[j];
		memcpy(page_at(set, to), page_at(late, j), VCFT_PAGE_SIZE);
	}
	return true;
}
