/* test-fill.c - what is filled beside the start of a QEMU, and in which order (fill.h). With a real QEMU: test-guest.c. */
#include "vm/fill.h"

#include <glib/gstdio.h>
#include <unistd.h>

#define MEMORY_BYTES (2ull * FILL_BESIDE)
#define PAGES (MEMORY_BYTES / VCFT_PAGE_SIZE)
#define RUN 64u                             /* pages at once */
#define RECENT (PAGES / 2 + 3 * RUN)        /* 100 runs from there on were written last */
#define RECENT_PAGES (100u * RUN)

/* All pages hold the same. */
static const uint8_t content[RUN * VCFT_PAGE_SIZE] = { 1 };

static const uint8_t *next_until(uint64_t until, uint64_t *inout_first, uint64_t *ret_end)
{
	*inout_first = MIN(*inout_first, until);
	*ret_end = MIN(*inout_first + RUN, until);
	return *inout_first < until ? content : NULL;
}

static const uint8_t *next_of_all(void *user, uint64_t *inout_first, uint64_t *ret_end, GError **error)
{
	(void)user, (void)error;
	return next_until(PAGES, inout_first, ret_end);
}

static const uint8_t *next_recent(void *user, uint64_t *inout_first, uint64_t *ret_end, GError **error)
{
	(void)user, (void)error;
	*inout_first = MAX(*inout_first, RECENT);
	return next_until(RECENT + RECENT_PAGES, inout_first, ret_end);
}

static const uint8_t *next_fails(void *user, uint64_t *inout_first, uint64_t *ret_end, GError **error)
{
	(void)user, (void)inout_first, (void)ret_end;
	g_set_error(error, VMM_ERROR, VMM_ERROR_RAM, "damaged");
	return NULL;
}

static void memory_new(struct memory *memory)
{
	g_autoptr(GError) error = NULL;
	g_autofree char *path = g_strdup_printf("/dev/shm/vcft-fill-%d", (int)getpid());
	memory_open(memory, path, MEMORY_BYTES, &error);
	g_assert_no_error(error);
	g_unlink(path);
}

/* Pages of [first, end) that are there. */
static uint64_t there(const struct memory *memory, uint64_t first, uint64_t end)
{
	struct page_bits bits;
	g_assert_true(bits_init(&bits, PAGES));
	memory_add_data(memory, first, end, &bits);
	uint64_t n = bits_count(&bits);
	bits_free(&bits);
	return n;
}

/* Nobody sets an end to it here, so it ends when FILL_BESIDE has been put. */
static void wait_for(const struct memory *memory, uint64_t pages)
{
	for (gint64 limit = g_get_monotonic_time() + 60 * G_USEC_PER_SEC; memory_populated_count(memory) < pages;) {
		g_assert_cmpint(g_get_monotonic_time(), <, limit);
		g_usleep(1000);    /* polls */
	}
}

static struct fill *fill_beside_a_start(struct memory *memory, const struct vm_fill *from)
{
	memory_new(memory);
	struct fill *f = fill_new(memory, from, true);
	wait_for(memory, FILL_BESIDE / VCFT_PAGE_SIZE);
	return f;
}

static void test_recent_first(void)
{
	struct memory memory;
	struct vm_fill from = { next_of_all, next_recent, NULL };
	struct fill *f = fill_beside_a_start(&memory, &from);
	fill_stop(f);
	g_assert_cmpuint(there(&memory, RECENT, RECENT + RECENT_PAGES), ==, RECENT_PAGES);
	g_assert_cmpuint(there(&memory, 0, RECENT), ==, FILL_BESIDE / VCFT_PAGE_SIZE - RECENT_PAGES);
	g_assert_cmpuint(memory_populated_count(&memory), ==, FILL_BESIDE / VCFT_PAGE_SIZE);
	g_assert_false(fill_is_done(f));
	g_assert_true(fill_finish(f, NULL));
	g_assert_cmpuint(memory_populated_count(&memory), ==, PAGES);
	g_assert_true(fill_is_done(f));
	fill_free(f);
	memory_close(&memory);
}

/* It cannot be said what was written last; or it cannot be had. */
static void test_without_recent(void)
{
	struct memory memory;
	struct vm_fill from = { next_of_all, NULL, NULL };
	struct fill *f = fill_beside_a_start(&memory, &from);
	fill_free(f);
	g_assert_cmpuint(there(&memory, 0, FILL_BESIDE / VCFT_PAGE_SIZE), ==, FILL_BESIDE / VCFT_PAGE_SIZE);
	memory_close(&memory);

	g_autoptr(GError) error = NULL;
	from.recent = next_fails;
	memory_new(&memory);
	f = fill_new(&memory, &from, true);
	g_assert_false(fill_finish(f, &error));
	g_assert_cmpstr(error->message, ==, "damaged");
	fill_free(f);
	memory_close(&memory);
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/fill/recent-first", test_recent_first);
	g_test_add_func("/fill/without-recent", test_without_recent);
	return g_test_run();
}
