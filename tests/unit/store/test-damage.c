/* test-damage.c - one flipped bit in what is kept: image on a backup, shadow, stage (I5, I6). It is refused, and never applied. */
#include "copy-ram.h"
#include "bed.h"

#include "store/sink-private.h"

#include <fcntl.h>
#include <gio/gio.h>
#include <glib/gstdio.h>
#include <unistd.h>

#define PAGES 40u
#define BLOCKS 70u

static uint64_t below(uint64_t n) { return bed_random() % n; }

static void flip(const void *data, uint64_t bit) { ((uint8_t *)data)[bit / 8] ^= (uint8_t)(1u << (bit % 8)); }

static void flip_file(const char *dir, const char *name, uint64_t bit)
{
	g_autofree char *path = g_build_filename(dir, name, NULL);
	uint8_t byte;
	int fd = open(path, O_RDWR | O_CLOEXEC);
	g_assert_cmpint(pread(fd, &byte, 1, (off_t)(bit / 8)), ==, 1);
	flip(&byte, bit % 8);
	g_assert_cmpint(pwrite(fd, &byte, 1, (off_t)(bit / 8)), ==, 1);
	close(fd);
}

/* ---- an image alone ---- */

struct one { char *dir, *disk, *copy; struct image *image; uint8_t *live; GBytes *devices, *record; };

/* Pages 0..15 of RAM and blocks 0..15 have content: 0 is zero, 1 has one bit, the rest is random. */
static void one_open(struct one *o)
{
	uint8_t page[VCFT_PAGE_SIZE] = { 0 };
	*o = (struct one){ .dir = bed_temp() };
	g_autofree char *ram = g_build_filename(o->dir, "ram", NULL);
	o->disk = g_build_filename(o->dir, "disk", NULL);
	o->copy = g_build_filename(o->dir, "copy", NULL);
	o->live = g_malloc0(PAGES * VCFT_PAGE_SIZE);
	struct image_spec spec = { .ram_path = ram, .ram_pages = PAGES, .disk_count = 1, .disk_dir = { o->disk }, .disk_blocks = { BLOCKS },
	                           .disks_writable = true };
	o->image = image_open(&spec, NULL);
	for (uint64_t p = 0; p < 16; p++) {
		for (size_t i = 0; i < VCFT_PAGE_SIZE; i++)
			page[i] = p < 2 ? 0 : (uint8_t)bed_random();
		if (p == 1)
			flip(page, 77);
		for (unsigned region = 0; region < 2; region++) {
			g_assert_true(image_reserve(o->image, region, &p, 1, NULL));
			image_put(o->image, region, p, page);
		}
	}
	o->devices = g_bytes_new("devices", 7);
	o->record = g_bytes_new("record", 6);
	image_advance(o->image, epoch_of(1), true, o->devices, o->record);
}

static void one_close(struct one *o)
{
	image_remove(o->image);
	g_bytes_unref(o->devices);
	g_bytes_unref(o->record);
	bed_remove_tree(o->dir);
	g_free(o->live);
	g_free(o->dir), g_free(o->disk), g_free(o->copy);
}

static void check_refused(struct one *o)
{
	g_autoptr(GError) error = NULL, again = NULL;
	g_assert_false(copy_ram(o->image, o->copy, &error));
	g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
	g_assert_false(g_file_test(o->copy, G_FILE_TEST_EXISTS));
	g_assert_false(image_intact(o->image, &again));
	g_assert_cmpstr(error->message, ==, again->message);
}

static void check_good(struct one *o)
{
	g_assert_true(copy_ram(o->image, o->copy, NULL));
	g_assert_cmpint(g_unlink(o->copy), ==, 0);
	g_assert_true(image_restore_ram(o->image, o->live, NULL, NULL, NULL));
	g_assert_true(image_intact(o->image, NULL));
}

static void ram_is_not_copied(void)
{
	for (unsigned i = 0; i < 300; i++) {
		struct one o;
		one_open(&o);
		if (i % 50 == 0)
			check_good(&o);
		uint64_t bit = i < 40 ? 8 * VCFT_PAGE_SIZE + 77 : below(16 * VCFT_PAGE_SIZE * 8);   /* the only bit of page 1, so that it is zero; any */
		flip(image_ram(o.image), bit);
		check_refused(&o);
		one_close(&o);
	}
}

static void ram_is_not_rolled_back_to(void)
{
	for (unsigned i = 0; i < 100; i++) {
		struct one o;
		g_autoptr(GError) error = NULL;
		one_open(&o);
		memset(o.live, 0xee, PAGES * VCFT_PAGE_SIZE);
		uint64_t bit = below(16 * VCFT_PAGE_SIZE * 8), page = bit / 8 / VCFT_PAGE_SIZE, index[] = { 1, 2, page };
		struct page_set only = { .count = 3, .index = index };
		flip(image_ram(o.image), bit);
		g_assert_false(image_restore_ram(o.image, o.live, i % 2 ? &only : NULL, NULL, &error));
		g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
		for (size_t k = 0; k < VCFT_PAGE_SIZE; k++)
			g_assert_cmpint(o.live[page * VCFT_PAGE_SIZE + k], ==, 0xee);
		one_close(&o);
	}
}

static void state_is_not_used(void)
{
	for (unsigned i = 0; i < 2; i++) {
		struct one o;
		one_open(&o);
		flip(g_bytes_get_data(i ? o.devices : o.record, NULL), below(8 * 6));
		check_refused(&o);
		g_assert_false(image_restore_ram(o.image, o.live, NULL, NULL, NULL));
		one_close(&o);
	}
}

/* Of both regions; of a disk also map and sums, of blocks that are there and that are not. */
static void base_of_a_delta_is_checked(void)
{
	const struct { unsigned region; const char *file; uint64_t bits_a_page, pages; } parts[] = {
		{ 0, "ram", 8 * VCFT_PAGE_SIZE, 16 }, { 1, "disk/overlay", 8 * VCFT_PAGE_SIZE, 16 }, { 1, "disk/map", 1, BLOCKS }, { 1, "disk/sums", 64, BLOCKS },
	};
	for (unsigned i = 0; i < 400; i++) {
		struct one o;
		const uint8_t map[PACK_MAP] = { 1 }, words[] = { 1, 2, 3, 4, 5, 6, 7, 8 }, none[VCFT_PAGE_SIZE] = { 0 };
		uint8_t before[VCFT_PAGE_SIZE];
		unsigned k = i % G_N_ELEMENTS(parts), region = parts[k].region;
		uint64_t page = below(parts[k].pages), other = (page + 1) % 16;
		one_open(&o);
		g_assert_true(image_reserve(o.image, region, &page, 1, NULL));
		flip_file(o.dir, parts[k].file, page * parts[k].bits_a_page + below(parts[k].bits_a_page));
		g_assert_true(image_patch(o.image, region, other, map, words) == words + sizeof words);
		g_assert_true(image_sound(o.image, region, other));
		const uint8_t *is = image_page(o.image, region, page);
		memcpy(before, is ? is : none, sizeof before);
		g_assert_null(image_patch(o.image, region, page, map, words));
		is = image_page(o.image, region, page);
		g_assert_cmpmem(is ? is : none, VCFT_PAGE_SIZE, before, VCFT_PAGE_SIZE);
		g_assert_false(image_intact(o.image, NULL));
		one_close(&o);
	}
}

/* ---- between two hosts ---- */

static struct bed *bed_at_2(unsigned backups)
{
	struct bed *bed = bed_new(&(struct bed_options){ .ram_pages = 200, .disks = 1, .backups = backups });
	bed_set_backups(bed, 1, 0);
	for (uint64_t p = 0; p < 100; p++)
		bed_write(bed, p % 2, p, 1);
	bed_epoch(bed);
	bed_write_some(bed, 20);
	bed_epoch(bed);
	return bed;
}

static uint32_t held(struct bed *bed)
{
	struct message_holding h[VCFT_VM_MAX];
	return sink_holdings(bed->backup[0].sink, h);
}

static void check_dropped(struct bed *bed)
{
	struct sink_memory memory;
	g_autofree char *ram = g_build_filename(bed->backup[0].dir, "ram", NULL);
	g_assert_cmpuint(held(bed), ==, 0);
	g_assert_false(g_file_test(ram, G_FILE_TEST_EXISTS));
	sink_memory(bed->backup[0].sink, &memory);
	g_assert_cmpuint(memory.damaged, ==, 1);
	g_assert_cmpuint(memory.image_bytes, ==, 0);
	g_assert_cmpuint(memory.stage_bytes, ==, 0);
}

static struct epoch_id stored_epoch(struct bed *bed)
{
	struct epoch_id r = bed_send(bed);
	bed_record(bed, r);
	g_assert_true(bed_wait(bed, r));
	return r;
}

/* A damaged image is no base; the next epoch finds no image there, and fills one anew. */
static void backup_drops_a_damaged_image(void)
{
	struct bed *bed = bed_at_2(1);
	bed_write(bed, 0, 10, 0);
	bed_write(bed, 1, 11, 0);
	struct epoch_id r = stored_epoch(bed);
	flip_file(bed->backup[0].dir, below(2) ? "ram" : "disk0/overlay", 8 * VCFT_PAGE_SIZE * 10 + below(8 * VCFT_PAGE_SIZE));
	flip_file(bed->backup[0].dir, "disk0/overlay", 8 * VCFT_PAGE_SIZE * 11 + below(8 * VCFT_PAGE_SIZE));
	bed_commit(bed, r);
	check_dropped(bed);
	bed_recover(bed);
	bed_set_backups(bed, 1, 0);
	bed_write_some(bed, 20);
	bed_epoch(bed);
	g_assert_cmpuint(bed->stored_complete, ==, host_bit(bed_host(0)));
	g_assert_cmpuint(held(bed), ==, 1);
	bed_check_image(bed, 0);
	bed_free(bed);
}

enum part { PART_DATA, PART_INDEX, PART_KIND, PART_SUM, PART_DEVICES };

static void flip_stage(const struct stage *stage, enum part part)
{
	const struct delta_chunk *c = stage_last_chunk(stage);
	if (part == PART_DEVICES)
		flip(g_bytes_get_data(stage_devices(stage), NULL), below(g_bytes_get_size(stage_devices(stage)) * 8));
	else if (part == PART_DATA)
		flip(c->data, below(c->bytes * 8));
	else if (part == PART_INDEX)
		flip(c->index, below(c->count) * 64);
	else if (part == PART_KIND)
		((struct delta_chunk *)c)->kind ^= DELTA_WORDS ^ DELTA_LITERAL;
	else
		flip(&c->sum, below(64));
}

static void damaged_stage_is_not_applied(gconstpointer part)
{
	for (unsigned i = 0; i < 10; i++) {
		struct bed *bed = bed_at_2(1);
		for (uint64_t p = 1; p < 20; p += 2)
			bed_write(bed, 1, p, 0);
		struct epoch_id r = stored_epoch(bed);
		struct sink_vm *vm = &bed->backup[0].sink->vm[7];
		g_mutex_lock(&vm->lock);
		flip_stage(vm->stage, GPOINTER_TO_UINT(part));
		g_mutex_unlock(&vm->lock);
		bed_commit(bed, r);
		check_dropped(bed);
		bed_free(bed);
	}
}

static void damaged_stage_is_not_recovered_to(void)
{
	struct bed *bed = bed_at_2(1);
	bed_write(bed, 1, 3, 0);
	struct epoch_id r = stored_epoch(bed);
	flip_stage(bed->backup[0].sink->vm[7].stage, PART_DATA);
	bed_commit_source(bed, r);
	g_assert_cmpuint(held(bed), ==, 1);
	bed_recover(bed);
	check_dropped(bed);
	g_assert_null(sink_take(bed->backup[0].sink, (struct vm_id){ 7 }));
	bed_free(bed);
}

static void backup_with_a_bad_page_starts_no_vm(void)
{
	struct bed *bed = bed_at_2(1);
	g_autofree char *copy = g_build_filename(bed->dir, "copy", NULL);
	g_autoptr(GError) error = NULL;
	held(bed);    /* the commit is done */
	bed_recover(bed);
	flip_file(bed->backup[0].dir, "ram", 8 * VCFT_PAGE_SIZE * 10 + below(8 * VCFT_PAGE_SIZE));
	struct image *image = sink_take(bed->backup[0].sink, (struct vm_id){ 7 });
	g_assert_false(copy_ram(image, copy, &error));
	g_assert_nonnull(strstr(error->message, "page 10 of"));
	image_remove(image);
	bed_free(bed);
}

static void check_given_up(struct bed *bed)
{
	struct epoch_id r = bed_send(bed);
	bed_record(bed, r);
	g_assert_false(bed_wait(bed, r));
	g_assert_nonnull(strstr(bed->why, "shadow: the image is damaged"));
	g_assert_cmpuint(bed->stored_failed, ==, 0);
	g_assert_false(image_intact(bed->shadow, NULL));
	bed_abort(bed, r);
}

/* What the shadow has wrong does not get to a backup: neither into a delta nor into an image that is filled. */
static void damaged_shadow_is_not_sent(void)
{
	for (unsigned i = 0; i < 20; i++) {
		struct bed *bed = bed_at_2(2);
		unsigned region = i % 2;
		bed_write(bed, region, 10 + region, 0);
		if (i % 4 < 2)
			bed_set_backups(bed, 3, 1);
		uint64_t page = i % 4 < 2 ? 20 + region : 10 + region;
		flip_file(bed->dir, region ? "disk0/overlay" : "ram", 8 * VCFT_PAGE_SIZE * page + below(8 * VCFT_PAGE_SIZE));
		check_given_up(bed);
		held(bed);
		bed_check_image(bed, 0);
		bed_free(bed);
	}
}

int main(int argc, char **argv)
{
	static const char *const parts[] = { "data", "index", "kind", "sum", "devices" };
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/damage/I5/copy", ram_is_not_copied);
	g_test_add_func("/damage/I5/restore", ram_is_not_rolled_back_to);
	g_test_add_func("/damage/I5/state", state_is_not_used);
	g_test_add_func("/damage/I5/base", base_of_a_delta_is_checked);
	g_test_add_func("/damage/I5/backup", backup_drops_a_damaged_image);
	g_test_add_func("/damage/I5/taken", backup_with_a_bad_page_starts_no_vm);
	g_test_add_func("/damage/I5/shadow", damaged_shadow_is_not_sent);
	for (unsigned i = 0; i < G_N_ELEMENTS(parts); i++) {
		g_autofree char *name = g_strconcat("/damage/I6/", parts[i], NULL);
		g_test_add_data_func(name, GUINT_TO_POINTER(i), damaged_stage_is_not_applied);
	}
	g_test_add_func("/damage/I6/recover", damaged_stage_is_not_recovered_to);
	return g_test_run();
}
