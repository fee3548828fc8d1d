/* fuzz-image.c - whatever the files of an image are: image_open() refuses them, or every page can be read, copied, hashed and restored.
 *
 * Input: u8 size of RAM, overlay and map each, then bytes of map, overlay and RAM in turn. */
#include "fuzz-image.h"

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
	demand(image_copy_ram(image, copy, NULL));
	image_restore_ram(image, live, NULL);
	XXH128_hash_t h = XXH3_128bits(live, sizeof live);
	again[0] = h.low64, again[1] = h.high64;
	demand(hash[0] == again[0] && hash[1] == again[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	GError *error = NULL;
	struct input in = { data, n };
	uint64_t ram = take(&in, 2) % (RAM_PAGES * VCFT_PAGE_SIZE + 2), overlay = take(&in, 2) % (BLOCKS * VCFT_PAGE_SIZE + 2), map = take(&in, 1) % 4;
	write_file(fuzz_spec.disk_dir[0], "map", map, &in, 3);
	write_file(fuzz_spec.disk_dir[0], "overlay", overlay, &in, 64);
	write_file(NULL, fuzz_spec.ram_path, ram, &in, in.left);
	struct image *image = image_open(&fuzz_spec, &error);
	demand((image == NULL) == (error != NULL));
	if (image)
		use(image);
	image_free(image);
	g_clear_error(&error);
	return 0;
}
