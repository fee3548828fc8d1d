/* test-pages.c - a set of pages: its memory is there before it is used, what is in it is kept when it grows, and nothing is left behind. */
#include "base/pages.h"

#include <glib.h>
#include <string.h>
#include <sys/mman.h>

#define FEW 100u
#define MANY 10000u     /* more than one piece of memory (pages.c) */

/* Pages from data on that have memory; -1: not all of them are mapped. */
static long there(const uint8_t *data, size_t pages)
{
	g_autofree unsigned char *in = g_malloc(pages);
	long n = 0;
	if (mincore((void *)data, pages * VCFT_PAGE_SIZE, in) != 0)
		return -1;
	for (size_t i = 0; i < pages; i++)
		n += in[i] & 1;
	return n;
}

static void test_prefaulted(void)
{
	struct page_set set = { 0 };
	g_assert_true(page_set_reserve(&set, MANY));
	g_assert_cmpuint(set.room, >=, MANY);
	g_assert_cmpint(there(set.data, set.room), ==, (long)set.room);
	page_set_free(&set);
}

static void test_grows(void)
{
	struct page_set set = { 0 };
	g_assert_true(page_set_reserve(&set, FEW));
	for (; set.count < FEW; set.count++) {
		set.index[set.count] = 3 * set.count;
		memset(set.data + set.count * VCFT_PAGE_SIZE, (int)set.count + 1, VCFT_PAGE_SIZE);
	}
	g_assert_true(page_set_reserve(&set, MANY));
	g_assert_cmpuint(set.count, ==, FEW);
	for (size_t i = 0; i < FEW; i++) {
		g_assert_cmpuint(set.index[i], ==, 3 * i);
		g_assert_cmpuint(set.data[i * VCFT_PAGE_SIZE], ==, i + 1);
		g_assert_cmpuint(set.data[(i + 1) * VCFT_PAGE_SIZE - 1], ==, i + 1);
	}
	page_set_free(&set);
}

static void test_leaves_nothing(void)
{
	struct page_set set = { 0 };
	g_assert_true(page_set_reserve(&set, MANY));
	const uint8_t *data = set.data;
	size_t room = set.room;
	page_set_free(&set);
	g_assert_null(set.data);
	for (size_t i = 0; i < room; i += FEW)
		g_assert_cmpint(there(data + i * VCFT_PAGE_SIZE, 1), ==, -1);
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/pages/prefaulted", test_prefaulted);
	g_test_add_func("/pages/grows", test_grows);
	g_test_add_func("/pages/leaves-nothing", test_leaves_nothing);
	return g_test_run();
}
