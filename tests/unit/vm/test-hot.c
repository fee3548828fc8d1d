/* test-hot.c - hot pages: the life of one, the limit, and the tracker with them against a guest of our own.
 *
 * The guest is a second mapping of a RAM file, tracked by the kernel as QEMU's is; it stands still while it is captured. The oracle: what all
 * captures add up to is what is in the file, after each that succeeded. */
#include "base/fault.h"
#include "vm/copy.h"
#include "vm/preload/preload.h"
#include "vm/preload/uffd.h"
#include "vm/track.h"

#include <glib/gstdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* ---- the rules, without a tracker ---- */

/* One capture of `count` pages from `first` on, all filled with `value`; returns how many are left. */
static size_t capture_filled(struct hot *hot, struct page_set *set, uint64_t first, size_t count, int value)
{
	g_assert_true(page_set_reserve(set, count));
	for (set->count = 0; set->count < count; set->count++) {
		set->index[set->count] = first + set->count;
		memset(set->data + set->count * VCFT_PAGE_SIZE, value, VCFT_PAGE_SIZE);
	}
	hot_captured(hot, set);
	return set->count;
}

static void test_h1_life(void)
{
	struct page_set set = { 0 };
	struct hot *hot = hot_new(100);
	for (unsigned i = 1; i < HOT_AFTER; i++)
		g_assert_cmpuint(capture_filled(hot, &set, 7, 1, 1), ==, 1);
	g_assert_cmpuint(capture_filled(hot, &set, 8, 1, 1), ==, 1);    /* not running any more */
	for (unsigned i = 0; i < HOT_AFTER; i++) {
		g_assert_false(bits_has(hot_pages(hot), 7));
		g_assert_cmpuint(capture_filled(hot, &set, 7, 1, 1), ==, 1);
	}
	g_assert_true(bits_has(hot_pages(hot), 7));
	g_assert_cmpuint(capture_filled(hot, &set, 7, 1, 2), ==, 1);    /* changed */
	for (unsigned i = 0; i < HOT_UNCHANGED; i++) {
		g_assert_true(bits_has(hot_pages(hot), 7));
		g_assert_cmpuint(capture_filled(hot, &set, 7, 1, 2), ==, 0);
	}
	g_assert_false(bits_has(hot_pages(hot), 7));
	g_assert_cmpuint(capture_filled(hot, &set, 7, 1, 2), ==, 0);    /* cooling, compared once more: cold */
	g_assert_cmpuint(capture_filled(hot, &set, 7, 1, 2), ==, 1);    /* a page like any other */
	hot_free(hot);
	page_set_free(&set);
}

static void test_h5_limit(void)
{
	struct page_set set = { 0 };
	struct hot *small = hot_new(400), *large = hot_new(3 * 4 * HOT_MAX);
	for (unsigned i = 0; i < HOT_AFTER + 2; i++) {
		g_assert_cmpuint(capture_filled(small, &set, 0, 400, (int)i), ==, 400);
		capture_filled(large, &set, 5, HOT_MAX + 10, (int)i);
	}
	g_assert_cmpuint(bits_count(hot_pages(small)), ==, 101);
	g_assert_cmpuint(bits_count(hot_pages(large)), ==, HOT_MAX);
	for (unsigned i = 0; i <= HOT_UNCHANGED + 1; i++)               /* changed, unchanged, cooling */
		capture_filled(large, &set, 5, HOT_MAX, 77);
	g_assert_cmpuint(bits_count(hot_pages(large)), ==, 0);
	for (unsigned i = 0; i < HOT_AFTER; i++)
		capture_filled(large, &set, 20000, HOT_MAX, (int)i);        /* their room is free again */
	g_assert_cmpuint(bits_count(hot_pages(large)), ==, HOT_MAX);
	for (unsigned i = 0; i <= HOT_UNCHANGED; i++)                   /* changed, unchanged */
		capture_filled(large, &set, 20000, HOT_MAX, 77);
	g_assert_cmpuint(bits_count(hot_pages(large)), ==, 0);
	capture_filled(large, &set, 7, 1, 1);                           /* cooling, and none of them is in this one: cold */
	for (unsigned i = 0; i < HOT_AFTER; i++)
		capture_filled(large, &set, 50000, HOT_MAX, (int)i);
	g_assert_cmpuint(bits_count(hot_pages(large)), ==, HOT_MAX);
	hot_free(small);
	hot_free(large);
	page_set_free(&set);
}

/* A capture that has not all hot pages: whoever made it has missed some. */
static void test_h2_missed(void)
{
	if (g_test_subprocess()) {
		struct page_set set = { 0 };
		struct hot *hot = hot_new(100);
		for (unsigned i = 0; i < HOT_AFTER; i++)
			capture_filled(hot, &set, 7, 2, (int)i);
		capture_filled(hot, &set, 8, 1, 5);
		return;
	}
	g_test_trap_subprocess(NULL, 0, 0);
	g_test_trap_assert_failed();
	g_test_trap_assert_stderr("*H2*");
}

/* ---- a guest of our own ---- */

#define PAGES 6000u
#define SET 300u              /* pages that it writes in (almost) every epoch */

struct bed {
	char *path;
	struct memory memory;         /* as the agent sees it */
	uint8_t *guest;               /* as QEMU sees it */
	int uffd;
	struct hot *hot;              /* the tracker's */
	struct tracker *tracker;
	struct page_bits pending, late;
	struct page_set set, late_set;
	uint8_t *image;               /* what the captures add up to */
	uint64_t favourite[SET];
	uint64_t left_out, was_hot, gone_cold;
};

static bool bed_requires(void)
{
	char why[160];
	if (track_uffd_probe(why, sizeof why) && track_pagemap_probe(why, sizeof why))
		return true;
	g_test_skip(why);
	return false;
}

/* As the preloaded library does it in QEMU. */
static struct tracker *track_own_mapping(struct bed *b)
{
	int tell[2];
	struct preload_answer answer = { (uintptr_t)b->guest, PAGES * VCFT_PAGE_SIZE, PRELOAD_DONE, 0, -1 };
	b->uffd = uffd_open();
	g_assert_cmpint(uffd_api(b->uffd), ==, 0);
	g_assert_cmpint(uffd_register(b->uffd, answer.address, answer.bytes, 0), ==, 0);
	g_assert_cmpint(pipe(tell), ==, 0);
	g_assert_cmpint(write(tell[1], &answer, sizeof answer), ==, sizeof answer);
	g_autoptr(GError) error = NULL;
	struct tracker *tracker = track_uffd_new(&b->memory, getpid(), tell[0], b->hot, &error);
	g_assert_no_error(error);
	close(tell[0]);
	close(tell[1]);
	return tracker;
}

static void choose_favourites(struct bed *b)
{
	uint64_t row = (uint64_t)g_test_rand_int_range(0, PAGES - SET);
	for (unsigned i = 0; i < SET; i++)
		b->favourite[i] = i % 3 ? row + i : (uint64_t)g_test_rand_int_range(0, PAGES);
}

static void bed_open(struct bed *b, bool hot)
{
	*b = (struct bed){ .path = g_strdup("/dev/shm/virtcft-test-XXXXXX") };
	close(g_mkstemp(b->path));
	g_assert_true(memory_open(&b->memory, b->path, PAGES * VCFT_PAGE_SIZE, NULL));
	b->guest = mmap(NULL, PAGES * VCFT_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, b->memory.fd, 0);
	g_assert_true(b->guest != MAP_FAILED);
	b->hot = hot ? hot_new(PAGES) : NULL;
	b->tracker = track_own_mapping(b);
	b->image = g_malloc0(PAGES * VCFT_PAGE_SIZE);
	g_assert_true(bits_init(&b->pending, PAGES) && bits_init(&b->late, PAGES));
	choose_favourites(b);
}

static void bed_close(struct bed *b)
{
	b->tracker->ops->free(b->tracker);
	close(b->uffd);
	munmap(b->guest, PAGES * VCFT_PAGE_SIZE);
	memory_close(&b->memory);
	bits_free(&b->pending);
	bits_free(&b->late);
	page_set_free(&b->set);
	page_set_free(&b->late_set);
	g_unlink(b->path);
	g_free(b->path);
	g_free(b->image);
}

/* Small values: a page often gets what it has, or had. */
static void write_page(struct bed *b, uint64_t page)
{
	b->guest[page * VCFT_PAGE_SIZE + (size_t)g_test_rand_int_range(0, 3) * 2000] = (uint8_t)g_test_rand_int_range(0, 3);
}

static void guest_works(struct bed *b, bool favourites)
{
	for (unsigned i = 0; favourites && i < SET; i++)
		if (g_test_rand_int_range(0, 20))
			write_page(b, b->favourite[i]);
	for (int n = g_test_rand_int_range(0, 40); n > 0; n--)
		write_page(b, (uint64_t)g_test_rand_int_range(0, PAGES));
}

static void scan(struct bed *b, struct page_bits *out)
{
	g_autoptr(GError) error = NULL;
	if (g_test_rand_int_range(0, 30) == 0)
		memory_populated(&b->memory, out);      /* T2 */
	else
		b->tracker->ops->scan(b->tracker, out, &error);
	g_assert_no_error(error);
}

/* K6: an early copy, the guest writes on, the rest. Else all at once. */
static void copy_pages(struct bed *b, bool bulk)
{
	scan(b, &b->pending);
	if (bulk) {
		g_assert_true(pages_copy(&b->memory, &b->pending, &b->set));
		guest_works(b, true);
		bits_clear(&b->late);
		scan(b, &b->late);
		g_assert_true(pages_copy(&b->memory, &b->late, &b->late_set));
		bits_merge(&b->pending, &b->late);
		g_assert_true(pages_merge(&b->set, &b->late_set));
	} else {
		g_assert_true(pages_copy(&b->memory, &b->pending, &b->set));
	}
}

/* H4, and that it is worth something: a hot page that is as it was is not in it. */
static void check_unchanged(struct bed *b, const struct page_bits *were_hot)
{
	for (size_t i = 0; i < b->set.count; i++)
		if (bits_has(were_hot, b->set.index[i]))
			g_assert_true(memcmp(b->image + b->set.index[i] * VCFT_PAGE_SIZE, b->set.data + i * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE) != 0);
}

static void succeed(struct bed *b)
{
	struct page_bits were_hot = { 0 };
	g_assert_true(bits_init(&were_hot, PAGES));
	bits_merge(&were_hot, hot_pages(b->hot));
	size_t before = b->set.count;
	bits_clear(&b->pending);
	b->tracker->ops->captured(b->tracker, &b->set);
	check_unchanged(b, &were_hot);
	b->left_out += before - b->set.count;
	b->was_hot = MAX(b->was_hot, bits_count(&were_hot));
	for (uint64_t page = 0; page < PAGES; page++)
		b->gone_cold += bits_has(&were_hot, page) && !bits_has(hot_pages(b->hot), page);
	bits_free(&were_hot);
	for (size_t i = 0; i < b->set.count; i++)
		memcpy(b->image + b->set.index[i] * VCFT_PAGE_SIZE, b->set.data + i * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE);
	for (uint64_t page = 0; page < PAGES; page++)
		if (memcmp(b->image + page * VCFT_PAGE_SIZE, b->memory.map + page * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE))
			g_error("page %" G_GUINT64_FORMAT " has changed and was not captured", (guint64)page);
}

static void test_v2_random(void)
{
	if (!bed_requires())
		return;
	struct bed b;
	bed_open(&b, true);
	for (unsigned epoch = 0; epoch < 600; epoch++) {
		if (epoch % 50 == 49)
			choose_favourites(&b);
		guest_works(&b, epoch % 100 < 80);
		copy_pages(&b, g_test_rand_int_range(0, 8) == 0);
		if (g_test_rand_int_range(0, 5))        /* else it has failed (V3) */
			succeed(&b);
	}
	g_test_message("hot at once: %" G_GUINT64_FORMAT ", gone cold: %" G_GUINT64_FORMAT ", left out: %" G_GUINT64_FORMAT, (guint64)b.was_hot,
	               (guint64)b.gone_cold, (guint64)b.left_out);
	g_assert_cmpuint(b.was_hot, >, SET / 2);
	g_assert_cmpuint(b.gone_cold, >, SET);
	g_assert_cmpuint(b.left_out, >, SET);
	bed_close(&b);
}

static long faults(void)
{
	struct rusage usage;
	g_assert_cmpint(getrusage(RUSAGE_THREAD, &usage), ==, 0);
	return usage.ru_minflt;
}

/* Faults that the guest has by writing its pages once, after some epochs in which it has done so. */
static long faults_of_an_epoch(bool hot)
{
	struct bed b;
	long had = 0;
	bed_open(&b, hot);
	for (unsigned epoch = 0; epoch < 8; epoch++) {
		long before = faults();
		for (unsigned i = 0; i < SET; i++)
			b.guest[b.favourite[i] * VCFT_PAGE_SIZE] = (uint8_t)(epoch + 1);
		had = faults() - before;
		for (unsigned i = 3; epoch >= 5 && i < SET; i += 6) /* others between them, which are not hot yet when it ends */
			b.guest[(b.favourite[1] - 1 + i) * VCFT_PAGE_SIZE] = 1;
		g_assert_true(b.tracker->ops->scan(b.tracker, &b.pending, NULL));
		g_assert_true(pages_copy(&b.memory, &b.pending, &b.set));
		bits_clear(&b.pending);
		b.tracker->ops->captured(b.tracker, &b.set);
	}
	bed_close(&b);
	return had;
}

/* What it is for: the guest writes hot pages without a fault. */
static void test_h2_no_fault(void)
{
	if (!bed_requires())
		return;
	g_assert_cmpint(faults_of_an_epoch(false), >, SET / 2);
	g_assert_cmpint(faults_of_an_epoch(true), <, SET / 20);
}

/* ---- page tables ---- */

/* The guest writes pages; what a scan then adds is these, of all that it may not have looked at. */
static void check_written(struct bed *b, unsigned count, const uint64_t *page)
{
	for (unsigned i = 0; i < count; i++)
		b->guest[page[i] * VCFT_PAGE_SIZE] ^= 1;
	bits_clear(&b->pending);
	g_assert_true(b->tracker->ops->scan(b->tracker, &b->pending, NULL));
	for (unsigned i = 0; i < count; i++)
		g_assert_true(bits_has(&b->pending, page[i]));
	g_assert_cmpuint(bits_count(&b->pending), ==, count);
}

/* Of this process, kB. */
static long page_tables(void)
{
	g_autofree char *status = NULL;
	g_assert_true(g_file_get_contents("/proc/self/status", &status, NULL, NULL));
	const char *line = strstr(status, "VmPTE:");
	g_assert_nonnull(line);
	return strtol(line + strlen("VmPTE:"), NULL, 10);
}

/* Both ends of RAM, then between, where there is no table yet; and what is a hole beside a page was not written. least, most: kB of tables that the first scan makes. */
static void check_tables(long least, long most)
{
	struct bed b;
	bed_open(&b, false);
	long before = page_tables();
	check_written(&b, 0, NULL);
	g_assert_cmpint(page_tables() - before, >=, least);
	g_assert_cmpint(page_tables() - before, <=, most);
	check_written(&b, 2, (const uint64_t[]){ 10, PAGES - 10 });
	check_written(&b, 0, NULL);
	check_written(&b, 1, (const uint64_t[]){ PAGES / 2 });
	check_written(&b, 4, (const uint64_t[]){ 0, 10, PAGES / 2 + 1, PAGES - 1 });
	check_written(&b, 0, NULL);
	bed_close(&b);
}

static void test_t1_tables(void)
{
	if (!bed_requires())
		return;
	check_tables(0, 12);
	fault_set(FAULT_TRACK_SWAP, FAULT_ALWAYS);
	check_tables(PAGES / 512 * 4, 1000);
	fault_clear();
}

/* What was there from the start has not been written, though the guest looks at it. */
static void test_t1_begin(void)
{
	if (!bed_requires())
		return;
	struct bed b;
	volatile uint8_t sum = 0;
	bed_open(&b, false);
	for (uint64_t page = 20; page < PAGES; page += page % 7 ? 1 : 900)
		b.memory.map[page * VCFT_PAGE_SIZE] = 1;
	track_uffd_begin(b.tracker);
	for (uint64_t page = 20; page < PAGES; page += page % 7 ? 1 : 900)
		sum += b.guest[page * VCFT_PAGE_SIZE];
	check_written(&b, 0, NULL);
	check_written(&b, 3, (const uint64_t[]){ 0, 20, PAGES - 1 });
	bed_close(&b);
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/vm/hot/H1-life", test_h1_life);
	g_test_add_func("/vm/hot/H5-limit", test_h5_limit);
	g_test_add_func("/vm/hot/H2-missed", test_h2_missed);
	g_test_add_func("/vm/hot/V2-random", test_v2_random);
	g_test_add_func("/vm/hot/H2-no-fault", test_h2_no_fault);
	g_test_add_func("/vm/track/T1-tables", test_t1_tables);
	g_test_add_func("/vm/track/T1-begin", test_t1_begin);
	return g_test_run();
}
