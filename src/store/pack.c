/* pack.c - a page as the words that differ from its reference: most pages of an epoch have few.
 *
 *   page (512 words) ──► map: 64 bytes, bit k of byte i for word 8 i + k        words: those that differ, as they are in the page, in order
 *
 * What is left to be compressed is short, and has no rows of zeros for zstd to find one by one. The words themselves, not what they differ by: a program
 * writes what looks like what it wrote before, and that is lost when it is mixed with what was there (XOR). Thread: any. */
#include "store/store-private.h"

#include <string.h>

/* 64 bytes at once: the compiler uses what the machine has. */
typedef uint64_t lane __attribute__((vector_size(64), aligned(1), may_alias));
#define LANES (VCFT_PAGE_SIZE / sizeof(lane))
#define LANE_WORDS 8u

static_assert(LANES == PACK_MAP, "a byte of the map is a lane of the page");

/* One more word than those that differ is written. Without branches, but for a lane that is full: a page of new content has 64 of them. */
static size_t pack_lane(const lane *data, const lane *difference, uint8_t *words, uint8_t *ret_bits)
{
	size_t n = 0;
	unsigned bits = 0;
	for (unsigned k = 0; k < LANE_WORDS; k++)
		bits |= (unsigned)((*difference)[k] != 0) << k;
	*ret_bits = (uint8_t)bits;
	if (bits == (1u << LANE_WORDS) - 1) {
		memcpy(words, data, sizeof *data);
		return sizeof *data;
	}
	for (unsigned k = 0; k < LANE_WORDS; k++) {
		uint64_t w = (*data)[k];
		memcpy(words + n, &w, sizeof w);
		n += (*difference)[k] ? sizeof w : 0;
	}
	return n;
}

size_t pack_page(uint8_t *map, uint8_t *words, const uint8_t *data, const uint8_t *reference)
{
	const lane *a = (const lane *)data, *b = (const lane *)reference;
	size_t n = 0;
	for (size_t i = 0; i < LANES; i++) {
		lane x = a[i];
		map[i] = 0;
		if (b)
			x ^= b[i];
		if (x[0] | x[1] | x[2] | x[3] | x[4] | x[5] | x[6] | x[7])
			n += pack_lane(&a[i], &x, words + n, &map[i]);
	}
	return n;
}

size_t pack_bytes(const uint8_t *map)
{
	size_t n = 0;
	for (size_t i = 0; i < PACK_MAP; i++)
		n += (size_t)__builtin_popcount(map[i]) * sizeof(uint64_t);
	return n;
}

const uint8_t *unpack_page(uint8_t *page, const uint8_t *map, const uint8_t *words)
{
	for (size_t i = 0; i < LANES; i++, page += sizeof(lane)) {
		if (map[i] == (1u << LANE_WORDS) - 1) {
			memcpy(page, words, sizeof(lane));
			words += sizeof(lane);
			continue;
		}
		for (unsigned bits = map[i]; bits; bits &= bits - 1, words += sizeof(uint64_t))
			memcpy(page + (size_t)__builtin_ctz(bits) * sizeof(uint64_t), words, sizeof(uint64_t));
	}
	return words;
}
