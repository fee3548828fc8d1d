/* stack.h - a disk as the guest sees it: base, overlay and logs put together. The plugin is a thin shell around this.
 *
 *   read ──► open log ──► sealed logs, newest first ──► overlay ──► base ──► zeros (the rest of the base's last block)
 *   write ─► open log
 *
 *  D12 Epochs move forward: seal(r) opens r+1. The open log is that of r, or of an earlier epoch that was given up before it was sealed here:
 *      then its blocks belong to r from now on, and a merge of the one given up has nothing to do.
 *  D13 commit(r) and rollback(r) are accepted only if r is sealed here or was the last committed: nothing is folded by mistake.
 *  D26 Blocks of logs and overlay are checked whenever they are read, be it for the guest or to write a part of one (D24, D25). The guest gets EIO. A bad block
 *      of the overlay also fails every seal to come with DISK_ERROR_DAMAGED: what is committed is lost here, and must come from a backup. So it is
 *      with a log that cannot be folded. A bad block of a log that is not committed goes with a rollback.
 *  D27 A log that was sealed and is committed outlives the process: where one ended before it was folded, the next folds it when it opens the disk.
 *  D14 What fails leaves the disk readable as before, and can be asked for again.
 *
 * Threads: read, write and zero in any number of threads; all others in one, the control thread. While a log is folded or merged the guest's
 * requests go on. errno-like ints: 0 is success. */
#ifndef VCFT_DISK_STACK_H
#define VCFT_DISK_STACK_H

#include "base/types.h"

#include <glib.h>

struct disk_stack;

/* Open what is in dir over base_fd, open for reading (it belongs to the stack from now on, also on error). The log of epoch `fold` (0: none), which must
 * be there, is folded (D27); then logs found in dir are removed; epoch `next` is open. */
struct disk_stack *disk_stack_open(int base_fd, const char *dir, struct epoch_id next, struct epoch_id fold, GError **error);
/* The names of the logs are removed too. */
void disk_stack_close(struct disk_stack *stack);
uint64_t disk_stack_blocks(const struct disk_stack *stack);
struct epoch_id disk_stack_epoch(const struct disk_stack *stack);   /* the open one */

/* Any bytes within the disk. */
int disk_stack_read(struct disk_stack *stack, void *data, size_t n, uint64_t at);
int disk_stack_write(struct disk_stack *stack, const void *data, size_t n, uint64_t at);
int disk_stack_zero(struct disk_stack *stack, uint64_t n, uint64_t at);

gboolean disk_stack_seal(struct disk_stack *stack, struct epoch_id r, uint64_t *ret_count, GError **error);
gboolean disk_stack_commit(struct disk_stack *stack, struct epoch_id r, GError **error);
gboolean disk_stack_merge(struct disk_stack *stack, struct epoch_id r, GError **error);
gboolean disk_stack_rollback(struct disk_stack *stack, struct epoch_id c, GError **error);
/* What can wait until nobody waits: remove dropped logs, make the files of the next epoch so that the next seal has nothing to do. */
void disk_stack_tidy(struct disk_stack *stack);

#endif
