/* machine-room.c - the room that a VM's RAM and its shadow take from their file system; see machine-private.h. Thread: the worker, and one of its own.
 *
 * A7 A VM that is powered on has all of its room before it runs. One that is put back runs when it is seen that there is room (R3), and what is missing of
 *    its RAM comes, and room is taken, when it runs: the kernel clears each page that is taken, 0.15 ms per MiB here and twice, for which nobody has to
 *    wait, nor the start of another VM to share a processor with. If the room is not there after all the recovery has failed on this host (TROUBLE), as
 *    if it had been seen before. */
#include "agent/machine-private.h"

#include "base/fault.h"

#include <gio/gio.h>

static bool take(struct machine *m, const bool *stop, GError **error)
{
	if (fault(FAULT_RESTORE_ROOM)) {
		g_set_error(error, VMM_ERROR, VMM_ERROR_SPACE, "fault: %s", fault_name(FAULT_RESTORE_ROOM));
		return false;
	}
	return vmm_qemu.reserve(m->vm, stop, error) && image_reserve_ram(m->shadow, stop, error);
}

bool room_check(struct machine *m, GError **error) { return image_room_is_there(m->shadow, m->fill ? m->o.config->memory_bytes : 0, error); }
/* start() has taken that of the RAM. */
bool room_take_now(struct machine *m, GError **error) { return image_reserve_ram(m->shadow, NULL, error); }

static gpointer take_beside(gpointer user)
{
	struct machine *m = user;
	GError *error = NULL;
	struct job job = { .generation = m->room.generation };
	if (!take(m, &m->room.stop, &error) && !__atomic_load_n(&m->room.stop, __ATOMIC_ACQUIRE))
		note_post(m, note_new(m, NOTE_PLACED, &job, error));
	else
		g_clear_error(&error);
	return NULL;
}

void room_begin(struct machine *m)
{
	if (!m->room.due)
		return;
	m->room.due = m->room.stop = false;
	m->room.generation = m->generation;
	m->room.thread = g_thread_new("room", take_beside, m);
}

void room_end(struct machine *m)
{
	m->room.due = false;
	if (!m->room.thread)
		return;
	__atomic_store_n(&m->room.stop, true, __ATOMIC_RELEASE);
	g_thread_join(g_steal_pointer(&m->room.thread));
}
