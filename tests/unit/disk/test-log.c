/* test-log.c - the epoch log: what a reader sees (D7, D8), and what it refuses (D9, D24). */
#include "disk/disk-private.h"
#include "disk/log.h"
#include "scratch.h"

#include <signal.h>
#include <sys/resource.h>

#define BLOCKS 100u

static struct epoch_log *make(const char *dir, uint64_t epoch)
{
	g_autoptr(GError) error = NULL;
	struct epoch_log *log = epoch_log_create(dir, epoch_of(epoch), BLOCKS, &error);
	g_assert_no_error(error);
	return log;
}

static void fill(struct epoch_log *log, uint64_t block, unsigned n, int byte)
{
	g_autofree uint8_t *data = g_malloc(n * DISK_BLOCK_BYTES);
	memset(data, byte, n * DISK_BLOCK_BYTES);
	g_assert_cmpint(epoch_log_write(log, block, n, data), ==, 0);
}

static void check_block(const struct disk_log *view, size_t i, uint64_t block, int byte)
{
	g_assert_cmpuint(i, <, view->count);
	g_assert_cmpuint(view->block[i], ==, block);
	for (size_t k = 0; k < DISK_BLOCK_BYTES; k++)
		g_assert_cmpint(view->data[i][k], ==, byte);
}

static void view_is_sorted_and_newest(void)
{
	g_autoptr(scratch) dir = scratch_new();
	g_autoptr(GError) error = NULL;
	struct epoch_log *log = make(dir, 7);
	fill(log, 50, 3, 1);
	fill(log, 9, 1, 2);
	fill(log, 51, 2, 3);                                   /* 52 is new?  no: 50..52 are there, 51 and 52 change (D7) */
	g_assert_cmpint(epoch_log_zero(log, 98, 2), ==, 0);    /* new and zero */
	g_assert_cmpint(epoch_log_zero(log, 9, 1), ==, 0);     /* was not zero */
	g_assert_cmpint(epoch_log_zero(log, 10, 1), ==, 0);
	fill(log, 10, 1, 4);                                   /* was zero */
	g_assert_cmpuint(epoch_log_count(log), ==, 7);
	epoch_log_set_sealed(log, true);
	struct disk_log *view = epoch_log_view(dir, epoch_of(7), BLOCKS, &error);
	g_assert_no_error(error);
	g_assert_cmpuint(view->count, ==, 7);
	check_block(view, 0, 9, 0);
	check_block(view, 1, 10, 4);
	check_block(view, 2, 50, 1);
	check_block(view, 3, 51, 3);
	check_block(view, 4, 52, 3);
	check_block(view, 5, 98, 0);
	check_block(view, 6, 99, 0);
	epoch_log_drop(log);
	check_block(view, 4, 52, 3);   /* removed, but still mapped */
	disk_log_free(view);
}

static void empty_log_can_be_viewed(void)
{
	g_autoptr(scratch) dir = scratch_new();
	g_autoptr(GError) error = NULL;
	struct epoch_log *log = make(dir, 1);
	epoch_log_set_sealed(log, true);
	struct disk_log *view = epoch_log_view(dir, epoch_of(1), BLOCKS, &error);
	g_assert_no_error(error);
	g_assert_cmpuint(view->count, ==, 0);
	disk_log_free(view);
	epoch_log_drop(log);
}

/* More blocks than the first table and index have room for, in an order that is not theirs. */
static void log_grows(void)
{
	enum { MANY = 20000 };
	g_autoptr(scratch) dir = scratch_new();
	g_autoptr(GError) error = NULL;
	struct epoch_log *log = epoch_log_create(dir, epoch_of(1), MANY, &error);
	struct epoch_log_slot slot;
	g_assert_no_error(error);
	for (uint64_t i = 0; i < MANY; i++) {
		uint64_t block = i * 7919 % MANY;
		uint64_t data[DISK_BLOCK_BYTES / 8] = { block };
		g_assert_cmpint(epoch_log_write(log, block, 1, data), ==, 0);
	}
	for (uint64_t i = 0; i < MANY; i++)
		g_assert_true(epoch_log_find(log, i, &slot) && slot.block == i && !slot.zero);
	epoch_log_set_sealed(log, true);
	struct disk_log *view = epoch_log_view(dir, epoch_of(1), MANY, &error);
	g_assert_no_error(error);
	g_assert_cmpuint(view->count, ==, MANY);
	for (uint64_t i = 0; i < MANY; i++)
		g_assert_true(view->block[i] == i && *(const uint64_t *)view->data[i] == i);
	disk_log_free(view);
	epoch_log_drop(log);
}

static void relabel_moves_both_files(void)
{
	g_autoptr(scratch) dir = scratch_new();
	g_autoptr(GError) error = NULL;
	struct epoch_log *log = make(dir, 3);
	fill(log, 5, 1, 9);
	g_assert_true(epoch_log_relabel(log, dir, epoch_of(6), &error));
	epoch_log_set_sealed(log, true);
	g_assert_null(epoch_log_view(dir, epoch_of(3), BLOCKS, &error));
	g_clear_error(&error);
	struct disk_log *view = epoch_log_view(dir, epoch_of(6), BLOCKS, &error);
	g_assert_no_error(error);
	check_block(view, 0, 5, 9);
	disk_log_free(view);
	epoch_log_drop(log);
}

/* ---- D9 ---- */

struct damage {
	const char *name;
	bool index;              /* in log.N.idx, else log.N */
	uint64_t at;
	uint64_t value;
	size_t bytes;
	const char *expect;
};

static const struct damage damages[] = {
	{ "magic", false, 0, 1, 8, "not an epoch log" },
	{ "version", false, 8, 1, 4, "version 1" },
	{ "block-size", false, 12, 512, 4, "512 bytes" },
	{ "epoch", false, 16, 8, 8, "epoch 8" },
	{ "disk-size", false, 24, BLOCKS + 1, 8, "expected 7 and 100" },
	{ "count-beyond-disk", false, 32, BLOCKS + 1, 8, "more than the disk has" },
	{ "count", false, 32, 3, 8, "header has another checksum" },
	{ "not-sealed", false, 40, 0, 8, "not sealed" },
	{ "sealed-2", false, 40, 2, 8, "not sealed" },
	{ "block-beyond-disk", true, 16, BLOCKS, 8, "beyond the disk" },
	{ "zero-block-beyond-disk", true, 16, EPOCH_LOG_ZERO | BLOCKS, 8, "beyond the disk" },
	{ "block-of-another", true, 16, 20, 8, "block 20 (slot 1) has another checksum" },
};

static void refuse(gconstpointer data)
{
	const struct damage *d = data;
	g_autoptr(scratch) dir = scratch_new();
	g_autoptr(GError) error = NULL;
	g_autofree char *path = epoch_log_path(dir, epoch_of(7), d->index ? ".idx" : "");
	struct epoch_log *log = make(dir, 7);
	fill(log, 20, 4, 1);
	epoch_log_set_sealed(log, true);
	uint64_t value = GUINT64_TO_LE(d->value);
	scratch_poke(path, d->at, &value, d->bytes);
	g_assert_null(epoch_log_view(dir, epoch_of(7), BLOCKS, &error));
	assert_error_has(error, d->expect);
	epoch_log_drop(log);
}

static void refuse_short(void)
{
	g_autoptr(scratch) dir = scratch_new();
	g_autofree char *path = epoch_log_path(dir, epoch_of(7), ""), *index = epoch_log_path(dir, epoch_of(7), ".idx");
	struct epoch_log *log = make(dir, 7);
	fill(log, 20, 4, 1);
	epoch_log_set_sealed(log, true);
	const struct { const char *path; off_t size; const char *expect; } cuts[] = {
		{ path, 4 * 4096, "slot 3 lies beyond the file" }, { index, 3 * sizeof(struct epoch_log_entry), "index ends after 3 of 4" }, { path, 40, "not an epoch log" },
		{ path, 0, "not an epoch log" },
	};
	for (size_t i = 0; i < G_N_ELEMENTS(cuts); i++) {
		g_autoptr(GError) error = NULL;
		if (cuts[i].path == index)
			g_assert_cmpint(truncate(path, 5 * 4096), ==, 0);
		g_assert_cmpint(truncate(cuts[i].path, cuts[i].size), ==, 0);
		g_assert_null(epoch_log_view(dir, epoch_of(7), BLOCKS, &error));
		assert_error_has(error, cuts[i].expect);
	}
	g_autoptr(GError) error = NULL;
	g_assert_null(epoch_log_view(dir, epoch_of(8), BLOCKS, &error));
	assert_error_has(error, "log.8: cannot open");
	g_assert_cmpint(truncate(path, 4096), ==, 0);   /* the header is mapped */
	epoch_log_drop(log);
}

/* ---- D24 ---- */

static void check_view(const char *dir, bool good)
{
	g_autoptr(GError) error = NULL;
	struct disk_log *view = epoch_log_view(dir, epoch_of(7), BLOCKS, &error);
	disk_log_free(view);
	g_assert_true((view != NULL) == good);
	if (!good)
		g_assert_error(error, DISK_ERROR, DISK_ERROR_DAMAGED);
}

static void flip_and_view(const char *dir, const char *path, uint64_t bit)
{
	scratch_flip(path, bit);
	check_view(dir, false);
	scratch_flip(path, bit);
}

/* Every bit of the header's fields and of the entries, some thousand of the rest. */
static void one_bit_is_refused(void)
{
	enum { SLOTS = 6, ZEROS = 2, ENTRIES = (SLOTS + ZEROS) * sizeof(struct epoch_log_entry) };
	g_autoptr(scratch) dir = scratch_new();
	g_autofree char *path = epoch_log_path(dir, epoch_of(7), ""), *index = epoch_log_path(dir, epoch_of(7), ".idx");
	struct epoch_log *log = make(dir, 7);
	fill(log, 20, 4, 1);
	fill(log, 0, 2, 0);
	g_assert_cmpint(epoch_log_zero(log, 90, ZEROS), ==, 0);
	epoch_log_set_sealed(log, true);
	check_view(dir, true);
	for (uint64_t bit = 0; bit < 8 * sizeof(struct epoch_log_header); bit++)
		flip_and_view(dir, path, bit);
	for (uint64_t bit = 0; bit < 8 * ENTRIES; bit++)
		flip_and_view(dir, index, bit);
	for (unsigned i = 0; i < 2000; i++)
		flip_and_view(dir, path, (uint64_t)g_test_rand_int_range(0, 8 * (1 + SLOTS) * DISK_BLOCK_BYTES));
	check_view(dir, true);
	epoch_log_drop(log);
}

static void writer_reads_only_what_it_wrote(void)
{
	g_autoptr(scratch) dir = scratch_new();
	g_autofree char *path = epoch_log_path(dir, epoch_of(7), "");
	uint8_t data[4 * DISK_BLOCK_BYTES];
	struct epoch_log *log = make(dir, 7);
	fill(log, 20, 4, 1);
	for (unsigned i = 0; i < 200; i++) {
		uint64_t bit = (uint64_t)g_test_rand_int_range(0, 8 * 4 * DISK_BLOCK_BYTES), slot = bit / 8 / DISK_BLOCK_BYTES;
		scratch_flip(path, 8 * DISK_BLOCK_BYTES + bit);
		g_assert_cmpint(epoch_log_read(log, 0, 4, data), ==, EBADMSG);
		g_assert_cmpint(epoch_log_read(log, slot, 1, data), ==, EBADMSG);
		g_assert_cmpint(epoch_log_read(log, (slot + 1) % 4, 1, data), ==, 0);
		scratch_flip(path, 8 * DISK_BLOCK_BYTES + bit);
	}
	g_assert_cmpint(epoch_log_read(log, 0, 4, data), ==, 0);
	epoch_log_drop(log);
}

/* A sealed log into which an older one is merged is still one to believe. */
static void sealed_log_takes_blocks(void)
{
	g_autoptr(scratch) dir = scratch_new();
	struct epoch_log *log = make(dir, 7);
	fill(log, 20, 4, 1);
	epoch_log_set_sealed(log, true);
	fill(log, 30, 1, 2);
	g_assert_cmpint(epoch_log_zero(log, 31, 1), ==, 0);
	check_view(dir, true);
	epoch_log_drop(log);
}

/* A write that ends in the midst of a run: the old slot has what it has, the new one is not there. */
static void torn_write_is_no_damage(void)
{
	g_autoptr(scratch) dir = scratch_new();
	struct rlimit before, limit;
	struct epoch_log *log = make(dir, 7);
	uint8_t data[2 * DISK_BLOCK_BYTES];
	memset(data, 9, sizeof data);
	fill(log, 20, 4, 1);
	getrlimit(RLIMIT_FSIZE, &before);
	limit = (struct rlimit){ 5 * DISK_BLOCK_BYTES, before.rlim_max };
	signal(SIGXFSZ, SIG_IGN);
	setrlimit(RLIMIT_FSIZE, &limit);
	int err = epoch_log_write(log, 23, 2, data);
	setrlimit(RLIMIT_FSIZE, &before);
	g_assert_cmpint(err, ==, EFBIG);
	g_assert_cmpint(epoch_log_read(log, 3, 1, data), ==, 0);
	g_assert_cmpint(data[0], ==, 9);
	epoch_log_set_sealed(log, true);
	check_view(dir, true);
	epoch_log_drop(log);
}

static void remove_all_takes_logs_only(void)
{
	g_autoptr(scratch) dir = scratch_new();
	g_autoptr(GError) error = NULL;
	g_autofree char *overlay = scratch_file(dir, "overlay", 1, 0), *stale = scratch_file(dir, "log.12.idx", 1, 0);
	g_assert_true(epoch_log_remove_all(dir, &error));
	g_assert_true(g_file_test(overlay, G_FILE_TEST_EXISTS));
	g_assert_false(g_file_test(stale, G_FILE_TEST_EXISTS));
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/disk/log/D7-view-sorted-newest", view_is_sorted_and_newest);
	g_test_add_func("/disk/log/empty", empty_log_can_be_viewed);
	g_test_add_func("/disk/log/grows", log_grows);
	g_test_add_func("/disk/log/relabel", relabel_moves_both_files);
	for (size_t i = 0; i < G_N_ELEMENTS(damages); i++) {
		g_autofree char *name = g_strconcat("/disk/log/D9-refuses/", damages[i].name, NULL);
		g_test_add_data_func(name, &damages[i], refuse);
	}
	g_test_add_func("/disk/log/D9-refuses/short", refuse_short);
	g_test_add_func("/disk/log/D24-one-bit", one_bit_is_refused);
	g_test_add_func("/disk/log/D24-read", writer_reads_only_what_it_wrote);
	g_test_add_func("/disk/log/D24-merged-into", sealed_log_takes_blocks);
	g_test_add_func("/disk/log/D24-torn", torn_write_is_no_damage);
	g_test_add_func("/disk/log/remove-all", remove_all_takes_logs_only);
	return g_test_run();
}
