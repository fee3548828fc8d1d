/* fuzz-image.c - whatever the files of an image are: image_open() refuses them, or every page can be read, copied, hashed and restored, and a
 * disk's page is sound just if its checksum says so (I5).
 *
 * Input: u16 size of RAM and overlay each, u8 of map, u16 of the sums and a block of which they are put right; then bytes of map, overlay, sums and RAM. */
#include "../unit/store/copy-ram.h"
#include "fuzz-image.h"

#include "base/sum.h"

#include <fcntl.h>

#define RAM_PAGES 4u
#define BLOCKS 12u

static char *copy;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	fuzz_image_folder(RAM_PAGES, BLOCKS, false);
	copy = g_build_filename(fuzz_dir, "copy", NULL);
	return 0;
}

static void write_file(const char *folder, const char *name, uint64_t size, struct input *in, size_t most)
{
	g_autofree char *path = folder ? g_build_filename(folder, name, NULL) : g_strdup(name);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	const uint8_t *bytes = take_bytes(in, &most);
	size_t n = most < size ? most : size;
	demand(fd >= 0 && ftruncate(fd, (off_t)size) == 0 && pwrite(fd, bytes, n, 0) == (ssize_t)n);
	close(fd);
}

/* The sums as given; that of a block as it should be, if the overlay holds it wholly. */
static void write_sums(uint64_t size, uint64_t right, struct input *in)
{
	g_autofree char *overlay = g_build_filename(fuzz_spec.disk_dir[0], "overlay", NULL), *path = g_build_filename(fuzz_spec.disk_dir[0], "sums", NULL);
	g_autofree char *text = NULL;
	gsize n;
	write_file(fuzz_spec.disk_dir[0], "sums", size, in, 16);
	demand(g_file_get_contents(overlay, &text, &n, NULL));
	if (right >= BLOCKS || (right + 1) * VCFT_PAGE_SIZE > n || (right + 1) * sizeof(uint64_t) > size)
		return;
	uint64_t sum = sum_page((const uint8_t *)text + right * VCFT_PAGE_SIZE, right);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	demand(pwrite(fd, &sum, sizeof sum, (off_t)(right * sizeof sum)) == sizeof sum);
	close(fd);
}

/* I5, and after it that nothing forgets what was found. */
static void check_sound(struct image *image)
{
	g_autofree char *path = g_build_filename(fuzz_spec.disk_dir[0], "sums", NULL), *text = NULL;
	bool all = true;
	gsize n;
	demand(g_file_get_contents(path, &text, &n, NULL) && n == BLOCKS * sizeof(uint64_t));
	for (uint64_t b = 0; b < BLOCKS; b++) {
		const uint8_t *page = image_page(image, 1, b);
		uint64_t sum;
		memcpy(&sum, text + b * sizeof sum, sizeof sum);
		bool sound = page ? sum == sum_page(page, b) : sum == 0;
		demand(image_sound(image, 1, b) == sound);
		all = all && sound;
		demand(image_intact(image, NULL) == all);
	}
	demand(unlink(copy) == 0);
	demand(copy_ram(image, copy, NULL) == all);
}

/* image_next() and image_page() must agree. */
static void check_region(const struct image *image, unsigned region, uint64_t pages)
{
	uint64_t next = image_next(image, region, 0);
	for (uint64_t p = 0; p < pages; p++) {
		const uint8_t *page = image_page(image, region, p);
		demand((page != NULL) == (next == p));
		if (page)
			next = image_next(image, region, p + 1);
		__asm__ volatile("" : : "r"(page ? delta_is_zero(page) : true));   /* it was read */
	}
	demand(next == pages);
}

static void use(struct image *image)
{
	static uint8_t live[RAM_PAGES * VCFT_PAGE_SIZE] __attribute__((aligned(4096)));
	uint64_t hash[2], again[2];
	check_region(image, 0, RAM_PAGES);
	check_region(image, 1, BLOCKS);
	image_hash_ram(image, hash);
	unlink(copy);
	demand(copy_ram(image, copy, NULL));
	demand(image_restore_ram(image, live, NULL, NULL, NULL));
	XXH128_hash_t h = XXH3_128bits(live, sizeof live);
	again[0] = h.low64, again[1] = h.high64;
	demand(hash[0] == again[0] && hash[1] == again[1]);
	check_sound(image);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	GError *error = NULL;
	struct input in = { data, n };
	uint64_t ram = take(&in, 2) % (RAM_PAGES * VCFT_PAGE_SIZE + 2), overlay = take(&in, 2) % (BLOCKS * VCFT_PAGE_SIZE + 2), map = take(&in, 1) % 4;
	uint64_t sums = take(&in, 2) % (BLOCKS * sizeof(uint64_t) + 2), right = take(&in, 1);
	write_file(fuzz_spec.disk_dir[0], "map", map, &in, 3);
	write_file(fuzz_spec.disk_dir[0], "overlay", overlay, &in, 64);
	write_sums(sums, right, &in);
	write_file(NULL, fuzz_spec.ram_path, ram, &in, in.left);
	struct image *image = image_open(&fuzz_spec, &error);
	demand((image == NULL) == (error != NULL));
	if (image)
		use(image);
	image_free(image);
	g_clear_error(&error);
	return 0;
}
