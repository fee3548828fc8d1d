/* test-store.c - source and sinks together over 127.0.0.1, against the oracle of bed.h. Tests are named after the rules of store.h. */
#include "bed.h"

#include "base/fault.h"
#include "store/store-private.h"

#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- the random test ---- */
static void random_epoch(struct bed *bed, bool *ret_all_complete, unsigned mask)
{
	unsigned roll = (unsigned)(bed_random() % 100);
	struct epoch_id r = bed_send(bed);
	if (roll < 8) {    /* at once */
		bed_abort(bed, r);
		return;
	}
	if (roll < 40)
		bed_write_some(bed, 5);    /* the guest goes on */
	if (roll < 14) {    /* while it waits for the record */
		g_usleep(bed_random() % 3000);
		bed_abort(bed, r);
		return;
	}
	bed_record(bed, r);
	if (roll < 20) {    /* whenever it is */
		g_usleep(bed_random() % 2000);
		bed_abort(bed, r);
		return;
	}
	if (!bed_wait(bed, r))
		g_error("epoch %" G_GUINT64_FORMAT ": %s", (guint64)r.n, bed->why);
	if (roll < 26) {
		bed_abort(bed, r);
		return;
	}
	*ret_all_complete = host_count(bed->stored_complete) == (unsigned)__builtin_popcount(mask);
	bed_commit(bed, r);
}

static void check_all(struct bed *bed, unsigned complete)
{
	bed_check_shadow(bed);
	for (unsigned i = 0; i < BED_BACKUPS; i++)
		if (complete >> i & 1)
			bed_check_image(bed, i);
	g_assert_cmpint(g_atomic_int_get(&bed->verify_failures), ==, 0);
}

static void generation(struct bed *bed, unsigned mask, unsigned *inout_complete)
{
	bool all = false;
	bed_set_backups(bed, mask, *inout_complete);
	for (unsigned i = 0; i < 12 || (!all && i < 80 && bed_random() % 4); i++) {
		bed_write_some(bed, (unsigned)(bed_random() % 20 ? bed_random() % 40 : 1500));
		random_epoch(bed, &all, mask);
	}
	*inout_complete = bed_recover(bed);
	if (all)
		g_assert_cmpuint(*inout_complete & mask, ==, mask);
}

static void test_random(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .disks = 2, .backups = 3, .fill_bytes = 30 * VCFT_PAGE_SIZE });
	unsigned complete = 0, were = 0;
	for (unsigned g = 0; g < (g_test_slow() ? 60 : 12); g++) {
		generation(bed, g % 3 == 2 ? 6 : g % 4 == 1 ? 7 : 3, &complete);
		check_all(bed, complete);
		were += (unsigned)__builtin_popcount(complete);
	}
	g_assert_cmpuint(were, >, 4);
	bed_free(bed);
}

/* ---- S1 ---- */
static void test_S1_not_before_commit(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .disks = 1, .backups = 1 });
	struct message_holding h[VCFT_VM_MAX];
	bed_set_backups(bed, 1, 0);
	bed_write_some(bed, 200);
	bed_epoch(bed);
	bed_write_some(bed, 200);
	struct epoch_id r = bed_send(bed);
	bed_record(bed, r);
	g_assert_true(bed_wait(bed, r));
	g_assert_cmpuint(sink_holdings(bed->backup[0].sink, h), ==, 1);
	g_assert_cmpuint(h[0].image.n, ==, 1);
	g_assert_cmpuint(h[0].staged.n, ==, 2);
	g_assert_cmpuint(h[0].complete.n, ==, 1);
	bed_check_image(bed, 0);    /* still at 1 */
	sink_commit(bed->backup[0].sink, epoch_of(1));    /* not its epoch */
	sink_holdings(bed->backup[0].sink, h);
	g_assert_cmpuint(h[0].image.n, ==, 1);
	bed_check_image(bed, 0);
	sink_commit(bed->backup[0].sink, r);
	sink_holdings(bed->backup[0].sink, h);
	g_assert_cmpuint(h[0].image.n, ==, 2);
	g_assert_cmpuint(h[0].staged.n, ==, 0);
	bed_commit_source(bed, r);
	bed_check_image(bed, 0);
	bed_free(bed);
}

static void test_S1_discard(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .disks = 1, .backups = 1 });
	struct message_holding h[VCFT_VM_MAX];
	bed_set_backups(bed, 1, 0);
	bed_write_some(bed, 100);
	bed_epoch(bed);
	bed_write_some(bed, 100);
	struct epoch_id r = bed_send(bed);
	bed_record(bed, r);
	g_assert_true(bed_wait(bed, r));
	bed_abort(bed, r);
	sink_holdings(bed->backup[0].sink, h);
	g_assert_cmpuint(h[0].image.n, ==, 1);
	g_assert_cmpuint(h[0].staged.n, ==, 0);
	bed_check_image(bed, 0);
	bed_free(bed);
}

/* An image that lacks an epoch is good until that epoch is committed, and no longer. */
static void test_K6_lacks_an_epoch(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .backups = 1 });
	struct message_holding h[VCFT_VM_MAX];
	bed_set_backups(bed, 1, 0);
	bed_write_some(bed, 100);
	struct epoch_id r = bed_epoch(bed);
	g_assert_cmpuint(sink_holdings(bed->backup[0].sink, h), ==, 1);
	bed_check_image(bed, 0);
	sink_commit(bed->backup[0].sink, epoch_next(r));
	g_assert_cmpuint(sink_holdings(bed->backup[0].sink, h), ==, 0);
	bed_free(bed);
}

/* The stream of r + 1 is there before the group's commit of r. */
static void test_K2_stream_before_commit(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .disks = 1, .backups = 1 });
	bed_set_backups(bed, 1, 0);
	bed_write_some(bed, 100);
	struct epoch_id r = bed_send(bed);
	bed_record(bed, r);
	g_assert_true(bed_wait(bed, r));
	bed_commit_source(bed, r);
	bed_write_some(bed, 100);
	struct epoch_id next = bed_send(bed);
	bed_record(bed, next);
	g_usleep(20000);    /* for nothing to happen */
	g_mutex_lock(&bed->lock);
	g_assert_cmpuint(bed->stored_epoch.n, ==, r.n);
	g_mutex_unlock(&bed->lock);
	sink_commit(bed->backup[0].sink, r);
	g_assert_true(bed_wait(bed, next));
	bed_commit(bed, next);
	g_assert_cmpuint(bed_recover(bed), ==, 1);
	bed_check_image(bed, 0);
	bed_free(bed);
}

/* ---- S4: fill ---- */
static void test_S4_fill_bounded(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .disks = 1, .backups = 2, .fill_bytes = 50 * VCFT_PAGE_SIZE });
	bed_set_backups(bed, 1, 0);
	for (uint64_t p = 0; p < 600; p++)
		bed_write(bed, 0, p, 1);
	for (uint64_t p = 0; p < 100; p += 2)
		bed_write(bed, 1, p, 2);    /* zeros over the base: they count */
	bed_epoch(bed);
	g_assert_cmpuint(bed->stored_complete, ==, host_bit(bed_host(0)));
	bed_set_backups(bed, 3, 0);
	unsigned epochs = 0;
	do {
		bed_write_some(bed, 10);
		bed_epoch(bed);
		g_assert_cmpuint(bed->stats.pages, <=, 50 + 2 * 10 + 256);
		epochs++;
	} while (bed->stored_complete != (host_bit(bed_host(0)) | host_bit(bed_host(1))));
	g_assert_cmpuint(epochs, >=, 650 / 60);
	g_assert_cmpuint(epochs, <=, 650 / 50 + 1);
	g_assert_cmpuint(bed_recover(bed), ==, 3);
	check_all(bed, 3);
	bed_free(bed);
}

/* A backup that is not complete has no image after a recovery. */
static void test_S4_incomplete_is_dropped(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .backups = 1, .fill_bytes = 50 * VCFT_PAGE_SIZE });
	for (uint64_t p = 0; p < 600; p++)
		bed_write(bed, 0, p, 1);
	bed_set_backups(bed, 0, 0);
	bed_epoch(bed);
	bed_set_backups(bed, 1, 0);
	bed_epoch(bed);
	g_assert_cmpuint(bed->stored_complete, ==, 0);
	struct message_holding h[VCFT_VM_MAX];
	g_assert_cmpuint(sink_holdings(bed->backup[0].sink, h), ==, 1);
	g_assert_cmpuint(h[0].complete.n, ==, 0);
	g_assert_cmpuint(bed_recover(bed), ==, 0);
	g_assert_cmpuint(sink_holdings(bed->backup[0].sink, h), ==, 0);
	struct sink_memory memory;
	sink_memory(bed->backup[0].sink, &memory);
	g_assert_cmpuint(memory.image_bytes + memory.stage_bytes, ==, 0);
	bed_free(bed);
}

/* ---- S5 ---- */
static void test_S5_verify(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .backups = 1 });
	bed_set_backups(bed, 1, 0);
	bed_write_some(bed, 100);
	bed_epoch(bed);
	bed_recover(bed);
	g_assert_cmpint(g_atomic_int_get(&bed->verify_failures), ==, 0);
	bed_set_backups(bed, 1, 1);
	bed->wrong_hash = true;
	bed_write_some(bed, 100);
	bed_epoch(bed);
	bed_recover(bed);
	g_assert_cmpint(g_atomic_int_get(&bed->verify_failures), ==, 1);
	bed_free(bed);
}

/* ---- S6 ---- */
static void test_S6_two_epochs(void)
{
	if (g_test_subprocess()) {
		struct bed *bed = bed_new(&(struct bed_options){ 0 });
		bed_send(bed);
		bed_send(bed);
		return;
	}
	g_test_trap_subprocess(NULL, 0, G_TEST_SUBPROCESS_DEFAULT);
	g_test_trap_assert_failed();
	g_test_trap_assert_stderr("*rule S6*");
}

static void test_S6_commit_before_stored(void)
{
	if (g_test_subprocess()) {
		struct bed *bed = bed_new(&(struct bed_options){ 0 });
		struct epoch_id r = bed_send(bed);
		source_commit(bed->source, r);
		return;
	}
	g_test_trap_subprocess(NULL, 0, G_TEST_SUBPROCESS_DEFAULT);
	g_test_trap_assert_failed();
	g_test_trap_assert_stderr("*rule S6*");
}

/* ---- recovery ---- */
static void test_recover_to_staged(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .disks = 1, .backups = 2 });
	bed_set_backups(bed, 3, 0);
	bed_write_some(bed, 300);
	bed_epoch(bed);
	bed_write_some(bed, 300);
	struct epoch_id r = bed_send(bed);
	bed_record(bed, r);
	g_assert_true(bed_wait(bed, r));
	bed_commit_source(bed, r);
	sink_commit(bed->backup[0].sink, r);    /* backup 1 has not heard of it */
	struct message_holding h[VCFT_VM_MAX];
	sink_holdings(bed->backup[1].sink, h);
	g_assert_cmpuint(h[0].image.n, ==, 1);
	g_assert_cmpuint(h[0].staged.n, ==, 2);
	g_assert_cmpuint(h[0].complete.n, ==, 1);
	bed_recover(bed);
	check_all(bed, 3);
	struct image *image = sink_take(bed->backup[1].sink, (struct vm_id){ 7 });
	g_assert_cmpuint(image_epoch(image).n, ==, 2);
	g_assert_cmpuint(image_complete(image).n, ==, 1);
	g_assert_cmpmem(g_bytes_get_data(image_devices(image), NULL), 12, "devices of 2", 12);
	g_assert_cmpmem(g_bytes_get_data(image_record(image), NULL), 11, "record of 2", 11);
	g_assert_null(sink_take(bed->backup[1].sink, (struct vm_id){ 7 }));
	sink_give(bed->backup[1].sink, (struct vm_id){ 7 }, image);
	bed_set_backups(bed, 3, 3);
	bed_write_some(bed, 300);
	bed_epoch(bed);
	g_assert_cmpuint(host_count(bed->stored_complete), ==, 2);
	g_assert_cmpuint(bed_recover(bed), ==, 3);
	check_all(bed, 3);
	bed_free(bed);
}

/* The first epoch of a backup, staged: it is complete with it. */
static void test_recover_to_first(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .disks = 1, .backups = 1 });
	struct message_holding h[VCFT_VM_MAX];
	bed_set_backups(bed, 1, 0);
	bed_write_some(bed, 300);
	struct epoch_id r = bed_send(bed);
	bed_record(bed, r);
	g_assert_true(bed_wait(bed, r));
	bed_commit_source(bed, r);
	g_assert_cmpuint(sink_holdings(bed->backup[0].sink, h), ==, 1);
	g_assert_cmpuint(h[0].image.n, ==, 0);
	g_assert_cmpuint(h[0].staged.n, ==, 1);
	g_assert_cmpuint(h[0].complete.n, ==, 1);
	bed_recover(bed);
	check_all(bed, 1);
	bed_free(bed);
}

/* What a former life left at the paths is not part of a new image. */
static void test_S4_old_files(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .disks = 1, .backups = 1 });
	g_autofree char *ram = g_strdup_printf("%s/ram", bed->backup[0].dir), *disk = g_strdup_printf("%s/disk0", bed->backup[0].dir);
	g_autofree char *overlay = g_strdup_printf("%s/overlay", disk), *map = g_strdup_printf("%s/map", disk);
	g_assert_cmpint(g_mkdir_with_parents(disk, 0700), ==, 0);
	g_autofree char *junk = g_strnfill(8 * VCFT_PAGE_SIZE, 'x');
	g_assert_true(g_file_set_contents(ram, junk, 8 * VCFT_PAGE_SIZE, NULL));
	g_assert_true(g_file_set_contents(overlay, junk, 8 * VCFT_PAGE_SIZE, NULL));
	g_assert_true(g_file_set_contents(map, junk, 5, NULL));
	bed_set_backups(bed, 1, 0);
	bed_write(bed, 0, 2, 0);
	bed_epoch(bed);
	g_assert_cmpuint(bed_recover(bed), ==, 1);
	check_all(bed, 1);
	bed_free(bed);
}

/* A stage that was never committed anywhere is not what is recovered to. */
static void test_recover_behind_stage(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .disks = 1, .backups = 1 });
	bed_set_backups(bed, 1, 0);
	bed_write_some(bed, 300);
	bed_epoch(bed);
	bed_write_some(bed, 300);
	struct epoch_id r = bed_send(bed);
	bed_record(bed, r);
	g_assert_true(bed_wait(bed, r));
	source_abort(bed->source, r);
	g_assert_cmpuint(bed_recover(bed), ==, 1);
	check_all(bed, 1);
	bed_set_backups(bed, 1, 1);
	bed_epoch(bed);
	bed_recover(bed);
	check_all(bed, 1);
	bed_free(bed);
}

/* K4: after the holdings were told, nothing is acknowledged, and what was told is still there. */
static void test_K4_told(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .backups = 1 });
	struct message_holding h[VCFT_VM_MAX];
	bed_set_backups(bed, 1, 0);
	bed_write_some(bed, 30);
	bed_epoch(bed);
	struct epoch_id r = bed_send(bed);
	bed_record(bed, r);
	g_assert_true(bed_wait(bed, r));
	sink_tell(bed->backup[0].sink);
	sink_holdings(bed->backup[0].sink, h);
	g_assert_cmpuint(h[0].staged.n, ==, r.n);
	source_abort(bed->source, r);
	r = bed_send(bed);
	bed_record(bed, r);
	g_assert_false(bed_wait(bed, r));
	g_assert_cmpuint(bed->stored_failed, ==, host_bit(bed_host(0)));
	g_assert_nonnull(strstr(bed->why, "generation is over"));
	sink_holdings(bed->backup[0].sink, h);
	g_assert_cmpuint(h[0].staged.n, ==, r.n - 1);
	source_abort(bed->source, r);
	bed_free(bed);
}

static void test_generation(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .backups = 1 });
	bed_set_backups(bed, 1, 0);
	bed_write_some(bed, 30);
	bed_epoch(bed);
	sink_generation(bed->backup[0].sink, (struct generation){ 9 });    /* the source does not know yet */
	struct epoch_id r = bed_send(bed);
	bed_record(bed, r);
	g_assert_false(bed_wait(bed, r));
	source_abort(bed->source, r);
	bed_set_backups(bed, 1, 1);
	r = bed_send(bed);
	bed_record(bed, r);
	g_assert_false(bed_wait(bed, r));
	g_assert_nonnull(strstr(bed->why, "wrong generation"));
	source_abort(bed->source, r);
	bed->generation.n = 9;
	bed_set_backups(bed, 1, 1);
	bed_epoch(bed);
	bed_recover(bed);
	check_all(bed, 1);
	bed_free(bed);
}

/* Connections are made anew, without source_set_backups(): what was last said to be complete counts. */
static void test_generation_unasked(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .backups = 2, .fill_bytes = 20 * VCFT_PAGE_SIZE });
	bed_set_backups(bed, 3, 0);
	for (uint64_t p = 0; p < 100; p++)
		bed_write(bed, 0, p, 1);
	bed_epoch(bed);
	bed_set_backups(bed, 3, 1);
	bed_epoch(bed);
	for (unsigned i = 0; i < 2; i++)
		sink_generation(bed->backup[i].sink, (struct generation){ 2 });
	bed->generation.n = 2;
	bed_epoch(bed);
	g_assert_cmpuint(bed->stored_complete, ==, host_bit(bed_host(0)));    /* the other one is filled again */
	for (unsigned i = 0; i < 5; i++)
		bed_epoch(bed);
	g_assert_cmpuint(bed_recover(bed), ==, 3);
	check_all(bed, 3);
	bed_free(bed);
}

/* A limit on memory: refused with the reason, before anything is taken beyond it; what is dropped can be had again. */
static void test_K7_memory(void)
{
	const size_t limit = 3u << 20;
	struct bed *bed = bed_new(&(struct bed_options){ .backups = 2, .ram_pages = 1000, .memory_bytes = limit });
	struct sink_memory memory;
	bed_set_backups(bed, 1, 0);
	for (uint64_t p = 0; p < 300; p++)
		bed_write(bed, 0, p, 1);
	struct epoch_id r = bed_epoch(bed);
	sink_memory(bed->backup[0].sink, &memory);
	g_assert_cmpuint(memory.image_bytes, ==, 300 * VCFT_PAGE_SIZE);
	for (uint64_t p = 0; p < 600; p++)
		bed_write(bed, 0, p, 1);
	r = bed_send(bed);
	bed_record(bed, r);
	g_assert_false(bed_wait(bed, r));
	g_assert_cmpuint(bed->stored_failed, ==, host_bit(bed_host(0)));
	g_assert_nonnull(strstr(bed->why, "backup_memory"));
	sink_memory(bed->backup[0].sink, &memory);
	g_assert_cmpuint(memory.refused_memory, ==, 1);
	g_assert_cmpuint(memory.image_bytes + memory.stage_bytes, <=, limit + (2u << 20));
	bed_check_image(bed, 0);                               /* the last committed checkpoint is as it was */
	bed_abort(bed, r);
	sink_drop(bed->backup[0].sink, (struct vm_id){ 7 });
	sink_memory(bed->backup[0].sink, &memory);
	g_assert_cmpuint(memory.image_bytes + memory.stage_bytes, ==, 0);
	bed_set_backups(bed, 0, 0);
	bed_epoch(bed);
	bed_free(bed);
}

static void test_clear_and_drop(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .disks = 1, .backups = 2 });
	struct sink_memory memory;
	bed_set_backups(bed, 3, 0);
	bed_write_some(bed, 200);
	bed_epoch(bed);
	struct epoch_id r = bed_send(bed);
	bed_record(bed, r);
	g_assert_true(bed_wait(bed, r));
	sink_memory(bed->backup[0].sink, &memory);
	g_assert_cmpuint(memory.image_bytes, >, 0);
	g_assert_cmpuint(memory.stage_bytes, >, 0);
	sink_clear(bed->backup[0].sink);
	sink_drop(bed->backup[1].sink, (struct vm_id){ 7 });
	for (unsigned i = 0; i < 2; i++) {
		g_autofree char *ram = g_build_filename(bed->backup[i].dir, "ram", NULL);
		sink_memory(bed->backup[i].sink, &memory);
		g_assert_cmpuint(memory.image_bytes + memory.stage_bytes, ==, 0);
		g_assert_cmpint(access(ram, F_OK), !=, 0);
	}
	source_abort(bed->source, r);
	bed_free(bed);
}

/* ---- trouble ---- */
static void test_no_backups(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .disks = 1 });
	bed_write_some(bed, 100);
	struct epoch_id r = bed_send(bed);
	g_usleep(5000);    /* for nothing to happen */
	g_mutex_lock(&bed->lock);
	g_assert_cmpuint(bed->stored_count, ==, 0);
	g_mutex_unlock(&bed->lock);
	bed_record(bed, r);
	g_assert_true(bed_wait(bed, r));
	bed_commit(bed, r);
	bed_check_shadow(bed);
	g_assert_cmpuint(image_complete(bed->shadow).n, ==, r.n);
	bed_free(bed);
}

static void expect_refused(struct bed *bed, const char *why)
{
	struct epoch_id r = bed_send(bed);
	bed_record(bed, r);
	g_assert_false(bed_wait(bed, r));
	g_assert_cmpuint(bed->stored_failed, ==, host_bit(bed_host(0)));
	if (!strstr(bed->why, why))
		g_error("expected \"%s\", got \"%s\"", why, bed->why);
	bed_abort(bed, r);
}

static void test_S3_stage_limit(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .disks = 1, .backups = 1, .stage_bytes = 300 * 1024 });
	bed_set_backups(bed, 1, 0);
	for (uint64_t p = 0; p < 50; p++)
		bed_write(bed, 0, p, 1);
	bed_epoch(bed);
	for (uint64_t p = 0; p < 100; p++)
		bed_write(bed, 0, p, 1);
	expect_refused(bed, "backup_memory");
	bed_recover(bed);
	check_all(bed, 1);
	bed_free(bed);
}

static void test_S3_file_system_full(void)
{
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) {
		g_test_skip("cannot mount");
		return;
	}
	struct bed *bed = bed_new(&(struct bed_options){ .disks = 1, .backups = 1 });
	g_assert_cmpint(mount("none", bed->backup[0].dir, "tmpfs", 0, "size=1m"), ==, 0);
	bed_set_backups(bed, 1, 0);
	for (uint64_t p = 0; p < 100; p++)
		bed_write(bed, 0, p, 1);
	bed_epoch(bed);
	for (uint64_t p = 0; p < 400; p++)
		bed_write(bed, 0, p, 1);
	expect_refused(bed, "no space for the image");
	bed_recover(bed);
	check_all(bed, 1);
	umount2(bed->backup[0].dir, MNT_DETACH);
	bed_free(bed);
}

/* The shadow's own file system is full: nobody is to blame, the VM goes on. */
static void test_T4_shadow_full(void)
{
	g_autofree char *dir = bed_temp();
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("none", dir, "tmpfs", 0, "size=1m") < 0) {
		g_test_skip("cannot mount");
		return;
	}
	struct bed *bed = bed_new(&(struct bed_options){ .dir = dir });
	for (uint64_t p = 0; p < 100; p++)
		bed_write(bed, 0, p, 1);
	bed_epoch(bed);
	for (uint64_t p = 0; p < 400; p++)
		bed_write(bed, 0, p, 1);
	struct epoch_id r = bed_send(bed);
	bed_record(bed, r);
	g_assert_false(bed_wait(bed, r));
	g_assert_cmpuint(bed->stored_failed, ==, 0);
	g_assert_nonnull(strstr(bed->why, "no space"));
	bed_abort(bed, r);
	bed_check_shadow(bed);
	bed_free(bed);
	umount2(dir, MNT_DETACH);
	bed_remove_tree(dir);
}

/* A backup that is not one. */
static void set_fake(struct bed *bed, uint16_t port)
{
	struct source_backup b = { .host = bed_host(0), .name = "host2", .address = "127.0.0.1", .port = port };
	source_set_backups(bed->source, &b, 1, 0);
}

static void test_T5_stops_reading(void)
{
	uint16_t port;
	int fd = bed_listen(&port);
	struct bed *bed = bed_new(&(struct bed_options){ .ram_pages = 8192, .timeout_ms = 150 });
	set_fake(bed, port);
	for (uint64_t p = 0; p < 8192; p++)
		bed_write(bed, 0, p, 1);    /* more than sockets hold */
	gint64 start = g_get_monotonic_time();
	expect_refused(bed, "no progress");
	g_assert_cmpint(g_get_monotonic_time() - start, >=, 150 * 1000);
	bed_free(bed);
	close(fd);
}

/* 128 MiB were committed: 1.3 s more than the limit of 100 ms, in which nobody has to be on time. The fault point is 200 ms late. */
static void test_T5_after_a_large_epoch(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .ram_pages = 32768, .backups = 1, .fill_bytes = 1 << 20, .timeout_ms = 100 });
	for (uint64_t p = 0; p < 32768; p++)
		bed_write(bed, 0, p, 0);
	bed_epoch(bed);
	bed_set_backups(bed, 1, 0);
	bed_write_some(bed, 10);
	fault_set(FAULT_STAGE_SLOW, 1);
	bed_epoch(bed);    /* and now few */
	bed_write_some(bed, 10);
	fault_set(FAULT_STAGE_SLOW, 1);
	expect_refused(bed, "no progress");
	fault_clear();
	bed_free(bed);
}

static void test_T5_never_answers(void)
{
	uint16_t port;
	int fd = bed_listen(&port);
	struct bed *bed = bed_new(&(struct bed_options){ .timeout_ms = 150 });
	set_fake(bed, port);
	bed_write_some(bed, 10);
	struct epoch_id r = bed_send(bed);
	g_usleep(300 * 1000);    /* the record is late: not the backup's fault */
	g_mutex_lock(&bed->lock);
	g_assert_cmpuint(bed->stored_count, ==, 0);
	g_mutex_unlock(&bed->lock);
	bed_record(bed, r);
	g_assert_false(bed_wait(bed, r));
	g_assert_nonnull(strstr(bed->why, "no progress"));
	bed_abort(bed, r);
	bed_free(bed);
	close(fd);
}

/* Reads some 200 kB/s, until the other side hangs up. */
static gpointer read_slowly(gpointer listener)
{
	static uint8_t waste[20 << 10];
	int fd = accept(GPOINTER_TO_INT(listener), NULL, NULL);
	while (recv(fd, waste, sizeof waste, MSG_WAITALL) > 0)
		g_usleep(100 * 1000);
	close(fd);
	return NULL;
}

/* There is progress all the time, and yet too little. */
static void test_T6_too_slow(void)
{
	uint16_t port;
	int fd = bed_listen(&port), size = 32 << 10;
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
	g_autoptr(GThread) reader = g_thread_new("slow", read_slowly, GINT_TO_POINTER(fd));
	struct bed *bed = bed_new(&(struct bed_options){ .ram_pages = 8192, .timeout_ms = 5000, .rate_least = 1 << 20 });
	set_fake(bed, port);
	for (uint64_t p = 0; p < 8192; p++)
		bed_write(bed, 0, p, 1);
	expect_refused(bed, "too slow");
	bed_free(bed);
	g_thread_join(g_steal_pointer(&reader));
	close(fd);
}

static void test_nobody_there(void)
{
	uint16_t port;
	close(bed_listen(&port));
	struct bed *bed = bed_new(&(struct bed_options){ .backups = 1 });
	set_fake(bed, port);
	expect_refused(bed, "refused");
	bed_set_backups(bed, 1, 0);
	bed_epoch(bed);
	bed_recover(bed);
	check_all(bed, 1);
	bed_free(bed);
}

/* Abort in the middle of a message: the next epoch starts where the backup expects it. */
static void test_abort_half_sent(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .ram_pages = 8192, .backups = 2 });
	bed_set_backups(bed, 3, 0);
	for (unsigned n = 0; n < 12; n++) {
		for (uint64_t p = 0; p < 3000; p++)
			bed_write(bed, 0, bed_random() % 8192, 1);
		struct epoch_id r = bed_send(bed);
		g_usleep(bed_random() % 10000);
		bed_abort(bed, r);
	}
	bed_epoch(bed);
	g_assert_cmpuint(bed_recover(bed), ==, 3);
	check_all(bed, 3);
	bed_free(bed);
}

/* A slow way to a real backup: a few bytes at a time until `open` is set. */
struct proxy { int listener; uint16_t to; gint open, end; };

static gpointer proxy_thread(gpointer data)
{
	struct proxy *p = data;
	int in = accept(p->listener, NULL, NULL), out = bed_connect(p->to);
	uint8_t buffer[65536];
	while (!g_atomic_int_get(&p->end)) {
		bool fast = g_atomic_int_get(&p->open);
		size_t n = bed_receive(in, buffer, 1, 1);
		ssize_t more = n ? recv(in, buffer + 1, fast ? sizeof buffer - 1 : 4999, MSG_DONTWAIT) : 0;
		if (!fast)
			g_usleep(1000);    /* a slow link */
		bed_send_all(out, buffer, n + (size_t)MAX(more, 0));
		n = bed_receive(out, buffer, STREAM_ACK_BYTES, 0);
		bed_send_all(in, buffer, n);
	}
	close(in);
	close(out);
	return NULL;
}

static void test_abort_behind_slow_link(void)
{
	struct proxy proxy = { 0 };
	uint16_t port;
	struct bed *bed = bed_new(&(struct bed_options){ .ram_pages = 8192, .backups = 1 });
	proxy.listener = bed_listen(&port);
	proxy.to = bed->backup[0].port;
	GThread *thread = g_thread_new("proxy", proxy_thread, &proxy);
	set_fake(bed, port);
	for (uint64_t p = 0; p < 8192; p++)
		bed_write(bed, 0, p, 1);
	for (unsigned i = 0; i < 4; i++) {
		struct epoch_id r = bed_send(bed);
		g_usleep(60 * 1000);    /* sockets are full by now */
		bed_abort(bed, r);
	}
	g_atomic_int_set(&proxy.open, 1);
	bed_epoch(bed);
	g_assert_cmpuint(bed_recover(bed), ==, 1);
	check_all(bed, 1);
	g_atomic_int_set(&proxy.end, 1);
	g_thread_join(thread);
	close(proxy.listener);
	bed_free(bed);
}

/* A backup that has failed is named again: it starts from nothing. */
static void test_back_again(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .disks = 1, .backups = 1, .fill_bytes = 100 * VCFT_PAGE_SIZE });
	bed_set_backups(bed, 1, 0);
	bed_write_some(bed, 500);
	bed_epoch(bed);
	sink_clear(bed->backup[0].sink);
	bed_write_some(bed, 50);
	expect_refused(bed, "");
	bed_set_backups(bed, 1, 0);
	do
		bed_epoch(bed);
	while (!bed->stored_complete);
	g_assert_cmpuint(bed_recover(bed), ==, 1);
	check_all(bed, 1);
	bed_free(bed);
}

static void test_faults(void)
{
	static const enum fault hard[] = { FAULT_SEND_TORN, FAULT_SEND_CHECKSUM, FAULT_STAGE_REFUSED };
	struct bed *bed = bed_new(&(struct bed_options){ .disks = 1, .backups = 1 });
	bed_set_backups(bed, 1, 0);
	bed_write_some(bed, 50);
	bed_epoch(bed);
	for (size_t i = 0; i < G_N_ELEMENTS(hard); i++) {
		bed_write_some(bed, 50);
		fault_set(hard[i], 1);
		expect_refused(bed, "");
		g_assert_cmpuint(bed_recover(bed), ==, 1);
		check_all(bed, 1);
		bed_set_backups(bed, 1, 1);
		bed_epoch(bed);
	}
	fault_set(FAULT_STAGE_SLOW, 1);
	bed_epoch(bed);
	fault_clear();
	g_assert_cmpuint(bed_recover(bed), ==, 1);
	check_all(bed, 1);
	bed_free(bed);
}

/* ---- S8 ---- */

static void check_backup(struct bed *bed)
{
	struct message_holding h[VCFT_VM_MAX];
	sink_holdings(bed->backup[0].sink, h);    /* waits for the commit */
	bed_check_image(bed, 0);
}

/* Neither a stranger nor a host with another's certificate is told a byte, and the image stays. */
static void test_S8_told_nothing(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .backups = 1 });
	bed_set_backups(bed, 1, 0);
	bed_write_some(bed, 50);
	bed_epoch(bed);
	struct stream_open m = { .host = { 1 }, .vm = { 7 }, .generation = bed->generation, .flags = STREAM_FRESH, .shape = { 1, { 600 } } };
	uint8_t open[STREAM_MESSAGE_MAX], in[64];
	size_t n = stream_put_open(open, &m);
	int fd = bed_connect(bed->backup[0].port);
	bed_send_all(fd, open, n);
	g_assert_cmpuint(bed_receive(fd, in, sizeof in, 10000), ==, 0);
	close(fd);
	struct tls_credentials *other = bed_credentials((struct host_id){ 3 });
	fd = bed_connect(bed->backup[0].port);
	struct tls *t = tls_new(other, TLS_CONNECTS, fd, "host2");
	g_assert_cmpint(tls_handshake(t), ==, TLS_OPEN);
	g_assert_cmpint(tls_write(t, &(struct iovec){ open, n }, 1), ==, (ssize_t)n);
	g_assert_cmpint(tls_read(t, in, sizeof in), <=, 0);
	tls_free(t);
	close(fd);
	tls_credentials_free(other);
	bed_write_some(bed, 50);
	bed_epoch(bed);    /* the stream that was there goes on */
	check_backup(bed);
	bed_free(bed);
}

/* The source: the backup that answers has the certificate of another host. */
static void test_S8_wrong_backup(void)
{
	struct bed *bed = bed_new(&(struct bed_options){ .backups = 2 });
	struct source_backup b = { .host = bed_host(0), .name = "host2", .address = "127.0.0.1", .port = bed->backup[1].port };
	source_set_backups(bed->source, &b, 1, 0);
	bed_write_some(bed, 50);
	struct epoch_id r = bed_send(bed);
	bed_record(bed, r);
	g_assert_false(bed_wait(bed, r));
	g_assert_cmpuint(bed->stored_failed, ==, host_bit(bed_host(0)));
	g_assert_nonnull(strstr(bed->why, "the certificate is not that of host host2"));
	bed_abort(bed, r);
	bed_set_backups(bed, 1, 0);
	bed_epoch(bed);
	check_backup(bed);
	bed_free(bed);
}

/* More than may wait connect and say nothing: a source gets through. */
static void test_S8_silent_crowd(void)
{
	enum { CROWD = 100 };
	int fd[CROWD];
	struct bed *bed = bed_new(&(struct bed_options){ .backups = 1 });
	for (int i = 0; i < CROWD; i++)
		fd[i] = bed_connect(bed->backup[0].port);
	bed_set_backups(bed, 1, 0);
	bed_write_some(bed, 50);
	bed_epoch(bed);
	check_backup(bed);
	for (int i = 0; i < CROWD; i++)
		close(fd[i]);
	bed_free(bed);
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/store/random", test_random);
	g_test_add_func("/store/S1/not-before-commit", test_S1_not_before_commit);
	g_test_add_func("/store/S1/discard", test_S1_discard);
	g_test_add_func("/store/K2/stream-before-commit", test_K2_stream_before_commit);
	g_test_add_func("/store/S3/stage-limit", test_S3_stage_limit);
	g_test_add_func("/store/S4/fill-bounded", test_S4_fill_bounded);
	g_test_add_func("/store/S4/incomplete-is-dropped", test_S4_incomplete_is_dropped);
	g_test_add_func("/store/S5/verify", test_S5_verify);
	g_test_add_func("/store/S6/two-epochs", test_S6_two_epochs);
	g_test_add_func("/store/S6/commit-before-stored", test_S6_commit_before_stored);
	g_test_add_func("/store/recover/to-staged", test_recover_to_staged);
	g_test_add_func("/store/recover/behind-stage", test_recover_behind_stage);
	g_test_add_func("/store/K4/told", test_K4_told);
	g_test_add_func("/store/K6/lacks-an-epoch", test_K6_lacks_an_epoch);
	g_test_add_func("/store/generation", test_generation);
	g_test_add_func("/store/generation-unasked", test_generation_unasked);
	g_test_add_func("/store/S4/old-files", test_S4_old_files);
	g_test_add_func("/store/recover/to-first", test_recover_to_first);
	g_test_add_func("/store/abort-behind-slow-link", test_abort_behind_slow_link);
	g_test_add_func("/store/K7-memory", test_K7_memory);
	g_test_add_func("/store/clear-and-drop", test_clear_and_drop);
	g_test_add_func("/store/no-backups", test_no_backups);
	g_test_add_func("/store/T5/stops-reading", test_T5_stops_reading);
	g_test_add_func("/store/T5/after-a-large-epoch", test_T5_after_a_large_epoch);
	if (!g_getenv("VCFT_TEST_TLS"))    /* under TLS it owes the handshake */
		g_test_add_func("/store/T5/never-answers", test_T5_never_answers);
	if (!g_getenv("VCFT_TEST_TLS"))    /* that reader knows no TLS */
		g_test_add_func("/store/T6/too-slow", test_T6_too_slow);
	g_test_add_func("/store/nobody-there", test_nobody_there);
	g_test_add_func("/store/abort-half-sent", test_abort_half_sent);
	g_test_add_func("/store/back-again", test_back_again);
	g_test_add_func("/store/faults", test_faults);
	g_test_add_func("/store/S3/file-system-full", test_S3_file_system_full);
	g_test_add_func("/store/T4/shadow-full", test_T4_shadow_full);
	if (g_getenv("VCFT_TEST_TLS")) {
		g_test_add_func("/store/S8-told-nothing", test_S8_told_nothing);
		g_test_add_func("/store/S8-wrong-backup", test_S8_wrong_backup);
		g_test_add_func("/store/S8-silent-crowd", test_S8_silent_crowd);
	}
	return g_test_run();
}
