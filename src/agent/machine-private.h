/* machine-private.h - one VM on this host, as the files of its worker see it; see machine.h for the jobs and rules A1-A3.
 *
 *   machine.c        the loop's side: jobs in, the worker thread
 *   machine-note.c   what the worker has to tell the loop, and the end of the VM's processes
 *   machine-parts.c  paths, disks, QEMU: start and stop
 *   machine-epoch.c  one checkpoint: capture, record, commit, abort
 *   machine-place.c  a recovery: hold, place, run
 *   machine-room.c   the room of RAM and shadow in the file system
 *
 * Fields below `worker's` in struct machine are touched by the worker only, so nothing there needs a lock; what the loop wants to
 * know comes as a note. The source's thread calls on_stored(), which posts to the loop as well. */
#ifndef VCFT_AGENT_MACHINE_PRIVATE_H
#define VCFT_AGENT_MACHINE_PRIVATE_H

#include "agent/machine.h"
#include "disk/disk.h"

struct machine {
	struct machine_options o;
	struct machine_notes notes;
	void *user;
	struct identity who;                /* as whom its processes run */
	GThread *thread;
	GAsyncQueue *jobs;
	struct post_box *box;               /* notes to the loop */
	struct { guint source; int fd; } watch[1 + VCFT_DISK_MAX]; /* loop's: QEMU, then an nbdkit for each disk */

	/* worker's */
	struct vm *vm;
	struct disk *disk[VCFT_DISK_MAX];
	struct epoch_id disk_at[VCFT_DISK_MAX]; /* its overlay is exactly this epoch */
	struct epoch_id disk_fold[VCFT_DISK_MAX]; /* its nbdkit ended before this committed epoch was folded: the next one does it (D27); 0: none */
	GArray *unmerged[VCFT_DISK_MAX];    /* struct epoch_id: aborted, and no room to merge their blocks into the next one (A5) */
	GPtrArray *logs;                    /* struct disk_log: what the pending epoch borrows */
	struct source_pages blocks[VCFT_DISK_MAX]; /* of the pending epoch: arrays are ours if `joined` */
	bool joined[VCFT_DISK_MAX];
	struct image *shadow;
	struct source *source;
	struct image_spec spec;
	char *ram_path;
	GThread *former;                    /* waits for the end of the QEMU that a recovery has replaced; A8 */
	bool fill;                          /* what is a hole in that file is to be filled from the shadow when its QEMU starts */
	struct vm_fill fill_from;           /* that shadow */
	struct epoch_id recent;             /* of it, what was written from here on comes first */
	struct { GThread *thread; bool due, stop; struct generation generation; } room;   /* machine-room.c; due: not all of it has been taken yet */
	struct generation generation;
	struct capture capture;             /* of the pending epoch */
	struct page_set carry;              /* pages of aborted epochs that the next one must have (A2) */
	struct source_pages sent;           /* RAM of the pending epoch as given to the source: arrays are ours */
	bool pending, stored;
	bool disks_sealed;                  /* at pending_epoch */
	struct epoch_id pending_epoch;
	struct machine_stats stats;
};

/* given: the queue's own lock orders what the loop wrote with what the worker reads; this says the same where the thread sanitizer can see it,
 * which cannot look into GLib. */
struct job {
	bool given;
	void (*run)(struct machine *, struct job *);
	struct generation generation;
	struct epoch_id epoch;
	struct image *image;
	GBytes *record;
	host_mask complete;
	struct source_backup *backups;
	unsigned count;
	machine_bare_done bare_done;
	void *bare_user;
};

/* ---- machine-note.c ---- */

enum note_kind { NOTE_CAPTURED, NOTE_STORED, NOTE_HELD, NOTE_PLACED, NOTE_RAN, NOTE_BARE, NOTE_DISK, NOTE_DAMAGED };

struct note {
	struct machine *machine;
	enum note_kind kind;
	struct generation generation;
	struct epoch_id epoch;
	bool ok;
	host_mask complete, failed;
	struct machine_stats stats;
	struct message_holding holding;
	GError *error;
	nsec_t *pause;
	unsigned count;
	machine_bare_done bare_done;
	void *bare_user;
	pid_t pid[1 + VCFT_DISK_MAX];       /* NOTE_PLACED: processes to watch */
};

/* A note about a job; takes the error. */
struct note *note_new(struct machine *m, enum note_kind kind, const struct job *job, GError *error);
/* Worker or source thread to loop. */
void note_post(struct machine *m, struct note *note);
/* The loop's: be told when one of these processes ends; no more of the former ones. */
void processes_watch(struct machine *m, const pid_t *pid);
void processes_unwatch(struct machine *m);

/* ---- machine-parts.c ---- */

void pages_clear(struct source_pages *pages);
/* The source has let go of the pending epoch: so do we. */
void loans_end(struct machine *m);
/* Nothing is left to be merged: all that was sealed is committed, or dropped. */
void unmerged_clear(struct machine *m);
void vm_close(struct machine *m);
/* The same, but the end of its process is waited for by former_end(). */
void vm_leave(struct machine *m);
void former_end(struct machine *m);
void parts_close(struct machine *m);
char *disk_folder(const struct machine *m, unsigned disk);
char *console_log_path(const struct machine *m);
/* Those that do not run, with what is at c in their folders. */
bool disks_start(struct machine *m, struct epoch_id c, GError **error);
struct vm *vm_start(struct machine *m, struct epoch_id c, GError **error);

/* ---- machine-room.c ---- */

/* Is there room for RAM and shadow? */
bool room_check(struct machine *m, GError **error);
/* Take it, and return when it is taken. */
bool room_take_now(struct machine *m, GError **error);
/* Take what is due of it beside what the VM does; what fails is told as a placing that failed. */
void room_begin(struct machine *m);
/* Give up what room_begin() has not taken yet. Before `vm` or `shadow` goes. */
void room_end(struct machine *m);

/* ---- machine-epoch.c ---- */

void job_capture(struct machine *m, struct job *job);
void job_record(struct machine *m, struct job *job);
void job_commit(struct machine *m, struct job *job);
void job_abort(struct machine *m, struct job *job);
void job_bare(struct machine *m, struct job *job);
/* The source's thread. */
void on_stored(struct vm_id vm, struct epoch_id r, bool ok, host_mask complete, host_mask failed, const struct source_stats *stats, void *user);

/* ---- machine-place.c ---- */

/* A6. False: what is kept here of the committed checkpoint is damaged. */
bool state_intact(const struct machine *m, GError **error);

void job_pause(struct machine *m, struct job *job);
void job_hold(struct machine *m, struct job *job);
void job_place(struct machine *m, struct job *job);
void job_run(struct machine *m, struct job *job);

#endif
