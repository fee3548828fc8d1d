/* uplink.c - hold frames that leave the cluster until the checkpoint that made them is known everywhere.
 *
 *   port ──► [epoch e] ──► [epoch e+1] ──released──► wire ──► TAP            (rollback to c: epochs > c dropped)
 *   TAP ──► switch ──► ports of this host
 *
 * U1 A frame is written to the TAP only if its epoch <= released, or its network's output is immediate: checked at the one call of write().
 * U2 Frames of one port leave in the order they came: within an epoch that is the order of arrival, and a port's epochs only grow. A frame
 *    does not wait for a newer one of another VM that came before it.
 * U3 A rollback to c drops the held frames of epochs > c and no others; what was released is never rolled back.
 * U4 What came in since the last release, or while the switch stands, is delivered again after a rollback to c, unless it came in an epoch
 *    <= c: the VM that was rolled back has not seen it. So the outside need not wait until its own time-out sends it once more. At most
 *    KEPT_BYTES; the oldest are forgotten first, as any network may lose a frame.
 * At most limits.held_bytes are kept, shared by the senders (N7), then new frames are dropped as by any full queue. Nothing is written unless the switch runs. An
 * announcement is not the word of any VM: it has epoch 0. Thread: switch. No fragment reassembly. */
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
#define KEPT_BYTES (8u << 20)   /* of memory for frames that came in, for U4 */

/* ---- out ---- */

/* False: the TAP takes no more now. */
static bool tap_write(struct net *net, struct uplink *up, const struct frame *f)
{
	MUST("U1", net->state == NET_RUNNING && (!up->commit || epoch_cmp(f->colour, net->released) <= 0));
	ssize_t n = write(up->tap.fd, f->data, f->size);
	if (n < 0 && (errno == EAGAIN || errno == ENOBUFS))
		return false;
	if (n < 0)
		net->stats.dropped++; /* the link is down: as a cable that is out */
	else
		net->stats.released++;
	return true;
}

void uplink_flush(struct net *net, struct uplink *up)
{
	if (net->state != NET_RUNNING)
		return;
	while (up->held && epoch_cmp(up->held->epoch, net->released) <= 0) {
		struct held_epoch *h = up->held;
		while (h->frames.count)
			ring_push(&up->wire, ring_pop(&h->frames));
		ring_free(&net->pool, &h->frames);
		up->held = h->next;
		g_free(h);
	}
	while (up->wire.count && tap_write(net, up, ring_at(&up->wire, 0)->frame)) {
		struct frame *f = ring_pop(&up->wire);
		share_give(&up->share, f);
		frame_unref(&net->pool, f);
	}
	source_arm(net, &up->tap, EPOLLIN | (up->wire.count ? EPOLLOUT : 0));
}

/* The ring of frames of an epoch, made if it is the first. */
static struct ring *held_ring(struct uplink *up, struct epoch_id epoch)
{
	struct held_epoch **at = &up->held;
	while (*at && epoch_cmp((*at)->epoch, epoch) < 0)
		at = &(*at)->next;
	if (!*at || (*at)->epoch.n != epoch.n) {
		struct held_epoch *h = g_new0(struct held_epoch, 1);
		h->epoch = epoch;
		h->next = *at;
		*at = h;
	}
	return &(*at)->frames;
}

void uplink_send(struct net *net, struct uplink *up, struct frame *frame)
{
	MUST("N2", frame->from.n == 0);
	if (!share_fits(&up->share, net->limits.held_bytes, frame)) {
		net->stats.dropped++;
		return;
	}
	share_take(&up->share, frame);
	bool held = up->commit && epoch_cmp(frame->colour, net->released) > 0;
	ring_push(held ? held_ring(up, frame->colour) : &up->wire, frame_ref(frame));
	if (!held)
		uplink_flush(net, up);
}

static void kept_forget(struct net *net, struct uplink *up)
{
	struct frame *f = ring_pop(&up->kept);
	up->kept_bytes -= frame_cost(f);
	frame_unref(&net->pool, f);
}

static void kept_trim(struct net *net, struct uplink *up)
{
	while (up->kept.count && epoch_cmp(ring_at(&up->kept, 0)->frame->colour, net->released) <= 0)
		kept_forget(net, up);
}

void uplink_keep(struct net *net, struct uplink *up, struct frame *frame)
{
	const struct port *p = net->networks[up->network].ports;
	frame->colour = net->state != NET_RUNNING ? epoch_of(UINT64_MAX) : p ? p->epoch : epoch_next(net->released);
	up->kept_bytes += frame_cost(frame);
	ring_push(&up->kept, frame_ref(frame));
	while (up->kept_bytes > KEPT_BYTES)
		kept_forget(net, up);
}

void uplink_redeliver(struct net *net, struct uplink *up)
{
	for (size_t left = up->kept.count; left; left--) {
		struct frame *f = ring_pop(&up->kept);
		up->kept_bytes -= frame_cost(f);
		switch_from_uplink(net, f); /* keeps it again, in the epoch that is now */
	}
}

static void kept_rollback(struct net *net, struct uplink *up, struct epoch_id c)
{
	for (size_t left = up->kept.count; left; left--) {
		struct frame *f = ring_pop(&up->kept);
		if (epoch_cmp(f->colour, c) > 0) {
			ring_push(&up->kept, f);
			continue;
		}
		up->kept_bytes -= frame_cost(f);
		frame_unref(&net->pool, f);
	}
}

void uplink_release_request(struct net *net, struct request *q)
{
	if (net->state == NET_FROZEN || epoch_cmp(q->epoch, net->released) <= 0)
		return;
	net->released = q->epoch;
	for (uint32_t n = 0; n < VCFT_NETWORK_MAX; n++)
		if (net->networks[n].uplink) {
			uplink_flush(net, net->networks[n].uplink);
			kept_trim(net, net->networks[n].uplink);
		}
}

static void held_free(struct net *net, struct uplink *up, struct held_epoch *h)
{
	for (size_t i = 0; i < h->frames.count; i++)
		share_give(&up->share, ring_at(&h->frames, i)->frame);
	ring_free(&net->pool, &h->frames);
	g_free(h);
}

void uplink_rollback(struct net *net, struct uplink *up, struct epoch_id c)
{
	MUST("U3", epoch_cmp(net->released, c) <= 0);
	kept_rollback(net, up, c);
	struct held_epoch **at = &up->held;
	while (*at && epoch_cmp((*at)->epoch, c) <= 0)
		at = &(*at)->next;
	while (*at) {
		struct held_epoch *h = *at;
		*at = h->next;
		MUST("U3", epoch_cmp(h->epoch, c) > 0);
		held_free(net, up, h);
	}
	for (size_t left = up->wire.count; left; left--) { /* only an immediate network has any that are newer */
		struct frame *f = ring_pop(&up->wire);
		if (epoch_cmp(f->colour, c) <= 0) {
			ring_push(&up->wire, f);
			continue;
		}
		share_give(&up->share, f);
		frame_unref(&net->pool, f);
	}
}

void uplink_count(const struct uplink *up, struct net_stats *stats)
{
	stats->held_bytes += up->share.bytes;
	stats->held_frames += up->wire.count;
	for (const struct held_epoch *h = up->held; h; h = h->next)
		stats->held_frames += h->frames.count;
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

struct uplink *uplink_open(struct net *net, uint32_t network, const char *name, bool commit, GError **error)
{
	int fd = tap_open(name, error);
	if (fd < 0)
		return NULL;
	struct uplink *up = g_new0(struct uplink, 1);
	up->network = network;
	up->commit = commit;
	source_open(net, &up->tap, fd, EPOLLIN, tap_ready);
	return up;
}

void uplink_close(struct net *net, struct uplink *up)
{
	source_close(net, &up->tap);
	while (up->held) {
		struct held_epoch *h = up->held;
		up->held = h->next;
		held_free(net, up, h);
	}
	ring_free(&net->pool, &up->wire);
	ring_free(&net->pool, &up->kept);
	loop_bury(net, up);
}
