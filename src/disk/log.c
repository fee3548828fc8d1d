/* log.c - the writer of an epoch's log; files and rules D7, D8, D24 in log.h.
 *
 * In memory a log is a hash table from block to slot, open addressing, of 32-bit numbers (slot + 1, 0 is empty); the block itself is read
 * from the mapped index, so that the table costs 8 to 16 bytes a block.
 *
 *   block ──hash──► table[h] = slot+1 ──► entry[slot] = block | zero, checksum      slot ──► log.N at 4096*(1+slot)
 *
 * The index is mapped whole (16 bytes a block of the disk, address space only) and allocated on disk in steps ahead of its use, for a store
 * to a page that the file system cannot allocate would be a SIGBUS instead of ENOSPC. */
#include "disk/log.h"

#include "base/fault.h"
#include "base/must.h"
#include "disk/disk-private.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ROOM_FIRST 4096u   /* entries allocated at first: 64 KiB */

struct epoch_log {
	struct epoch_id epoch;
	uint64_t blocks;
	char *path, *index_path;          /* NULL once unlinked */
	int fd, index_fd;
	struct epoch_log_header *header;  /* page 0 of log.N, mapped */
	struct epoch_log_entry *entry;    /* log.N.idx, mapped */
	uint64_t count, room;             /* slots in use; entries that are allocated on disk */
	uint32_t *table;                  /* 1 << table_bits numbers, at least 2 * room */
	unsigned table_bits;
};

/* ---- table ---- */

static inline uint64_t entry_block(const struct epoch_log *log, uint64_t slot)
{
	return GUINT64_FROM_LE(log->entry[slot].word) & ~EPOCH_LOG_ZERO;
}

/* Where the block is in the table, or the empty place where it would go. */
static inline uint32_t *table_place(const struct epoch_log *log, uint64_t block)
{
	uint64_t mask = (UINT64_C(1) << log->table_bits) - 1;
	uint64_t h = (block * UINT64_C(0x9E3779B97F4A7C15)) >> (64 - log->table_bits);
	while (log->table[h] && entry_block(log, log->table[h] - 1) != block)
		h = (h + 1) & mask;
	return &log->table[h];
}

/* The table's room for `room` slots; what is in it is placed anew. */
static int table_grow(struct epoch_log *log, uint64_t room)
{
	unsigned bits = 1;
	while ((UINT64_C(1) << bits) < 2 * room)
		bits++;
	uint32_t *table = calloc((size_t)1 << bits, sizeof *table);
	if (!table)
		return ENOMEM;
	free(log->table);
	log->table = table;
	log->table_bits = bits;
	for (uint64_t slot = 0; slot < log->count; slot++)
		*table_place(log, entry_block(log, slot)) = (uint32_t)slot + 1;
	return 0;
}

/* Room for n more slots in index and table. */
static int reserve(struct epoch_log *log, uint64_t n)
{
	if (log->count + n <= log->room)
		return 0;
	uint64_t room = MIN(MAX(log->count + n, 2 * log->room), MAX(log->blocks, ROOM_FIRST) + n);
	int err;
	do
		err = posix_fallocate(log->index_fd, 0, (off_t)(room * sizeof *log->entry));
	while (err == EINTR);
	if (!err)
		err = table_grow(log, room);
	if (!err)
		log->room = room;
	return err;
}

/* D24: entry and checksum of a slot whose contents are `data`. */
static void set_entry(struct epoch_log *log, uint64_t slot, uint64_t word, const uint8_t *data)
{
	log->entry[slot] = (struct epoch_log_entry){ GUINT64_TO_LE(word), GUINT64_TO_LE(epoch_log_sum(word, data)) };
}

/* A log that is sealed gets blocks too, of an older one that is merged into it. */
static void set_header_sum(struct epoch_log *log)
{
	if (epoch_log_sealed(log))
		log->header->sum = GUINT64_TO_LE(epoch_log_header_sum(log->header));
}

static void publish(struct epoch_log *log, uint64_t word, const uint8_t *data)
{
	MUST("D7", log->count < log->room && log->count < log->blocks);
	set_entry(log, log->count, word, data);
	*table_place(log, word & ~EPOCH_LOG_ZERO) = (uint32_t)log->count + 1;
	log->count++;
	__atomic_store_n(&log->header->count, GUINT64_TO_LE(log->count), __ATOMIC_RELEASE);
	set_header_sum(log);
}

/* ---- life ---- */

static gboolean make_header(struct epoch_log *log, GError **error)
{
	uint8_t page[DISK_BLOCK_BYTES] = { 0 };
	struct epoch_log_header h = {
		.magic = GUINT64_TO_LE(EPOCH_LOG_MAGIC), .version = GUINT32_TO_LE(EPOCH_LOG_VERSION),
		.block_bytes = GUINT32_TO_LE(DISK_BLOCK_BYTES), .epoch = GUINT64_TO_LE(log->epoch.n), .blocks = GUINT64_TO_LE(log->blocks),
	};
	memcpy(page, &h, sizeof h);
	int err = disk_pwrite_all(log->fd, page, sizeof page, 0);
	if (err)
		return disk_fail_errno(error, err, "%s", log->path);
	void *map = mmap(NULL, DISK_BLOCK_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, log->fd, 0);
	if (map == MAP_FAILED)
		return disk_fail_errno(error, errno, "%s: cannot map", log->path);
	log->header = map;
	return TRUE;
}

static size_t index_bytes(const struct epoch_log *log)
{
	return (size_t)(MAX(log->blocks, 1) * sizeof *log->entry);
}

static gboolean make_index(struct epoch_log *log, GError **error)
{
	void *map = mmap(NULL, index_bytes(log), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, log->index_fd, 0);
	if (map == MAP_FAILED)
		return disk_fail_errno(error, errno, "%s: cannot map", log->index_path);
	log->entry = map;
	int err = reserve(log, ROOM_FIRST);
	return err ? disk_fail_errno(error, err, "%s", log->index_path) : TRUE;
}

struct epoch_log *epoch_log_create(const char *dir, struct epoch_id epoch, uint64_t blocks, GError **error)
{
	MUST("D7", blocks <= EPOCH_LOG_BLOCKS_MAX);
	struct epoch_log *log = g_new0(struct epoch_log, 1);
	log->epoch = epoch;
	log->blocks = blocks;
	log->index_fd = -1;
	log->path = epoch_log_path(dir, epoch, "");
	log->index_path = epoch_log_path(dir, epoch, ".idx");
	log->fd = open(log->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (log->fd >= 0)
		log->index_fd = open(log->index_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (log->index_fd < 0)
		disk_fail_errno(error, errno, "%s", log->fd < 0 ? log->path : log->index_path);
	else if (make_header(log, error) && make_index(log, error))
		return log;
	epoch_log_drop(log);
	return NULL;
}

static gboolean rename_to(struct epoch_log *log, const char *dir, struct epoch_id epoch, GError **error)
{
	g_autofree char *path = epoch_log_path(dir, epoch, ""), *index_path = epoch_log_path(dir, epoch, ".idx");
	if (rename(log->path, path) < 0)
		return disk_fail_errno(error, errno, "%s: cannot rename", log->path);
	if (rename(log->index_path, index_path) < 0) {
		disk_fail_errno(error, errno, "%s: cannot rename", log->index_path);
		if (rename(path, log->path) < 0)
			g_prefix_error(error, "%s is left over: ", path);
		return FALSE;
	}
	g_free(log->path);
	g_free(log->index_path);
	log->path = g_steal_pointer(&path);
	log->index_path = g_steal_pointer(&index_path);
	log->epoch = epoch;
	log->header->epoch = GUINT64_TO_LE(epoch.n);
	return TRUE;
}

gboolean epoch_log_relabel(struct epoch_log *log, const char *dir, struct epoch_id epoch, GError **error)
{
	MUST("D12", log->path && !epoch_log_sealed(log) && epoch_cmp(epoch, log->epoch) > 0);
	return rename_to(log, dir, epoch, error);
}

/* The header and the first part of the index stay as they are on disk. */
gboolean epoch_log_recycle(struct epoch_log *log, const char *dir, struct epoch_id epoch, GError **error)
{
	if (!log->path)
		return disk_fail(error, "a log without a name cannot be used again");
	MUST("D22", epoch_cmp(epoch, log->epoch) != 0);
	epoch_log_set_sealed(log, false);
	log->count = 0;
	__atomic_store_n(&log->header->count, 0, __ATOMIC_RELEASE);
	log->room = ROOM_FIRST;
	int err = ftruncate(log->fd, DISK_BLOCK_BYTES) < 0 || ftruncate(log->index_fd, ROOM_FIRST * sizeof *log->entry) < 0 ? errno : 0;
	if (!err)
		err = table_grow(log, log->room);
	if (err)
		return disk_fail_errno(error, err, "%s: cannot be used again", log->path);
	return rename_to(log, dir, epoch, error);
}

void epoch_log_unlink(struct epoch_log *log)
{
	if (log->fd >= 0 && log->path)
		unlink(log->path);
	if (log->index_fd >= 0 && log->index_path)
		unlink(log->index_path);
	g_clear_pointer(&log->path, g_free);
	g_clear_pointer(&log->index_path, g_free);
}

void epoch_log_drop(struct epoch_log *log)
{
	if (!log)
		return;
	epoch_log_unlink(log);
	if (log->header)
		munmap(log->header, DISK_BLOCK_BYTES);
	if (log->entry)
		munmap(log->entry, index_bytes(log));
	disk_close(&log->fd);
	disk_close(&log->index_fd);
	free(log->table);
	g_free(log);
}

/* ---- look ---- */

struct epoch_id epoch_log_epoch(const struct epoch_log *log) { return log->epoch; }
uint64_t epoch_log_count(const struct epoch_log *log) { return log->count; }
bool epoch_log_sealed(const struct epoch_log *log) { return log->header->sealed != 0; }

static inline uint64_t slot_offset(uint64_t slot) { return (slot + 1) * DISK_BLOCK_BYTES; }

struct epoch_log_slot epoch_log_slot(const struct epoch_log *log, uint64_t i)
{
	MUST("D8", i < log->count);
	uint64_t word = GUINT64_FROM_LE(log->entry[i].word);
	return (struct epoch_log_slot){ word & ~EPOCH_LOG_ZERO, i, (word & EPOCH_LOG_ZERO) != 0 };
}

bool epoch_log_find(const struct epoch_log *log, uint64_t block, struct epoch_log_slot *ret_slot)
{
	if (log->count == 0)
		return false;
	uint32_t at = *table_place(log, block);
	if (!at)
		return false;
	*ret_slot = epoch_log_slot(log, at - 1);
	return true;
}

int epoch_log_read(const struct epoch_log *log, uint64_t slot, uint64_t n, void *data)
{
	size_t got = 0, bytes = (size_t)n * DISK_BLOCK_BYTES;
	MUST("D8", n <= log->count && slot <= log->count - n);
	int err = disk_pread_most(log->fd, data, bytes, slot_offset(slot), &got);
	if (err || got != bytes)
		return err ? err : EIO;   /* cut short behind our back */
	for (uint64_t i = 0; i < n; i++) {
		const struct epoch_log_entry *e = &log->entry[slot + i];
		if (GUINT64_FROM_LE(e->sum) != epoch_log_sum(GUINT64_FROM_LE(e->word), (const uint8_t *)data + i * DISK_BLOCK_BYTES))
			return EBADMSG;
	}
	return 0;
}

/* ---- write ---- */

/* The slots of a run of at most n blocks that lie one after the other in the file: the first slot and the number. Blocks that the log does
 * not have get the next free slots. */
static uint64_t slot_run(const struct epoch_log *log, uint64_t block, uint64_t n, uint64_t *ret_first)
{
	uint64_t fresh = 0, first = 0, run = 0;
	for (; run < n; run++) {
		uint32_t at = *table_place(log, block + run);
		uint64_t slot = at ? at - 1 : log->count + fresh++;
		if (run == 0)
			first = slot;
		else if (slot != first + run)
			break;
	}
	*ret_first = first;
	return run;
}

/* The write of a run failed, in the midst maybe. What its old slots hold is now what they hold, as on any disk. */
static void accept_torn(struct epoch_log *log, uint64_t first, uint64_t run)
{
	uint8_t data[DISK_BLOCK_BYTES];
	size_t got = 0;
	for (uint64_t slot = first; slot < first + run && slot < log->count; slot++) {
		uint64_t word = GUINT64_FROM_LE(log->entry[slot].word);
		if (!(word & EPOCH_LOG_ZERO) && disk_pread_most(log->fd, data, sizeof data, slot_offset(slot), &got) == 0 && got == sizeof data)
			set_entry(log, slot, word, data);
	}
}

int epoch_log_write(struct epoch_log *log, uint64_t block, uint64_t n, const void *data)
{
	MUST("D7", block <= log->blocks && n <= log->blocks - block);
	int err = fault(FAULT_DISK_WRITE) ? ENOSPC : reserve(log, n);
	for (uint64_t done = 0, run; done < n && !err; done += run) {
		uint64_t first;
		run = slot_run(log, block + done, n - done, &first);
		const uint8_t *from = (const uint8_t *)data + done * DISK_BLOCK_BYTES;
		err = disk_pwrite_all(log->fd, from, run * DISK_BLOCK_BYTES, slot_offset(first));
		for (uint64_t i = 0; i < run && !err; i++, from += DISK_BLOCK_BYTES) {
			if (first + i < log->count)
				set_entry(log, first + i, block + done + i, from);
			else
				publish(log, block + done + i, from);
		}
		if (err)
			accept_torn(log, first, run);
	}
	return err;
}

int epoch_log_zero(struct epoch_log *log, uint64_t block, uint64_t n)
{
	MUST("D7", block <= log->blocks && n <= log->blocks - block);
	int err = reserve(log, n);
	for (uint64_t i = 0; i < n && !err; i++) {
		uint32_t at = *table_place(log, block + i);
		if (at)
			set_entry(log, at - 1, (block + i) | EPOCH_LOG_ZERO, NULL);
		else
			publish(log, (block + i) | EPOCH_LOG_ZERO, NULL);
	}
	return err;
}

void epoch_log_set_sealed(struct epoch_log *log, bool sealed)
{
	__atomic_store_n(&log->header->sealed, GUINT64_TO_LE(sealed ? UINT64_C(1) : 0), __ATOMIC_RELEASE);
	set_header_sum(log);
}
