/* fuzz.h - what the fuzzers share: an input taken from front to back, and a demand that must hold of every input. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static inline void demand(bool condition)
{
	if (!condition)
		abort();
}

/* What is not there reads as zero. */
struct input { const uint8_t *at; size_t left; };

static inline uint64_t take(struct input *in, size_t bytes)
{
	uint64_t v = 0;
	size_t n = bytes < in->left ? bytes : in->left;
	if (n)
		memcpy(&v, in->at, n);
	in->at += n;
	in->left -= n;
	return v;
}

/* At most n bytes, in place. */
static inline const uint8_t *take_bytes(struct input *in, size_t *inout_n)
{
	const uint8_t *p = in->at;
	if (*inout_n > in->left)
		*inout_n = in->left;
	in->at += *inout_n;
	in->left -= *inout_n;
	return p;
}

#endif
