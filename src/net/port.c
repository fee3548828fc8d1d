/* port.c - one NIC of a VM of this host: a Unix stream socket that QEMU connects to.
 *
 *   QEMU ──► rx buffer ──whole frames, coloured by epoch──► switch
 *   QEMU ◄── socket ◄── queue ◄── cut rule ◄── switch         queue: [ in the socket, perhaps unread | not yet written ]
 *                                     └─ newer ─► held ──next cut──┘
 *
 * P1 A frame is put into the queue only if its colour is not newer than the port's epoch.
 * N4 The unread frames of a stopped VM are known exactly: each frame is a send() of its own, its charge is remembered, and the last frames
 *    whose charges add up to SIOCOUTQ are those that it has not wholly read (charge.c). They stay in the queue only for this: they are
 *    never written twice, but for those of N9 that were taken back.
 * N9 What QEMU has read is not yet in the guest: frames for which the receive ring has no room wait inside QEMU, and a stop throws them away. So
 *    (1) every send() carries a descriptor, at which a read ends (unix_stream_read_generic): QEMU gets one frame at a time, and while it holds one
 *    that the ring has no room for it reads nothing (net/stream.c). (2) Behind the last frame goes a probe: the first byte of the next frame's length,
 *    which is always 0. When that has been read, QEMU holds nothing. (3) Nothing is written behind the probe until the cut. (4) A QEMU whose main loop
 *    goes round and which reads nothing holds the last frame that it has read: the ring is full. That one is recorded and written again.
 *    (5) An Ethernet keeps the order, and what is in the socket cannot be overtaken. So it is taken back: read out of QEMU's end by us, while QEMU stands in the
 *    command that has stopped the VM, and written again behind the one of (4). Where QEMU may read meanwhile (three commands) that one comes last.
 * One connection at a time: a second one waits in the listen queue until the first is gone. A length of 0 or more than VCFT_FRAME_MAX ends
 * the connection: the stream has lost its frames' bounds. Nothing blocks: what the socket does not take waits in the queue, at most
 * limits.port_bytes, shared by the senders (N8), then frames are dropped as by any full queue. Thread: switch. */
#include "net/net-private.h"

#include "base/must.h"
#include "core/cut.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define NOTE_EVERY NSEC_PER_SEC  /* a VM that connects again and again does not fill the log */
#define BACKLOG 4               /* connections that wait */
#define WRITE_BATCH 64u         /* frames of one sendmmsg */
#define TRIM_AT 256u            /* written frames after which it is worth asking which have been read */
#define ONE_BUFFER 32768u       /* a send() of up to this many bytes makes one buffer; a larger frame is sent in several */
static_assert(VCFT_FRAME_MAX < 1u << 24, "N9: the first byte of a length is 0");

static void port_ready(struct net *net, struct source *source, uint32_t events);

/* ---- connection ---- */

void port_arm(struct net *net, struct port *port)
{
	uint32_t events = net->state == NET_PLACING ? 0 : EPOLLIN;
	if (net->state == NET_RUNNING && !port->gated && port->sent < port->queue.count)
		events |= EPOLLOUT;
	source_arm(net, &port->connection, events);
}

static void queue_drop_sent(struct net *net, struct port *port)
{
	for (; port->sent; port->sent--)
		frame_unref(&net->pool, ring_pop(&port->queue));
	port->written = port->written_charge = 0;
}

/* What was in the socket is gone with the process that would have read it; what was not yet written waits for the next one. */
static void disconnect(struct net *net, struct port *port, const char *why)
{
	if (port->connection.fd < 0)
		return;
	if (why && clock_now() - port->noted >= NOTE_EVERY) {
		port->noted = clock_now();
		loop_note(net, "vm %u, nic %u: %s: connection dropped", port->vm.n, port->nic, why);
	}
	source_close(net, &port->connection);
	queue_drop_sent(net, port);
	port->rx_used = 0;
	source_arm(net, &port->listener, EPOLLIN);
}

/* False: a connection is there already, or nobody waits. */
static bool accept_next(struct net *net, struct port *port)
{
	int fd = port->connection.fd < 0 ? accept4(port->listener.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC) : -1;
	if (fd < 0)
		return false;
	int size = SOCKET_SEND_BYTES;
	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) < 0)
		(void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
	source_arm(net, &port->listener, 0);
	source_open(net, &port->connection, fd, 0, port_ready);
	port_flush(net, port);
	port_arm(net, port);
	return true;
}

static void listener_ready(struct net *net, struct source *source, uint32_t events)
{
	(void)events;
	errno = 0;
	if (!accept_next(net, container_of(source, struct port, listener)))
		source_rest(net, source);
}

/* ---- from the VM ---- */

static uint32_t frame_length(const uint8_t *at)
{
	uint32_t be;
	memcpy(&be, at, sizeof be);
	return be32toh(be);
}

/* Take the whole frames out of the buffer. */
static void take_frames(struct net *net, struct port *port)
{
	size_t at = 0;
	while (port->rx_used - at >= 4) {
		uint32_t length = frame_length(port->rx + at);
		if (!length || length > VCFT_FRAME_MAX) {
			disconnect(net, port, "frame of impossible length");
			return;
		}
		if (port->rx_used - at - 4 < length)
			break;
		if (net->state == NET_RUNNING)
			switch_from_port(net, port, frame_new(&net->pool, port->rx + at + 4, length));
		else
			net->stats.dropped++;
		at += 4 + length;
	}
	port->rx_used -= at;
	if (at && port->rx_used)
		memmove(port->rx, port->rx + at, port->rx_used);
}

/* One read(); how many bytes, 0: there was nothing, or the VM is gone. */
static size_t read_some(struct net *net, struct port *port)
{
	ssize_t n;
	do
		n = read(port->connection.fd, port->rx + port->rx_used, PORT_RX_BYTES - port->rx_used);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n <= 0) {
		disconnect(net, port, NULL);
		return 0;
	}
	port->rx_used += (size_t)n;
	take_frames(net, port);
	return (size_t)n;
}

/* Bytes that wait in the connection. */
static size_t unread_bytes(const struct port *port)
{
	int n = 0;
	return port->connection.fd >= 0 && ioctl(port->connection.fd, FIONREAD, &n) == 0 && n > 0 ? (size_t)n : 0;
}

/* N8: the VM is stopped, so what it has sent is there when this begins. One that still sends has been taken over: it is not waited for. The last
 * read() finds nothing, or the end. */
static void read_connection_out(struct net *net, struct port *port)
{
	size_t left = unread_bytes(port), n;
	while (port->connection.fd >= 0 && (n = read_some(net, port)) > 0 && n <= left)
		left -= n;
}

void port_read_out(struct net *net, struct port *port)
{
	/* A VM that has connected and sent while the thread was busy has sent before its cut, too. */
	for (unsigned i = 0; i <= BACKLOG + 1 && (port->connection.fd >= 0 || accept_next(net, port)); i++) {
		read_connection_out(net, port);
		if (port->connection.fd >= 0)
			return;
	}
}

static void port_ready(struct net *net, struct source *source, uint32_t events)
{
	struct port *port = container_of(source, struct port, connection);
	if (events & EPOLLOUT)
		port_flush(net, port);
	if (port->connection.fd < 0)
		return;
	if (net->state == NET_PLACING) {
		if (events & (EPOLLHUP | EPOLLERR))
			disconnect(net, port, NULL);
	} else if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
		read_some(net, port);
	}
}

/* ---- to the VM ---- */

bool port_queue(struct net *net, struct port *port, struct frame *frame, bool always)
{
	MUST("P1", !frame->coloured || epoch_cmp(frame->colour, port->epoch) <= 0);
	if (!always && !share_fits(&port->unsent, net->limits.port_bytes, frame)) {
		drop_full(net);
		return false;
	}
	ring_push(&port->queue, frame_ref(frame));
	share_take(&port->unsent, frame);
	if (!port->dirty) {
		port->dirty = true;
		port->next_dirty = net->dirty_ports;
		net->dirty_ports = port;
	}
	return true;
}

static void hold(struct net *net, struct port *port, struct frame *frame)
{
	if (!share_fits(&port->held_share, net->limits.port_bytes, frame)) {
		drop_full(net);
		return;
	}
	ring_push(&port->held, frame_ref(frame));
	share_take(&port->held_share, frame);
}

void port_offer(struct net *net, struct port *port, struct frame *frame)
{
	if (port->off)
		return;
	if (!frame->coloured) {
		port_queue(net, port, frame, false);
		return;
	}
	switch (cut_rule(frame->generation, frame->colour, net->generation, port->epoch)) {
	case CUT_DELIVER:
		port_queue(net, port, frame, false);
		return;
	case CUT_DELIVER_AND_RECORD:
		if (record_is_late(net, port) || !record_has_room(net, port, frame))
			net->stats.dropped++;
		else if (port_queue(net, port, frame, false))
			record_add(net, port, frame);
		return;
	case CUT_HOLD:
		hold(net, port, frame);
		return;
	case CUT_DROP:
		net->stats.dropped++;
		return;
	}
}

void port_offer_held(struct net *net, struct port *port)
{
	for (size_t left = port->held.count; left; left--) {
		struct frame *f = ring_pop(&port->held);
		share_give(&port->held_share, f);
		port_offer(net, port, f);
		frame_unref(&net->pool, f);
	}
}

void port_drop_unsent(struct net *net, struct port *port, size_t from)
{
	MUST("N4", from >= port->sent + (port->written > 0));
	for (size_t i = from; i < port->queue.count; i++)
		share_give(&port->unsent, ring_at(&port->queue, i)->frame);
	net->stats.dropped += port->queue.count - MIN(from, port->queue.count);
	ring_cut(&net->pool, &port->queue, from);
}

/* ---- what the VM has read ---- */

/* SIOCOUTQ: 0 if it has read all, or is gone. */
static int unread_charge(const struct port *port)
{
	int outq = 0;
	return port->connection.fd >= 0 && ioctl(port->connection.fd, SIOCOUTQ, &outq) == 0 ? outq : 0;
}

size_t port_first_unread(const struct port *port)
{
	int64_t left = (int64_t)unread_charge(port) - port->written_charge;
	size_t i = port->sent;
	while (i > 0 && left > 0)
		left -= ring_at(&port->queue, --i)->charge;
	/* Not a sum of whole buffers: one was charged less than its like (charge.c). Rather one frame twice than one lost. */
	if (left < 0 && i > 0 && i < port->sent && ring_at(&port->queue, i)->frame->size < ONE_BUFFER)
		i--;
	return i;
}

static void trim(struct net *net, struct port *port)
{
	for (size_t read = port_first_unread(port); read > 1; read--) { /* the last one may be needed: port_keeps_one() */
		frame_unref(&net->pool, ring_pop(&port->queue));
		port->sent--;
	}
}

/* ---- writing ---- */

/* The socket has taken n bytes of the first unwritten frame; true: all of it. */
static bool account(struct net *net, struct port *port, size_t n)
{
	struct ring_entry *e = ring_at(&port->queue, port->sent);
	port->written_charge += charge_of(&net->charges, n);
	port->written += n;
	if (port->written < e->frame->size + 4)
		return false;
	e->charge = port->written_charge;
	share_give(&port->unsent, e->frame);
	port->written = port->written_charge = 0;
	port->sent++;
	return true;
}

/* The control message that ends a read (N9). */
union boundary { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr head; };

static void boundary_fill(const struct net *net, union boundary *b)
{
	*b = (union boundary){ 0 };
	b->head = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int)) };
	memcpy(CMSG_DATA(&b->head), &net->boundary, sizeof net->boundary);
}

struct batch { unsigned count; struct mmsghdr messages[WRITE_BATCH]; struct iovec iov[WRITE_BATCH]; };

/* A message for each frame, up to one that needs several. */
static void batch_fill(const struct port *port, union boundary *boundary, struct batch *b)
{
	size_t frames = MIN(port->queue.count - port->sent, WRITE_BATCH), left = 0;
	for (b->count = 0; b->count < frames && left <= ONE_BUFFER; b->count++) {
		unsigned i = b->count;
		struct frame *f = ring_at(&port->queue, port->sent + i)->frame;
		size_t skip = i == 0 ? port->written : 0;
		left = f->size + 4 - skip;
		b->iov[i] = (struct iovec){ f->length + skip, MIN(left, ONE_BUFFER) };
		b->messages[i] = (struct mmsghdr){ .msg_hdr = { .msg_iov = &b->iov[i], .msg_iovlen = 1, .msg_control = boundary->bytes,
		                                                .msg_controllen = sizeof boundary->bytes } };
	}
}

/* ETOOMANYREFS: more descriptors under way than the process may have open; QEMU will take them. */
static bool is_full(int error)
{
	return error == EAGAIN || error == EINTR || error == ENOBUFS || error == ENOMEM || error == ETOOMANYREFS;
}

/* One sendmmsg; true: go on. */
static bool write_batch(struct net *net, struct port *port)
{
	struct batch b;
	union boundary boundary;
	boundary_fill(net, &boundary);
	batch_fill(port, &boundary, &b);
	int k = sendmmsg(port->connection.fd, b.messages, b.count, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (k < 0 && !is_full(errno))
		disconnect(net, port, NULL);
	bool whole = true;
	for (int i = 0; i < k; i++) {
		account(net, port, b.messages[i].msg_len);
		whole = b.messages[i].msg_len == b.iov[i].iov_len;
	}
	return k > 0 && whole;
}

void port_flush(struct net *net, struct port *port)
{
	if (net->state != NET_RUNNING || port->connection.fd < 0 || port->gated)
		return;
	while (port->sent < port->queue.count && write_batch(net, port))
		;
	if (port->sent >= TRIM_AT)
		trim(net, port);
	port_arm(net, port);
}

/* ---- the gate (N9) ---- */

/* False: the socket is full. A frame of which a part has been written is a probe as well. */
static bool probe(struct net *net, struct port *port)
{
	static const uint8_t first_of_length;
	if (!port->written && send(port->connection.fd, &first_of_length, 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1) {
		port->written = 1;
		port->written_charge = charge_of(&net->charges, 1);
	}
	return port->written;
}

static bool gate(struct net *net, struct port *port)
{
	port->gated = true;
	port->stuck = false;
	port_arm(net, port);
	bool probed = port->connection.fd >= 0 && !port->off && probe(net, port);
	port->gate_charge = unread_charge(port);
	return port->connection.fd < 0 || port->off || (probed && port->gate_charge == 0);
}

static struct vm *running_vm(struct net *net, struct vm_id id)
{
	struct vm *vm = &net->vms[id.n];
	return net->state == NET_RUNNING && vm->known && vm->host.n == net->self.n ? vm : NULL;
}

void port_gate(struct net *net, struct request *q)
{
	struct vm *vm = running_vm(net, q->vm);
	for (unsigned i = 0; vm && i < vm->nic_count; i++)
		q->ok &= gate(net, vm->ports[i]);
}

/* Some NIC's ring is full, and none has read anything since the gate was looked at: who reads may come to rest yet. */
void port_gate_stuck(struct net *net, struct request *q)
{
	struct vm *vm = running_vm(net, q->vm);
	bool reads = false, any = false;
	for (unsigned i = 0; vm && i < vm->nic_count; i++) {
		struct port *port = vm->ports[i];
		port->stuck = port->gate_charge > 0 && unread_charge(port) == port->gate_charge;
		port->throws = q->throws;
		port->end = q->ends ? q->ends[i] : -1;
		reads |= port->gate_charge > 0 && !port->stuck;
		any |= port->stuck;
	}
	q->ok = any && !reads;
}

void port_open_gate(struct net *net, struct port *port)
{
	port->gated = port->stuck = false;
	port_flush(net, port);
}

void port_open_gates(struct net *net, struct request *q)
{
	struct vm *vm = running_vm(net, q->vm);
	for (unsigned i = 0; vm && i < vm->nic_count; i++)
		port_open_gate(net, vm->ports[i]);
}

/* Had it found room since, QEMU would have read on. */
bool port_keeps_one(const struct port *port, size_t first_unread, size_t *ret_i)
{
	if (!port->stuck || first_unread == 0 || unread_charge(port) != port->gate_charge)
		return false;
	*ret_i = first_unread - 1;
	return true;
}

/* N9 (5): frame i of the queue and what the VM has not read. */
void port_write_again(struct net *net, struct port *port, size_t i)
{
	uint8_t away[4096];
	if (port->end < 0) {
		port_queue(net, port, ring_at(&port->queue, i)->frame, true);
		return;
	}
	while (recv(port->end, away, sizeof away, MSG_DONTWAIT) > 0)
		;
	for (size_t k = i; k < port->sent; k++)
		share_take(&port->unsent, ring_at(&port->queue, k)->frame);
	port->sent = i;
	port->written = port->written_charge = 0;
}

/* ---- life ---- */

static void queues_clear(struct net *net, struct port *port)
{
	ring_clear(&net->pool, &port->queue);
	port->sent = port->written = port->written_charge = 0;
	ring_clear(&net->pool, &port->held);
	port->unsent = port->held_share = (struct share){ 0 };
}

void port_off(struct net *net, struct request *q)
{
	struct vm *vm = &net->vms[q->vm.n];
	for (unsigned i = 0; vm->known && vm->host.n == net->self.n && i < vm->nic_count; i++) {
		vm->ports[i]->off = true;
		queues_clear(net, vm->ports[i]);
		port_arm(net, vm->ports[i]);
	}
}

void port_rollback(struct net *net, struct port *port)
{
	disconnect(net, port, NULL);
	queues_clear(net, port);
	port->off = port->gated = port->stuck = false;
	port->epoch = net->epoch;
}

static int listen_unix(const char *path, GError **error)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof address.sun_path) {
		errno = ENAMETOOLONG;
		loop_error(error, "%s", path);
		return -1;
	}
	strcpy(address.sun_path, path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	(void)unlink(path);
	/* fchmod before bind: the path never has more rights, and no umask of the process is touched. */
	if (fd < 0 || fchmod(fd, 0600) < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, BACKLOG) < 0) {
		loop_error(error, "%s", path);
		if (fd >= 0)
			close(fd);
		return -1;
	}
	return fd;
}

static struct port *port_new(struct net *net, struct vm_id vm, unsigned nic, const struct net_nic_spec *spec, const char *path,
                             GError **error)
{
	int fd = listen_unix(path, error);
	if (fd < 0)
		return NULL;
	struct port *p = g_new0(struct port, 1);
	p->vm = vm;
	p->nic = nic;
	p->network = spec->network;
	memcpy(p->mac, spec->mac, sizeof p->mac);
	p->path = g_strdup(path);
	p->epoch = net->epoch;
	p->rx = g_malloc(PORT_RX_BYTES);
	p->connection.fd = -1;
	source_open(net, &p->listener, fd, EPOLLIN, listener_ready);
	p->next = net->networks[p->network].ports;
	net->networks[p->network].ports = p;
	return p;
}

static void port_free(struct net *net, struct port *port)
{
	switch_flush(net);
	disconnect(net, port, NULL);
	source_close(net, &port->listener);
	(void)unlink(port->path);
	struct port **at = &net->networks[port->network].ports;
	while (*at != port)
		at = &(*at)->next;
	*at = port->next;
	ring_free(&net->pool, &port->queue);
	ring_free(&net->pool, &port->held);
	ring_free(&net->pool, &port->record);
	g_free(port->path);
	g_free(port->rx);
	loop_bury(net, port);
}

static bool nics_fit(struct net *net, const struct request *q)
{
	for (unsigned i = 0; i < q->nic_count; i++) {
		const struct net_nic_spec *s = &q->nics[i];
		if (s->network >= VCFT_NETWORK_MAX || !net->networks[s->network].known) {
			g_set_error(q->error, G_FILE_ERROR, G_FILE_ERROR_INVAL, "vm %u, nic %u: there is no network %u", q->vm.n, i, s->network);
			return false;
		}
		const struct mac_entry *e = mac_find(&net->macs, s->network, s->mac);
		if (e && e->pinned && e->vm.n != q->vm.n) {
			g_set_error(q->error, G_FILE_ERROR, G_FILE_ERROR_EXIST, "vm %u, nic %u: vm %u has this MAC already", q->vm.n, i, e->vm.n);
			return false;
		}
	}
	return true;
}

void port_add_vm(struct net *net, struct request *q)
{
	if (!nics_fit(net, q)) {
		q->ok = FALSE;
		return;
	}
	port_remove_vm(net, q->vm);
	struct vm *vm = &net->vms[q->vm.n];
	*vm = (struct vm){ .known = true, .host = net->self };
	for (unsigned i = 0; i < q->nic_count; i++) {
		struct port *p = port_new(net, q->vm, i, &q->nics[i], q->paths[i], q->error);
		if (!p) {
			port_remove_vm(net, q->vm);
			q->ok = FALSE;
			return;
		}
		vm->nics[i] = q->nics[i];
		vm->ports[vm->nic_count++] = p;
		mac_pin(&net->macs, p->network, p->mac, (struct mac_entry){ .place = MAC_PORT, .port = p, .vm = q->vm });
	}
	switch_place(net);
}

void port_remove_vm(struct net *net, struct vm_id id)
{
	struct vm *vm = &net->vms[id.n];
	if (!vm->known)
		return;
	mac_unpin_vm(&net->macs, id);
	for (unsigned i = 0; vm->host.n == net->self.n && i < vm->nic_count; i++)
		port_free(net, vm->ports[i]);
	*vm = (struct vm){ 0 };
	switch_place(net);
}

void port_remove_vm_request(struct net *net, struct request *q) { port_remove_vm(net, q->vm); }
