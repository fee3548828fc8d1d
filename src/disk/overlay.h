/* overlay.h - the committed blocks of a disk that differ from its base: files `overlay`, `map` and `sums` (layout in disk.h).
 *
 *  D10 A block's bit in the map is set after its contents are in the overlay, and its checksum in `sums`.
 *  D11 Folding a log again gives the same: a fold that failed half-way (no space) is repaired by doing it once more. Until then the log is
 *      still above the overlay, so that no read sees the half.
 *  D23 A block goes into a log only when the overlay has room for it: a full disk is an error of the guest's own write, never of a commit. Zeros need
 *      no room but for their checksum: where nothing was reserved there is a hole. What was reserved for a block stays so.
 *  D25 A block is read only as it was folded: with the checksum it had, and a block that the overlay does not have has none. A flipped bit of the map shows so too.
 * has() and read() in any thread, fold() in one, reserve() in one at a time. Left out: copy-on-write file systems, where reserved room can run out after all. */
#ifndef VCFT_DISK_OVERLAY_H
#define VCFT_DISK_OVERLAY_H

#include "disk/log.h"

struct overlay;

/* Open or make both files for a disk of that many blocks. Existing ones of another size are refused. */
struct overlay *overlay_open(const char *dir, uint64_t blocks, GError **error);
void overlay_close(struct overlay *overlay);
bool overlay_has(const struct overlay *overlay, uint64_t block);
/* Read n blocks that it has: 0, an errno, or EBADMSG: one of them is damaged (D25). */
int overlay_read(const struct overlay *overlay, uint64_t block, uint64_t n, void *data);
/* None of n blocks that it does not have was there once (D25). */
bool overlay_lacks(const struct overlay *overlay, uint64_t block, uint64_t n);
/* D23: 0 or an errno. */
int overlay_reserve(struct overlay *overlay, uint64_t block, uint64_t n);
int overlay_reserve_zero(struct overlay *overlay, uint64_t block, uint64_t n);
/* Write all blocks of a log. DISK_ERROR_DAMAGED: D24; what was written is right. */
gboolean overlay_fold(struct overlay *overlay, const struct epoch_log *log, GError **error);
/* The same of a log that another process has sealed, and that was checked when it was opened. */
gboolean overlay_fold_view(struct overlay *overlay, const struct disk_log *log, GError **error);

#endif
