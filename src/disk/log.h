/* log.h - the log of one epoch: the blocks that a disk's guest wrote in it. Files, writer and reader.
 *
 * log.N (N the epoch, decimal) has a header page and then slots of one block; log.N.idx has one entry a slot. All little-endian.
 *
 *   log.N       0  u64  magic "VCFTLOG1"           log.N.idx  16*i  entry of slot i:
 *               8  u32  version 2                              +0  u64  bits 0..62  block number
 *              12  u32  bytes of a block, 4096                          bit 63      the block is zero, the slot has no meaning
 *              16  u64  epoch                                  +8  u64  checksum: epoch_log_sum() of the word above and the slot
 *              24  u64  blocks of the disk
 *              32  u64  count: slots in use
 *              40  u64  1 if sealed, else 0
 *              48  u64  sealed: XXH3-64 of bytes 0..47
 *              56..4095 zero
 *      4096*(1+i)  contents of slot i (not there if the file ends before)
 *
 *  D7 A block has at most one slot in a log: writing it again in the same epoch overwrites the slot.
 *  D8 An entry is published (count raised) after the slot's contents are written: what count covers is whole.
 *  D9 A reader believes a log only if magic, version, block size, epoch and disk size are as expected, it is sealed, count <= blocks, the
 *     index has count entries, every block is < blocks and there once, and every slot not zero lies within the file.
 *  D24 Nothing of a log is believed, sent or folded that is not as it was written: header, entries and slots have checksums (SM1). A slot's is in its
 *     entry before that is published (D8), and covers the entry too. The reader checks all of a log when it is opened, the writer each slot
 *     that it reads. What is refused is DISK_ERROR_DAMAGED.
 *  D22 A log that is used again keeps its files: a disk that is full can be sealed and committed all the same.
 * A log never outlives the process that wrote it: those found at a start are dropped. */
#ifndef VCFT_DISK_LOG_H
#define VCFT_DISK_LOG_H

#include "base/sum.h"
#include "base/types.h"
#include "disk/disk.h"

#include <assert.h>
#include <glib.h>

#define EPOCH_LOG_MAGIC UINT64_C(0x31474f4c54464356) /* "VCFTLOG1" */
#define EPOCH_LOG_VERSION 2u
#define EPOCH_LOG_ZERO (UINT64_C(1) << 63)
#define EPOCH_LOG_BLOCKS_MAX (UINT64_C(1) << 31)      /* 8 TiB: slots fit 32 bits */

struct epoch_log_header { uint64_t magic; uint32_t version, block_bytes; uint64_t epoch, blocks, count, sealed, sum; };
static_assert(sizeof(struct epoch_log_header) == 56, "log.N: header");
static_assert(offsetof(struct epoch_log_header, block_bytes) == 12, "log.N: block size");
static_assert(offsetof(struct epoch_log_header, epoch) == 16, "log.N: epoch");
static_assert(offsetof(struct epoch_log_header, blocks) == 24, "log.N: disk size");
static_assert(offsetof(struct epoch_log_header, count) == 32, "log.N: count");
static_assert(offsetof(struct epoch_log_header, sealed) == 40, "log.N: sealed");
static_assert(offsetof(struct epoch_log_header, sum) == 48, "log.N: checksum");

struct epoch_log_entry { uint64_t word, sum; };
static_assert(sizeof(struct epoch_log_entry) == 16, "log.N.idx: entry");

/* As they are in the file. */
static inline uint64_t epoch_log_header_sum(const struct epoch_log_header *header)
{
	return sum_bytes(header, offsetof(struct epoch_log_header, sum));
}

/* word: of the entry, in the host's order. data: the slot, not looked at if the block is zero. */
static inline uint64_t epoch_log_sum(uint64_t word, const uint8_t *data)
{
	return word & EPOCH_LOG_ZERO ? sum_number(word) : sum_page(data, word);
}

/* Path of log.N or, with suffix ".idx", of its index. Free with g_free. */
char *epoch_log_path(const char *dir, struct epoch_id epoch, const char *suffix);
/* Remove every log.* in dir. */
gboolean epoch_log_remove_all(const char *dir, GError **error);

/* ---- writer: the plugin. No lock in here; find may run in several threads while nothing else does. ---- */
struct epoch_log;

/* Make the two files, which must not exist. */
struct epoch_log *epoch_log_create(const char *dir, struct epoch_id epoch, uint64_t blocks, GError **error);
/* Give the log, which is not sealed, a later epoch; names that are in the way must have been removed. On error it is as before. */
gboolean epoch_log_relabel(struct epoch_log *log, const char *dir, struct epoch_id epoch, GError **error);
/* Make of a log that nobody needs any more an empty one of another epoch, with what it has on disk: needs no space. Names that are in the way must
 * have been removed, and views of it freed. On error it is of no use, and to be dropped. */
gboolean epoch_log_recycle(struct epoch_log *log, const char *dir, struct epoch_id epoch, GError **error);
/* Remove the names; the log can still be read and written. */
void epoch_log_unlink(struct epoch_log *log);
/* Remove the names if that has not been done, and free. NULL is allowed. */
void epoch_log_drop(struct epoch_log *log);

struct epoch_id epoch_log_epoch(const struct epoch_log *log);
/* Blocks in the log. */
uint64_t epoch_log_count(const struct epoch_log *log);
bool epoch_log_sealed(const struct epoch_log *log);

struct epoch_log_slot { uint64_t block, slot; bool zero; };
/* Where the log has a block; false: it does not have it. */
bool epoch_log_find(const struct epoch_log *log, uint64_t block, struct epoch_log_slot *ret_slot);
/* Slot i < count, in the order of their first write. */
struct epoch_log_slot epoch_log_slot(const struct epoch_log *log, uint64_t i);

/* Read n slots that are not zero, one after the other: 0, an errno, or EBADMSG: one of them is not as it was written (D24). */
int epoch_log_read(const struct epoch_log *log, uint64_t slot, uint64_t n, void *data);

/* Write n whole blocks from `block` on: 0 or an errno. After an error blocks that the log had may be written in part, as on any disk;
 * those it did not have are either whole or not in it. */
int epoch_log_write(struct epoch_log *log, uint64_t block, uint64_t n, const void *data);
/* The same with zeros, without data. */
int epoch_log_zero(struct epoch_log *log, uint64_t block, uint64_t n);
/* Set and clear the mark that readers ask for. */
void epoch_log_set_sealed(struct epoch_log *log, bool sealed);

/* ---- reader: the agent ---- */

/* Map a sealed log, checked by D9 and D24. */
struct disk_log *epoch_log_view(const char *dir, struct epoch_id epoch, uint64_t blocks, GError **error);

#endif
