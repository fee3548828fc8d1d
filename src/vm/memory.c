/* memory.c - see memory.h. Holes are found by SEEK_DATA and SEEK_HOLE; where these fail, everything counts as data (never too little). */
#include "vm/memory.h"

#include "base/room.h"
#include "vm/vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

static gboolean fail(GError **error, const char *path, const char *what)
{
	g_set_error(error, VMM_ERROR, VMM_ERROR_RAM, "RAM file %s: %s: %s", path, what, g_strerror(errno));
	return FALSE;
}

/* A new file gets its size; one that was there must have it (R2). */
static gboolean settle_size(int fd, const char *path, uint64_t bytes, GError **error)
{
	struct stat st;
	if (fstat(fd, &st) != 0)
		return fail(error, path, "cannot be examined");
	if ((uint64_t)st.st_size == bytes)
		return TRUE;
	if (st.st_size != 0) {
		g_set_error(error, VMM_ERROR, VMM_ERROR_RAM, "RAM file %s has %" G_GUINT64_FORMAT " bytes, expected %" G_GUINT64_FORMAT,
		            path, (guint64)st.st_size, (guint64)bytes);
		return FALSE;
	}
	return ftruncate(fd, (off_t)bytes) == 0 ? TRUE : fail(error, path, "cannot be sized");
}

static gboolean no_room(GError **error, uint64_t bytes)
{
	int e = errno;
	g_set_error(error, VMM_ERROR, e == ENOSPC ? VMM_ERROR_SPACE : VMM_ERROR_RAM, "no room for %" G_GUINT64_FORMAT " MiB of RAM: %s",
	            (guint64)(bytes >> 20), g_strerror(e));
	return FALSE;
}

gboolean memory_reserve(const struct memory *memory, const bool *stop, GError **error)
{
	return room_take(memory->fd, memory->bytes, stop) || no_room(error, memory->bytes);
}

gboolean memory_open(struct memory *memory, const char *path, uint64_t bytes, GError **error)
{
	*memory = (struct memory){ .fd = -1 };
	if (bytes == 0 || bytes % VCFT_PAGE_SIZE) {
		g_set_error(error, VMM_ERROR, VMM_ERROR_RAM, "RAM of %" G_GUINT64_FORMAT " bytes: not a multiple of the page size", (guint64)bytes);
		return FALSE;
	}
	int fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return fail(error, path, "cannot be opened");
	gboolean fits = settle_size(fd, path, bytes, error) && (room_is_there(fd, bytes, 0) || no_room(error, bytes));
	void *map = fits ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : NULL;
	if (!map || map == MAP_FAILED) {
		if (map)
			fail(error, path, "cannot be mapped");
		close(fd);
		return FALSE;
	}
	madvise(map, bytes, MADV_DONTFORK); /* children have no use for it */
	madvise(map, bytes, MADV_DONTDUMP); /* nor has a core file */
	*memory = (struct memory){ .fd = fd, .bytes = bytes, .map = map };
	return TRUE;
}

void memory_close(struct memory *memory)
{
	if (memory->map)
		munmap(memory->map, memory->bytes);
	if (memory->fd >= 0)
		close(memory->fd);
	*memory = (struct memory){ .fd = -1 };
}

uint64_t memory_pages(const struct memory *memory)
{
	return memory->bytes / VCFT_PAGE_SIZE;
}

uint64_t memory_data(const struct memory *memory, uint64_t *inout_first)
{
	uint64_t pages = memory_pages(memory), first = *inout_first;
	if (first >= pages)
		return 0;
	off_t data = lseek(memory->fd, (off_t)(first * VCFT_PAGE_SIZE), SEEK_DATA);
	if (data < 0)
		return errno == ENXIO ? 0 : pages - first;
	off_t hole = lseek(memory->fd, data, SEEK_HOLE);
	uint64_t end = hole < 0 ? pages : ((uint64_t)hole + VCFT_PAGE_SIZE - 1) / VCFT_PAGE_SIZE;
	*inout_first = (uint64_t)data / VCFT_PAGE_SIZE;
	return end - *inout_first;
}

void memory_populated(const struct memory *memory, struct page_bits *out)
{
	uint64_t n;
	for (uint64_t first = 0; (n = memory_data(memory, &first)); first += n)
		bits_add(out, first, n);
}

/* The first page at or after `page` that is not a hole; none: behind the last. */
static uint64_t next_data(const struct memory *memory, uint64_t page)
{
	off_t data = lseek(memory->fd, (off_t)(page * VCFT_PAGE_SIZE), SEEK_DATA);
	return data >= 0 ? (uint64_t)data / VCFT_PAGE_SIZE : errno == ENXIO ? memory_pages(memory) : page;
}

/* What mincore() knows is data; of the rest some may be on swap. */
void memory_add_data(const struct memory *memory, uint64_t first, uint64_t end, struct page_bits *out)
{
	unsigned char there[512];
	uint64_t next = 0;
	for (uint64_t n; first < end; first += n) {
		n = MIN(end - first, sizeof there);
		if (mincore(memory->map + first * VCFT_PAGE_SIZE, n * VCFT_PAGE_SIZE, there) != 0)
			memset(there, 0, n);
		for (uint64_t i = 0; i < n; i++) {
			if (!(there[i] & 1) && first + i >= next)
				next = next_data(memory, first + i);
			if ((there[i] & 1) || first + i == next)
				bits_add(out, first + i, 1);
		}
	}
}

uint64_t memory_populated_count(const struct memory *memory)
{
	uint64_t n, sum = 0;
	for (uint64_t first = 0; (n = memory_data(memory, &first)); first += n)
		sum += n;
	return sum;
}

void memory_prefault(const struct memory *memory)
{
	uint64_t n;
	for (uint64_t first = 0; (n = memory_data(memory, &first)); first += n)
		if (madvise(memory->map + first * VCFT_PAGE_SIZE, n * VCFT_PAGE_SIZE, MADV_POPULATE_READ) != 0)
			return; /* Linux < 5.14: the copy takes the faults */
}

static void hash_zeros(XXH3_state_t *state, uint64_t pages)
{
	static const uint8_t zeros[16 * VCFT_PAGE_SIZE];
	for (uint64_t left = pages * VCFT_PAGE_SIZE; left;) {
		size_t n = left < sizeof zeros ? left : sizeof zeros;
		XXH3_128bits_update(state, zeros, n);
		left -= n;
	}
}

void memory_hash(const struct memory *memory, uint64_t ret_hash[static 2])
{
	XXH3_state_t *state = XXH3_createState();
	g_assert(state);
	XXH3_128bits_reset(state);
	uint64_t done = 0, n;
	for (uint64_t first = 0; (n = memory_data(memory, &first)); first += n) {
		hash_zeros(state, first - done);
		XXH3_128bits_update(state, memory->map + first * VCFT_PAGE_SIZE, n * VCFT_PAGE_SIZE);
		done = first + n;
	}
	hash_zeros(state, memory_pages(memory) - done);
	XXH128_hash_t hash = XXH3_128bits_digest(state);
	XXH3_freeState(state);
	ret_hash[0] = hash.low64;
	ret_hash[1] = hash.high64;
}
