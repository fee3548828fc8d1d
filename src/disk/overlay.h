/* overlay.h - the committed blocks of a disk that differ from its base: files `overlay` and `map` (layout in disk.h).
 *
 *  D10 A block's bit in the map is set after its contents are in the overlay.
 *  D11 Folding a log again gives the same: a fold that failed half-way (no space) is repaired by doing it once more. Until then the log is
 *      still above the overlay, so that no read sees the half.
 * has() in any thread, fold() in one. */
#ifndef VCFT_DISK_OVERLAY_H
#define VCFT_DISK_OVERLAY_H

#include "disk/log.h"

struct overlay;

/* Open or make both files for a disk of that many blocks. Existing ones of another size are refused. */
struct overlay *overlay_open(const char *dir, uint64_t blocks, GError **error);
void overlay_close(struct overlay *overlay);
bool overlay_has(const struct overlay *overlay, uint64_t block);
/* For pread, block i at i * VCFT_PAGE_SIZE. */
int overlay_fd(const struct overlay *overlay);
/* Write all blocks of a log. */
gboolean overlay_fold(struct overlay *overlay, const struct epoch_log *log, GError **error);

#endif
