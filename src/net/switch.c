/* switch.c - where a frame goes, and the states of the switch.
 *
 *                    ┌──────────► ports of this host
 *   port ────────────┼──────────► tunnels to the hosts with VMs on the network
 *                    └──────────► uplink of this host
 *   tunnel, uplink ─────────────► ports of this host, nothing else (N2): so there is no loop, and a frame leaves once
 *
 *   FROZEN ──rollback──► PLACING ──run──► RUNNING ──freeze──► FROZEN        (rollback also from PLACING and RUNNING)
 *   RUNNING   frames flow.
 *   FROZEN    what VMs send, what comes from outside and what comes by tunnels for this generation is thrown away; newer is kept.
 *   PLACING   VMs are not read; what comes by tunnels for this generation is kept and delivered by run, behind the records.
 *
 * N1 Only a running switch colours a frame. N3 A frame from a port has the port's own address as its source, one from a tunnel that of a NIC of that
 * host, one from an uplink that of no NIC of the cluster (it may be an echo of our own): all others are dropped.
 * Thread: switch. No VLANs, no spanning tree: the networks of a cluster are trees by N2. */
#include "net/net-private.h"

#include "base/must.h"

#include <string.h>

#define TUNNEL_PORTS 4u         /* a tunnel's queue is as large as that of so many ports */

static const uint8_t *target_of(const struct frame *f) { return f->data; }
static const uint8_t *source_of(const struct frame *f) { return f->data + 6; }
static bool is_group(const uint8_t *mac) { return mac[0] & 1; }

/* ---- N3 ---- */

static bool from_own_address(const struct port *port, const struct frame *f) { return !memcmp(source_of(f), port->mac, sizeof port->mac); }

/* Sets the frame's sender. */
static bool from_host_of_address(const struct net *net, struct frame *f)
{
	const struct mac_entry *e = mac_find(&net->macs, f->network, source_of(f));
	if (!e || !e->pinned || e->place != MAC_HOST || e->host.n != f->from.n)
		return false;
	f->sender = e->vm.n;
	return true;
}

static bool from_outside(struct net *net, const struct frame *f)
{
	const struct mac_entry *e = mac_find(&net->macs, f->network, source_of(f));
	if (is_group(source_of(f)) || (e && e->pinned))
		return false;
	mac_learn(&net->macs, f->network, source_of(f), (struct mac_entry){ .place = MAC_UPLINK });
	return true;
}

static void forged(struct net *net)
{
	net->stats.forged++;
	net->stats.dropped++;
}

/* ---- N2 ---- */

static void to_ports(struct net *net, struct frame *f, const struct port *except)
{
	for (struct port *p = net->networks[f->network].ports; p; p = p->next)
		if (p != except)
			port_offer(net, p, f);
}

/* N8: tunnel_queue() bounds the bytes of the frames' contents; this bounds their number, so that small ones do not take all memory. */
static void to_host(struct net *net, struct host_id host, struct frame *f)
{
	const struct tunnel *t = net->tunnels[host.n];
	if (t && t->queue.count * frame_cost(f) > TUNNEL_PORTS * net->limits.port_bytes)
		net->stats.dropped++;
	else
		tunnel_queue(net, host, f);
}

static void to_hosts(struct net *net, struct frame *f)
{
	for (host_mask left = net->networks[f->network].hosts; left; left &= left - 1)
		to_host(net, host_lowest(left), f);
}

static void to_uplink(struct net *net, struct frame *f)
{
	if (net->networks[f->network].uplink)
		uplink_send(net, net->networks[f->network].uplink, f);
}

static void from_port_to(struct net *net, struct port *port, struct frame *f)
{
	const struct mac_entry *e = is_group(target_of(f)) ? NULL : mac_find(&net->macs, f->network, target_of(f));
	if (!e) {
		to_ports(net, f, port);
		to_hosts(net, f);
		to_uplink(net, f);
	} else if (e->place == MAC_HOST) {
		to_host(net, e->host, f);
	} else if (e->place == MAC_UPLINK) {
		to_uplink(net, f);
	} else if (e->port != port) {
		port_offer(net, e->port, f);
	}
}

/* From a tunnel or an uplink: to the ports here. */
static void inwards(struct net *net, struct frame *f)
{
	const struct mac_entry *e = is_group(target_of(f)) ? NULL : mac_find(&net->macs, f->network, target_of(f));
	if (!e)
		to_ports(net, f, NULL);
	else if (e->place == MAC_PORT)
		port_offer(net, e->port, f);
}

void switch_from_port(struct net *net, struct port *port, struct frame *frame)
{
	MUST("N1", net->state == NET_RUNNING);
	frame->coloured = true;
	frame->generation = net->generation;
	frame->colour = port->epoch;
	frame->network = port->network;
	frame->sender = port->vm.n;
	net->stats.frames++;
	if (frame->size >= FRAME_LEAST && from_own_address(port, frame))
		from_port_to(net, port, frame);
	else
		forged(net);
	frame_unref(&net->pool, frame);
}

void switch_from_tunnel(struct net *net, struct frame *frame)
{
	net->stats.frames++;
	if (net->networks[frame->network].known && from_host_of_address(net, frame))
		inwards(net, frame);
	else
		forged(net);
	frame_unref(&net->pool, frame);
}

void switch_from_uplink(struct net *net, struct frame *frame)
{
	net->stats.frames++;
	bool runs = net->state == NET_RUNNING;
	bool ours = frame->size >= FRAME_LEAST && (!runs || from_outside(net, frame));
	if (ours)
		uplink_keep(net, net->networks[frame->network].uplink, frame);
	else
		forged(net);
	if (ours && runs)
		inwards(net, frame);
	frame_unref(&net->pool, frame);
}

void switch_flush(struct net *net)
{
	while (net->dirty_ports) {
		struct port *p = net->dirty_ports;
		net->dirty_ports = p->next_dirty;
		p->dirty = false;
		port_flush(net, p);
	}
	while (net->dirty_tunnels) {
		struct tunnel *t = net->dirty_tunnels;
		net->dirty_tunnels = t->next_dirty;
		t->dirty = false;
		tunnel_flush(net, t);
	}
}

/* ---- what is where ---- */

void switch_place(struct net *net)
{
	for (uint32_t n = 0; n < VCFT_NETWORK_MAX; n++)
		net->networks[n].hosts = 0;
	for (uint32_t v = 0; v < VCFT_VM_MAX; v++) {
		const struct vm *vm = &net->vms[v];
		for (unsigned i = 0; vm->known && vm->host.n != net->self.n && i < vm->nic_count; i++)
			net->networks[vm->nics[i].network].hosts |= host_bit(vm->host);
	}
}

void switch_add_network(struct net *net, struct request *q)
{
	struct network *n = &net->networks[q->network];
	if (n->known) {
		g_set_error(q->error, G_FILE_ERROR, G_FILE_ERROR_EXIST, "network %u is there already", q->network);
		q->ok = FALSE;
		return;
	}
	if (q->text && !(n->uplink = uplink_open(net, q->network, q->text, q->commit, q->error))) {
		q->ok = FALSE;
		return;
	}
	n->known = true;
}

void switch_place_vm(struct net *net, struct request *q)
{
	port_remove_vm(net, q->vm);
	struct vm *vm = &net->vms[q->vm.n];
	vm->known = true;
	vm->host = q->host;
	vm->nic_count = q->nic_count;
	for (unsigned i = 0; i < q->nic_count; i++) {
		vm->nics[i] = q->nics[i];
		mac_pin(&net->macs, q->nics[i].network, q->nics[i].mac, (struct mac_entry){ .place = MAC_HOST, .host = q->host, .vm = q->vm });
	}
	switch_place(net);
}

static void ahead_clear(struct net *net)
{
	ring_clear(&net->pool, &net->ahead);
	net->ahead_bytes = 0;
}

void switch_clear(struct net *net, struct request *q)
{
	(void)q;
	for (uint32_t v = 0; v < VCFT_VM_MAX; v++)
		port_remove_vm(net, (struct vm_id){ v });
	tunnel_close_all(net);
	for (uint32_t n = 0; n < VCFT_NETWORK_MAX; n++) {
		if (net->networks[n].uplink)
			uplink_close(net, net->networks[n].uplink);
		net->networks[n] = (struct network){ 0 };
	}
	g_hash_table_remove_all(net->macs.entries);
	net->macs.learned = 0;
	ahead_clear(net);
	memset(net->marker_seen, 0, sizeof net->marker_seen);
	net->marking.open = false;
	net->state = NET_FROZEN;
	net->generation = (struct generation){ 0 };
	net->epoch = epoch_of(1);
	net->discarded = epoch_of(0);
}

/* ---- states ---- */

static void for_all_ports(struct net *net, void (*what)(struct net *, struct port *))
{
	for (uint32_t n = 0; n < VCFT_NETWORK_MAX; n++)
		for (struct port *p = net->networks[n].ports; p; p = p->next)
			what(net, p);
}

void switch_freeze(struct net *net, struct request *q)
{
	(void)q;
	net->state = NET_FROZEN;
	net->marking.open = false;
	for_all_ports(net, port_arm);
	for (uint32_t n = 0; n < VCFT_NETWORK_MAX; n++)
		if (net->networks[n].uplink)
			uplink_freeze(net->networks[n].uplink);
}

/* Of what came early only what is for g or newer still has a future. */
static void ahead_rollback(struct net *net)
{
	for (size_t left = net->ahead.count; left; left--) {
		struct frame *f = ring_pop(&net->ahead);
		if (generation_cmp(f->generation, net->generation) >= 0) {
			ring_push(&net->ahead, f);
			continue;
		}
		net->ahead_bytes -= frame_cost(f);
		frame_unref(&net->pool, f);
	}
}

void switch_rollback(struct net *net, struct request *q)
{
	MUST("N1", generation_cmp(q->generation, net->generation) > 0);
	net->state = NET_PLACING;
	net->generation = q->generation;
	net->epoch = epoch_next(q->epoch);
	net->discarded = epoch_of(0);
	net->marking.open = false;
	memset(net->marker_seen, 0, sizeof net->marker_seen);
	mac_forget_learned(&net->macs);
	for (uint32_t v = 0; v < VCFT_VM_MAX; v++)
		record_drop(net, &net->vms[v]);
	for_all_ports(net, port_rollback);
	for (uint32_t h = 1; h <= VCFT_HOST_MAX; h++)
		if (net->tunnels[h])
			tunnel_rollback(net, net->tunnels[h]);
	for (uint32_t n = 0; n < VCFT_NETWORK_MAX; n++)
		if (net->networks[n].uplink)
			uplink_rollback(net->networks[n].uplink, q->epoch);
	ahead_rollback(net);
}

/* The order: 1. the records, which are in the ports' queues already. 2. What other hosts have sent in this generation. 3. What the VMs here
 * have sent. 4. What came from outside meanwhile. So that a frame of the record comes before all that was sent after it. */
void switch_run(struct net *net, struct request *q)
{
	(void)q;
	if (net->state != NET_PLACING)
		return;
	net->state = NET_RUNNING;
	for_all_ports(net, port_flush);
	tunnel_run_ahead(net);
	for_all_ports(net, port_arm);
	for (uint32_t n = 0; n < VCFT_NETWORK_MAX; n++)
		if (net->networks[n].uplink)
			uplink_run(net, net->networks[n].uplink);
}

void switch_stats(struct net *net, struct request *q)
{
	*q->stats = net->stats;
	for (uint32_t n = 0; n < VCFT_NETWORK_MAX; n++)
		if (net->networks[n].uplink)
			uplink_count(net->networks[n].uplink, q->stats);
}
