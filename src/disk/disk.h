/* disk.h - a VM's disk: nbdkit with our plugin, seen from the agent.
 *
 *   base (read-only raw) ◄─ overlay (committed blocks, sparse file + map) ◄─ log r (sealed) ◄─ log r+1 (open) ◄─ QEMU over NBD
 *                              ▲ commit(r) folds log r
 *  D1 A read sees the newest write: open log, sealed logs, overlay, base.    D2 Seal is O(1): it opens a new log.
 *  D3 Overlay and map change only by commit, and only with the oldest sealed log.  D4 Rollback to c drops all logs > c.
 *  D5 The base is never written.   D6 Flush costs nothing: durability comes from the commit of the epoch (P3).
 * A block is VCFT_PAGE_SIZE bytes. The map has one bit a block (bit i%8 of byte i/8): set if the overlay has it. A disk's size is that of
 * the base rounded up to a block.
 * Files in dir: overlay, map, log.N. Thread: calls on one disk from one thread at a time; seal is called while the VM is stopped. */
#ifndef VCFT_DISK_DISK_H
#define VCFT_DISK_DISK_H

#include "base/types.h"

#include <glib.h>

struct disk;

struct disk_spec {
	const char *plugin;     /* path of virtcft-disk.so */
	const char *base;       /* raw file */
	const char *dir;        /* made if missing: overlay, map and logs are kept here */
	const char *socket;     /* Unix socket for QEMU's NBD client */
};

/* Start nbdkit on what is in dir (an empty dir: the base as it is); logs found there are dropped. Its death ends with the agent's
 * (PR_SET_PDEATHSIG). next: the epoch that is open. */
struct disk *disk_start(const struct disk_spec *spec, struct epoch_id next, GError **error);
void disk_stop(struct disk *disk);
pid_t disk_pid(const struct disk *disk);
uint64_t disk_blocks(const struct disk *disk);

/* End epoch r: writes after this belong to r+1. The VM is stopped and its requests are drained. */
gboolean disk_seal(struct disk *disk, struct epoch_id r, GError **error);
/* Fold epochs <= r into the overlay, oldest first. */
gboolean disk_commit(struct disk *disk, struct epoch_id r, GError **error);
/* r was aborted: its blocks go into the log of r+1 unless that has newer ones. */
gboolean disk_merge(struct disk *disk, struct epoch_id r, GError **error);
/* Drop all logs of epochs > c, fold those <= c; c+1 is open. No client may be connected. */
gboolean disk_rollback(struct disk *disk, struct epoch_id c, GError **error);

/* The sealed log of r, mapped read-only: block numbers (ascending, each once) and contents. Valid until commit, merge or rollback of r
 * and until disk_log_free(). */
struct disk_log { size_t count; const uint64_t *block; const uint8_t *const *data; };
struct disk_log *disk_log_open(struct disk *disk, struct epoch_id r, GError **error);
void disk_log_free(struct disk_log *log);

/* The raw form of a user's image (qcow2 or raw), made once with qemu-img under cache_dir, keyed by path, size and mtime; a raw file is used in
 * place. ret_base: to be freed by the caller. May take seconds: call off the loop. */
gboolean disk_prepare_base(const char *image, const char *cache_dir, char **ret_base, GError **error);

#endif
