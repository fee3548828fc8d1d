/* test-promise.c - the file `generation` (promise.h): it is what was written, or it is refused. */
#include "agent/promise.h"

#include <fcntl.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

struct place { char *folder, *path; };

static void set_up(struct place *p, gconstpointer data)
{
	(void)data;
	p->folder = g_dir_make_tmp("vcft-promise-XXXXXX", NULL);
	p->path = g_build_filename(p->folder, "generation", NULL);
}

static void tear_down(struct place *p, gconstpointer data)
{
	(void)data;
	g_unlink(p->path);
	g_assert_cmpint(g_rmdir(p->folder), ==, 0);   /* nothing else was left there */
	g_free(p->folder);
	g_free(p->path);
}

static struct promise reopened(const struct place *p)
{
	g_autoptr(GError) error = NULL;
	struct promise got;
	int fd = promise_open(p->folder, &got, &error);
	g_assert_no_error(error);
	close(fd);
	return got;
}

static void write_promise(const struct place *p, uint64_t lived, uint64_t seen)
{
	struct promise got;
	int fd = promise_open(p->folder, &got, NULL);
	g_assert_cmpint(fd, >=, 0);
	g_assert_true(promise_write(fd, (struct promise){ { lived }, { seen } }));
	close(fd);
}

static void put(const struct place *p, const char *text, size_t n)
{
	int fd = open(p->path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	g_assert_cmpint(write(fd, text, n), ==, n);
	close(fd);
}

static void refused(const struct place *p)
{
	g_autoptr(GError) error = NULL;
	g_autofree char *before = NULL, *after = NULL;
	gsize n = 0, m = 0;
	struct promise got;
	g_assert_true(g_file_get_contents(p->path, &before, &n, NULL));
	g_assert_cmpint(promise_open(p->folder, &got, &error), ==, -1);
	g_assert_nonnull(error);
	g_assert_true(g_str_has_prefix(error->message, p->path) && strstr(error->message, "remove the file only while"));
	g_assert_true(g_file_get_contents(p->path, &after, &m, NULL));
	g_assert_cmpmem(before, n, after, m);   /* it may still tell something to who looks at it */
}

static void test_nothing_is_promised_at_first(struct place *p, gconstpointer data)
{
	(void)data;
	struct promise got = reopened(p);
	g_assert_cmpuint(got.lived.n, ==, 0);
	g_assert_cmpuint(got.seen.n, ==, 0);
	g_assert_true(g_file_test(p->path, G_FILE_TEST_EXISTS));
}

static void test_pm1_what_was_written(struct place *p, gconstpointer data)
{
	(void)data;
	const uint64_t numbers[] = { 0, 1, 129, UINT64_MAX - 1, UINT64_MAX };
	for (size_t i = 0; i < G_N_ELEMENTS(numbers); i++)
		for (size_t j = 0; j < G_N_ELEMENTS(numbers); j++) {
			write_promise(p, numbers[i], numbers[j]);
			struct promise got = reopened(p);
			g_assert_cmpuint(got.lived.n, ==, numbers[i]);
			g_assert_cmpuint(got.seen.n, ==, numbers[j]);
		}
}

static void test_pm1_one_bit(struct place *p, gconstpointer data)
{
	(void)data;
	g_autofree char *text = NULL;
	gsize n;
	write_promise(p, 193, 258);
	g_assert_true(g_file_get_contents(p->path, &text, &n, NULL));
	g_assert_cmpuint(n, ==, PROMISE_BYTES);
	for (size_t bit = 0; bit < 8 * n; bit++) {
		text[bit / 8] = (char)(text[bit / 8] ^ 1 << bit % 8);
		put(p, text, n);
		refused(p);
		text[bit / 8] = (char)(text[bit / 8] ^ 1 << bit % 8);
	}
}

/* Cut off, or longer; empty; what a power loss leaves; two numbers without their sum. */
static void test_pm1_other_lengths_and_contents(struct place *p, gconstpointer data)
{
	(void)data;
	char zeros[PROMISE_BYTES] = { 0 }, bare[PROMISE_BYTES + 1];
	g_autofree char *text = NULL;
	gsize n;
	write_promise(p, 193, 258);
	g_assert_true(g_file_get_contents(p->path, &text, &n, NULL));
	for (gsize cut = 0; cut < n; cut++) {
		put(p, text, cut);
		refused(p);
	}
	g_autofree char *longer = g_strconcat(text, "\n", NULL);
	put(p, longer, strlen(longer));
	refused(p);
	put(p, zeros, sizeof zeros);
	refused(p);
	g_snprintf(bare, sizeof bare, "%-63s\n", "193 258");
	put(p, bare, strlen(bare));
	refused(p);
}

static void test_a_folder_that_is_not_there(struct place *p, gconstpointer data)
{
	(void)data;
	g_autofree char *nowhere = g_build_filename(p->folder, "nowhere", NULL);
	g_autoptr(GError) error = NULL;
	struct promise got;
	g_assert_cmpint(promise_open(nowhere, &got, &error), ==, -1);
	g_assert_nonnull(strstr(error->message, "No such file"));
}

static void add(const char *path, void (*test)(struct place *, gconstpointer)) { g_test_add(path, struct place, NULL, set_up, test, tear_down); }

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	add("/agent/promise/nothing-at-first", test_nothing_is_promised_at_first);
	add("/agent/promise/PM1-what-was-written", test_pm1_what_was_written);
	add("/agent/promise/PM1-one-bit", test_pm1_one_bit);
	add("/agent/promise/PM1-lengths-and-contents", test_pm1_other_lengths_and_contents);
	add("/agent/promise/no-folder", test_a_folder_that_is_not_there);
	return g_test_run();
}
