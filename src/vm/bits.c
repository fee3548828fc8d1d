/* bits.c - see bits.h. Works on words of 64 pages; bits past the last page are never set. */
#include "vm/bits.h"

#include <stdlib.h>
#include <string.h>

#define WORD_PAGES 64u

static size_t words(uint64_t pages)
{
	return (size_t)((pages + WORD_PAGES - 1) / WORD_PAGES);
}

bool bits_init(struct page_bits *bits, uint64_t pages)
{
	uint64_t *word = calloc(words(pages) + 1, sizeof *word);
	if (!word)
		return false;
	*bits = (struct page_bits){ .pages = pages, .word = word };
	return true;
}

void bits_free(struct page_bits *bits)
{
	free(bits->word);
	*bits = (struct page_bits){ 0 };
}

void bits_clear(struct page_bits *bits)
{
	memset(bits->word, 0, words(bits->pages) * sizeof *bits->word);
}

void bits_add(struct page_bits *bits, uint64_t first, uint64_t count)
{
	if (first >= bits->pages)
		return;
	uint64_t end = count < bits->pages - first ? first + count : bits->pages;
	while (first < end) {
		unsigned shift = first % WORD_PAGES;
		uint64_t n = WORD_PAGES - shift < end - first ? WORD_PAGES - shift : end - first;
		uint64_t mask = n == WORD_PAGES ? UINT64_MAX : (UINT64_C(1) << n) - 1;
		bits->word[first / WORD_PAGES] |= mask << shift;
		first += n;
	}
}

void bits_remove(struct page_bits *bits, uint64_t page)
{
	if (page < bits->pages)
		bits->word[page / WORD_PAGES] &= ~(UINT64_C(1) << (page % WORD_PAGES));
}

void bits_merge(struct page_bits *bits, const struct page_bits *more)
{
	for (size_t i = 0; i < words(bits->pages); i++)
		bits->word[i] |= more->word[i];
}

bool bits_has(const struct page_bits *bits, uint64_t page)
{
	return page < bits->pages && (bits->word[page / WORD_PAGES] >> (page % WORD_PAGES) & 1);
}

uint64_t bits_count(const struct page_bits *bits)
{
	uint64_t n = 0;
	for (size_t i = 0; i < words(bits->pages); i++)
		n += (unsigned)__builtin_popcountll(bits->word[i]);
	return n;
}

/* The first page at or after `page` that is in (flip 0) or out (flip all ones) of the set; pages if there is none. */
static uint64_t next(const struct page_bits *bits, uint64_t page, uint64_t flip)
{
	while (page < bits->pages) {
		uint64_t left = (bits->word[page / WORD_PAGES] ^ flip) >> (page % WORD_PAGES);
		if (left) {
			page += (unsigned)__builtin_ctzll(left);
			return page < bits->pages ? page : bits->pages;
		}
		page = (page / WORD_PAGES + 1) * WORD_PAGES;
	}
	return bits->pages;
}

uint64_t bits_run(const struct page_bits *bits, uint64_t *inout_first)
{
	uint64_t first = next(bits, *inout_first, 0);
	*inout_first = first;
	return next(bits, first, UINT64_MAX) - first;
}

/* The set up to page `end`: borrows its words. */
static struct page_bits up_to(const struct page_bits *bits, uint64_t end)
{
	return (struct page_bits){ .pages = end < bits->pages ? end : bits->pages, .word = bits->word };
}

uint64_t bits_run_before(const struct page_bits *bits, uint64_t *inout_first, uint64_t end)
{
	const struct page_bits part = up_to(bits, end);
	return bits_run(&part, inout_first);
}

void bits_merge_range(struct page_bits *bits, const struct page_bits *more, uint64_t first, uint64_t end)
{
	for (uint64_t n; (n = bits_run_before(more, &first, end)); first += n)
		bits_add(bits, first, n);
}

bool bits_have(const struct page_bits *bits, uint64_t first, uint64_t end)
{
	const struct page_bits part = up_to(bits, end);
	return end <= bits->pages && next(&part, first, UINT64_MAX) >= end;
}
