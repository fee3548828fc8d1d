/* uplink.c - the network's way out: a TAP device behind a gate (core/gate.h, which keeps U1-U5) that holds frames until their checkpoint is known everywhere.
 *
 *   port ──► gate ──released──► TAP            TAP ──► switch ──► ports of this host; and the gate keeps it, for a rollback (U4)
 *
 * A rollback undoes what the VMs here have heard from outside; so the outside need not wait until its own time-out sends it once more. A frame belongs to the
 * newest epoch that a port of its network is in: one that another port has heard in an older one may hear it twice, which Ethernet allows; none lacks it.
 * What the gate holds is shared by the senders (N8). U1 is checked again at the one call of write(). An announcement is not the word of any VM: it has
 * epoch 0. Thread: switch. No fragment reassembly. */
#include "net/net-private.h"

#include "base/must.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ_BATCH 64           /* frames read from the TAP in one go */
#define KEPT_BYTES (8u << 20)   /* of memory for frames that came in (U4, U5) */

/* ---- out ---- */

/* False: the TAP takes no more now. */
static bool tap_write(struct net *net, struct uplink *up, const struct frame *f)
{
	MUST("U1", net->state == NET_RUNNING);
	ssize_t n = write(up->tap.fd, f->data, f->size);
	if (n < 0 && (errno == EAGAIN || errno == ENOBUFS))
		return false;
	if (n < 0)
		net->stats.dropped++, net->stats.dropped_down++; /* the link is down: as a cable that is out */
	else
		net->stats.released++;
	return true;
}

static void uplink_flush(struct net *net, struct uplink *up)
{
	const struct frame *f;
	while ((f = gate_next(up->gate)) && tap_write(net, up, f))
		gate_sent(up->gate);
	source_arm(net, &up->tap, EPOLLIN | (f ? EPOLLOUT : 0));
}

void uplink_send(struct net *net, struct uplink *up, struct frame *frame)
{
	MUST("N2", frame->from.n == 0);
	if (share_fits(&up->share, net->limits.held_bytes, frame) && gate_send(up->gate, frame, frame_cost(frame), frame->colour)) {
		share_take(&up->share, frame);
		frame_ref(frame);
		uplink_flush(net, up);
	} else {
		drop_full(net);
	}
}

void uplink_release_request(struct net *net, struct request *q)
{
	for (uint32_t n = 0; n < VCFT_NETWORK_MAX; n++)
		if (net->networks[n].uplink) {
			gate_release(net->networks[n].uplink->gate, q->epoch);
			uplink_flush(net, net->networks[n].uplink);
		}
}

void uplink_count(const struct uplink *up, struct net_stats *stats)
{
	struct gate_view view;
	gate_view(up->gate, &view);
	stats->held_bytes += view.held_bytes;
	stats->held_frames += view.held_frames;
}

/* ---- with the switch ---- */

void uplink_freeze(struct uplink *up) { gate_freeze(up->gate); }
void uplink_rollback(struct uplink *up, struct epoch_id c) { gate_rollback(up->gate, c); }

void uplink_run(struct net *net, struct uplink *up)
{
	struct frame *f;
	gate_run(up->gate);
	while ((f = gate_again(up->gate)))
		switch_from_uplink(net, f);
	uplink_flush(net, up);
}

/* U4 */
void uplink_keep(struct net *net, struct uplink *up, struct frame *frame)
{
	struct epoch_id newest = { 0 };
	for (const struct port *p = net->networks[up->network].ports; p; p = p->next)
		newest = epoch_cmp(p->epoch, newest) > 0 ? p->epoch : newest;
	gate_keep(up->gate, frame_ref(frame), frame_cost(frame), newest);
}

/* ---- announcement ---- */

/* RARP "who am I" from the NIC itself to all, as QEMU does after a migration: bridges outside learn where the address is now. */
static void announce(struct net *net, struct uplink *up, const uint8_t mac[static 6])
{
	static const uint8_t arp[8] = { 0, 1, 8, 0, 6, 4, 0, 3 };
	uint8_t b[60] = { 0 };
	memset(b, 0xff, 6);
	memcpy(b + 6, mac, 6);
	b[12] = 0x80, b[13] = 0x35;
	memcpy(b + 14, arp, sizeof arp);
	memcpy(b + 22, mac, 6);
	memcpy(b + 32, mac, 6);
	struct frame *f = frame_new(&net->pool, b, sizeof b);
	f->coloured = true;
	uplink_send(net, up, f);
	frame_unref(&net->pool, f);
}

void uplink_announce(struct net *net, struct request *q)
{
	(void)q;
	for (uint32_t n = 0; n < VCFT_NETWORK_MAX; n++)
		for (struct port *p = net->networks[n].ports; p && net->networks[n].uplink; p = p->next)
			announce(net, net->networks[n].uplink, p->mac);
}

/* ---- in ---- */

static void tap_ready(struct net *net, struct source *source, uint32_t events)
{
	struct uplink *up = container_of(source, struct uplink, tap);
	if (events & EPOLLOUT)
		uplink_flush(net, up);
	for (int i = 0; (events & ~EPOLLOUT) && i < READ_BATCH; i++) {
		ssize_t n = read(up->tap.fd, net->scratch, VCFT_FRAME_MAX);
		if (n <= 0)
			return;
		struct frame *f = frame_new(&net->pool, net->scratch, (size_t)n);
		f->network = up->network;
		switch_from_uplink(net, f);
	}
}

/* ---- the device ---- */

static bool bring_up(const char *name, GError **error)
{
	struct ifreq r = { 0 };
	strcpy(r.ifr_name, name);
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bool ok = fd >= 0 && ioctl(fd, SIOCGIFFLAGS, &r) == 0;
	r.ifr_flags |= IFF_UP;
	ok = ok && ioctl(fd, SIOCSIFFLAGS, &r) == 0;
	if (!ok)
		loop_error(error, "uplink %s: cannot be brought up", name);
	if (fd >= 0)
		close(fd);
	return ok;
}

static int tap_open(const char *name, GError **error)
{
	struct ifreq r = { .ifr_flags = IFF_TAP | IFF_NO_PI };
	if (!*name || strlen(name) >= sizeof r.ifr_name || strchr(name, '%')) {
		g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL, "uplink %s: not a name of a device", name);
		return -1;
	}
	strcpy(r.ifr_name, name);
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &r) < 0) {
		loop_error(error, fd < 0 ? "/dev/net/tun" : "uplink %s: no TAP device", name);
		if (fd >= 0)
			close(fd);
		return -1;
	}
	if (!bring_up(name, error)) {
		close(fd);
		return -1;
	}
	return fd;
}

/* The gate is done with a frame that it held for the outside (which has a colour) or kept of it. */
static void frame_dropped(void *frame, void *uplink)
{
	struct uplink *up = uplink;
	if (((struct frame *)frame)->coloured)
		share_give(&up->share, frame);
	frame_unref(&up->net->pool, frame);
}

/* An uplink that is added later than others stands where they do. */
static void catch_up(const struct net *net, struct gate *gate)
{
	if (net->state != NET_FROZEN)
		gate_rollback(gate, epoch_of(0));
	if (net->state == NET_RUNNING)
		gate_run(gate);
}

struct uplink *uplink_new(struct net *net, uint32_t network, int fd, bool commit)
{
	struct uplink *up = g_new0(struct uplink, 1);
	struct gate_options options = { !commit, net->limits.held_bytes, KEPT_BYTES, frame_dropped, up };
	up->net = net;
	up->network = network;
	up->gate = gate_new(&options);
	catch_up(net, up->gate);
	source_open(net, &up->tap, fd, EPOLLIN, tap_ready);
	return up;
}

struct uplink *uplink_open(struct net *net, uint32_t network, const char *name, bool commit, GError **error)
{
	int fd = tap_open(name, error);
	return fd < 0 ? NULL : uplink_new(net, network, fd, commit);
}

void uplink_close(struct net *net, struct uplink *up)
{
	source_close(net, &up->tap);
	gate_free(up->gate);
	loop_bury(net, up);
}
