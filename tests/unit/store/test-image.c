/* test-image.c - images alone: holes, copies, restoring, files of another size, and the coding of pages. */
#include "copy-ram.h"
#include "bed.h"

#include "store/store-private.h"

#include <fcntl.h>
#include <gio/gio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGES 5000u

static struct image *open_ram(const char *dir, uint64_t pages, GError **error)
{
	g_autofree char *ram = g_build_filename(dir, "ram", NULL);
	struct image_spec spec = { .ram_path = ram, .ram_pages = pages };
	return image_open(&spec, error);
}

static void write_page(struct image *image, uint64_t page, uint8_t value)
{
	uint8_t data[VCFT_PAGE_SIZE];
	memset(data, value, sizeof data);
	g_assert_true(image_reserve(image, 0, &page, 1, NULL));
	image_put(image, 0, page, data);
}

static uint64_t blocks(const char *path)
{
	struct stat st;
	g_assert_cmpint(stat(path, &st), ==, 0);
	return (uint64_t)st.st_blocks * 512 / VCFT_PAGE_SIZE;
}

static void test_I1_holes(void)
{
	g_autofree char *dir = bed_temp();
	struct image *image = open_ram(dir, PAGES, NULL);
	uint64_t hash[2];
	write_page(image, 0, 1);
	write_page(image, 100, 2);
	write_page(image, PAGES - 1, 3);
	g_autofree uint8_t *all = g_malloc0(PAGES * VCFT_PAGE_SIZE);
	memset(all, 1, VCFT_PAGE_SIZE);
	memset(all + 100 * VCFT_PAGE_SIZE, 2, VCFT_PAGE_SIZE);
	memset(all + (PAGES - 1) * VCFT_PAGE_SIZE, 3, VCFT_PAGE_SIZE);
	image_hash_ram(image, hash);
	XXH128_hash_t h = XXH3_128bits(all, PAGES * VCFT_PAGE_SIZE);
	g_assert_cmpuint(hash[0], ==, h.low64);
	g_assert_cmpuint(hash[1], ==, h.high64);
	g_assert_null(image_page(image, 0, 99));
	g_assert_cmpuint(image_next(image, 0, 1), ==, 100);
	g_assert_cmpuint(image_next(image, 0, 101), ==, PAGES - 1);
	g_assert_cmpuint(image_bytes(image), ==, 3 * VCFT_PAGE_SIZE);
	g_autofree char *copy = g_build_filename(dir, "copy", NULL);
	g_assert_true(copy_ram(image, copy, NULL));
	g_assert_cmpuint(blocks(copy), ==, 3);
	g_autofree char *content = NULL;
	gsize n;
	g_assert_true(g_file_get_contents(copy, &content, &n, NULL));
	g_assert_cmpmem(content, n, all, PAGES * VCFT_PAGE_SIZE);
	g_assert_cmpuint(image_bytes(image), ==, 3 * VCFT_PAGE_SIZE);
	image_free(image);
	image = open_ram(dir, PAGES, NULL);    /* what is there is found again */
	g_assert_cmpuint(image_next(image, 0, 1), ==, 100);
	g_assert_cmpuint(image_page(image, 0, 100)[0], ==, 2);
	g_assert_null(image_page(image, 0, 101));
	image_remove(image);
	bed_remove_tree(dir);
}

static void test_wrong_size(void)
{
	g_autofree char *dir = bed_temp();
	g_autoptr(GError) error = NULL;
	image_free(open_ram(dir, PAGES, NULL));
	g_assert_null(open_ram(dir, PAGES - 1, &error));
	g_assert_nonnull(strstr(error->message, "expected"));
	g_assert_null(open_ram(dir, 0, NULL));
	g_autofree char *missing = g_build_filename(dir, "no", "where", NULL);
	g_assert_null(open_ram(missing, PAGES, NULL));
	bed_remove_tree(dir);
}

static void restore(bool all)
{
	g_autofree char *dir = bed_temp();
	struct image *image = open_ram(dir, PAGES, NULL);
	uint8_t *live = mmap(NULL, PAGES * VCFT_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (uint64_t p = 0; p < 100; p++) {
		write_page(image, p * 7, (uint8_t)(p + 1));
		memset(live + p * 7 * VCFT_PAGE_SIZE, (int)(p + 1), VCFT_PAGE_SIZE);
	}
	live[14 * VCFT_PAGE_SIZE + 77] ^= 1;         /* changed */
	memset(live + 21 * VCFT_PAGE_SIZE, 0, VCFT_PAGE_SIZE);
	live[4000 * VCFT_PAGE_SIZE + 4095] = 9;      /* zero in the image */
	write_page(image, 4500, 6);                  /* a hole in live */
	uint64_t index[] = { 7, 14, 21, 100, 4000, 4500, PAGES + 3 };
	struct page_set only = { .count = G_N_ELEMENTS(index), .index = index };
	size_t copied;
	g_assert_true(image_restore_ram(image, live, all ? NULL : &only, &copied, NULL));
	g_assert_cmpuint(copied, ==, 4);
	g_assert_true(image_restore_ram(image, live, NULL, &copied, NULL));
	g_assert_cmpuint(copied, ==, 0);
	for (uint64_t p = 0; p < PAGES; p++) {
		uint8_t zero[VCFT_PAGE_SIZE] = { 0 };
		const uint8_t *want = image_page(image, 0, p);
		g_assert_cmpmem(live + p * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE, want ? want : zero, VCFT_PAGE_SIZE);
	}
	munmap(live, PAGES * VCFT_PAGE_SIZE);
	image_remove(image);
	bed_remove_tree(dir);
}

static void test_restore_all(void) { restore(true); }
static void test_restore_some(void) { restore(false); }

static void advance(struct image *image)
{
	g_autoptr(GBytes) none = g_bytes_new_static("", 0);
	image_advance(image, epoch_next(image_epoch(image)), true, none, none);
}

/* How many pages image_content() has from then on; each is checked by its value. */
static uint64_t content_since(struct image *image, struct epoch_id since)
{
	g_autoptr(GError) error = NULL;
	const uint8_t *content;
	uint64_t count = 0;
	for (uint64_t at = 0, end; (content = image_content(image, since, &at, &end, &error)); count += end - at, at = end)
		for (uint64_t p = at; p < end; p++)
			g_assert_cmpuint(content[(p - at) * VCFT_PAGE_SIZE], ==, p % 251 + 1);
	g_assert_no_error(error);
	return count;
}

/* By chunks of 64 pages: epoch 1 writes all, 2 one page in each of 10 chunks, 3 changes words of one page, 4 nothing. */
static void test_recent(void)
{
	g_autofree char *dir = bed_temp();
	struct image *image = open_ram(dir, PAGES, NULL);
	uint8_t map[PACK_MAP] = { 0 };
	g_assert_cmpuint(image_recent(image, UINT64_MAX).n, ==, 1);
	for (uint64_t p = 0; p < PAGES; p++)
		write_page(image, p, (uint8_t)(p % 251 + 1));
	advance(image);
	g_assert_cmpuint(image_recent(image, PAGES - 1).n, ==, 2);
	for (uint64_t p = 640; p < 1280; p += 64)
		write_page(image, p, (uint8_t)(p % 251 + 1));
	advance(image);
	g_assert_nonnull(image_patch(image, 0, 2000, map, map));
	advance(image);
	advance(image);
	g_assert_cmpuint(content_since(image, epoch_of(0)), ==, PAGES);
	g_assert_cmpuint(content_since(image, epoch_of(1)), ==, PAGES);
	g_assert_cmpuint(content_since(image, epoch_of(2)), ==, 11 * 64);
	g_assert_cmpuint(content_since(image, epoch_of(3)), ==, 64);
	g_assert_cmpuint(content_since(image, epoch_of(4)), ==, 0);
	g_assert_cmpuint(image_recent(image, 63).n, ==, 4);
	g_assert_cmpuint(image_recent(image, 64).n, ==, 3);
	g_assert_cmpuint(image_recent(image, 11 * 64 - 1).n, ==, 3);
	g_assert_cmpuint(image_recent(image, 11 * 64).n, ==, 2);
	g_assert_cmpuint(image_recent(image, UINT64_MAX).n, ==, 1);
	image_remove(image);
	bed_remove_tree(dir);
}

struct reader { struct image *image; bool stop; };

static gpointer read_all(gpointer user)
{
	struct reader *r = user;
	GError *error = NULL;
	g_autofree uint8_t *copy = g_malloc(64 * VCFT_PAGE_SIZE);
	while (!__atomic_load_n(&r->stop, __ATOMIC_ACQUIRE)) {
		const uint8_t *content;
		for (uint64_t at = 0, end; (content = image_content(r->image, epoch_of(0), &at, &end, &error)); at = end)
			memset(copy, content != NULL, (end - at) * VCFT_PAGE_SIZE); /* a filler copies now, without the lock: not what is put here (I7) */
		g_assert_no_error(error);
	}
	return NULL;
}

/* Commits go on while a VM is filled from the image: no page is taken for damaged because it is being put. */
static void test_I7_beside_commits(void)
{
	g_autofree char *dir = bed_temp();
	struct image *image = open_ram(dir, 64, NULL);
	for (uint64_t p = 0; p < 64; p++)
		write_page(image, p, (uint8_t)(p + 1));
	struct reader r = { .image = image };
	GThread *thread = g_thread_new("reader", read_all, &r);
	uint8_t data[VCFT_PAGE_SIZE], map[PACK_MAP];
	memset(map, 0xff, sizeof map);
	for (unsigned i = 0; i < 40000; i++) {
		memset(data, (int)(i % 255 + 1), sizeof data);
		if (i % 2)
			image_put(image, 0, i % 64, data);
		else
			g_assert_nonnull(image_patch(image, 0, i % 64, map, data));
	}
	__atomic_store_n(&r.stop, true, __ATOMIC_RELEASE);
	g_thread_join(thread);
	g_assert_true(image_intact(image, NULL));
	image_remove(image);
	bed_remove_tree(dir);
}

static void test_disk(void)
{
	g_autofree char *dir = bed_temp(), *ram = g_build_filename(dir, "ram", NULL), *disk = g_build_filename(dir, "a", "disk", NULL);
	struct image_spec spec = { .ram_path = ram, .ram_pages = 3, .disk_count = 1, .disk_dir = { disk }, .disk_blocks = { 1003 },
	                           .disks_writable = true };
	struct image *image = image_open(&spec, NULL);
	uint8_t data[VCFT_PAGE_SIZE] = { 5 };
	uint64_t index[] = { 0, 63, 64, 1002 };
	g_assert_cmpuint(image_next(image, 1, 0), ==, 1003);
	g_assert_true(image_reserve(image, 1, index, 4, NULL));
	g_assert_cmpuint(image_next(image, 1, 0), ==, 1003);    /* reserved is not content */
	image_put(image, 1, 64, data);
	const uint8_t map[PACK_MAP] = { 1 }, zero[8] = { 0 };
	image_patch(image, 1, 1002, map, data);
	g_assert_cmpuint(image_page(image, 1, 1002)[0], ==, 5);
	image_patch(image, 1, 1002, map, zero);
	g_assert_cmpuint(image_next(image, 1, 0), ==, 64);
	g_assert_cmpuint(image_next(image, 1, 65), ==, 1002);
	g_assert_cmpuint(image_page(image, 1, 1002)[0], ==, 0);
	g_assert_null(image_page(image, 1, 63));
	image_remove(image);
	bed_remove_tree(dir);
}

static void test_I2_unreserved(void)
{
	if (g_test_subprocess()) {
		g_autofree char *dir = bed_temp();
		struct image *image = open_ram(dir, PAGES, NULL);
		uint8_t data[VCFT_PAGE_SIZE] = { 5 };
		bed_remove_tree(dir);
		image_put(image, 0, 5, data);
		return;
	}
	g_test_trap_subprocess(NULL, 0, G_TEST_SUBPROCESS_DEFAULT);
	g_test_trap_assert_failed();
	g_test_trap_assert_stderr("*rule I2*");
}

/* Coding against the obvious: byte by byte. */
static void test_delta_oracle(void)
{
	struct store_shape shape = { 1, { 1000 } };
	struct delta_encoder *e = delta_encoder_new();
	struct delta_decoder *d = delta_decoder_new();
	g_autofree uint8_t *a = g_malloc(STORE_CHUNK_RAW + 1), *b = g_malloc(STORE_CHUNK_RAW);
	for (unsigned round = 0; round < 40; round++) {
		unsigned pages = 1 + (unsigned)(bed_random() % STORE_CHUNK_PAGES), kept = 0;
		for (size_t i = 0; i < STORE_CHUNK_RAW; i++)
			a[i + 1] = b[i] = (uint8_t)(i * 31 >> 4);
		for (unsigned i = 0; i < pages * 2; i++)
			a[1 + bed_random() % (pages * VCFT_PAGE_SIZE)] ^= (uint8_t)bed_random();
		memset(a + 1, 0, round % 2 ? 100 : 0);      /* words that have become zero are words too */
		delta_begin(e, 0, DELTA_WORDS);
		for (unsigned i = 0; i < pages; i++)
			delta_add(e, i * 3, a + 1 + i * VCFT_PAGE_SIZE, b + i * VCFT_PAGE_SIZE, false);
		g_autoptr(GBytes) m = delta_finish(e);
		enum store_status status;
		if (!m)
			continue;
		struct delta_chunk *c = delta_decode(d, (const uint8_t *)g_bytes_get_data(m, NULL) + MESSAGE_HEADER_BYTES,
		                                     g_bytes_get_size(m) - MESSAGE_HEADER_BYTES, &shape, &status);
		g_assert_nonnull(c);
		const uint8_t *words = c->data + (size_t)c->count * PACK_MAP;
		for (unsigned i = 0; i < pages; i++) {
			if (!memcmp(a + 1 + i * VCFT_PAGE_SIZE, b + i * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE))
				continue;
			g_assert_cmpuint(c->index[kept], ==, i * 3);
			words = unpack_page(b + i * VCFT_PAGE_SIZE, c->data + (size_t)kept * PACK_MAP, words);
			g_assert_cmpmem(b + i * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE, a + 1 + i * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE);
			kept++;
		}
		g_assert_true(words == c->data + c->bytes);
		g_assert_cmpuint(c->count, ==, kept);
		delta_chunk_free(c);
	}
	delta_encoder_free(e);
	delta_decoder_free(d);
}

static void test_delta_zero(void)
{
	g_autofree uint8_t *page = g_malloc0(VCFT_PAGE_SIZE);
	g_assert_true(delta_is_zero(page));
	for (unsigned i = 0; i < VCFT_PAGE_SIZE; i++) {
		page[i] = 1;
		g_assert_false(delta_is_zero(page));
		page[i] = 0;
	}
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/image/I1/holes", test_I1_holes);
	g_test_add_func("/image/I2/unreserved", test_I2_unreserved);
	g_test_add_func("/image/wrong-size", test_wrong_size);
	g_test_add_func("/image/restore/all", test_restore_all);
	g_test_add_func("/image/restore/some", test_restore_some);
	g_test_add_func("/image/recent", test_recent);
	g_test_add_func("/image/I7/beside-commits", test_I7_beside_commits);
	g_test_add_func("/image/disk", test_disk);
	g_test_add_func("/delta/oracle", test_delta_oracle);
	g_test_add_func("/delta/zero", test_delta_zero);
	return g_test_run();
}
