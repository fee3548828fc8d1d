/* record.c - the cut of a VM, and the channel record: the frames that were in flight to it across the cut.
 *
 *          cut(r)                       marker(r) + all markers          take(r)
 *   NONE ─────────► OPEN(r) ───────────────────────────────► COMPLETE ──────────► TAKEN
 *                     │ unread and queued frames,               (the next cut, discard or rollback: NONE)
 *                     │ then every frame with colour <= r
 *
 * N4 The order within a cut is the argument: 1. What the VM has sent is read out while its port still gives the old colour, so that it
 *    belongs to r. 2. The ports get the new epoch. 3. What is not in the guest goes into the record, before anything else can. 4. The held
 *    frames are offered again, by the cut rule of the new epoch: those of an older colour (after an abort) are recorded as well. 5. The gate is
 *    opened (N9): what QEMU reads from now on it gives to the guest when that runs again.
 * N6 Complete: every local VM is cut at r (net_marker says so) and MARKER(r) or a later one has come from each of the others. After that no
 *    frame of colour <= r can come; one that does, from a host that breaks its word, is not delivered.
 * A VM has one record: a checkpoint begins only after the last one is committed or aborted. After an abort of r, frames of colours <= r
 * belong to the newest open record; if there is none, to none: the receiver's next cut has received them and the sender's has sent them.
 * Frames from outside have no colour; those that are unread at the cut are recorded too.
 * Thread: switch. */
#include "net/net-private.h"

#include "base/must.h"
#include "base/wire.h"

static struct vm *vm_of(struct net *net, struct vm_id id)
{
	struct vm *vm = &net->vms[id.n];
	return vm->known && vm->host.n == net->self.n ? vm : NULL;
}

void record_drop(struct net *net, struct vm *vm)
{
	for (unsigned i = 0; vm->known && vm->host.n == net->self.n && i < vm->nic_count; i++)
		ring_clear(&net->pool, &vm->ports[i]->record);
	vm->record = RECORD_NONE;
	vm->record_bytes = 0;
}

bool record_is_late(const struct net *net, const struct port *port)
{
	enum record_state state = net->vms[port->vm.n].record;
	return state == RECORD_COMPLETE || state == RECORD_TAKEN;
}

void record_add(struct net *net, struct port *port, struct frame *frame)
{
	struct vm *vm = &net->vms[port->vm.n];
	if (vm->record != RECORD_OPEN)
		return;
	MUST("N6", vm->record_epoch.n + 1 == port->epoch.n);
	vm->record_bytes += frame_cost(frame);
	net->stats.recorded++;
	/* Too large for any message: not kept, so that memory is; record_take() will refuse it. */
	if (vm->record_bytes <= RECORD_BYTES_MAX)
		ring_push(&port->record, frame_ref(frame));
}

/* N8: what a flood has more than that is dropped, neither delivered nor recorded, as by a full queue: no guest can make a record that is refused. */
bool record_has_room(const struct net *net, const struct port *port, const struct frame *frame)
{
	const struct vm *vm = &net->vms[port->vm.n];
	return vm->record != RECORD_OPEN || vm->record_bytes + frame_cost(frame) <= RECORD_BYTES_QUEUED;
}

/* ---- N4 ---- */

static void record_open(struct net *net, struct vm *vm, struct epoch_id r)
{
	record_drop(net, vm);
	vm->record = epoch_cmp(r, net->discarded) > 0 ? RECORD_OPEN : RECORD_NONE;
	vm->record_epoch = r;
}

/* N9: what QEMU keeps comes first in the record. */
static void record_unread(struct net *net, struct port *port)
{
	size_t first_unread = port_first_unread(port), first_unsent = port->sent + (port->written > 0), kept;
	bool keeps_one = port_keeps_one(port, first_unread, &kept);
	if (keeps_one)
		record_add(net, port, ring_at(&port->queue, kept)->frame);
	for (size_t i = first_unread; i < port->queue.count; i++)
		if (i >= first_unsent && !record_has_room(net, port, ring_at(&port->queue, i)->frame))
			port_drop_unsent(net, port, i);
		else
			record_add(net, port, ring_at(&port->queue, i)->frame);
	if (keeps_one && port->throws)
		port_write_again(net, port, kept);
}

/* A port that is added from now on is in a later epoch than r. */
static void epoch_is_over(struct net *net, struct epoch_id r)
{
	if (epoch_cmp(net->epoch, epoch_next(r)) < 0)
		net->epoch = epoch_next(r);
}

void record_cut(struct net *net, struct request *q)
{
	struct vm *vm = vm_of(net, q->vm);
	if (!vm || net->state != NET_RUNNING)
		return;
	for (unsigned i = 0; i < vm->nic_count; i++) {
		MUST("N4", epoch_cmp(vm->ports[i]->epoch, q->epoch) <= 0);
		port_read_out(net, vm->ports[i]);
	}
	record_open(net, vm, q->epoch);
	for (unsigned i = 0; i < vm->nic_count; i++)
		vm->ports[i]->epoch = epoch_next(q->epoch);
	for (unsigned i = 0; i < vm->nic_count; i++)
		record_unread(net, vm->ports[i]);
	for (unsigned i = 0; i < vm->nic_count; i++)
		port_offer_held(net, vm->ports[i]);
	for (unsigned i = 0; i < vm->nic_count; i++)
		port_open_gate(net, vm->ports[i]);
	epoch_is_over(net, q->epoch);
}

/* ---- N5, N6 ---- */

static bool all_markers(const struct net *net)
{
	for (host_mask left = net->marking.others; left; left &= left - 1)
		if (epoch_cmp(net->marker_seen[host_lowest(left).n], net->marking.r) < 0)
			return false;
	return true;
}

static void complete_if_all(struct net *net)
{
	if (!net->marking.open || !all_markers(net))
		return;
	net->marking.open = false;
	for (uint32_t v = 0; v < VCFT_VM_MAX; v++)
		if (net->vms[v].record == RECORD_OPEN && net->vms[v].record_epoch.n == net->marking.r.n)
			net->vms[v].record = RECORD_COMPLETE;
	if (net->callbacks.record_complete)
		net->callbacks.record_complete(net->marking.r, net->user);
}

void record_marker(struct net *net, struct request *q)
{
	if (net->state != NET_RUNNING || epoch_cmp(q->epoch, net->discarded) <= 0)
		return;
	for (uint32_t n = 0; n < VCFT_NETWORK_MAX; n++)
		for (struct port *p = net->networks[n].ports; p; p = p->next)
			MUST("N5", epoch_cmp(p->epoch, q->epoch) > 0);
	epoch_is_over(net, q->epoch);
	net->marking.open = true;
	net->marking.r = q->epoch;
	net->marking.others = q->others & ~host_bit(net->self);
	for (host_mask left = net->marking.others; left; left &= left - 1)
		tunnel_queue_marker(net, host_lowest(left), q->epoch);
	complete_if_all(net);
}

bool record_marker_in(struct net *net, struct host_id host, struct epoch_id r)
{
	if (epoch_cmp(r, net->marker_seen[host.n]) <= 0)
		return false;
	net->marker_seen[host.n] = r;
	complete_if_all(net);
	return true;
}

/* ---- out and in again ---- */

static size_t encoded_size(const struct vm *vm)
{
	size_t n = 4;
	for (unsigned i = 0; i < vm->nic_count; i++)
		for (size_t k = 0; k < vm->ports[i]->record.count; k++)
			n += 5 + ring_at(&vm->ports[i]->record, k)->frame->size;
	return n;
}

static uint32_t record_count(const struct vm *vm)
{
	size_t n = 0;
	for (unsigned i = 0; i < vm->nic_count; i++)
		n += vm->ports[i]->record.count;
	return (uint32_t)n;
}

static GBytes *encode(const struct vm *vm)
{
	size_t size = encoded_size(vm);
	struct wire_writer w = wire_writer(g_malloc(size), size);
	wire_put_u32(&w, record_count(vm));
	for (unsigned i = 0; i < vm->nic_count; i++)
		for (size_t k = 0; k < vm->ports[i]->record.count; k++) {
			const struct frame *f = ring_at(&vm->ports[i]->record, k)->frame;
			wire_put_u8(&w, (uint8_t)i);
			wire_put_u32(&w, f->size);
			wire_put_bytes(&w, f->data, f->size);
		}
	return g_bytes_new_take(w.start, w.used);
}

void record_take(struct net *net, struct request *q)
{
	struct vm *vm = vm_of(net, q->vm);
	if (!vm || vm->record != RECORD_COMPLETE || vm->record_epoch.n != q->epoch.n || vm->record_bytes > RECORD_BYTES_MAX)
		return;
	q->record = encode(vm);
	record_drop(net, vm);
	vm->record = RECORD_TAKEN;
}

void record_discard(struct net *net, struct request *q)
{
	if (epoch_cmp(q->epoch, net->discarded) > 0)
		net->discarded = q->epoch;
	if (net->marking.open && epoch_cmp(net->marking.r, q->epoch) <= 0)
		net->marking.open = false;
	for (uint32_t v = 0; v < VCFT_VM_MAX; v++)
		if (net->vms[v].record != RECORD_NONE && epoch_cmp(net->vms[v].record_epoch, q->epoch) <= 0)
			record_drop(net, &net->vms[v]);
}

/* One frame of an encoded record; false: it is not one. */
static bool decode_frame(struct wire_reader *r, const struct vm *vm, unsigned *ret_nic, const uint8_t **ret_data, uint32_t *ret_size)
{
	*ret_nic = wire_u8(r);
	*ret_size = wire_u32(r);
	*ret_data = *ret_size && *ret_size <= VCFT_FRAME_MAX ? wire_bytes(r, *ret_size) : NULL;
	return *ret_data && *ret_nic < vm->nic_count;
}

static bool decode(struct net *net, const struct vm *vm, GBytes *record, bool deliver)
{
	gsize size;
	const void *data = g_bytes_get_data(record, &size);
	struct wire_reader r = wire_reader(data, size);
	for (uint32_t left = wire_u32(&r); left; left--) {
		unsigned nic;
		const uint8_t *bytes;
		uint32_t n;
		if (!decode_frame(&r, vm, &nic, &bytes, &n))
			return false;
		if (!deliver)
			continue;
		struct frame *f = frame_new(&net->pool, bytes, n);
		port_queue(net, vm->ports[nic], f, true);
		frame_unref(&net->pool, f);
	}
	return wire_done(&r);
}

void record_reinject(struct net *net, struct request *q)
{
	if (!q->record || !g_bytes_get_size(q->record))
		return;
	struct vm *vm = vm_of(net, q->vm);
	if (!vm || !decode(net, vm, q->record, false)) {
		g_set_error(q->error, G_FILE_ERROR, G_FILE_ERROR_INVAL, vm ? "vm %u: not a channel record" : "vm %u does not run here", q->vm.n);
		q->ok = FALSE;
		return;
	}
	decode(net, vm, q->record, true);
}
