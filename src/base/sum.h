/* sum.h - the checksum of a page at rest: 64 bits of XXH3, and the number that belongs to the page.
 *
 * SM1 One flipped bit, of the page or of its number, gives another sum; a sum is never 0, which so can mean that there is none.
 * The number is multiplied with an odd constant and added: that is one-to-one, so a page under another number never passes. These find accidents, not
 * attackers. Pure; any thread. */
#ifndef VCFT_BASE_SUM_H
#define VCFT_BASE_SUM_H

#include "base/types.h"

#include <xxhash.h>

/* Of a number alone. */
static inline uint64_t sum_number(uint64_t number) { return number * UINT64_C(0x9E3779B97F4A7C15); }

/* Of n bytes that have no number. */
static inline uint64_t sum_bytes(const void *data, size_t n)
{
	uint64_t sum = XXH3_64bits(data, n);
	return sum ? sum : 1;
}

/* Of a page whose hash is known. */
static inline uint64_t sum_hashed(uint64_t hash, uint64_t number)
{
	uint64_t sum = hash + sum_number(number);
	return sum ? sum : 1;
}

/* Of VCFT_PAGE_SIZE bytes. */
static inline uint64_t sum_page(const uint8_t *page, uint64_t number) { return sum_hashed(XXH3_64bits(page, VCFT_PAGE_SIZE), number); }

#endif
