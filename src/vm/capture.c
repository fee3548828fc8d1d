/* capture.c - one checkpoint of one VM: stop, hook, dirty pages, device state, go on.
 *
 *  FIFO (one command, one round trip):
 *    QEMU   xen-save-devices-state: stop, drain disks, open FIFO, write ▒▒▒▒ blocked, FIFO full ▒▒▒▒ write the rest, close, go on, reply
 *    agent                                         first byte ─► hook ─► scan ─► copy ─► [hash] ─► read to the end
 *  Three commands (stop, xen-save-devices-state to a file, cont): where the FIFO does not work, and as the yardstick.
 *
 *  K1 The FIFO holds less than the device state (F_SETPIPE_SZ): QEMU cannot end the command, and so not start the VM, until we read on. It holds
 *     one page at first, which is less than any state; then as much as it may beside the last state's size, so that QEMU saves most of it while
 *     pages are copied. That it still writes when the copy is done is checked: else the capture fails (V1), and the next FIFO holds one page.
 *  K2 Once the command is sent the FIFO is read to its end, whatever fails: the guest must go on (V3). If we give up waiting, the FIFO gets
 *     room for the whole state and stays open until QEMU has answered.
 *  K3 Pages found by a scan stay pending until a capture has succeeded; only then the set is emptied (V3).
 *  K4 Room for pages and state is made before the VM is stopped, as far as the last capture tells how much. A VM that was restored will
 *     have written little since, so nothing is prepared for all of its RAM: that took the longest part of the first commit after a recovery.
 *  K5 A VM that stands still though it should run is captured as it is if it has powered itself off (V5) or waits for space on its disk: the write
 *     that waits is in its device state. If QEMU cannot go on with it, it is lost; if somebody has stopped it behind our back, it is not captured.
 *  K6 When many pages are to be expected (the first capture of a VM that was not restored, or after failed ones), they are copied before the
 *     VM is stopped; the scan of the stopped VM then finds what was written since, only that is copied, and the two are put together when
 *     the guest runs again. Only with a tracker that is `live`.
 *  K7 Buffers that a large capture has left are given back when captures are small again: at once where they are far too large, else when no one of the
 *     last few needed half of them, so that a guest that is busy now and then finds its room.
 *  K9 Before the stop all around the VM comes to rest. A QEMU that takes nothing may have been kept from running, or may have no room in its guest: which of
 *     the two is known when its main loop has gone round. By the FIFO that loop stands still while the VM is stopped, so that it reads of no socket then.
 *  K8 The next capture's command is sent when one has ended, but for its last byte (Q9): so the VM stops when it is asked to, not 2 ms later.
 * live:false always: with live:true on a VM that has just stopped by itself, the second capture would end QEMU. */
#include "vm/vm-private.h"

#include "base/fault.h"
#include "vm/copy.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BULK_PAGES 4096u      /* K6: more than that is many (some 3 ms to copy) */
#define FEW_PAGES 256u        /* K4: room beyond what the last capture had, and half as much again */
#define MORE_MOST 16384u      /* K4: but no more than that */
#define TURNS 3u              /* K9: one that is under way, one in which something is found, one to be sure */
#define KEEP_PAGES 512u       /* K7: buffers up to this size are always kept */
#define SMALL_CAPTURES 16u    /* K7: so many running are "small again" */

/* One call of vm_capture(). */
struct job {
	struct capture *c;
	const struct capture_hooks *hooks;
	bool bulk;                /* K6: c->ram has been filled before the stop; what comes later is in vm->late */
	bool touched;             /* the hook was called: no second try by another way */
};

/* ---- the capture's buffers ---- */

void capture_free(struct capture *capture)
{
	page_set_free(&capture->ram);
	free(capture->devices);
	*capture = (struct capture){ 0 };
}

static gboolean no_memory(GError **error, const char *what)
{
	g_set_error(error, VMM_ERROR, VMM_ERROR_RAM, "no memory for %s", what);
	return FALSE;
}

/* K7. `pages` has FEW_PAGES in it, so that what the start of a guest left would never be four times as much. */
static void shrink(struct vm *vm, struct page_set *set, uint64_t pages)
{
	vm->small_captures = pages < set->room / 2 ? vm->small_captures + 1 : 0;
	if (set->room > KEEP_PAGES && (pages < set->room / 4 || vm->small_captures >= SMALL_CAPTURES))
		page_set_free(set);
}

/* K4 */
static gboolean make_room(struct vm *vm, struct capture *c, GError **error)
{
	uint64_t pages = vm->captured ? vm->last_pages + MIN(vm->last_pages / 2, MORE_MOST) + FEW_PAGES : memory_populated_count(&vm->memory) + 64;
	if (!vm->captured)
		memory_prefault(&vm->memory);
	c->ram.count = 0;
	c->devices_bytes = 0;
	pages = MIN(MAX(pages, bits_count(&vm->pending)), memory_pages(&vm->memory));
	shrink(vm, &c->ram, pages);
	page_set_free(&vm->late_pages);
	if (fault(FAULT_CAPTURE_PAGES) || !page_set_reserve(&c->ram, pages))
		return no_memory(error, "captured pages");
	return vm_reserve_devices(c, vm->last_devices + (64u << 10)) ? TRUE : no_memory(error, "the device state");
}

/* ---- pages ---- */

/* Adds what was written. Never fails: without an answer from the tracker, everything populated was written (T2). */
static void scan(struct vm *vm, struct page_bits *out)
{
	g_autoptr(GError) why = NULL;
	if (fault(FAULT_TRACK_SCAN) || !vm->tracker->ops->scan(vm->tracker, out, &why))
		memory_populated(&vm->memory, out);
}

/* K6, before the stop. Pages are pending from the scan on, so that a failure at any later point loses none. */
static gboolean copy_bulk(struct vm *vm, struct job *job, GError **error)
{
	bool many = !vm->captured || bits_count(&vm->pending) > BULK_PAGES;
	job->bulk = many && vm->tracker->ops->live && qmp_events(vm->qmp)->running;
	if (!job->bulk)
		return TRUE;
	scan(vm, &vm->pending);
	bits_clear(&vm->late);
	bool ok = pages_copy(&vm->memory, &vm->pending, &job->c->ram) && page_set_reserve(&vm->late_pages, BULK_PAGES);
	return ok ? TRUE : no_memory(error, "captured pages");
}

/* The VM is stopped. */
static gboolean copy_rest(struct vm *vm, struct job *job, GError **error)
{
	nsec_t start = clock_now();
	scan(vm, job->bulk ? &vm->late : &vm->pending);
	nsec_t scanned = clock_now();
	bool ok = job->bulk ? pages_copy(&vm->memory, &vm->late, &vm->late_pages) : pages_copy(&vm->memory, &vm->pending, &job->c->ram);
	job->c->scan = scanned - start;
	job->c->copy = clock_now() - scanned;
	if (job->bulk)
		bits_merge(&vm->pending, &vm->late);
	return ok ? TRUE : no_memory(error, "captured pages");
}

static gboolean call_hook(const struct capture_hooks *hooks, GError **error)
{
	if (fault(FAULT_CAPTURE_HOOK)) {
		g_set_error(error, VMM_ERROR, VMM_ERROR_REFUSED, "fault: %s", fault_name(FAULT_CAPTURE_HOOK));
		return FALSE;
	}
	return !hooks || !hooks->stopped || hooks->stopped(hooks->user, error);
}

/* All that happens while the VM is stopped, but for the device state. The hook comes first: what it does to the outside (cut ports, sealed
 * disks) belongs to the same instant as the pages. */
static gboolean take(struct vm *vm, struct job *job, GError **error)
{
	job->touched = true;
	if (!call_hook(job->hooks, error) || !copy_rest(vm, job, error))
		return FALSE;
	job->c->ram_hash[0] = job->c->ram_hash[1] = 0;
	if (vm->verify)
		memory_hash(&vm->memory, job->c->ram_hash);
	return TRUE;
}

/* ---- the FIFO ---- */

static json_t *fifo_arguments(const struct vm *vm)
{
	return json_pack("{s:s, s:b}", "filename", vm->fifo_path, "live", 0);
}

static gboolean fifo_send(struct vm *vm, GError **error)
{
	GError *why = NULL;
	if (qmp_go(vm->qmp, &why))
		return TRUE;
	if (!why)
		return qmp_send(vm->qmp, "xen-save-devices-state", fifo_arguments(vm), -1, error);
	g_propagate_error(error, why);
	return FALSE;
}

/* K8. That it could not be sent will be met again by the next capture. */
static void fifo_prepare(struct vm *vm)
{
	if (vm->method == VM_FIFO)
		(void)qmp_prepare(vm->qmp, "xen-save-devices-state", fifo_arguments(vm), NULL);
}

static gboolean fifo_take(struct vm *vm, struct job *job, GError **error)
{
	if (!take(vm, job, error))
		return FALSE;
	if (vm_fifo_is_held(vm))
		return TRUE;
	vm->last_devices = 0;
	g_set_error(error, VMM_ERROR, VMM_ERROR_STATE, "QEMU did not wait for the copy");
	return FALSE;
}

/* From sending to the reply. */
static gboolean fifo_capture(struct vm *vm, struct job *job, GError **error)
{
	nsec_t deadline = clock_now() + VM_COMMAND_TIMEOUT;
	if (!vm_fifo_open(vm, error) || !fifo_send(vm, error))
		return FALSE;
	gboolean ok = vm_fifo_wait(vm, deadline, error);
	if (ok) {
		ok = fifo_take(vm, job, error);
		deadline = clock_now() + VM_COMMAND_TIMEOUT;
	}
	vm_fifo_enlarge(vm);
	gboolean drained = vm_fifo_drain(vm, ok ? job->c : NULL, deadline, ok ? error : NULL);
	gboolean answered = drained && (!qmp_open(vm->qmp) || qmp_wait(vm->qmp, deadline, NULL, ok ? error : NULL));
	if (answered)
		vm_fifo_close(vm);
	return ok && answered && vm_check_state(job->c, error);
}

/* ---- three commands ---- */

static gboolean command(struct vm *vm, const char *name, json_t *arguments, GError **error)
{
	return qmp_command(vm->qmp, name, arguments, clock_now() + VM_COMMAND_TIMEOUT, NULL, error);
}

static gboolean save_to_file(struct vm *vm, GError **error)
{
	return command(vm, "xen-save-devices-state", json_pack("{s:s, s:b}", "filename", vm->state_path, "live", 0), error);
}

static gboolean commands_capture(struct vm *vm, struct job *job, GError **error)
{
	vm->owes_cont = qmp_events(vm->qmp)->running;
	if (vm->owes_cont && !command(vm, "stop", NULL, error))
		return FALSE;
	gboolean ok = take(vm, job, error) && save_to_file(vm, error);
	if (vm->owes_cont && !command(vm, "cont", NULL, ok ? error : NULL))
		return FALSE;
	vm->owes_cont = false;
	return ok && vm_read_state(vm, job->c, error) && vm_check_state(job->c, error);
}

/* ---- the whole ---- */

/* QEMU's own times of the one STOP and RESUME since `before`; 0 if the VM was paused all along. */
static nsec_t pause_since(const struct vm *vm, const struct qmp_events *before)
{
	const struct qmp_events *now = qmp_events(vm->qmp);
	if (now->stops == before->stops || now->resumes == before->resumes)
		return 0;
	return MAX(now->resume_us - now->stop_us, 0) * NSEC_PER_USEC;
}

/* K5 */
static gboolean check_running(struct vm *vm, GError **error)
{
	if (!vm->ours_to_run || vm->off || qmp_events(vm->qmp)->running)
		return TRUE;
	json_t *reply = NULL;
	if (!qmp_command(vm->qmp, "query-status", NULL, clock_now() + VM_COMMAND_TIMEOUT, &reply, error))
		return FALSE;
	const char *status = json_string_value(json_object_get(reply, "status"));
	bool by_itself = status && (!strcmp(status, "io-error") || !strcmp(status, "shutdown") || !strcmp(status, "guest-panicked"));
	bool broken = status && !strcmp(status, "internal-error");
	if (!by_itself)
		g_set_error(error, VMM_ERROR, broken ? VMM_ERROR_GONE : VMM_ERROR_STOPPED, "the VM has been stopped: %s", status ? status : "unknown");
	json_decref(reply);
	return by_itself;
}

/* V5, K5. Had it run until the capture, it runs again: what it has done since is of the next one. */
static gboolean tell_run(struct vm *vm, struct capture *c, const struct qmp_events *before, GError **error)
{
	const struct qmp_events *now = qmp_events(vm->qmp);
	bool stood = now->resumes == before->resumes;
	vm->off = vm->off || (stood && now->off);
	c->run = vm->off ? CAPTURE_OFF : stood && vm->ours_to_run ? CAPTURE_WAITS : CAPTURE_RUNS;
	if (!vm_reserve_devices(c, c->devices_bytes + 1))
		return no_memory(error, "the device state");
	c->devices[c->devices_bytes++] = vm->off;
	return TRUE;
}

static bool worth_another_way(const struct vm *vm, const struct job *job, const GError *why)
{
	return vm->method == VM_UNTRIED && !job->touched && why->code != VMM_ERROR_GONE && why->code != VMM_ERROR_HUNG;
}

static gboolean capture_by_some_way(struct vm *vm, struct job *job, GError **error)
{
	if (vm->method == VM_THREE_COMMANDS)
		return commands_capture(vm, job, error);
	GError *why = NULL;
	if (fifo_capture(vm, job, &why)) {
		vm->method = VM_FIFO;
		return TRUE;
	}
	if (!worth_another_way(vm, job, why)) {
		g_propagate_error(error, why);
		return FALSE;
	}
	g_clear_error(&why);
	vm->method = VM_THREE_COMMANDS;
	return vm_settle(vm, clock_now() + VM_COMMAND_TIMEOUT, error) && commands_capture(vm, job, error);
}

/* Put the early and the late pages together; the guest runs. */
static gboolean finish(struct vm *vm, struct job *job, GError **error)
{
	if (job->bulk && !pages_merge(&job->c->ram, &vm->late_pages))
		return no_memory(error, "captured pages");
	vm->captured = true;
	vm->last_pages = job->bulk ? vm->late_pages.count : job->c->ram.count;
	vm->last_devices = job->c->devices_bytes;
	bits_clear(&vm->pending); /* K3 */
	if (vm->tracker->ops->captured)
		vm->tracker->ops->captured(vm->tracker, &job->c->ram); /* last: it counts as the capture that hot pages are compared with */
	return TRUE;
}

/* Whatever QEMU polled it has read at least once when this returns: each command is carried out by a turn of the main loop that began after the last one. */
static gboolean turn(struct vm *vm, GError **error)
{
	for (unsigned i = 0; i < TURNS; i++)
		if (!command(vm, "query-status", NULL, error))
			return FALSE;
	return TRUE;
}

/* K9 */
static gboolean come_to_rest(struct vm *vm, const struct capture_hooks *hooks, GError **error)
{
	nsec_t deadline = clock_now() + VM_COMMAND_TIMEOUT;
	while (hooks && hooks->stopping && !hooks->stopping(hooks->user)) {
		if (!turn(vm, error))
			return FALSE;
		if (hooks->stuck(hooks->user, qmp_events(vm->qmp)->running, vm->method == VM_FIFO ? vm->nic : NULL))
			break;
		if (clock_now() < deadline)
			continue;
		g_set_error(error, VMM_ERROR, VMM_ERROR_REFUSED, "what QEMU was given does not come to rest");
		return FALSE;
	}
	return TRUE;
}

gboolean vm_capture(struct vm *vm, struct capture *c, const struct capture_hooks *hooks, GError **error)
{
	struct job job = { c, hooks, false, false };
	if (!vm_settle(vm, clock_now() + VM_COMMAND_TIMEOUT, error) || !check_running(vm, error) || !make_room(vm, c, error) ||
	    !copy_bulk(vm, &job, error))
		return FALSE;
	if (!come_to_rest(vm, hooks, error))
		return FALSE;
	struct qmp_events before = *qmp_events(vm->qmp);
	if (!capture_by_some_way(vm, &job, error))
		return FALSE;
	c->pause = pause_since(vm, &before);
	fifo_prepare(vm);
	return tell_run(vm, c, &before, error) && finish(vm, &job, error);
}

gboolean vm_dirty(struct vm *vm, struct page_set *set, GError **error)
{
	scan(vm, &vm->pending);
	return pages_list(&vm->pending, set) ? TRUE : no_memory(error, "page numbers");
}

gboolean vm_bare_pause(struct vm *vm, nsec_t *ret_pause, GError **error)
{
	if (!vm_settle(vm, clock_now() + VM_COMMAND_TIMEOUT, error) || !check_running(vm, error))
		return FALSE;
	struct qmp_events before = *qmp_events(vm->qmp);
	vm->owes_cont = before.running;
	if (!command(vm, "stop", NULL, error))
		return FALSE;
	gboolean saved = save_to_file(vm, error);
	if (vm->owes_cont && !command(vm, "cont", NULL, saved ? error : NULL))
		return FALSE;
	vm->owes_cont = false;
	unlink(vm->state_path);
	if (saved)
		*ret_pause = pause_since(vm, &before);
	return saved;
}
