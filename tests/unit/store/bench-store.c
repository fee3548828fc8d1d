/* bench-store.c - how fast: coding of pages, an epoch over loopback until it is acknowledged, commit, copying and restoring an image. */
#include "copy-ram.h"
#include "bed.h"

#include "store/store-private.h"

#include <glib/gstdio.h>
#include <sys/mman.h>

#define PAGES 8192u

/* Time of this thread alone: other work on the machine does not count. */
static nsec_t cpu_now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (nsec_t)ts.tv_sec * NSEC_PER_SEC + ts.tv_nsec;
}

static double seconds(nsec_t start) { return (double)(cpu_now() - start) / NSEC_PER_SEC; }

static void fill(uint8_t *data, uint8_t *reference, unsigned kind)
{
	uint64_t *words = (uint64_t *)(void *)reference;
	for (size_t i = 0; i < (size_t)PAGES * VCFT_PAGE_SIZE / 8; i++)
		words[i] = bed_random();
	memcpy(data, reference, (size_t)PAGES * VCFT_PAGE_SIZE);
	for (unsigned p = 0; p < PAGES; p++) {
		uint64_t *page = (uint64_t *)(void *)(data + (size_t)p * VCFT_PAGE_SIZE);
		for (unsigned i = 0; kind == 1 && i < 8; i++)
			page[bed_random() % 512] = bed_random();
		for (unsigned i = 0; kind == 2 && i < 128; i++)
			page[bed_random() % 512] = bed_random();
		for (unsigned i = 0; kind == 3 && i < 512; i++)
			page[i] = bed_random();
	}
}

static void code(const char *name, const uint8_t *data, const uint8_t *reference)
{
	struct store_shape shape = { 1, { PAGES } };
	struct delta_encoder *e = delta_encoder_new();
	struct delta_decoder *d = delta_decoder_new();
	size_t bytes = 0;
	double encode = 1e9, decode = 1e9;
	for (unsigned round = 0; round < 5; round++) {
		nsec_t in_encode = 0, in_decode = 0;
		bytes = 0;
		for (unsigned p = 0; p < PAGES;) {
			nsec_t start = cpu_now();
			delta_begin(e, 0, DELTA_WORDS);
			for (unsigned k = 0; k < STORE_CHUNK_PAGES; k++, p++)
				delta_add(e, p, data + (size_t)p * VCFT_PAGE_SIZE, reference + (size_t)p * VCFT_PAGE_SIZE, false);
			g_autoptr(GBytes) m = delta_finish(e);
			in_encode += cpu_now() - start;
			if (!m)
				continue;
			gsize n;
			const uint8_t *payload = g_bytes_get_data(m, &n);
			enum store_status status;
			start = cpu_now();
			struct delta_chunk *c = delta_decode(d, payload + MESSAGE_HEADER_BYTES, n - MESSAGE_HEADER_BYTES, &shape, &status);
			in_decode += cpu_now() - start;
			bytes += n;
			delta_chunk_free(c);
		}
		encode = MIN(encode, (double)in_encode / NSEC_PER_SEC);
		decode = MIN(decode, (double)in_decode / NSEC_PER_SEC);
	}
	double gb = (double)PAGES * VCFT_PAGE_SIZE / 1e9;
	g_print("code %-28s encode %5.2f GB/s, decode %5.2f GB/s, %5.1f%% on the wire\n", name, gb / encode, bytes ? gb / decode : 0,
	        100.0 * (double)bytes / (double)(PAGES * VCFT_PAGE_SIZE));
	delta_encoder_free(e);
	delta_decoder_free(d);
}

static void bench_code(void)
{
	static const char *const names[] = { "unchanged", "8 words of a page changed", "128 words of a page changed", "all random" };
	size_t bytes = (size_t)PAGES * VCFT_PAGE_SIZE;
	uint8_t *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	uint8_t *reference = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	for (unsigned kind = 0; kind < 4; kind++) {
		fill(data, reference, kind);
		code(names[kind], data, reference);
	}
	munmap(data, bytes);
	munmap(reference, bytes);
}

static int compare(const void *a, const void *b)
{
	nsec_t x = *(const nsec_t *)a, y = *(const nsec_t *)b;
	return (x > y) - (x < y);
}

/* From source_send() (record at once) to stored(), and source_commit(). */
static void bench_epoch(unsigned dirty, unsigned backups)
{
	enum { ROUNDS = 60 };
	nsec_t stored[ROUNDS], committed[ROUNDS];
	struct bed *bed = bed_new(&(struct bed_options){ .ram_pages = PAGES, .backups = backups });
	bed->no_hash = true;
	bed_set_backups(bed, (1u << backups) - 1, 0);
	for (uint64_t p = 0; p < PAGES; p++)
		bed_write(bed, 0, p, 1);
	bed_epoch(bed);
	for (unsigned i = 0; i < ROUNDS; i++) {
		for (unsigned k = 0; k < dirty; k++)
			bed_write(bed, 0, bed_random() % PAGES, 0);
		struct epoch_id r = bed_send(bed);
		nsec_t start = clock_now();
		bed_record(bed, r);
		bed_wait(bed, r);
		stored[i] = clock_now() - start;
		start = clock_now();
		source_commit(bed->source, r);
		committed[i] = clock_now() - start;
		for (unsigned b = 0; b < backups; b++)
			sink_commit(bed->backup[b].sink, r);
		memset(bed->region[0].dirty, 0, PAGES);
		g_usleep(3000);    /* an idle gap, as between checkpoints */
	}
	qsort(stored, ROUNDS, sizeof stored[0], compare);
	qsort(committed, ROUNDS, sizeof committed[0], compare);
	g_print("epoch of %5u pages, %u backups: stored after %.2f ms (median; 90%%: %.2f), shadow commit %.2f ms\n", dirty, backups,
	        (double)stored[ROUNDS / 2] / 1e6, (double)stored[ROUNDS * 9 / 10] / 1e6, (double)committed[ROUNDS / 2] / 1e6);
	bed->committed = bed->last;
	bed_free(bed);
}

/* Pages that do not compress, as fast as they go: bytes on the wire a second (bench/tls). */
static void bench_stream(void)
{
	enum { ROUNDS = 6 };
	double rate[ROUNDS], best = 0;
	struct bed *bed = bed_new(&(struct bed_options){ .ram_pages = PAGES, .backups = 1 });
	bed->no_hash = true;
	bed_set_backups(bed, 1, 0);
	for (unsigned i = 0; i < ROUNDS; i++) {
		for (uint64_t p = 0; p < PAGES; p++)
			bed_write(bed, 0, p, 1);
		nsec_t start = clock_now();
		bed_epoch(bed);
		rate[i] = (double)bed->stats.sent_bytes / 1e6 / ((double)(clock_now() - start) / NSEC_PER_SEC);
		best = i ? MAX(best, rate[i]) : 0;    /* the first fills the image */
	}
	g_print("stream of random pages: %.0f MB/s\n", best);
	bed_free(bed);
}

static void bench_image(unsigned percent)
{
	uint64_t pages = 65536;
	g_autofree char *dir = bed_temp(), *ram = g_build_filename(dir, "ram", NULL), *copy = g_build_filename(dir, "copy", NULL);
	struct image *image = image_open(&(struct image_spec){ .ram_path = ram, .ram_pages = pages }, NULL);
	uint8_t page[VCFT_PAGE_SIZE];
	for (uint64_t run = 0; run < pages; run += 64)
		for (uint64_t p = run; p < run + 64 && bed_random() % 100 < 100; p++) {
			if ((run / 64 * 37) % 100 >= percent)
				break;
			memset(page, (int)(p | 1), sizeof page);
			g_assert_true(image_reserve(image, 0, &p, 1, NULL));
			image_put(image, 0, p, page);
		}
	nsec_t start = cpu_now();
	g_assert_true(copy_ram(image, copy, NULL));
	double copied = seconds(start);
	uint64_t hash[2];
	start = cpu_now();
	image_hash_ram(image, hash);
	double hashed = seconds(start);
	FILE *f = fopen(copy, "r+");
	uint8_t *live = mmap(NULL, pages * VCFT_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(f), 0);
	fclose(f);
	start = cpu_now();
	g_assert_true(image_restore_ram(image, live, NULL, NULL, NULL));
	g_print("image 256 MiB, %3u%% used: copy %.1f ms, hash %.1f ms, compare with live RAM %.1f ms\n", percent, copied * 1e3, hashed * 1e3,
	        seconds(start) * 1e3);
	munmap(live, pages * VCFT_PAGE_SIZE);
	image_remove(image);
	bed_remove_tree(dir);
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	if (argc > 1 && !strcmp(argv[1], "stream")) {
		bench_stream();
		return 0;
	}
	bench_stream();
	bench_code();
	bench_epoch(0, 1);
	bench_epoch(10, 1);
	bench_epoch(400, 1);
	bench_epoch(400, 2);
	bench_epoch(4000, 1);
	bench_image(25);
	bench_image(100);
	return 0;
}
