/* image.c - the regions of a VM at its committed checkpoint, in files: an image on a backup, a shadow on the VM's own host.
 *
 *   region 0    RAM      mmap MAP_SHARED of a sparse tmpfs file
 *   region 1+i  disk i   mmap of `overlay` (sparse), `map` and `sums` (sparse), as in disk/disk.h
 *
 *  I1 A page without content takes no memory, and looking at it takes none: `reserved` has a bit for every page whose space has been
 *     taken from the file system. Reading a hole of a shared tmpfs mapping would fill it, so holes are never read.
 *  I2 Writing cannot fail, and never raises SIGBUS: only reserved pages are written, and reserving (fallocate) is done while staging, where
 *     it may be refused. Space that was reserved for a stage that is dropped stays reserved: the same pages come again in the next one.
 *  I3 A disk page has content if its bit in the map is set. A bit is never cleared. On the VM's own host the disk plugin writes
 *     overlay and map, in another process; here they are only read, between two commits of the disk.
 *  I4 Device state, record, epoch and `complete` are in memory only: an agent that dies drops its images (fail-stop).
 *
 *  I5 A page is used only as it was put: to start or roll back a VM, as the base of a delta, to fill a backup. Each has a checksum, taken of what was put
 *     and not of what is kept (SM1): 8 bytes a page, in memory for RAM, in `sums` for a disk; so have device state and record. A disk's page
 *     without content has none, so a bit of the map that is lost or comes from nowhere shows too. What is found damaged once makes the image unusable for good.
 *     A disk's pages are looked at one by one, by whoever uses one: on the VM's own host that is the plugin (D25).
 *
 *  I7 While a VM that was started from the image runs, its RAM is still being filled from here (image_content()), beside commits: `lock` keeps a page and its
 *     checksum together. What a commit puts in a page the VM has written, and so it is not asked for any more.
 *
 * Thread: whoever owns the image, but for I7. Left out: copy-on-write file systems, on which reserved space can run out after all. */
#include "store/store-private.h"

#include "base/room.h"
#include "base/sum.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct region {
	uint64_t pages;
	uint8_t *base;
	int fd;
	uint64_t *reserved;    /* a bit a page, in words; never smaller than what is written */
	uint64_t *sum;         /* I5; of RAM: 0 is zeros */
	uint64_t *written;     /* of RAM, CONTENT_PAGES each: the last epoch that has put one of them, 0: none */
	char *path;
	/* disks */
	uint8_t *map;
	int map_fd;
	bool map_reserved;
	char *map_path;
	int sums_fd;
	char *sums_path;
};

#define CONTENT_PAGES 64u   /* image_content()'s most at once: they are in the cache still when they have been checked */
#define RECENT_EPOCHS 256u  /* image_recent() does not look further back */

struct image {
	unsigned regions;
	struct region region[STORE_REGION_MAX];
	struct epoch_id epoch, complete;
	GBytes *devices, *record;
	uint64_t devices_sum, record_sum;
	GMutex lock;           /* I7: pages, checksums, `reserved` and `written` of RAM */
	uint64_t zero;         /* hash of a page of zeros */
	uint64_t damage;       /* atomic: what was found first (I5), 0: nothing */
};

static const uint8_t zeros[64 * 1024] __attribute__((aligned(4096)));

static gboolean fail(GError **error, const char *what, const char *path)
{
	int e = errno;
	g_set_error(error, G_IO_ERROR, g_io_error_from_errno(e), "%s %s: %s", what, path, g_strerror(e));
	return FALSE;
}

/* ---- bits ---- */
static size_t words(uint64_t bits) { return (size_t)(bits / 64 + (bits % 64 != 0)); }
static bool bit(const uint64_t *w, uint64_t i) { return w[i / 64] >> (i % 64) & 1; }

static void bits_set(uint64_t *w, uint64_t first, uint64_t count)
{
	for (uint64_t i = first; i < first + count; i++)
		w[i / 64] |= UINT64_C(1) << (i % 64);
}

/* The first bit >= from that is `value`, or `end`. */
static uint64_t bits_find(const uint64_t *w, uint64_t from, uint64_t end, bool value)
{
	while (from < end) {
		uint64_t x = (value ? w[from / 64] : ~w[from / 64]) >> (from % 64);
		if (x)
			return MIN(from + (uint64_t)__builtin_ctzll(x), end);
		from = (from / 64 + 1) * 64;
	}
	return end;
}

/* The next run of reserved pages at or after *from; false: none. */
static bool next_run(const struct region *r, uint64_t *from, uint64_t *ret_end)
{
	*from = bits_find(r->reserved, *from, r->pages, true);
	*ret_end = bits_find(r->reserved, *from, r->pages, false);
	return *from < r->pages;
}

/* ---- open and close ---- */
static int open_sized(const char *path, uint64_t bytes, GError **error)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	struct stat st;
	if (fd < 0 || fstat(fd, &st) < 0) {
		fail(error, "open", path);
	} else if ((uint64_t)st.st_size > bytes) {
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "%s: has %" G_GINT64_FORMAT " bytes; expected %" PRIu64, path,
		            (gint64)st.st_size, bytes);
	} else if ((uint64_t)st.st_size < bytes && ftruncate(fd, (off_t)bytes) < 0) {
		fail(error, "size", path);
	} else {
		return fd;
	}
	if (fd >= 0)
		close(fd);
	return -1;
}

static uint8_t *map_file(int fd, uint64_t bytes, bool writable, const char *path, GError **error)
{
	uint8_t *p = mmap(NULL, MAX(bytes, 1), PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (p == MAP_FAILED) {
		fail(error, "map", path);
		return NULL;
	}
	madvise(p, MAX(bytes, 1), MADV_DONTDUMP);
	return p;
}

/* What a file of a former life has: its data is reserved. */
static void find_data(struct region *r)
{
	off_t end = 0;
	for (;;) {
		off_t start = lseek(r->fd, end, SEEK_DATA);
		if (start < 0)
			return;
		end = lseek(r->fd, start, SEEK_HOLE);
		uint64_t first = (uint64_t)start / VCFT_PAGE_SIZE, last = ((uint64_t)end + VCFT_PAGE_SIZE - 1) / VCFT_PAGE_SIZE;
		bits_set(r->reserved, first, MIN(last, r->pages) - first);
		for (uint64_t p = first; p < MIN(last, r->pages); p++)
			r->sum[p] = sum_page(r->base + p * VCFT_PAGE_SIZE, p);
	}
}

static gboolean region_open(struct region *r, bool writable, GError **error)
{
	r->reserved = calloc(words(r->pages) + 1, sizeof *r->reserved);
	if (!r->reserved) {
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_NO_SPACE, "%s: no memory", r->path);
		return FALSE;
	}
	r->fd = open_sized(r->path, r->pages * VCFT_PAGE_SIZE, error);
	if (r->fd >= 0)
		r->base = map_file(r->fd, r->pages * VCFT_PAGE_SIZE, writable, r->path, error);
	return r->base != NULL;
}

static gboolean disk_region_open(struct region *r, const char *dir, uint64_t blocks, bool writable, GError **error)
{
	r->pages = blocks;
	r->path = g_build_filename(dir, "overlay", NULL);
	r->map_path = g_build_filename(dir, "map", NULL);
	r->sums_path = g_build_filename(dir, "sums", NULL);
	if (g_mkdir_with_parents(dir, 0700) < 0)
		return fail(error, "make", dir);
	if (!region_open(r, writable, error))
		return FALSE;
	r->map_fd = open_sized(r->map_path, (blocks + 7) / 8, error);
	if (r->map_fd >= 0)
		r->map = map_file(r->map_fd, (blocks + 7) / 8, writable, r->map_path, error);
	r->sums_fd = r->map ? open_sized(r->sums_path, blocks * sizeof *r->sum, error) : -1;
	if (r->sums_fd >= 0)
		r->sum = (uint64_t *)(void *)map_file(r->sums_fd, blocks * sizeof *r->sum, writable, r->sums_path, error);
	return r->sum != NULL;
}

static gboolean ram_sums_make(struct region *r, GError **error)
{
	r->sum = calloc(r->pages, sizeof *r->sum);
	r->written = calloc(r->pages / CONTENT_PAGES + 1, sizeof *r->written);
	if (!r->sum || !r->written)
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_NO_SPACE, "%s: no memory", r->path);
	return r->sum && r->written;
}

struct image *image_open(const struct image_spec *spec, GError **error)
{
	if (!spec->ram_pages || spec->ram_pages > UINT64_MAX / 2 / VCFT_PAGE_SIZE || spec->disk_count > VCFT_DISK_MAX) {
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT, "image %s: no RAM, or too many disks", spec->ram_path);
		return NULL;
	}
	struct image *image = g_new0(struct image, 1);
	g_mutex_init(&image->lock);
	for (unsigned i = 0; i < STORE_REGION_MAX; i++)
		image->region[i].fd = image->region[i].map_fd = image->region[i].sums_fd = -1;
	image->regions = 1 + spec->disk_count;
	image->zero = XXH3_64bits(zeros, VCFT_PAGE_SIZE);
	image->region[0].pages = spec->ram_pages;
	image->region[0].path = g_strdup(spec->ram_path);
	gboolean ok = region_open(&image->region[0], true, error) && ram_sums_make(&image->region[0], error);
	for (unsigned i = 0; ok && i < spec->disk_count; i++)
		ok = disk_region_open(&image->region[1 + i], spec->disk_dir[i], spec->disk_blocks[i], spec->disks_writable, error);
	if (!ok) {
		image_free(image);
		return NULL;
	}
	find_data(&image->region[0]);
	return image;
}

static void region_close(struct region *r)
{
	if (r->base)
		munmap(r->base, MAX(r->pages * VCFT_PAGE_SIZE, 1));
	if (r->map)
		munmap(r->map, MAX((r->pages + 7) / 8, 1));
	if (r->sum && r->sums_path)
		munmap(r->sum, MAX(r->pages * sizeof *r->sum, 1));
	else
		free(r->sum);
	for (unsigned i = 0; i < 3; i++) {
		int fd = i == 0 ? r->fd : i == 1 ? r->map_fd : r->sums_fd;
		if (fd >= 0)
			close(fd);
	}
	free(r->reserved);
	free(r->written);
	g_free(r->path);
	g_free(r->map_path);
	g_free(r->sums_path);
}

void image_free(struct image *image)
{
	if (!image)
		return;
	for (unsigned i = 0; i < image->regions; i++)
		region_close(&image->region[i]);
	g_clear_pointer(&image->devices, g_bytes_unref);
	g_clear_pointer(&image->record, g_bytes_unref);
	g_mutex_clear(&image->lock);
	g_free(image);
}

void image_remove(struct image *image)
{
	if (!image)
		return;
	for (unsigned i = 0; i < image->regions; i++) {
		unlink(image->region[i].path);
		if (image->region[i].map_path)
			unlink(image->region[i].map_path);
		if (image->region[i].sums_path)
			unlink(image->region[i].sums_path);
	}
	image_free(image);
}

void image_remove_files(const struct image_spec *spec)
{
	unlink(spec->ram_path);
	for (unsigned i = 0; i < spec->disk_count; i++) {
		g_autofree char *overlay = g_build_filename(spec->disk_dir[i], "overlay", NULL);
		g_autofree char *map = g_build_filename(spec->disk_dir[i], "map", NULL), *sums = g_build_filename(spec->disk_dir[i], "sums", NULL);
		unlink(overlay);
		unlink(map);
		unlink(sums);
	}
}

gboolean image_set_disks_writable(struct image *image, bool writable, GError **error)
{
	int protection = PROT_READ | (writable ? PROT_WRITE : 0);
	for (unsigned i = 1; i < image->regions; i++) {
		struct region *r = &image->region[i];
		if (mprotect(r->base, MAX(r->pages * VCFT_PAGE_SIZE, 1), protection) < 0 ||
		    mprotect(r->map, MAX((r->pages + 7) / 8, 1), protection) < 0 ||
		    mprotect(r->sum, MAX(r->pages * sizeof *r->sum, 1), protection) < 0)
			return fail(error, "protect", r->path);
		/* The plugin may have given space back meanwhile: zeros that it wrote are holes. */
		memset(r->reserved, 0, words(r->pages) * sizeof *r->reserved);
	}
	return TRUE;
}

/* ---- what it is ---- */
uint8_t *image_ram(struct image *image) { return image->region[0].base; }
struct epoch_id image_epoch(const struct image *image) { return image->epoch; }
struct epoch_id image_complete(const struct image *image) { return image->complete; }
GBytes *image_devices(struct image *image) { return image->devices; }
GBytes *image_record(struct image *image) { return image->record; }

void image_shape(const struct image *image, struct store_shape *ret_shape)
{
	*ret_shape = (struct store_shape){ .regions = image->regions };
	for (unsigned i = 0; i < image->regions; i++)
		ret_shape->pages[i] = image->region[i].pages;
}

uint64_t image_bytes(const struct image *image)
{
	uint64_t bytes = 0;
	struct stat st;
	for (unsigned i = 0; i < image->regions; i++)
		if (fstat(image->region[i].fd, &st) == 0)
			bytes += (uint64_t)st.st_blocks * 512;
	return bytes;
}

void image_begin(struct image *image, struct epoch_id base)
{
	image->epoch = base;
	image->complete = epoch_of(0);
}

void image_advance(struct image *image, struct epoch_id r, bool complete, GBytes *devices, GBytes *record)
{
	MUST("S1", epoch_cmp(r, image->epoch) > 0);
	image->epoch = r;
	if (complete && !image->complete.n)
		image->complete = r;
	if (image->devices)
		g_bytes_unref(image->devices);
	if (image->record)
		g_bytes_unref(image->record);
	image->devices = devices ? g_bytes_ref(devices) : NULL;
	image->record = record ? g_bytes_ref(record) : NULL;
	image->devices_sum = store_bytes_sum(devices);
	image->record_sum = store_bytes_sum(record);
}

/* ---- pages ---- */
static bool has_content(const struct region *r, uint64_t page)
{
	return r->map ? r->map[page / 8] >> (page % 8) & 1 : bit(r->reserved, page);
}

const uint8_t *image_page(const struct image *image, unsigned region, uint64_t page)
{
	const struct region *r = &image->region[region];
	return has_content(r, page) ? r->base + page * VCFT_PAGE_SIZE : NULL;
}

/* ---- what is damaged (I5) ---- */
#define DAMAGED_STATE UINT64_MAX
#define DAMAGED_REGION_SHIFT 56

static bool page_as_put(const struct region *r, uint64_t page)
{
	const uint8_t *at = r->base + page * VCFT_PAGE_SIZE;
	uint64_t sum = GUINT64_FROM_LE(r->sum[page]);
	if (!has_content(r, page))
		return !sum;
	return !sum && !r->map ? delta_is_zero(at) : sum == sum_page(at, page);
}

static bool found_damage(struct image *image, uint64_t what)
{
	uint64_t none = 0;
	__atomic_compare_exchange_n(&image->damage, &none, what, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
	return false;
}

bool image_sound(struct image *image, unsigned region, uint64_t page)
{
	return page_as_put(&image->region[region], page) || found_damage(image, (uint64_t)(region + 1) << DAMAGED_REGION_SHIFT | page);
}

gboolean image_state_sound(struct image *image, GError **error)
{
	if (store_bytes_sum(image->devices) != image->devices_sum || store_bytes_sum(image->record) != image->record_sum)
		found_damage(image, DAMAGED_STATE);
	return image_intact(image, error);
}

gboolean image_intact(const struct image *image, GError **error)
{
	uint64_t damage = __atomic_load_n(&image->damage, __ATOMIC_ACQUIRE);
	if (!damage)
		return TRUE;
	if (damage == DAMAGED_STATE)
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "the image is damaged: device state or record is not what was stored");
	else
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "the image is damaged: page %" PRIu64 " of %s is not what was stored",
		            damage & ((UINT64_C(1) << DAMAGED_REGION_SHIFT) - 1), image->region[(damage >> DAMAGED_REGION_SHIFT) - 1].path);
	return FALSE;
}

/* Zeros that were put there: a guest clears memory that it frees. */
bool image_zero(const struct image *image, uint64_t page)
{
	const struct region *r = &image->region[0];
	return delta_is_zero(r->base + page * VCFT_PAGE_SIZE) && (!r->sum[page] || r->sum[page] == sum_hashed(image->zero, page));
}

uint64_t image_next(const struct image *image, unsigned region, uint64_t from)
{
	const struct region *r = &image->region[region];
	if (!r->map)
		return bits_find(r->reserved, from, r->pages, true);
	while (from < r->pages) {
		uint64_t eight;
		if (from % 64 == 0 && from + 64 <= r->pages && (memcpy(&eight, r->map + from / 8, 8), eight == 0))
			from += 64;
		else if (has_content(r, from))
			return from;
		else
			from++;
	}
	return r->pages;
}

static gboolean allocate(int fd, uint64_t offset, uint64_t bytes, const char *path, GError **error)
{
	int e;
	do
		e = fallocate(fd, 0, (off_t)offset, (off_t)bytes) < 0 ? errno : 0;
	while (e == EINTR);
	errno = e;
	return e == 0 || fail(error, "no space for", path);
}

/* The bits stay clear: a page without content is not looked at (I1). */
gboolean image_reserve_ram(struct image *image, const bool *stop, GError **error)
{
	const struct region *r = &image->region[0];
	return room_take(r->fd, r->pages * VCFT_PAGE_SIZE, stop) || fail(error, "no space for", r->path);
}

gboolean image_room_is_there(const struct image *image, uint64_t more, GError **error)
{
	const struct region *r = &image->region[0];
	return room_is_there(r->fd, r->pages * VCFT_PAGE_SIZE, more) || fail(error, "no space for", r->path);
}

size_t image_missing(const struct image *image, unsigned region, const uint64_t *index, size_t count)
{
	size_t missing = 0;
	for (size_t i = 0; i < count; i++)
		missing += !bit(image->region[region].reserved, index[i]);
	return missing;
}

uint64_t image_ram_pages(const struct image *image)
{
	const struct region *r = &image->region[0];
	uint64_t pages = 0;
	for (uint64_t at = 0, end; next_run(r, &at, &end); at = end)
		pages += end - at;
	return pages;
}

gboolean image_reserve(struct image *image, unsigned region, const uint64_t *index, size_t count, GError **error)
{
	struct region *r = &image->region[region];
	if (r->map && !r->map_reserved) {
		if (r->pages && !allocate(r->map_fd, 0, (r->pages + 7) / 8, r->map_path, error))
			return FALSE;
		r->map_reserved = true;
	}
	for (size_t i = 0, n; i < count; i += n) {
		n = 1;
		if (bit(r->reserved, index[i]))
			continue;
		while (i + n < count && index[i + n] == index[i] + n && !bit(r->reserved, index[i + n]))
			n++;
		if (!allocate(r->fd, index[i] * VCFT_PAGE_SIZE, n * VCFT_PAGE_SIZE, r->path, error) ||
		    (r->map && !allocate(r->sums_fd, index[i] * sizeof *r->sum, n * sizeof *r->sum, r->sums_path, error)))
			return FALSE;
		g_mutex_lock(&image->lock);
		bits_set(r->reserved, index[i], n);
		g_mutex_unlock(&image->lock);
	}
	return TRUE;
}

/* Pages are put before the image is at their epoch. */
static void note_written(const struct image *image, struct region *r, uint64_t page)
{
	if (r->written)
		r->written[page / CONTENT_PAGES] = image->epoch.n + 1;
}

void image_put(struct image *image, unsigned region, uint64_t page, const uint8_t *data)
{
	struct region *r = &image->region[region];
	MUST("I2", bit(r->reserved, page));
	g_mutex_lock(&image->lock);
	r->sum[page] = GUINT64_TO_LE(sum_page(data, page));
	memcpy(r->base + page * VCFT_PAGE_SIZE, data, VCFT_PAGE_SIZE);
	note_written(image, r, page);
	g_mutex_unlock(&image->lock);
	if (r->map)
		r->map[page / 8] |= (uint8_t)(1u << (page % 8));
}

const uint8_t *image_patch(struct image *image, unsigned region, uint64_t page, const uint8_t *map, const uint8_t *words)
{
	struct region *r = &image->region[region];
	uint8_t *at = r->base + page * VCFT_PAGE_SIZE;
	if (!image_sound(image, region, page))
		return NULL;
	if (!has_content(r, page)) {
		uint8_t data[VCFT_PAGE_SIZE] = { 0 };
		words = unpack_page(data, map, words);
		image_put(image, region, page, data);
		return words;
	}
	g_mutex_lock(&image->lock);
	words = unpack_page(at, map, words);
	r->sum[page] = GUINT64_TO_LE(sum_page(at, page));
	note_written(image, r, page);
	g_mutex_unlock(&image->lock);
	return words;
}

void image_hash_ram(const struct image *image, uint64_t ret_hash[2])
{
	const struct region *r = &image->region[0];
	XXH3_state_t *state = XXH3_createState();
	XXH3_128bits_reset(state);
	for (uint64_t at = 0, run, end; at < r->pages; at = end) {
		run = at;
		if (!next_run(r, &run, &end))
			end = r->pages;
		for (uint64_t left = (run - at) * VCFT_PAGE_SIZE, n; left; left -= n)
			XXH3_128bits_update(state, zeros, n = MIN(left, sizeof zeros));
		XXH3_128bits_update(state, r->base + run * VCFT_PAGE_SIZE, (end - run) * VCFT_PAGE_SIZE);
	}
	XXH128_hash_t h = XXH3_128bits_digest(state);
	ret_hash[0] = h.low64;
	ret_hash[1] = h.high64;
	XXH3_freeState(state);
}

/* ---- content and restore ---- */

/* The next run of reserved pages of a chunk that may have some of an epoch from `since` on, within the chunk; false: none. */
static bool next_written(const struct region *r, struct epoch_id since, uint64_t *inout_from, uint64_t *ret_end)
{
	uint64_t at = *inout_from;
	while ((at = bits_find(r->reserved, at, r->pages, true)) < r->pages && r->written[at / CONTENT_PAGES] < since.n)
		at = (at / CONTENT_PAGES + 1) * CONTENT_PAGES;
	*inout_from = at;
	*ret_end = bits_find(r->reserved, at, MIN((at / CONTENT_PAGES + 1) * CONTENT_PAGES, r->pages), false);
	return at < r->pages;
}

/* Those of them that are not zero. */
static bool next_content(const struct image *image, struct epoch_id since, uint64_t *from, uint64_t *ret_end)
{
	for (uint64_t end; next_written(&image->region[0], since, from, &end); *from = end) {
		while (*from < end && image_zero(image, *from))
			++*from;
		*ret_end = *from;
		while (*ret_end < end && !image_zero(image, *ret_end))
			++*ret_end;
		if (*from < *ret_end)
			return true;
	}
	return false;
}

struct epoch_id image_recent(const struct image *image, uint64_t pages)
{
	const struct region *r = &image->region[0];
	uint64_t of_age[RECENT_EPOCHS] = { 0 }, newest = image->epoch.n, sum = 0, age;
	for (uint64_t chunk = 0; chunk * CONTENT_PAGES < r->pages; chunk++)
		if (r->written[chunk] && r->written[chunk] <= newest && newest - r->written[chunk] < RECENT_EPOCHS)
			of_age[newest - r->written[chunk]] += CONTENT_PAGES;
	for (age = 0; age < RECENT_EPOCHS && sum + of_age[age] <= pages; age++)
		sum += of_age[age];
	return epoch_of(newest + 1 - MIN(age, newest));
}

static bool run_sound(struct image *image, uint64_t from, uint64_t end)
{
	while (from < end && image_sound(image, 0, from))
		from++;
	return from == end;
}

const uint8_t *image_content(struct image *image, struct epoch_id since, uint64_t *inout_first, uint64_t *ret_end, GError **error)
{
	const uint8_t *content = NULL;
	bool damaged = false;
	g_mutex_lock(&image->lock);
	if (next_content(image, since, inout_first, ret_end)) {
		damaged = !run_sound(image, *inout_first, *ret_end);
		content = damaged ? NULL : image->region[0].base + *inout_first * VCFT_PAGE_SIZE;
	} else {
		*inout_first = *ret_end = image->region[0].pages;
	}
	g_mutex_unlock(&image->lock);
	if (damaged)
		image_intact(image, error);
	return content;
}

/* False: the page of the image is damaged. */
static bool restore_page(struct image *image, uint8_t *live, uint64_t page, size_t *inout_copied)
{
	const uint8_t *want = image_page(image, 0, page);
	uint8_t *at = live + page * VCFT_PAGE_SIZE;
	if (!memcmp(at, want ? want : zeros, VCFT_PAGE_SIZE))
		return true;
	if (!image_sound(image, 0, page))
		return false;
	memcpy(at, want ? want : zeros, VCFT_PAGE_SIZE);
	++*inout_copied;
	return true;
}

static bool restore_some(struct image *image, uint8_t *live, const struct page_set *only, size_t *inout_copied)
{
	size_t i = 0;
	while (i < only->count && (only->index[i] >= image->region[0].pages || restore_page(image, live, only->index[i], inout_copied)))
		i++;
	return i == only->count;
}

static bool restore_all(struct image *image, uint8_t *live, size_t *inout_copied)
{
	uint64_t p = 0, pages = image->region[0].pages;
	while (p < pages && restore_page(image, live, p, inout_copied))
		p++;
	return p == pages;
}

gboolean image_restore_ram(struct image *image, uint8_t *live, const struct page_set *only, size_t *ret_copied, GError **error)
{
	size_t copied = 0;
	if (!image_state_sound(image, error))
		return FALSE;
	if (!(only ? restore_some(image, live, only, &copied) : restore_all(image, live, &copied)))
		return image_intact(image, error);
	if (ret_copied)
		*ret_copied = copied;
	return TRUE;
}
