/* vm-private.h - one QEMU machine, as the files of this folder see it. */
#ifndef VCFT_VM_PRIVATE_H
#define VCFT_VM_PRIVATE_H

#include "vm/bits.h"
#include "vm/fill.h"
#include "vm/memory.h"
#include "vm/process.h"
#include "vm/qmp.h"
#include "vm/track.h"
#include "vm/vmm.h"

#define VM_START_TIMEOUT (30 * NSEC_PER_SEC)     /* process start, load of a state */
#define VM_COMMAND_TIMEOUT (10 * NSEC_PER_SEC)   /* anything else; then QEMU is hung */

enum vm_method { VM_UNTRIED, VM_FIFO, VM_THREE_COMMANDS };

struct vm {
	char *name;
	struct process process;
	struct qmp *qmp;
	struct memory memory;
	struct tracker *tracker;
	struct fill *fill;             /* NULL: its RAM was all there from the start */
	bool may_wait;                 /* QEMU was told to wait for pages that are missing (Q10) */
	struct page_bits pending;      /* written since the last successful capture, as far as scans have told (V2, V3) */
	struct page_bits late;         /* written since the copy that was made before the stop (K6) */
	struct page_set late_pages;    /* those pages */
	enum vm_method method;
	char *fifo_path, *state_path;  /* where QEMU writes its device state: either way of capture.c */
	int nic[VCFT_NIC_MAX];         /* Q11; -1: none */
	int fifo;                      /* our end of the FIFO while a command that writes to it is open; else -1 */
	bool verify, hot_pages;        /* of its spec */
	bool off;                      /* V5 */
	bool ours_to_run;              /* run() was called and pause() was not: a VM that stands still then has stopped by itself */
	bool kvm;
	char *fell_back;               /* why the tracker is not the kernel's although it was to be; NULL: it is, or was not to be */
	bool captured;                 /* at least once, or restored from a capture */
	bool owes_cont;                /* a capture by three commands has given up between stop and cont */
	size_t last_pages, last_devices;   /* of the last capture, to have the room before the VM is stopped */
	unsigned small_captures;           /* K7: running, that needed less than half of the room for pages */
};

/* ---- accel.c ---- */

/* NULL: KVM runs guests at full speed here; else why not. Tried once. Any thread. */
const char *vm_kvm_failed(void);

/* ---- features.c ---- */

/* Of the table, see vmm.h. */
char *vm_second_choices(const struct vm *vm);

/* ---- command.c: the command line ---- */

/* Descriptors that QEMU inherits. */
struct vm_inherit { int qmp, nic[VCFT_NIC_MAX], tell, faults; };   /* tell, faults: of the preloaded library (preload.h); -1: none */
/* Absolute path of QEMU: $VIRTCFT_QEMU, or the first found of the usual names; NULL: none. */
char *vm_qemu_path(void);
/* NULL-terminated, g_strfreev(). incoming: a device state will be loaded. */
char **vm_command_line(const struct vm_spec *spec, const char *qemu, const char *accel, const struct vm_inherit *fds, bool incoming);
char **vm_environment(const struct vm_spec *spec, const struct vm_inherit *fds);
/* Devices by which QEMU gives guest memory back, which track-uffd.c does not see. */
bool vm_gives_memory_back(const struct vm_spec *spec);

/* ---- qemu.c ---- */

/* To be called before each new command: end what a timeout has left open. */
gboolean vm_settle(struct vm *vm, nsec_t deadline, GError **error);
/* A command that must not be cut short by an older one. */
gboolean vm_command(struct vm *vm, const char *command, json_t *arguments, GError **error);
/* Prefix with the VM's name; if QEMU has ended, add what it said. */
void vm_explain(const struct vm *vm, GError **error);

/* ---- capture.c ---- */
gboolean vm_capture(struct vm *vm, struct capture *capture, const struct capture_hooks *hooks, GError **error);
gboolean vm_dirty(struct vm *vm, struct page_set *set, GError **error);
gboolean vm_bare_pause(struct vm *vm, nsec_t *ret_pause, GError **error);

/* ---- fifo.c ---- */

/* A whole device state: QEMU's magic and version at the start, a section's footer and the end mark at the end. */
bool vm_state_is_whole(const uint8_t *state, size_t bytes);
gboolean vm_check_state(const struct capture *c, GError **error);
/* Make room; keeps what is there. */
gboolean vm_reserve_devices(struct capture *c, size_t bytes);
/* How much the FIFO of the next capture holds: less than a device state that is not much smaller than the last one (K1). */
size_t vm_fifo_bytes(const struct vm *vm);
gboolean vm_fifo_open(struct vm *vm, GError **error);
/* The first byte says that the VM is stopped and its disks are drained. An early reply: the command has failed. */
gboolean vm_fifo_wait(struct vm *vm, nsec_t deadline, GError **error);
/* QEMU has the FIFO open for writing, and so the VM is stopped. */
bool vm_fifo_is_held(const struct vm *vm);
/* Room for a whole state: QEMU does not wait any more. */
void vm_fifo_enlarge(struct vm *vm);
/* Read to the end. c NULL: throw it away. False only if the end did not come (K2). */
gboolean vm_fifo_drain(struct vm *vm, struct capture *c, nsec_t deadline, GError **error);
/* Throw away what is in the FIFO. */
void vm_fifo_discard(struct vm *vm);
void vm_fifo_close(struct vm *vm);
/* The plain file of the three commands; removes it. */
gboolean vm_read_state(struct vm *vm, struct capture *c, GError **error);

/* ---- restore.c ---- */

/* QEMU was started with `incoming` and is paused; afterwards it is in the state, paused (V4). */
gboolean vm_load_state(struct vm *vm, const uint8_t *state, size_t bytes, GError **error);

#endif
