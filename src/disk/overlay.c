/* overlay.c - see overlay.h. The map is allocated on disk when it is made, 32 MiB for a disk of 1 TiB, so that setting a bit cannot fail. The
 * sums are 2 GiB for such a disk, so they are sparse: their room is taken by the page, like a block's. */
#include "disk/overlay.h"

#include "base/must.h"
#include "disk/disk-private.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

struct overlay {
	uint64_t blocks;
	int fd;
	uint8_t *map;
	size_t map_bytes;
	uint8_t *reserved;   /* a bit a block: the file system has given its room (D23) */
	int sums_fd;
	uint64_t *sum;       /* mapped */
	uint8_t *sums_reserved;   /* a bit a page of it */
	uint64_t zero;       /* hash of a block of zeros */
};

static uint64_t round_up(uint64_t n, uint64_t unit) { return (n + unit - 1) / unit * unit; }

/* Open or make a file of `size` bytes; an existing one may have up to `most`. */
static int open_sized(const char *path, uint64_t size, uint64_t most, GError **error)
{
	struct stat st;
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || fstat(fd, &st) < 0)
		disk_fail_errno(error, errno, "%s", path);
	else if (st.st_size == 0 ? ftruncate(fd, (off_t)size) < 0 : false)
		disk_fail_errno(error, errno, "%s: cannot make it %" PRIu64 " bytes", path, size);
	else if (st.st_size != 0 && ((uint64_t)st.st_size < size || (uint64_t)st.st_size > most))
		disk_fail(error, "%s: has %" PRIu64 " bytes, expected %" PRIu64 ": it belongs to another disk", path, (uint64_t)st.st_size, size);
	else
		return fd;
	disk_close(&fd);
	return -1;
}

static gboolean open_map(struct overlay *overlay, const char *dir, GError **error)
{
	g_autofree char *path = g_build_filename(dir, "map", NULL);
	overlay->map_bytes = (size_t)MAX((overlay->blocks + 7) / 8, 1);
	int fd = open_sized(path, overlay->map_bytes, round_up(overlay->map_bytes, VCFT_PAGE_SIZE), error);
	if (fd < 0)
		return FALSE;
	int err = posix_fallocate(fd, 0, (off_t)overlay->map_bytes);
	void *map = err ? MAP_FAILED : mmap(NULL, overlay->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		disk_fail_errno(error, err ? err : errno, "%s", path);
	else
		overlay->map = map;
	disk_close(&fd);
	return overlay->map != NULL;
}

#define SUMS_A_PAGE (VCFT_PAGE_SIZE / sizeof(uint64_t))

static size_t sums_bytes(const struct overlay *overlay) { return (size_t)MAX(overlay->blocks, 1) * sizeof(uint64_t); }

static gboolean open_sums(struct overlay *overlay, const char *dir, GError **error)
{
	g_autofree char *path = g_build_filename(dir, "sums", NULL);
	overlay->sums_reserved = calloc((size_t)(overlay->blocks / SUMS_A_PAGE / 8 + 1), 1);
	overlay->sums_fd = overlay->sums_reserved ? open_sized(path, sums_bytes(overlay), sums_bytes(overlay), error) : -1;
	if (!overlay->sums_reserved)
		return disk_fail(error, "no memory for a disk of %" PRIu64 " blocks", overlay->blocks);
	if (overlay->sums_fd < 0)
		return FALSE;
	void *map = mmap(NULL, sums_bytes(overlay), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, overlay->sums_fd, 0);
	if (map == MAP_FAILED)
		return disk_fail_errno(error, errno, "%s", path);
	overlay->sum = map;
	return TRUE;
}

static bool is_reserved(const struct overlay *overlay, uint64_t block)
{
	return __atomic_load_n(&overlay->reserved[block / 8], __ATOMIC_RELAXED) >> (block % 8) & 1;
}

static void set_reserved(struct overlay *overlay, uint64_t block, uint64_t end)
{
	for (; block < end; block++)
		__atomic_fetch_or(&overlay->reserved[block / 8], (uint8_t)(1u << (block % 8)), __ATOMIC_RELAXED);
}

/* What the file has from before. */
static gboolean find_reserved(struct overlay *overlay, GError **error)
{
	overlay->reserved = calloc(overlay->map_bytes, 1);
	if (!overlay->reserved)
		return disk_fail(error, "no memory for a disk of %" PRIu64 " blocks", overlay->blocks);
	for (off_t start, end = 0; (start = lseek(overlay->fd, end, SEEK_DATA)) >= 0;) {
		end = lseek(overlay->fd, start, SEEK_HOLE);
		if (end < 0)
			return disk_fail_errno(error, errno, "overlay");
		set_reserved(overlay, (uint64_t)start / DISK_BLOCK_BYTES, MIN(round_up((uint64_t)end, DISK_BLOCK_BYTES) / DISK_BLOCK_BYTES, overlay->blocks));
	}
	return TRUE;
}

struct overlay *overlay_open(const char *dir, uint64_t blocks, GError **error)
{
	g_autofree char *path = g_build_filename(dir, "overlay", NULL);
	static const uint8_t zeros[DISK_BLOCK_BYTES];
	struct overlay *overlay = g_new0(struct overlay, 1);
	uint64_t bytes = blocks * DISK_BLOCK_BYTES;
	overlay->blocks = blocks;
	overlay->sums_fd = -1;
	overlay->zero = XXH3_64bits(zeros, sizeof zeros);
	overlay->fd = open_sized(path, bytes, bytes, error);
	if (overlay->fd >= 0 && open_map(overlay, dir, error) && open_sums(overlay, dir, error) && find_reserved(overlay, error))
		return overlay;
	overlay_close(overlay);
	return NULL;
}

void overlay_close(struct overlay *overlay)
{
	if (!overlay)
		return;
	if (overlay->map)
		munmap(overlay->map, overlay->map_bytes);
	if (overlay->sum)
		munmap(overlay->sum, sums_bytes(overlay));
	disk_close(&overlay->fd);
	disk_close(&overlay->sums_fd);
	free(overlay->reserved);
	free(overlay->sums_reserved);
	g_free(overlay);
}

bool overlay_has(const struct overlay *overlay, uint64_t block)
{
	return __atomic_load_n(&overlay->map[block / 8], __ATOMIC_ACQUIRE) >> (block % 8) & 1;
}

/* ---- read ---- */

static uint64_t stored_sum(const struct overlay *overlay, uint64_t block) { return GUINT64_FROM_LE(overlay->sum[block]); }

int overlay_read(const struct overlay *overlay, uint64_t block, uint64_t n, void *data)
{
	size_t got = 0, bytes = (size_t)n * DISK_BLOCK_BYTES;
	int err = disk_pread_most(overlay->fd, data, bytes, block * DISK_BLOCK_BYTES, &got);
	if (err || got != bytes)
		return err ? err : EIO;   /* cut short behind our back */
	for (uint64_t i = 0; i < n; i++)
		if (stored_sum(overlay, block + i) != sum_page((const uint8_t *)data + i * DISK_BLOCK_BYTES, block + i))
			return EBADMSG;
	return 0;
}

bool overlay_lacks(const struct overlay *overlay, uint64_t block, uint64_t n)
{
	uint64_t end = block + n;
	while (block < end && !overlay->sum[block])
		block++;
	return block == end;
}

/* ---- reserve ---- */

/* Room for the checksums of blocks: a page of them has those of 2 MiB. */
static int reserve_sums(struct overlay *overlay, uint64_t block, uint64_t end)
{
	int err = 0;
	for (uint64_t page = block / SUMS_A_PAGE; page * SUMS_A_PAGE < end && !err; page++) {
		if (overlay->sums_reserved[page / 8] >> (page % 8) & 1)
			continue;
		uint64_t at = page * VCFT_PAGE_SIZE;
		do
			err = posix_fallocate(overlay->sums_fd, (off_t)at, (off_t)MIN(VCFT_PAGE_SIZE, sums_bytes(overlay) - at));
		while (err == EINTR);
		if (!err)
			overlay->sums_reserved[page / 8] |= (uint8_t)(1u << (page % 8));
	}
	return err;
}

static int take_room(struct overlay *overlay, uint64_t block, uint64_t end)
{
	int err;
	do
		err = fallocate(overlay->fd, FALLOC_FL_KEEP_SIZE, (off_t)(block * DISK_BLOCK_BYTES), (off_t)((end - block) * DISK_BLOCK_BYTES)) < 0 ? errno : 0;
	while (err == EINTR);
	if (err && err != EOPNOTSUPP)
		return err;
	set_reserved(overlay, block, end);
	return 0;
}

int overlay_reserve(struct overlay *overlay, uint64_t block, uint64_t n)
{
	MUST("D23", block <= overlay->blocks && n <= overlay->blocks - block);
	int err = reserve_sums(overlay, block, block + n);
	for (uint64_t end = block + n, stop; block < end && !err; block = stop) {
		stop = block + 1;
		if (is_reserved(overlay, block))
			continue;
		while (stop < end && !is_reserved(overlay, stop))
			stop++;
		err = take_room(overlay, block, stop);
	}
	return err;
}

int overlay_reserve_zero(struct overlay *overlay, uint64_t block, uint64_t n)
{
	MUST("D23", block <= overlay->blocks && n <= overlay->blocks - block);
	return reserve_sums(overlay, block, block + n);
}

/* ---- fold ---- */

#define FOLD_BLOCKS 256u   /* most blocks in one write */

/* Number of slots from i on, of one kind, whose blocks follow each other as the slots do. */
static uint64_t fold_run(const struct epoch_log *log, uint64_t i)
{
	struct epoch_log_slot first = epoch_log_slot(log, i);
	uint64_t most = MIN(epoch_log_count(log) - i, FOLD_BLOCKS), run = 1;
	for (; run < most; run++) {
		struct epoch_log_slot next = epoch_log_slot(log, i + run);
		if (next.block != first.block + run || next.zero != first.zero)
			break;
	}
	return run;
}

/* Where nothing is reserved there is a hole, which is zero; if a write reserves it at this moment, it is still. */
static int fold_zero(const struct overlay *overlay, uint64_t block, uint64_t n)
{
	static const uint8_t zeros[DISK_BLOCK_BYTES];
	int err = 0;
	for (uint64_t end = block + n; block < end && !err; block++)
		if (is_reserved(overlay, block))
			err = disk_pwrite_all(overlay->fd, zeros, sizeof zeros, block * DISK_BLOCK_BYTES);
	return err;
}

/* D24 */
static int fold_data(const struct overlay *overlay, const struct epoch_log *log, struct epoch_log_slot slot, uint64_t run, uint8_t *buffer)
{
	int err = epoch_log_read(log, slot.slot, run, buffer);
	return err ? err : disk_pwrite_all(overlay->fd, buffer, (size_t)run * DISK_BLOCK_BYTES, slot.block * DISK_BLOCK_BYTES);
}

/* D10. data: the run's contents; NULL: zeros. */
static void note_folded(struct overlay *overlay, uint64_t block, uint64_t n, const uint8_t *data)
{
	for (uint64_t i = 0; i < n; i++) {
		uint64_t b = block + i, sum = data ? sum_page(data + i * DISK_BLOCK_BYTES, b) : sum_hashed(overlay->zero, b);
		overlay->sum[b] = GUINT64_TO_LE(sum);
		__atomic_fetch_or(&overlay->map[b / 8], (uint8_t)(1u << (b % 8)), __ATOMIC_RELEASE);
	}
}

gboolean overlay_fold(struct overlay *overlay, const struct epoch_log *log, GError **error)
{
	g_autofree uint8_t *buffer = g_malloc(FOLD_BLOCKS * DISK_BLOCK_BYTES);
	for (uint64_t i = 0, run; i < epoch_log_count(log); i += run) {
		struct epoch_log_slot slot = epoch_log_slot(log, i);
		run = fold_run(log, i);
		MUST("D10", slot.block < overlay->blocks && run <= overlay->blocks - slot.block);
		int err = slot.zero ? fold_zero(overlay, slot.block, run) : fold_data(overlay, log, slot, run, buffer);
		if (err == EBADMSG)
			return disk_fail_damaged(error, "epoch %" PRIu64 ", block %" PRIu64 " or one of the %" PRIu64 " after it: another checksum",
			                         epoch_log_epoch(log).n, slot.block, run - 1);
		if (err)
			return disk_fail_errno(error, err, "overlay, block %" PRIu64, slot.block);
		note_folded(overlay, slot.block, run, slot.zero ? NULL : buffer);
	}
	return TRUE;
}

gboolean overlay_fold_view(struct overlay *overlay, const struct disk_log *log, GError **error)
{
	for (size_t i = 0; i < log->count; i++) {
		MUST("D10", log->block[i] < overlay->blocks);
		int err = overlay_reserve(overlay, log->block[i], 1);
		if (!err)
			err = disk_pwrite_all(overlay->fd, log->data[i], DISK_BLOCK_BYTES, log->block[i] * DISK_BLOCK_BYTES);
		if (err)
			return disk_fail_errno(error, err, "overlay, block %" PRIu64, log->block[i]);
		note_folded(overlay, log->block[i], 1, log->data[i]);
	}
	return TRUE;
}
