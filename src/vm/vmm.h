/* vmm.h - a virtual machine, whatever runs it: start, capture, stop.  One implementation: vm/qemu.c (stock QEMU); another hypervisor
 * is another `struct vmm`.
 *
 *  V1 Between stopped() and the end of capture() the guest does not run, no page of RAM changes and its disks are drained.
 *  V2 A capture has every page written since the last successful one (or since start), at least: none is missed (P6).
 *  V3 A failed capture leaves the guest running and loses no dirty page: they are in the next capture (P7).
 *  V4 start() with device state puts the VM, paused, into exactly the state in which it was saved, RAM file included.
 *  V5 That a guest has powered itself off is a part of its state: it is captured like any other, and after start() with that state run() leaves it off.
 *
 * A struct vm is used by one thread at a time (the agent's worker for this VM), except kill(), pid() and reserve(). */
#ifndef VCFT_VM_VMM_H
#define VCFT_VM_VMM_H

#include "base/clock.h"
#include "base/identity.h"
#include "base/pages.h"
#include "base/types.h"

#include <glib.h>

struct vm;

/* What an error of this folder means; its text has the VM's name and, if QEMU has ended, QEMU's last words. */
#define VMM_ERROR (vmm_error_quark())
GQuark vmm_error_quark(void);
enum vmm_error {
	VMM_ERROR_START,     /* the process could not be started, or ended while starting */
	VMM_ERROR_GONE,      /* the process has ended: the VM is lost */
	VMM_ERROR_HUNG,      /* no answer in time; the next call waits for it again */
	VMM_ERROR_STOPPED,   /* somebody has stopped the VM behind our back: it is not captured until it goes on */
	VMM_ERROR_REFUSED,   /* a command was refused */
	VMM_ERROR_RAM,       /* RAM file or memory of our own */
	VMM_ERROR_SPACE,     /* the file system of the RAM file has no room for it */
	VMM_ERROR_TRACK,     /* dirty tracking */
	VMM_ERROR_STATE,     /* a device state that is not whole */
};

struct vm_nic { const char *socket; uint8_t mac[6]; };   /* Unix stream socket of the switch: connected at start, once, in a folder of ours */
struct vm_disk { const char *socket; };                  /* Unix socket of nbdkit */

/* The next pages of RAM that hold something, at or after *inout_first; *ret_end: behind the last of them. NULL: none is left (then both are the number of
 * pages), or, with error, they cannot be had. Any thread, also while the guest runs: then what it gives for a page that the guest has written is not used.
 * next: all; recent: some of them, those that are likely to be used first (NULL: it cannot be said). */
struct vm_fill {
	const uint8_t *(*next)(void *user, uint64_t *inout_first, uint64_t *ret_end, GError **error);
	const uint8_t *(*recent)(void *user, uint64_t *inout_first, uint64_t *ret_end, GError **error);
	void *user;
};

#define FILL_BESIDE (128u << 20)   /* bytes of a VM's RAM that are put beside its start, at most (fill.c) */

struct vm_spec {
	const char *name;
	uint64_t memory_bytes;                 /* a multiple of VCFT_PAGE_SIZE */
	unsigned cpus;
	const char *machine, *cpu;             /* NULL: "pc", "qemu64" */
	const char *kernel, *initrd, *append;  /* NULL: boot from the first disk */
	const struct vm_nic *nics; unsigned nic_count;
	const struct vm_disk *disks; unsigned disk_count;
	const char *const *extra;              /* further QEMU arguments, NULL-terminated; may be NULL */
	const char *ram_path;                  /* RAM file on tmpfs; made (sparse, 0600) if missing, else used as it is */
	const char *run_dir;                   /* private folder for sockets and FIFOs */
	const char *console_socket;            /* Unix socket of the serial console (server) */
	const char *console_log;               /* its output is appended here too */
	const char *preload;                   /* path of virtcft-preload.so; NULL: compare tracker */
	bool verify;                           /* hash RAM in each capture */
	bool room_later;                       /* room for the RAM file is taken by reserve(), when it has started */
	const struct vm_fill *fill;            /* the RAM that belongs to the state, if the file lacks some of it (fill.h); NULL: it has all. Borrowed
	                                         * until abandon() or free() */
	bool hot_pages;                        /* pages written in every epoch stay unprotected and are compared (track-hot.h) */
	struct identity run_as;                /* of the process; run_dir is its folder, RAM file and console's log are given to it */
};

/* How the guest stood when it was captured. WAITS: a write found no space on the host's disk; run() has it tried again. OFF: V5. */
enum capture_run { CAPTURE_RUNS, CAPTURE_WAITS, CAPTURE_OFF };

/* One VM's captured state. Owned by the caller, buffers are used again. */
struct capture {
	struct page_set ram;
	uint8_t *devices; size_t devices_bytes, devices_room;   /* QEMU's, and a byte: 1 if it is off, else 0 (docs/format.md) */
	enum capture_run run;
	uint64_t ram_hash[2];                  /* XXH3-128 of all RAM while paused, if verify; else 0 */
	nsec_t pause;                          /* guest stopped: from QEMU's own STOP and RESUME times */
	nsec_t scan, copy;                     /* parts of it */
};
void capture_free(struct capture *capture);

struct capture_hooks {
	/* The VM will be stopped now: what must be still by then is to be brought to rest (its ports' gates closed). False: QEMU has not taken in time what
	 * it was given. Then its main loop is made to go round, and stuck() is asked: true: it has taken nothing meanwhile, and never will as things
	 * are: the VM is stopped as it is. Else stopping() is called again. runs: false: the VM stands still already, so QEMU keeps what it has taken and
	 * gives it to the guest later. nics: QEMU's ends of its NICs' sockets, out of which may be read what it has not, as long as it is stopped; NULL:
	 * it may read then itself. Both may be NULL. */
	bool (*stopping)(void *user);
	bool (*stuck)(void *user, bool runs, const int *nics);
	/* The VM is stopped and its disks are drained: cut its ports, seal its disks. False with error: the capture fails (V3). */
	gboolean (*stopped)(void *user, GError **error);
	void *user;
};

struct vmm {
	const char *name;
	/* Start the process, paused. state NULL: power-on; else the device state that belongs to the RAM file (V4). */
	struct vm *(*start)(const struct vm_spec *spec, const uint8_t *state, size_t state_bytes, GError **error);
	/* Fill what is left of its RAM, then take the room for all of it from the file system (room_later). Any thread until free(), and one at a time; stop:
	 * gives up when it becomes true. */
	gboolean (*reserve)(struct vm *vm, const bool *stop, GError **error);
	/* All of its RAM is in its file. False: a part of it is in spec.fill alone, and is to be given to the next start() on the same file. */
	bool (*filled)(const struct vm *vm);
	/* Let it run, unless it is off (V5). */
	gboolean (*run)(struct vm *vm, GError **error);
	/* Stop it (used when a generation ends). */
	gboolean (*pause)(struct vm *vm, GError **error);
	/* Stop, call the hook, copy dirty pages and device state, go on. */
	gboolean (*capture)(struct vm *vm, struct capture *capture, const struct capture_hooks *hooks, GError **error);
	/* Page numbers that may have been written since the last successful capture (ascending, in set->index; no contents). The VM is paused, or
	 * its process has ended: then these are all pages that are not holes. */
	gboolean (*dirty)(struct vm *vm, struct page_set *set, GError **error);
	/* The mere stop + device-state save + cont, by the three commands, as a yardstick: ns of freeze. */
	gboolean (*bare_pause)(struct vm *vm, nsec_t *ret_pause, GError **error);
	/* It has powered itself off, as of its start or the last capture (V5). */
	bool (*off)(const struct vm *vm);
	/* RAM as mapped by the agent: memory_bytes bytes, shared with the guest. */
	uint8_t *(*ram)(struct vm *vm);
	pid_t (*pid)(const struct vm *vm);
	/* Names of the ways in use, for check and status: e.g. "uffd" or "compare", "fifo" or "three commands", "kvm" or "tcg". */
	const char *(*tracker)(const struct vm *vm);
	const char *(*method)(const struct vm *vm);
	const char *(*accelerator)(const struct vm *vm);
	/* Which of these is not the first choice, and why; NULL: all are. To be freed. The way of capture is known from the first capture on. */
	char *(*second_choices)(const struct vm *vm);
	/* SIGKILL. Any thread. */
	void (*kill)(struct vm *vm);
	/* kill, and let go of its names in the file system: another may start in its place while free() waits for its end. */
	void (*abandon)(struct vm *vm);
	/* kill, wait for the end, close and free all; the RAM file stays. Any one thread. */
	void (*free)(struct vm *vm);
};

extern const struct vmm vmm_qemu;

/* What this host can do, one line each, for `virtcft check` and the agent's start: found is false if the feature is missing; instead: what is used then,
 * NULL if there is nothing (the host cannot run VMs). */
struct vm_feature { const char *name; bool found; char detail[320]; const char *instead; };
struct vm_folders { const char *ram_dir, *plugin_dir; };   /* of the agent's settings */
size_t vm_features(const struct vm_folders *at, struct vm_feature *out, size_t room);
#define VM_FEATURES_MAX 16

/* Whether VMs' memory may be kept in that folder, which need not be there yet: it is on a tmpfs, and nobody but its owner writes there. */
gboolean vm_ram_dir_fits(const char *ram_dir, GError **error);

#endif
