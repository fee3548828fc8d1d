/* store.h - where checkpoints are kept: images, stages, and the stream between a VM's host and its backups.
 *
 *  primary:  capture ──► source ──delta against the shadow, zstd──► TCP ──► sink ──► stage r ──commit──► image r      :backup
 *                          └── commit: pages to the shadow
 *
 * The state of a VM is an array of regions: region 0 is RAM, region 1+i is disk i; each an array of pages. A *shadow* (on the VM's own host) and
 * an *image* (on a backup) are the same thing, struct image: the regions at the committed checkpoint, with its device state and record.
 *
 *  S1 An image changes only by commit(r), from a complete stage of r whose base is the epoch the image is at.
 *  S2 A stage is complete only if every chunk decoded, totals and checksum are right. Only then it is acknowledged.
 *  S3 What is refused (wrong generation, base, checksum, shape) leaves image and stage as they were; the sender is told why.
 *  S4 A backup is *complete* as of r when stage r, or an earlier one, carried the last pages that it lacked. Until then it is being
 *     filled: each epoch carries the epoch's pages of what it has, and a bounded piece of the rest (fill.c).
 *  S5 After commit(r) with verify on, the image's RAM has the hash that the paused VM had at r; else verify_failed.
 *  S6 At most one epoch is uncommitted at a time.
 *  S7 The pages of an epoch are strictly ascending by (region, page): none comes twice.
 *  S8 A stream runs between two hosts whose certificates name them (base/tls.h): OPEN must come from the host that it names, and goes only to the
 *     backup that was meant. Whoever else connects is told nothing. Without credentials the word of the other side counts. */
#ifndef VCFT_STORE_STORE_H
#define VCFT_STORE_STORE_H

#include "base/clock.h"
#include "base/messages.h"
#include "base/pages.h"
#include "base/tls.h"
#include "base/types.h"

#include <glib.h>

/* ---- image ---- */
#define STORE_REGION_MAX (1u + VCFT_DISK_MAX)

struct image_spec {
	const char *ram_path;                      /* tmpfs file, made if missing */
	uint64_t ram_pages;
	unsigned disk_count;
	const char *disk_dir[VCFT_DISK_MAX];       /* holds `overlay`, `map` and `sums` as in disk/disk.h, made if missing */
	uint64_t disk_blocks[VCFT_DISK_MAX];
	bool disks_writable;                       /* true on a backup; false on the VM's own host, where the disk plugin writes them */
};

struct image;
struct image *image_open(const struct image_spec *spec, GError **error);
void image_free(struct image *image);          /* unmaps; files stay */
void image_remove(struct image *image);        /* and removes its files */
/* RAM region, ram_pages pages, to be read only. Sparse: pages never written are zero and take no memory, unless looked at here. */
uint8_t *image_ram(struct image *image);
struct epoch_id image_epoch(const struct image *image);
/* Device state and record of the committed checkpoint (borrowed refs: g_bytes_ref to keep); NULL at epoch 0. */
GBytes *image_devices(struct image *image);
GBytes *image_record(struct image *image);
/* First epoch at which it has all pages; 0: being filled, or at epoch 0. A shadow made with the VM at power-on is complete from its first commit. */
struct epoch_id image_complete(const struct image *image);
/* Device state and record are as they were put (I5); else the image is of no use any more. */
gboolean image_state_sound(struct image *image, GError **error);
/* The next pages of RAM that are not zeros, at or after *inout_first, some at a time: *ret_end is behind the last of them. Of those only that may have been
 * written in epochs from `since` on (0: all). NULL: none is left (then both are the number of pages), or, with error, one is damaged (I5). Any thread, beside
 * the owner's commits (I7): a page may change when it has been committed. */
const uint8_t *image_content(struct image *image, struct epoch_id since, uint64_t *inout_first, uint64_t *ret_end, GError **error);
/* From which epoch on image_content() has at most so many pages; behind the image's epoch: of no epoch. What a guest has written last it will use first. */
struct epoch_id image_recent(const struct image *image, uint64_t pages);
/* Take the space for all of RAM from the file system, so that nothing that comes later can be refused for want of it. stop: see room_take(). Any thread. */
gboolean image_reserve_ram(struct image *image, const bool *stop, GError **error);
/* Would it be there now, and so many bytes more for others? */
gboolean image_room_is_there(const struct image *image, uint64_t more, GError **error);
/* Pages of live RAM that differ from the image are copied back from it. only: check just those pages; NULL: all. False: what would be used of the image
 * is damaged (I5); some pages may have been copied. */
gboolean image_restore_ram(struct image *image, uint8_t *live, const struct page_set *only, size_t *ret_copied, GError **error);
/* False: it has been found damaged (I5), and is of no use any more. Any thread. */
gboolean image_intact(const struct image *image, GError **error);

/* ---- source: the VM's own host ---- */
struct source;

struct source_backup { struct host_id host; char name[VCFT_NAME_MAX + 1], address[VCFT_NAME_MAX + 1]; uint16_t port; };

/* One region's pages of an epoch, numbers ascending. Borrowed until source_commit() or source_abort() returns, or stored(not ok). */
struct source_pages { size_t count; const uint64_t *index; const uint8_t *const *data; };

struct source_epoch {
	struct generation generation;
	struct epoch_id epoch;                          /* r; relative to what the shadow is at */
	struct source_pages region[STORE_REGION_MAX];
	const uint8_t *devices; size_t devices_bytes;
	uint64_t ram_hash[2];
};

/* raw_bytes: what was captured (pages and devices). sent_bytes: on the wires, all backups together, without what TLS adds (22 bytes to 16 KiB). pages:
 * sent, each counted once; those equal to the shadow are not sent. why: not ok, for the log (borrowed for the callback); else NULL. */
struct source_stats { uint64_t raw_bytes, sent_bytes, pages; nsec_t encode_time; const char *why; };

struct source_callbacks {
	/* r is acknowledged by all backups set for it (ok), or some failed. complete: backups whose image has all pages as of r; failed: those
	 * to be given up; not ok and none failed: the shadow's own file system is full. Once for each epoch, unless it is aborted before. From the
	 * source's thread: post to the loop, call nothing of the source here. */
	void (*stored)(struct vm_id vm, struct epoch_id r, bool ok, host_mask complete, host_mask failed,
	               const struct source_stats *stats, void *user);
};

struct source_options {
	struct vm_id vm; const char *name;
	struct host_id self;
	const struct tls_credentials *credentials;   /* outlive the source; NULL: plain */
	size_t fill_bytes;          /* raw bytes of filling per epoch and backup, at first and at least; 0: 8 MiB */
	size_t fill_most;           /* up to here as many as an epoch has time for (encode.c); less than fill_bytes: no more than these */
	unsigned timeout_ms;        /* no progress for this long: the backup failed; 0: 10000 */
	uint64_t rate_least;        /* bytes/s: a backup that takes less while more waits for it failed (T6); 0: no bound */
};

/* The shadow is borrowed; it must outlive the source. One thread of its own. NULL with error: no descriptors are left. */
struct source *source_new(const struct source_options *options, struct image *shadow, const struct source_callbacks *callbacks, void *user,
                          GError **error);
void source_free(struct source *source);
/* The backups for the coming epochs: connect to new ones (their filling starts), close the others. complete: those of `backups` that already
 * hold this VM's image at the shadow's epoch (known from a recovery): they are not filled again. Returns at once; a backup that has failed and is
 * named again is a new one. The first epoch of a newer generation makes all connections anew: then the last `complete` counts for all. */
void source_set_backups(struct source *source, const struct source_backup *backups, unsigned count, host_mask complete);
/* Start sending r (returns at once; `epoch` is copied, what it points to is borrowed until stored() or source_abort()). With no backups,
 * stored(ok) comes once the record is there. What disk_commit() of the last committed epoch does must be done before. */
void source_send(struct source *source, const struct source_epoch *epoch);
/* The record of r: the last part of the stream (takes a ref). May come before source_send(r). */
void source_record(struct source *source, struct epoch_id r, GBytes *record);
/* r is committed: RAM pages, devices and record go to the shadow, whose epoch is r then. Returns when done; borrowed pages are free. */
void source_commit(struct source *source, struct epoch_id r);
/* r is given up: nothing of it is used any more when this returns. Backups are told. */
void source_abort(struct source *source, struct epoch_id r);

/* ---- sink: a backup ---- */
struct sink;

struct sink_callbacks {
	/* S5 broken: from a sink thread; call nothing of the sink here (nor below). */
	void (*verify_failed)(struct vm_id vm, struct epoch_id r, void *user);
	/* The image's spec for a VM that a source opens (shape must equal the one announced), false: refuse. Fill paths (g_strdup'ed, freed by
	 * sink). For an image that is to be filled what is found at these paths is removed. */
	bool (*spec)(struct vm_id vm, struct image_spec *ret_spec, void *user);
	/* Worth a line in a log: why somebody was turned away, or an image was dropped. From a sink thread. May be NULL. */
	void (*note)(const char *text, void *user);
};

/* stage_bytes: most memory for one VM's stage; 0: no bound but RAM size. memory_bytes: for all RAM images and stages together (K7); 0: no bound. */
struct sink_limits { size_t stage_bytes; uint64_t memory_bytes; };

/* Listens on address (numeric IPv4; NULL: not at all). credentials (outlive it): NULL: streams are plain. */
struct sink *sink_new(struct host_id self, const char *address, uint16_t *inout_port, const struct tls_credentials *credentials,
                      const struct sink_limits *limits, const struct sink_callbacks *callbacks, void *user, GError **error);
void sink_free(struct sink *sink);
/* S8: the name in that host's certificate; NULL: none, its streams are refused from now on. Only asked under TLS. */
void sink_name_host(struct sink *sink, struct host_id host, const char *name);
/* Only streams of this generation (0 at first) are accepted from now on; connections and incomplete stages of older ones are dropped, complete
 * stages stay until sink_recover; sink_tell() binds no longer. Returns when no thread works on an older one. */
void sink_generation(struct sink *sink, struct generation g);
/* r is committed: every complete stage of r is applied. Carried out in order before anything newer; returns at once. */
void sink_commit(struct sink *sink, struct epoch_id r);
void sink_discard(struct sink *sink, struct epoch_id r);
/* What is held is to be told: nothing new is acknowledged in this generation from now on. Returns at once. */
void sink_tell(struct sink *sink);
/* What is held (vm, image, staged, complete; live false). Waits for pending commits, and that can take as long as the largest stage takes. */
uint32_t sink_holdings(struct sink *sink, struct message_holding out[static VCFT_VM_MAX]);
/* Recovery to c: stages of c are applied, all others dropped; images that are then not complete at c are removed. All connections are closed. Waits as sink_holdings() does. */
void sink_recover(struct sink *sink, struct epoch_id c);
/* Hand the image over (this host runs the VM now): ownership to the caller; a stage is dropped, its disks are read-only now. NULL: none. */
struct image *sink_take(struct sink *sink, struct vm_id vm);
/* Give an image to the sink (this host stops running the VM but holds it; its disk plugin has ended). */
void sink_give(struct sink *sink, struct vm_id vm, struct image *image);
/* This host is no longer a backup of vm: remove image and stage. */
void sink_drop(struct sink *sink, struct vm_id vm);
/* All of them. */
void sink_clear(struct sink *sink);
/* Bytes of memory in images and stages; how often a stream was refused for want of memory or of space, and images dropped because they, or a stage, were
 * damaged (I5, I6), ever. */
struct sink_memory { uint64_t image_bytes, stage_bytes, refused_memory, refused_space, damaged; };
void sink_memory(struct sink *sink, struct sink_memory *ret_memory);

#endif
