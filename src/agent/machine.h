/* machine.h - one VM on this host: its hypervisor, disks, shadow and source, and the worker thread that handles them.
 *
 *   loop ──job──► worker: start │ capture │ commit │ abort │ pause │ roll back │ run │ stop
 *   loop ◄─note── worker
 *
 *  A1 All that touches the VM, its disks, its shadow and its source is done by the worker, one job after the other, in the order given.
 *  A2 Captured pages of an aborted epoch go into the next one: newer contents win (P7).
 *  A5 So do the disk blocks of an aborted epoch; if the disk has no room to merge them, both logs are read.
 *  A3 A rollback to c leaves RAM, disks and shadow exactly at c (P6): pages that may differ are those captured since and
 *     those dirty now; if the process is gone, all pages are compared.
 *  A4 Its QEMU and nbdkit run as a user of their own (base/identity.h). Theirs are: the folder of sockets, the disks' folders, the RAM file, the
 *     console's log. Ours are the folders above, where they may pass and no more, and the images: a VM cannot touch the shadow.
 *
 *  A6 What is damaged (disk/log.h, D24 to D26; store/image.c, I5) is not used. In an epoch that is not committed it goes with a rollback; what is committed is
 *     held no longer: this machine says that it holds nothing, so the VM comes from a backup, or is LOST.
 *
 * All functions here are called by the loop's thread and return at once; notes come on the loop's thread. */
#ifndef VCFT_AGENT_MACHINE_H
#define VCFT_AGENT_MACHINE_H

#include "base/config.h"
#include "net/net.h"
#include "store/store.h"
#include "vm/vmm.h"

struct machine;

struct machine_stats {
	struct epoch_id epoch;
	nsec_t pause, scan, copy;
	uint64_t dirty_pages, disk_blocks, raw_bytes, sent_bytes;
	enum vm_stand stand;
	char why[160];                          /* it is not stored: why, or "" */
};

/* What the worker has to say. Called on the loop's thread; error is NULL if it went well (borrowed). */
struct machine_notes {
	void (*captured)(struct vm_id vm, struct epoch_id r, const GError *error, void *user);
	void (*stored)(struct vm_id vm, struct epoch_id r, bool ok, host_mask complete, host_mask failed,
	               const struct machine_stats *stats, void *user);
	void (*held)(struct vm_id vm, uint64_t serial, const struct message_holding *holding, void *user);
	void (*placed)(struct vm_id vm, struct generation g, const GError *error, void *user);
	void (*ran)(struct vm_id vm, struct generation g, const GError *error, void *user);
	/* A process of the VM (QEMU, nbdkit) ended by itself, its disk cannot be committed, or what is stored of it is damaged (A6): the VM cannot go on as it is. */
	void (*died)(struct vm_id vm, const char *what, void *user);
};

struct machine_options {
	struct vm_id id;
	struct host_id self;
	const struct config_agent *agent;      /* borrowed, outlives the machine */
	const struct config_vm *config;        /* likewise */
	const char *cluster;                   /* likewise: its name */
	char *const *bases;                    /* raw base of each disk; likewise */
	struct net *net;
	const struct tls_credentials *credentials;   /* likewise; NULL: plain */
	bool verify, hot_pages;
};

struct machine *machine_new(const struct machine_options *options, const struct machine_notes *notes, void *user);
/* Kill the VM, end the worker; the shadow goes with it. Waits. */
void machine_free(struct machine *machine);

/* Where the image of a VM is kept on this host, be it a shadow or a backup's. The strings are the caller's. */
void machine_image_spec(const struct config_agent *agent, const struct config_vm *config, const uint64_t *disk_blocks,
                        struct image_spec *ret_spec);
void machine_image_spec_clear(struct image_spec *spec);
/* Paths of a VM's switch ports and console on this host; to be freed. */
char *machine_nic_path(const struct config_agent *agent, const struct config_vm *config, unsigned nic);
char *machine_console_path(const struct config_agent *agent, const struct config_vm *config);

/* Take part in checkpoint r: note captured, then stored (after machine_record). */
void machine_capture(struct machine *machine, struct generation g, struct epoch_id r, const struct source_backup *backups, unsigned count,
                     host_mask complete);
/* The record of r (reference taken). */
void machine_record(struct machine *machine, struct epoch_id r, GBytes *record);
void machine_commit(struct machine *machine, struct epoch_id r);
void machine_abort(struct machine *machine, struct epoch_id r);
void machine_pause(struct machine *machine);
/* Say what is held, once all jobs before are done: note held, with the same serial. */
void machine_hold(struct machine *machine, uint64_t serial);
/* Be at c in generation g, paused: note placed. image: what a backup held (ownership passes), NULL: what the machine has. */
void machine_place(struct machine *machine, struct generation g, struct epoch_id c, struct image *image);
/* Run, then deliver the record of c: note ran. */
void machine_run(struct machine *machine, struct generation g);

typedef void (*machine_bare_done)(const nsec_t *pause, unsigned count, const GError *error, void *user);
/* Measure the bare pause `count` times; done is called on the loop's thread. */
void machine_bare(struct machine *machine, unsigned count, machine_bare_done done, void *user);

#endif
