/* track-compare.c - the slow and sure tracker: a private copy of RAM, compared page by page. Works on every kernel, needs RAM once more;
 * it is the oracle for track-uffd.c.
 *
 *   data of the file:  page differs from the copy ──► written; the copy gets it
 *   hole of the file:  page of zeros; if the copy ever held something there ──► written; the copy is dropped
 *
 * A page that was written with what it already held is not found: nothing is lost by that, as long as the guest stands still between scan and
 * copy (so it is not `live`). Reads no holes (R1). */
#include "vm/track.h"
#include "vm/vmm.h"

#include <string.h>
#include <sys/mman.h>

struct compare {
	struct tracker tracker;
	const struct memory *memory;
	uint8_t *copy;              /* memory->bytes, filled where `held` says */
	struct page_bits held;      /* pages that the copy has from the file; the others are zero in both */
};

static void take(struct compare *c, uint64_t page)
{
	memcpy(c->copy + page * VCFT_PAGE_SIZE, c->memory->map + page * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE);
	bits_add(&c->held, page, 1);
}

static void compare_data(struct compare *c, uint64_t first, uint64_t count, struct page_bits *out)
{
	for (uint64_t page = first; page < first + count; page++) {
		if (memcmp(c->copy + page * VCFT_PAGE_SIZE, c->memory->map + page * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE) == 0)
			continue;
		take(c, page);
		bits_add(out, page, 1);
	}
}

/* [first, end) are holes now: pages once held have been given back to the host. */
static void compare_hole(struct compare *c, uint64_t first, uint64_t end, struct page_bits *out)
{
	uint64_t n;
	for (uint64_t page = first; (n = bits_run(&c->held, &page)) && page < end; page += n) {
		n = n < end - page ? n : end - page;
		for (uint64_t i = page; i < page + n; i++) {
			if (c->copy[i * VCFT_PAGE_SIZE] == 0 &&
			    memcmp(c->copy + i * VCFT_PAGE_SIZE, c->copy + i * VCFT_PAGE_SIZE + 1, VCFT_PAGE_SIZE - 1) == 0)
				continue;
			memset(c->copy + i * VCFT_PAGE_SIZE, 0, VCFT_PAGE_SIZE);
			bits_add(out, i, 1);
		}
	}
}

static gboolean compare_scan(struct tracker *tracker, struct page_bits *out, GError **error)
{
	(void)error;
	struct compare *c = (struct compare *)tracker;
	uint64_t done = 0, n;
	for (uint64_t first = 0; (n = memory_data(c->memory, &first)); first += n) {
		compare_hole(c, done, first, out);
		compare_data(c, first, n, out);
		done = first + n;
	}
	compare_hole(c, done, memory_pages(c->memory), out);
	return TRUE;
}

static void compare_free(struct tracker *tracker)
{
	struct compare *c = (struct compare *)tracker;
	munmap(c->copy, c->memory->bytes);
	bits_free(&c->held);
	g_free(c);
}

static const struct tracker_ops compare_ops = { "compare", false, compare_scan, NULL, compare_free };

struct tracker *track_compare_new(const struct memory *memory, GError **error)
{
	struct page_bits held;
	void *copy = mmap(NULL, memory->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (copy == MAP_FAILED || !bits_init(&held, memory_pages(memory))) {
		if (copy != MAP_FAILED)
			munmap(copy, memory->bytes);
		g_set_error(error, VMM_ERROR, VMM_ERROR_RAM, "no memory for a copy of RAM to compare with");
		return NULL;
	}
	struct compare *c = g_new0(struct compare, 1);
	*c = (struct compare){ { &compare_ops }, memory, copy, held };
	uint64_t n;
	for (uint64_t first = 0; (n = memory_data(memory, &first)); first += n)
		for (uint64_t page = first; page < first + n; page++)
			take(c, page);
	return &c->tracker;
}
