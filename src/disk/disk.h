/* disk.h - a VM's disk: nbdkit with our plugin, seen from the agent.
 *
 *   base (read-only raw) ◄─ overlay (committed blocks, sparse file + map) ◄─ log r (sealed) ◄─ log r+1 (open) ◄─ QEMU over NBD
 *                              ▲ commit(r) folds log r
 *  D1 A read sees the newest write: open log, sealed logs, overlay, base.    D2 Seal is O(1): it opens a new log.
 *  D3 Overlay and map change only by commit, and only with the oldest sealed log.  D4 Rollback to c drops all logs > c.
 *  D5 The base is never written.   D6 Flush costs nothing: durability comes from the commit of the epoch (P3).
 * A block is VCFT_PAGE_SIZE bytes. A disk's size is that of the base rounded up to a block, up to 8 TiB; the rest of the last block is zero.
 * Files in dir: `overlay`, blocks * VCFT_PAGE_SIZE bytes, sparse; `map`, one bit a block (bit i%8 of byte i/8), set if the overlay has it,
 * (blocks + 7) / 8 bytes, at most rounded up to a page; `sums`, sparse, a u64 a block: sum_page() of a block that the overlay has, else 0 (D25); log.N and log.N.idx (log.h); nbdkit.log, what nbdkit said since its start.
 *
 * Full disk: a write that finds no space fails with ENOSPC, nothing that was written before is lost, and the same write passes once there is
 * room. QEMU's `werror=stop,rerror=stop` makes of it a VM that is paused (BLOCK_IO_ERROR with nospace, STOP) and that tries again at the next
 * `cont`; so does a nbdkit that died. Seal and commit need no room: the overlay's is taken by the write (D23), and the files of old logs are used
 * again (D22). Should a commit fail all the same (a copy-on-write file system) it can be asked for again, reads are right all the while. A merge
 * needs room; without it the log of the aborted epoch stays beside the next one, and a commit folds both.
 *
 * QEMU: -blockdev driver=nbd,node-name=disk0,server.type=unix,server.path=SOCKET,cache.no-flush=on
 *       -device virtio-blk-pci,drive=disk0,werror=stop,rerror=stop
 *
 * Thread: calls on one disk from one thread at a time, any thread; seal is called while the VM is stopped. Errors have the disk's folder and
 * what the plugin or nbdkit said. */
#ifndef VCFT_DISK_DISK_H
#define VCFT_DISK_DISK_H

#include "base/identity.h"
#include "base/types.h"

#include <glib.h>
#include <stdbool.h>

struct disk;

/* DISK_ERROR_DAMAGED: what is on disk is not what was written there (D24, D25). All other errors are of G_FILE_ERROR. */
#define DISK_ERROR (disk_error_quark())
GQuark disk_error_quark(void);
enum disk_error { DISK_ERROR_DAMAGED };

struct disk_spec {
	const char *plugin;     /* path of virtcft-disk.so */
	const char *base;       /* raw file */
	const char *dir;        /* made if missing: overlay, map and logs are kept here */
	const char *socket;     /* Unix socket for QEMU's NBD client */
	struct epoch_id fold;   /* committed, but not folded when the nbdkit before ended: its log is in dir (D27); 0: none */
	struct identity run_as; /* of nbdkit; dir and what is in it is given to it. The base is opened by us and handed over (D22) */
};

/* Start nbdkit on what is in dir (an empty dir: the base as it is); logs found there are dropped, but for that of spec->fold. It is killed with the agent, however that
 * ends (spawn.h). next: the epoch that is open, 1 or more. Returns when QEMU can connect. An overlay, map or sums of another size is refused. */
struct disk *disk_start(const struct disk_spec *spec, struct epoch_id next, GError **error);
/* SIGKILL, wait for its end, remove socket and logs; overlay, map and sums stay. NULL is allowed. */
void disk_stop(struct disk *disk);
/* The same for one that has failed before epoch r was folded: logs stay. */
void disk_abandon(struct disk *disk);
/* Remove overlay, map and sums: the disk is its base again. It does not run. */
void disk_remove_files(const char *dir);
/* nbdkit has ended, did not answer in time, or not rightly: every further call on this disk fails (D19). */
bool disk_failed(const struct disk *disk);
/* It has said once that what is committed is not as it was written: nothing can be had from it any more. */
bool disk_damaged(const struct disk *disk);
/* nbdkit's. To be watched with a pidfd; it must not be reaped by others. */
pid_t disk_pid(const struct disk *disk);
uint64_t disk_blocks(const struct disk *disk);

/* End epoch r: writes after this belong to r+1. The VM is stopped and its requests are drained. r may be later than the open epoch: those
 * between were given up before this disk was sealed, and their blocks are r's. On error the open epoch is still open. */
gboolean disk_seal(struct disk *disk, struct epoch_id r, GError **error);
/* Fold epochs <= r, which is sealed, into the overlay, oldest first; the guest's requests go on. Again for the last committed one: nothing to
 * do. On error (no space) it can be asked for again. */
gboolean disk_commit(struct disk *disk, struct epoch_id r, GError **error);
/* r was aborted: its blocks go into the log of the epoch after it unless that has newer ones. If r was never sealed here there is nothing to
 * do. On error it can be asked for again. */
gboolean disk_merge(struct disk *disk, struct epoch_id r, GError **error);
/* Drop all logs of epochs > c, fold those <= c; c+1 is open. c is sealed or the last committed one. No client may be connected: waits up to 2 s
 * for those of a QEMU that was killed to be gone, then fails. */
gboolean disk_rollback(struct disk *disk, struct epoch_id c, GError **error);

/* The sealed log of r, mapped read-only: block numbers (ascending, each once) and contents. Valid until commit, merge or rollback of r
 * and until disk_log_free(). */
struct disk_log { size_t count; const uint64_t *block; const uint8_t *const *data; };
struct disk_log *disk_log_open(struct disk *disk, struct epoch_id r, GError **error);
void disk_log_free(struct disk_log *log);

/* The raw form of a user's image (qcow2 or raw), made once with qemu-img under cache_dir, keyed by path, size and mtime; a raw file is used in
 * place. Backing files are flattened into it. ret_base: to be freed by the caller. May take seconds: call off the loop. */
gboolean disk_prepare_base(const char *image, const char *cache_dir, char **ret_base, GError **error);

#endif
