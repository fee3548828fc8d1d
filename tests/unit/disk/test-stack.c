/* test-stack.c - the disk against a dumb oracle: for each epoch a plain array of blocks. Thousands of random operations, everything that can be
 * seen compared: reads, the agent's view of every sealed log, overlay and map. Then the single rules. */
#include "base/fault.h"
#include "disk/disk-private.h"
#include "disk/log.h"
#include "disk/stack.h"
#include "scratch.h"

#include <glib/gstdio.h>

#include <pthread.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define BLOCKS 40u
#define BASE_BYTES (39u * DISK_BLOCK_BYTES + 1000u)   /* ends within block 39 */
#define BYTES (BLOCKS * DISK_BLOCK_BYTES)
#define LAYERS 8u                                     /* most epochs not yet committed, the open one included */

/* ---- the oracle ---- */

struct layer { uint64_t epoch; bool has[BLOCKS]; uint8_t data[BLOCKS][DISK_BLOCK_BYTES]; };

struct world {
	char *dir, *base;
	struct disk_stack *stack;
	struct layer disk;              /* base, with what is committed; has: is in the overlay */
	struct layer layer[LAYERS];     /* oldest first; the last is open */
	unsigned layers;
	GRand *random;
};

static struct disk_stack *stack_open_fold(const char *base, const char *dir, struct epoch_id next, struct epoch_id fold, GError **error)
{
	int fd = open(base, O_RDONLY | O_CLOEXEC);
	g_assert_cmpint(fd, >=, 0);
	return disk_stack_open(fd, dir, next, fold, error);
}

static struct disk_stack *stack_open(const char *base, const char *dir, struct epoch_id next, GError **error)
{
	return stack_open_fold(base, dir, next, epoch_of(0), error);
}

static uint8_t *oracle_block(struct world *w, unsigned block)
{
	for (unsigned i = w->layers; i-- > 0;)
		if (w->layer[i].has[block])
			return w->layer[i].data[block];
	return w->disk.data[block];
}

static void oracle_write(struct world *w, const uint8_t *data, size_t n, size_t at)
{
	struct layer *open = &w->layer[w->layers - 1];
	for (size_t i = 0; i < n; i++) {
		unsigned block = (unsigned)((at + i) / DISK_BLOCK_BYTES);
		if (!open->has[block])
			memcpy(open->data[block], oracle_block(w, block), DISK_BLOCK_BYTES);
		open->has[block] = true;
		open->data[block][(at + i) % DISK_BLOCK_BYTES] = data ? data[i] : 0;
	}
}

static void oracle_put(struct layer *to, const struct layer *from, bool over)
{
	for (unsigned b = 0; b < BLOCKS; b++) {
		if (!from->has[b] || (to->has[b] && !over))
			continue;
		memcpy(to->data[b], from->data[b], DISK_BLOCK_BYTES);
		to->has[b] = true;
	}
}

static void oracle_remove(struct world *w, unsigned i)
{
	memmove(&w->layer[i], &w->layer[i + 1], (w->layers - i - 1) * sizeof w->layer[0]);
	w->layers--;
}

static void oracle_open(struct world *w, uint64_t epoch)
{
	w->layer[w->layers] = (struct layer){ .epoch = epoch };
	w->layers++;
}

static void oracle_commit(struct world *w, uint64_t r)
{
	while (w->layer[0].epoch <= r && w->layers > 1) {
		oracle_put(&w->disk, &w->layer[0], true);
		w->disk.epoch = w->layer[0].epoch;
		oracle_remove(w, 0);
	}
}

/* ---- comparing ---- */

static void check_reads(struct world *w)
{
	static uint8_t got[BYTES];
	size_t at = (size_t)g_rand_int_range(w->random, 0, BYTES), n = (size_t)g_rand_int_range(w->random, 0, (gint32)(BYTES - at) + 1);
	g_assert_cmpint(disk_stack_read(w->stack, got, n, at), ==, 0);
	for (size_t i = 0; i < n;) {
		size_t skip = (at + i) % DISK_BLOCK_BYTES, part = MIN(DISK_BLOCK_BYTES - skip, n - i);
		if (memcmp(got + i, oracle_block(w, (unsigned)((at + i) / DISK_BLOCK_BYTES)) + skip, part) != 0)
			g_error("D1: a read of %zu bytes at %zu differs in block %zu", n, at, (at + i) / DISK_BLOCK_BYTES);
		i += part;
	}
}

static void check_views(struct world *w)
{
	for (unsigned i = 0; i + 1 < w->layers; i++) {
		g_autoptr(GError) error = NULL;
		struct disk_log *view = epoch_log_view(w->dir, epoch_of(w->layer[i].epoch), BLOCKS, &error);
		g_assert_no_error(error);
		size_t k = 0;
		for (unsigned b = 0; b < BLOCKS; b++) {
			if (!w->layer[i].has[b])
				continue;
			g_assert_cmpuint(k, <, view->count);
			g_assert_cmpuint(view->block[k], ==, b);
			g_assert_cmpint(memcmp(view->data[k], w->layer[i].data[b], DISK_BLOCK_BYTES), ==, 0);
			k++;
		}
		g_assert_cmpuint(k, ==, view->count);
		disk_log_free(view);
	}
}

/* Overlay, map and sums are what was committed, no more and no less (D3, D25). */
static void check_overlay(struct world *w)
{
	g_autofree char *overlay_path = g_build_filename(w->dir, "overlay", NULL), *map_path = g_build_filename(w->dir, "map", NULL);
	g_autofree char *overlay = NULL, *map = NULL;
	gsize n, map_n;
	g_assert_true(g_file_get_contents(overlay_path, &overlay, &n, NULL) && g_file_get_contents(map_path, &map, &map_n, NULL));
	g_assert_cmpuint(n, ==, BYTES);
	g_assert_cmpuint(map_n, ==, (BLOCKS + 7) / 8);
	g_autofree char *sums_path = g_build_filename(w->dir, "sums", NULL), *sums = NULL;
	g_assert_true(g_file_get_contents(sums_path, &sums, &n, NULL));
	g_assert_cmpuint(n, ==, BLOCKS * sizeof(uint64_t));
	for (unsigned b = 0; b < BLOCKS; b++) {
		g_assert_cmpint(map[b / 8] >> (b % 8) & 1, ==, w->disk.has[b]);
		g_assert_cmpuint(((uint64_t *)(void *)sums)[b], ==, w->disk.has[b] ? sum_page(w->disk.data[b], b) : 0);
		if (w->disk.has[b])
			g_assert_cmpint(memcmp(overlay + b * DISK_BLOCK_BYTES, w->disk.data[b], DISK_BLOCK_BYTES), ==, 0);
	}
}

/* ---- operations ---- */

static void do_write(struct world *w, bool zero)
{
	static uint8_t data[BYTES];
	bool whole = g_rand_boolean(w->random);   /* half of them whole blocks */
	size_t unit = whole ? DISK_BLOCK_BYTES : 1;
	size_t at = (size_t)g_rand_int_range(w->random, 0, (gint32)(BYTES / unit)) * unit;
	size_t n = (size_t)g_rand_int_range(w->random, 0, 5 * DISK_BLOCK_BYTES) / unit * unit;
	n = MIN(n, BYTES - at);
	for (size_t i = 0; i < n; i += 64)
		memset(data + i, g_rand_int_range(w->random, 0, 256), MIN(64, n - i));
	g_assert_cmpint(zero ? disk_stack_zero(w->stack, n, at) : disk_stack_write(w->stack, data, n, at), ==, 0);
	oracle_write(w, zero ? NULL : data, n, at);
}

static void do_seal(struct world *w)
{
	g_autoptr(GError) error = NULL;
	uint64_t count, expect = 0;
	struct layer *open = &w->layer[w->layers - 1];
	if (w->layers == LAYERS)
		return;
	open->epoch += g_rand_int_range(w->random, 0, 8) == 0;   /* now and then one was given up before its seal (D12) */
	g_assert_true(disk_stack_seal(w->stack, epoch_of(open->epoch), &count, &error));
	for (unsigned b = 0; b < BLOCKS; b++)
		expect += open->has[b];
	g_assert_cmpuint(count, ==, expect);
	oracle_open(w, open->epoch + 1);
}

static void do_commit(struct world *w)
{
	g_autoptr(GError) error = NULL;
	uint64_t r = w->layer[g_rand_int_range(w->random, 0, (gint32)w->layers)].epoch;
	bool ok = r != w->layer[w->layers - 1].epoch;   /* not the open one (D13) */
	g_assert_cmpint(disk_stack_commit(w->stack, epoch_of(r), &error), ==, ok);
	if (ok)
		oracle_commit(w, r);
	check_overlay(w);
}

static void do_merge(struct world *w)
{
	g_autoptr(GError) error = NULL;
	unsigned i = (unsigned)g_rand_int_range(w->random, 0, (gint32)w->layers);
	g_assert_true(disk_stack_merge(w->stack, epoch_of(w->layer[i].epoch), &error));
	if (i + 1 == w->layers)
		return;   /* the open one: nothing to do */
	oracle_put(&w->layer[i + 1], &w->layer[i], false);
	oracle_remove(w, i);
}

static void do_rollback(struct world *w)
{
	g_autoptr(GError) error = NULL;
	unsigned keep = (unsigned)g_rand_int_range(w->random, 0, (gint32)w->layers);   /* sealed epochs that are kept */
	uint64_t c = keep ? w->layer[keep - 1].epoch : w->disk.epoch;
	disk_stack_rollback(w->stack, epoch_of(c), &error);
	g_assert_no_error(error);
	oracle_commit(w, c);
	w->layers = 0;
	oracle_open(w, c + 1);
	check_overlay(w);
}

/* The agent ended and starts again: what is committed is there, nothing else. */
static void do_restart(struct world *w)
{
	g_autoptr(GError) error = NULL;
	disk_stack_close(w->stack);
	w->stack = stack_open(w->base, w->dir, epoch_of(w->disk.epoch + 1), &error);
	g_assert_no_error(error);
	w->layers = 0;
	oracle_open(w, w->disk.epoch + 1);
}

static void step(struct world *w)
{
	int dice = g_rand_int_range(w->random, 0, 1000);
	if (dice < 500)
		do_write(w, false);
	else if (dice < 600)
		do_write(w, true);
	else if (dice < 800)
		check_reads(w);
	else if (dice < 900)
		do_seal(w);
	else if (dice < 930)
		do_commit(w);
	else if (dice < 960)
		do_merge(w);
	else if (dice < 970)
		do_rollback(w);
	else if (dice < 975)
		do_restart(w);
	else if (dice < 985)
		disk_stack_tidy(w->stack);
	else
		check_views(w);
}

static void world_open(struct world *w, uint32_t seed)
{
	g_autoptr(GError) error = NULL;
	*w = (struct world){ .dir = scratch_new(), .random = g_rand_new_with_seed(seed) };
	w->base = scratch_file(w->dir, "base", BASE_BYTES, seed);
	g_autofree char *data = NULL;
	g_assert_true(g_file_get_contents(w->base, &data, NULL, NULL));
	memcpy(w->disk.data, data, BASE_BYTES);
	w->disk.epoch = 10;
	oracle_open(w, 11);
	w->stack = stack_open(w->base, w->dir, epoch_of(11), &error);
	g_assert_no_error(error);
	g_assert_cmpuint(disk_stack_blocks(w->stack), ==, BLOCKS);
}

static void world_close(struct world *w)
{
	disk_stack_close(w->stack);
	g_rand_free(w->random);
	g_free(w->base);
	scratch_free(w->dir);
}

static void random_against_oracle(gconstpointer seed)
{
	struct world *w = g_new0(struct world, 1);
	unsigned steps = g_test_thorough() ? 100000 : 4000;
	world_open(w, GPOINTER_TO_UINT(seed));
	g_autofree char *before = scratch_sum(w->base);
	for (unsigned i = 0; i < steps; i++)
		step(w);
	check_reads(w);
	check_views(w);
	check_overlay(w);
	g_autofree char *after = scratch_sum(w->base);
	g_assert_cmpstr(before, ==, after);   /* D5 */
	world_close(w);
	g_free(w);
}

/* ---- single rules ---- */

static void write_byte(struct disk_stack *stack, unsigned block, int byte)
{
	uint8_t data[DISK_BLOCK_BYTES];
	memset(data, byte, sizeof data);
	g_assert_cmpint(disk_stack_write(stack, data, sizeof data, block * DISK_BLOCK_BYTES), ==, 0);
}

static int read_byte(struct disk_stack *stack, unsigned block)
{
	uint8_t byte;
	g_assert_cmpint(disk_stack_read(stack, &byte, 1, block * DISK_BLOCK_BYTES + 77), ==, 0);
	return byte;
}

static struct disk_stack *open_small(const char *dir, const char *base, uint64_t next)
{
	g_autoptr(GError) error = NULL;
	struct disk_stack *stack = stack_open(base, dir, epoch_of(next), &error);
	g_assert_no_error(error);
	return stack;
}

static void wrong_epochs_are_refused(void)
{
	g_autoptr(scratch) dir = scratch_new();
	g_autofree char *base = scratch_file(dir, "base", 8 * DISK_BLOCK_BYTES, 1);
	struct disk_stack *stack = open_small(dir, base, 5);
	uint64_t count;
	write_byte(stack, 2, 1);
	g_assert_true(disk_stack_seal(stack, epoch_of(5), &count, NULL));
	write_byte(stack, 2, 2);
	const struct { const char *what; gboolean ok; } tries[] = {
		{ "seal of one sealed", disk_stack_seal(stack, epoch_of(5), &count, NULL) },
		{ "commit of the open one", disk_stack_commit(stack, epoch_of(6), NULL) },
		{ "commit of one to come", disk_stack_commit(stack, epoch_of(7), NULL) },
		{ "commit of one long gone", disk_stack_commit(stack, epoch_of(3), NULL) },
		{ "merge of one committed", disk_stack_merge(stack, epoch_of(4), NULL) },
		{ "rollback to the open one", disk_stack_rollback(stack, epoch_of(6), NULL) },
		{ "rollback to one long gone", disk_stack_rollback(stack, epoch_of(3), NULL) },
	};
	for (size_t i = 0; i < G_N_ELEMENTS(tries); i++)
		if (tries[i].ok)
			g_error("%s was accepted", tries[i].what);
	g_assert_cmpint(read_byte(stack, 2), ==, 2);                        /* D14 */
	g_assert_true(disk_stack_commit(stack, epoch_of(4), NULL));         /* was committed: nothing to do */
	g_assert_true(disk_stack_rollback(stack, epoch_of(5), NULL));
	g_assert_cmpint(read_byte(stack, 2), ==, 1);
	disk_stack_close(stack);
}

static void junk_is_refused(void)
{
	g_autoptr(scratch) dir = scratch_new();
	g_autofree char *base = scratch_file(dir, "base", 8 * DISK_BLOCK_BYTES, 1), *empty = scratch_file(dir, "empty", 0, 1);
	g_autofree char *none = g_build_filename(dir, "none", NULL);
	const struct { const char *base, *dir; uint64_t next; const char *expect; } cases[] = {
		{ dir, dir, 1, "neither a file nor a block device" }, { empty, dir, 1, "has 0 bytes" },
		{ base, none, 1, "No such file" }, { base, dir, 0, "epoch 0" },
	};
	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		g_autoptr(GError) error = NULL;
		g_assert_null(stack_open(cases[i].base, cases[i].dir, epoch_of(cases[i].next), &error));
		assert_error_has(error, cases[i].expect);
	}
	g_autoptr(GError) error = NULL;
	disk_stack_close(open_small(dir, base, 1));
	g_autofree char *other = scratch_file(dir, "other", 9 * DISK_BLOCK_BYTES, 1);
	g_assert_null(stack_open(other, dir, epoch_of(1), &error));
	assert_error_has(error, "belongs to another disk");
}

/* ---- D24 to D26: one flipped bit ---- */

static int try_read(struct disk_stack *stack, unsigned block, size_t skip, size_t n)
{
	uint8_t data[DISK_BLOCK_BYTES];
	return disk_stack_read(stack, data, n, block * DISK_BLOCK_BYTES + skip);
}

static bool file_is_zero(const char *path, uint64_t at, size_t n)
{
	g_autofree char *data = NULL;
	g_assert_true(g_file_get_contents(path, &data, NULL, NULL));
	return !data[at] && !memcmp(data + at, data + at + 1, n - 1);
}

static void bad_log_is_not_used(void)
{
	g_autoptr(scratch) dir = scratch_new();
	g_autofree char *base = scratch_file(dir, "base", 8 * DISK_BLOCK_BYTES, 1), *log = epoch_log_path(dir, epoch_of(1), "");
	g_autofree char *overlay = g_build_filename(dir, "overlay", NULL);
	struct disk_stack *stack = open_small(dir, base, 1);
	uint64_t count, bit = 8 * DISK_BLOCK_BYTES + (uint64_t)g_test_rand_int_range(0, 8 * DISK_BLOCK_BYTES);
	g_autoptr(GError) error = NULL;
	write_byte(stack, 2, 1);
	g_assert_true(disk_stack_seal(stack, epoch_of(1), &count, NULL));
	scratch_flip(log, bit);
	g_assert_cmpint(try_read(stack, 2, 0, DISK_BLOCK_BYTES), ==, EIO);
	g_assert_cmpint(try_read(stack, 2, 512, 512), ==, EIO);
	g_assert_cmpint(disk_stack_write(stack, "part", 4, 2 * DISK_BLOCK_BYTES), ==, EIO);
	g_assert_false(disk_stack_commit(stack, epoch_of(1), &error));
	g_assert_error(error, DISK_ERROR, DISK_ERROR_DAMAGED);
	g_assert_true(file_is_zero(overlay, 2 * DISK_BLOCK_BYTES, DISK_BLOCK_BYTES));
	g_assert_false(disk_stack_merge(stack, epoch_of(1), NULL));
	g_assert_false(disk_stack_rollback(stack, epoch_of(1), NULL));
	g_assert_true(disk_stack_rollback(stack, epoch_of(0), NULL));   /* it was not committed: a rollback is enough */
	g_assert_cmpint(try_read(stack, 2, 0, DISK_BLOCK_BYTES), ==, 0);
	g_assert_true(disk_stack_seal(stack, epoch_of(1), &count, NULL));
	disk_stack_close(stack);
}

/* After it: the guest is told, in whole and in part, what is committed here is given up, and nothing of it was changed. */
static void check_damaged(const char *dir, const char *base, unsigned block)
{
	struct disk_stack *stack = open_small(dir, base, 2);
	g_autoptr(GError) error = NULL;
	uint64_t count;
	g_assert_cmpint(try_read(stack, (block + 1) % 8, 0, DISK_BLOCK_BYTES), ==, 0);
	g_assert_true(disk_stack_seal(stack, epoch_of(2), &count, &error));
	g_assert_cmpint(try_read(stack, block, 0, DISK_BLOCK_BYTES), ==, EIO);
	g_assert_cmpint(disk_stack_write(stack, "part", 4, block * DISK_BLOCK_BYTES), ==, EIO);
	g_assert_false(disk_stack_seal(stack, epoch_of(3), &count, &error));
	g_assert_error(error, DISK_ERROR, DISK_ERROR_DAMAGED);
	disk_stack_close(stack);
}

static void bad_overlay_is_told(void)
{
	g_autoptr(scratch) dir = scratch_new();
	g_autofree char *base = scratch_file(dir, "base", 8 * DISK_BLOCK_BYTES, 1), *overlay = g_build_filename(dir, "overlay", NULL);
	g_autofree char *map = g_build_filename(dir, "map", NULL), *sums = g_build_filename(dir, "sums", NULL);
	struct disk_stack *stack = open_small(dir, base, 1);
	uint64_t count;
	for (unsigned b = 0; b < 4; b++)
		write_byte(stack, b, (int)b);
	g_assert_cmpint(disk_stack_zero(stack, DISK_BLOCK_BYTES, 4 * DISK_BLOCK_BYTES), ==, 0);
	g_assert_true(disk_stack_seal(stack, epoch_of(1), &count, NULL) && disk_stack_commit(stack, epoch_of(1), NULL));
	disk_stack_close(stack);
	const struct { const char *path; uint64_t bits_a_block; unsigned blocks; } parts[] = { { overlay, 8 * DISK_BLOCK_BYTES, 5 }, { map, 1, 8 }, { sums, 64, 8 } };
	for (size_t i = 0; i < G_N_ELEMENTS(parts); i++)
		for (unsigned k = 0; k < 60; k++) {
			unsigned block = (unsigned)g_test_rand_int_range(0, (gint32)parts[i].blocks);
			uint64_t bit = block * parts[i].bits_a_block + (uint64_t)g_test_rand_int_range(0, (gint32)parts[i].bits_a_block);
			scratch_flip(parts[i].path, bit);
			check_damaged(dir, base, block);
			scratch_flip(parts[i].path, bit);
		}
	stack = open_small(dir, base, 2);
	for (unsigned b = 0; b < 8; b++)
		g_assert_cmpint(try_read(stack, b, 0, DISK_BLOCK_BYTES), ==, 0);
	disk_stack_close(stack);
}

static void requests_beyond_the_end_are_refused(void)
{
	g_autoptr(scratch) dir = scratch_new();
	g_autofree char *base = scratch_file(dir, "base", 8 * DISK_BLOCK_BYTES, 1);
	struct disk_stack *stack = open_small(dir, base, 1);
	uint8_t data[2] = { 0 };
	g_assert_cmpint(disk_stack_write(stack, data, 2, 8 * DISK_BLOCK_BYTES - 1), ==, EINVAL);
	g_assert_cmpint(disk_stack_zero(stack, UINT64_MAX, 1), ==, EINVAL);
	g_assert_cmpint(disk_stack_read(stack, data, 1, UINT64_MAX), ==, EINVAL);
	g_assert_cmpint(disk_stack_read(stack, data, 0, 8 * DISK_BLOCK_BYTES), ==, 0);
	disk_stack_close(stack);
}

/* In a process that is killed, as an nbdkit is: 1 is committed, 2 is sealed, 3 is open. Blocks of 2: 3, and 4 as zeros. */
static void leave_sealed(const char *base, const char *dir)
{
	pid_t pid = fork();
	if (pid == 0) {
		struct disk_stack *stack = open_small(dir, base, 1);
		uint64_t count;
		write_byte(stack, 3, 5);
		write_byte(stack, 4, 5);
		g_assert_true(disk_stack_seal(stack, epoch_of(1), &count, NULL) && disk_stack_commit(stack, epoch_of(1), NULL));
		write_byte(stack, 3, 6);
		g_assert_cmpint(disk_stack_zero(stack, DISK_BLOCK_BYTES, 4 * DISK_BLOCK_BYTES), ==, 0);
		g_assert_true(disk_stack_seal(stack, epoch_of(2), &count, NULL));
		write_byte(stack, 3, 7);
		_exit(0);
	}
	int status;
	g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
	g_assert_cmpint(status, ==, 0);
}

/* D27: what was sealed is folded by the next process if it is committed, and is dropped if it is not. */
static void log_outlives_the_process(void)
{
	for (unsigned committed = 0; committed < 2; committed++) {
		g_autoptr(scratch) dir = scratch_new();
		g_autofree char *base = scratch_file(dir, "base", 8 * DISK_BLOCK_BYTES, 1);
		g_autoptr(GError) error = NULL;
		leave_sealed(base, dir);
		struct disk_stack *stack = stack_open_fold(base, dir, epoch_of(2 + committed), epoch_of(committed ? 2 : 0), &error);
		g_assert_no_error(error);
		g_assert_cmpint(read_byte(stack, 3), ==, committed ? 6 : 5);
		g_assert_cmpint(read_byte(stack, 4), ==, committed ? 0 : 5);
		disk_stack_close(stack);
		g_assert_null(stack_open_fold(base, dir, epoch_of(3), epoch_of(2), &error)); /* it is gone now */
		g_assert_nonnull(error);
	}
}

/* D27: a log that is not as it was sealed is not folded. */
static void damaged_log_is_not_folded(void)
{
	g_autoptr(scratch) dir = scratch_new();
	g_autofree char *base = scratch_file(dir, "base", 8 * DISK_BLOCK_BYTES, 1), *log = epoch_log_path(dir, epoch_of(2), "");
	g_autoptr(GError) error = NULL;
	leave_sealed(base, dir);
	scratch_flip(log, (DISK_BLOCK_BYTES + 9) * 8);
	g_assert_null(stack_open_fold(base, dir, epoch_of(3), epoch_of(2), &error));
	g_assert_error(error, DISK_ERROR, DISK_ERROR_DAMAGED);
	g_assert_true(g_file_test(log, G_FILE_TEST_EXISTS));
}

/* A full disk, by order: the request fails, what is there stays, the retry passes. */
static void no_space_fails_and_retry_passes(void)
{
	g_autoptr(scratch) dir = scratch_new();
	g_autofree char *base = scratch_file(dir, "base", 8 * DISK_BLOCK_BYTES, 1);
	g_autoptr(GError) error = NULL;
	struct disk_stack *stack = open_small(dir, base, 1);
	uint8_t data[DISK_BLOCK_BYTES] = { 9 };
	uint64_t count;
	write_byte(stack, 3, 5);
	fault_set(FAULT_DISK_WRITE, 1);
	g_assert_cmpint(disk_stack_write(stack, data, sizeof data, 4 * DISK_BLOCK_BYTES), ==, ENOSPC);
	g_assert_cmpint(disk_stack_write(stack, data, sizeof data, 4 * DISK_BLOCK_BYTES), ==, 0);
	g_assert_true(disk_stack_seal(stack, epoch_of(1), &count, NULL));
	fault_set(FAULT_DISK_WRITE, 1);
	g_assert_false(disk_stack_merge(stack, epoch_of(1), &error));
	assert_error_has(error, "No space left");
	g_assert_cmpint(read_byte(stack, 3), ==, 5);
	g_assert_true(disk_stack_merge(stack, epoch_of(1), NULL));
	g_assert_cmpint(read_byte(stack, 3), ==, 5);
	fault_clear();
	disk_stack_close(stack);
}

/* Until it is given back the overlay's second block cannot be written: EFBIG, as good as EIO. */
static void forbid_large_files(bool forbidden)
{
	struct rlimit limit;
	g_assert_cmpint(getrlimit(RLIMIT_FSIZE, &limit), ==, 0);
	limit.rlim_cur = forbidden ? DISK_BLOCK_BYTES : limit.rlim_max;
	signal(SIGXFSZ, forbidden ? SIG_IGN : SIG_DFL);
	g_assert_cmpint(setrlimit(RLIMIT_FSIZE, &limit), ==, 0);
}

/* D3, D10: a fold that fails leaves its epoch where it was: not committed, read as before; the retry passes. */
static void failed_fold_is_no_commit(void)
{
	g_autoptr(scratch) dir = scratch_new();
	g_autofree char *base = scratch_file(dir, "base", 8 * DISK_BLOCK_BYTES, 1), *log = epoch_log_path(dir, epoch_of(1), "");
	g_autoptr(GError) error = NULL;
	struct disk_stack *stack = open_small(dir, base, 1);
	uint64_t count;
	write_byte(stack, 0, 5);
	write_byte(stack, 3, 6);
	g_assert_true(disk_stack_seal(stack, epoch_of(1), &count, NULL));
	forbid_large_files(true);
	gboolean committed = disk_stack_commit(stack, epoch_of(1), &error);
	forbid_large_files(false);
	g_assert_false(committed);
	assert_error_has(error, "overlay, block 3: File too large");
	g_assert_true(g_file_test(log, G_FILE_TEST_EXISTS));
	g_assert_cmpint(read_byte(stack, 0), ==, 5);
	g_assert_cmpint(read_byte(stack, 3), ==, 6);
	g_assert_true(disk_stack_commit(stack, epoch_of(1), NULL));
	disk_stack_close(stack);
	stack = open_small(dir, base, 2);
	g_assert_cmpint(read_byte(stack, 0), ==, 5);
	g_assert_cmpint(read_byte(stack, 3), ==, 6);
	disk_stack_close(stack);
}

/* Take all the space that is left. */
static void fill(const char *dir)
{
	static const uint8_t block[DISK_BLOCK_BYTES];
	g_autofree char *path = g_build_filename(dir, "filler", NULL);
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	while (write(fd, block, sizeof block) > 0)
		;
	close(fd);
}

/* D14, D22, D23 on a file system that is really full: writes fail with ENOSPC, nothing that was written is lost; what was written is committed, and
 * epochs go on; all goes on when there is room. */
static void full_file_system_here(void)
{
	g_autoptr(scratch) dir = scratch_new();
	g_autofree char *base = scratch_file(dir, "base", 1024 * DISK_BLOCK_BYTES, 1), *small = g_build_filename(dir, "small", NULL);
	g_autoptr(GError) error = NULL;
	uint64_t count;
	unsigned n = 0;
	uint8_t data[DISK_BLOCK_BYTES];
	g_assert_cmpint(g_mkdir(small, 0700), ==, 0);
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 || mount("none", small, "tmpfs", 0, "size=1m") < 0) {
		g_print("may not mount\n");
		return;
	}
	struct disk_stack *stack = open_small(small, base, 1);
	do
		memset(data, (int)n % 200 + 1, sizeof data);
	while (disk_stack_write(stack, data, sizeof data, n * DISK_BLOCK_BYTES) == 0 && ++n < 1024);
	g_assert_cmpuint(n, >, 50);
	g_assert_cmpuint(n, <, 128);
	fill(small);
	for (uint64_t r = 1; r < 9; r++) {
		if (r == 3)                 /* given up before it is sealed */
			continue;
		g_assert_true(disk_stack_seal(stack, epoch_of(r), &count, &error));
		g_assert_cmpuint(count, ==, r == 1 ? n : 0);
		if (r == 5)
			g_assert_true(disk_stack_merge(stack, epoch_of(r), &error));
		else
			g_assert_true(disk_stack_commit(stack, epoch_of(r), &error));
		disk_stack_tidy(stack);
		fill(small);                /* what a commit gave back somebody else takes */
		g_assert_cmpint(disk_stack_write(stack, data, sizeof data, (n + 1) * DISK_BLOCK_BYTES), ==, ENOSPC);
	}
	g_assert_true(disk_stack_rollback(stack, epoch_of(8), &error));
	for (unsigned b = 0; b < n; b++)
		g_assert_cmpint(read_byte(stack, b), ==, (int)b % 200 + 1);
	g_assert_cmpint(mount("none", small, "tmpfs", MS_REMOUNT, "size=8m"), ==, 0);
	g_assert_cmpint(disk_stack_write(stack, data, sizeof data, n * DISK_BLOCK_BYTES), ==, 0);
	g_assert_true(disk_stack_seal(stack, epoch_of(9), &count, NULL));
	g_assert_true(disk_stack_commit(stack, epoch_of(9), NULL));
	for (unsigned b = 0; b <= n; b++)
		g_assert_cmpint(read_byte(stack, b), ==, (int)b % 200 + 1);
	disk_stack_close(stack);
	umount(small);
}

static void full_file_system(void)
{
	if (g_test_subprocess()) {
		full_file_system_here();
		return;
	}
	g_test_trap_subprocess(NULL, 0, 0);
	g_test_trap_assert_passed();
}

/* D11: reads in other threads see neither a hole nor an old block while logs are sealed, merged, folded and dropped. Writers count up: what a
 * reader sees of a block never goes down. */
struct race { struct disk_stack *stack; bool stop; };

static void *race_reader(void *data)
{
	struct race *race = data;
	uint64_t last[8] = { 0 };
	while (!__atomic_load_n(&race->stop, __ATOMIC_RELAXED)) {
		static __thread uint64_t got[8][DISK_BLOCK_BYTES / 8];
		g_assert_cmpint(disk_stack_read(race->stack, got, sizeof got, 0), ==, 0);
		for (unsigned b = 0; b < 8; b++) {
			g_assert_cmpuint(got[b][0], >=, last[b]);
			g_assert_cmpuint(got[b][0], ==, got[b][DISK_BLOCK_BYTES / 8 - 1]);
			last[b] = got[b][0];
		}
	}
	return NULL;
}

static void *race_writer(void *data)
{
	struct race *race = data;
	uint64_t block[DISK_BLOCK_BYTES / 8];
	for (uint64_t n = 1; !__atomic_load_n(&race->stop, __ATOMIC_RELAXED); n++) {
		for (unsigned i = 0; i < G_N_ELEMENTS(block); i++)
			block[i] = n;
		g_assert_cmpint(disk_stack_write(race->stack, block, sizeof block, n % 7 * DISK_BLOCK_BYTES), ==, 0);
		if (n % 64 == 0)
			g_usleep(100); /* a load that leaves room for the others */
	}
	return NULL;
}

static void readers_see_no_seam(void)
{
	g_autoptr(scratch) dir = scratch_new();
	g_autofree char *base = g_build_filename(dir, "base", NULL);
	g_assert_true(g_file_set_contents(base, "", 0, NULL) && truncate(base, 8 * DISK_BLOCK_BYTES) == 0);
	struct race race = { open_small(dir, base, 1), false };
	pthread_t reader, writer;
	uint64_t count;
	pthread_create(&reader, NULL, race_reader, &race);
	pthread_create(&writer, NULL, race_writer, &race);
	for (uint64_t r = 1; r < (g_test_thorough() ? 5000 : 300); r++) {
		g_assert_true(disk_stack_seal(race.stack, epoch_of(r), &count, NULL));
		g_assert_true(r % 3 ? disk_stack_commit(race.stack, epoch_of(r), NULL) : disk_stack_merge(race.stack, epoch_of(r), NULL));
		disk_stack_tidy(race.stack);
	}
	__atomic_store_n(&race.stop, true, __ATOMIC_RELAXED);
	pthread_join(reader, NULL);
	pthread_join(writer, NULL);
	disk_stack_close(race.stack);
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	for (unsigned seed = 1; seed <= 4; seed++) {
		g_autofree char *name = g_strdup_printf("/disk/stack/random/%u", seed);
		g_test_add_data_func(name, GUINT_TO_POINTER(seed), random_against_oracle);
	}
	g_test_add_func("/disk/stack/D13-wrong-epochs", wrong_epochs_are_refused);
	g_test_add_func("/disk/stack/junk", junk_is_refused);
	g_test_add_func("/disk/stack/beyond-the-end", requests_beyond_the_end_are_refused);
	g_test_add_func("/disk/stack/D14-no-space", no_space_fails_and_retry_passes);
	g_test_add_func("/disk/stack/D14-full-file-system", full_file_system);
	g_test_add_func("/disk/stack/D10-failed-fold", failed_fold_is_no_commit);
	g_test_add_func("/disk/stack/D24-bad-log", bad_log_is_not_used);
	g_test_add_func("/disk/stack/D25-D26-bad-overlay", bad_overlay_is_told);
	g_test_add_func("/disk/stack/D27-outlives", log_outlives_the_process);
	g_test_add_func("/disk/stack/D27-damaged", damaged_log_is_not_folded);
	g_test_add_func("/disk/stack/D11-no-seam", readers_see_no_seam);
	return g_test_run();
}
