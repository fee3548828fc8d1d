/* peer.c - a source's connection to one backup: a queue of messages out, acknowledgements in, and its place in the filling.
 *
 *   NEW ──connect──► CONNECTING ──► SECURING ──TLS──► OPEN ──► FAILED (why says why; a new one takes its place at the next source_set_backups)
 *
 * Never blocks: the source's thread polls. Messages are shared among peers (GBytes); a message that is half sent is always finished, for the
 * next one must start where the backup expects it. Thread: the source's. */
#include "store/store-private.h"

#include "base/fault.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define IOV_MAX_HERE 16

struct peer *peer_new(const struct source_backup *to, const struct tls_credentials *credentials)
{
	struct peer *p = g_new0(struct peer, 1);
	p->to = *to;
	p->credentials = credentials;
	p->fd = -1;
	p->sum = XXH3_createState();
	g_queue_init(&p->out);
	return p;
}

static void disconnect(struct peer *p)
{
	g_clear_pointer(&p->tls, tls_free);
	if (p->fd >= 0)
		close(p->fd);
	p->fd = -1;
	g_queue_clear_full(&p->out, (GDestroyNotify)g_bytes_unref);
	p->out_offset = p->out_bytes = p->in_used = 0;
	p->open_waits = false;
	p->waits = false;
}

void peer_free(struct peer *p)
{
	disconnect(p);
	XXH3_freeState(p->sum);
	g_free(p);
}

void peer_fail(struct peer *p, const char *why)
{
	if (p->state == PEER_FAILED)
		return;
	disconnect(p);
	p->state = PEER_FAILED;
	g_snprintf(p->why, sizeof p->why, "host %" PRIu32 " (%s:%u): %s", p->to.host.n, p->to.address, p->to.port, why);
}

static void fail_errno(struct peer *p) { peer_fail(p, g_strerror(errno)); }

void peer_connect(struct peer *p)
{
	disconnect(p);
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(p->to.port) };
	int one = 1;
	if (inet_pton(AF_INET, p->to.address, &to.sin_addr) != 1) {
		peer_fail(p, "not a numeric IPv4 address");
		return;
	}
	p->state = PEER_CONNECTING;
	p->progress = clock_now();
	p->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (p->fd < 0) {
		fail_errno(p);
		return;
	}
	setsockopt(p->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	p->tls = tls_new(p->credentials, TLS_CONNECTS, p->fd, p->to.name);
	if (connect(p->fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS)
		fail_errno(p);    /* else: connected, and poll() says so */
}

/* S8: the time for it is that of the connection. */
static void secure(struct peer *p)
{
	enum tls_progress progress = tls_handshake(p->tls);
	if (progress == TLS_OPEN) {
		p->state = PEER_OPEN;
		p->progress = clock_now();
	} else if (progress == TLS_FAILED) {
		g_autofree char *why = g_strdup_printf("TLS: %s", tls_why(p->tls));
		peer_fail(p, why);
	}
}

/* ---- out ---- */
static GBytes *flipped(GBytes *message)
{
	gsize n;
	const uint8_t *data = g_bytes_get_data(message, &n);
	uint8_t *copy = g_memdup2(data, n);
	copy[n - 1] ^= 1;
	return g_bytes_new_take(copy, n);
}

void peer_put(struct peer *p, GBytes *message, bool summed)
{
	gsize n;
	const void *data = g_bytes_get_data(message, &n);
	if (p->state == PEER_FAILED)
		return;
	if (summed)
		XXH3_128bits_update(p->sum, data, n);
	if (!p->out.head)
		p->progress = clock_now();
	g_queue_push_tail(&p->out, n && fault(FAULT_SEND_CHECKSUM) ? flipped(message) : g_bytes_ref(message));
	p->out_bytes += n;
}

void peer_put_bytes(struct peer *p, const void *message, size_t n, bool summed)
{
	g_autoptr(GBytes) bytes = g_bytes_new(message, n);
	peer_put(p, bytes, summed);
}

void peer_put_open(struct peer *p, const void *message, size_t n)
{
	peer_put_bytes(p, message, n, false);
	p->open_waits = p->out.head != NULL;
}

void peer_forget(struct peer *p)
{
	GBytes *head = p->out_offset || p->open_waits ? g_queue_pop_head(&p->out) : NULL;
	g_queue_clear_full(&p->out, (GDestroyNotify)g_bytes_unref);
	p->out_bytes = 0;
	if (head) {
		g_queue_push_head(&p->out, head);
		p->out_bytes = g_bytes_get_size(head) - p->out_offset;
	}
}

static size_t gather(struct peer *p, struct iovec iov[static IOV_MAX_HERE])
{
	size_t n = 0;
	for (GList *l = p->out.head; l && n < IOV_MAX_HERE; l = l->next, n++) {
		gsize size;
		uint8_t *data = (uint8_t *)g_bytes_get_data(l->data, &size);
		size_t skip = n ? 0 : p->out_offset;
		iov[n] = (struct iovec){ data + skip, size - skip };
	}
	return n;
}

static void was_sent(struct peer *p, size_t n)
{
	p->sent += n;
	p->open_waits = p->open_waits && !n;
	p->out_bytes -= n;
	p->out_offset += n;
	p->progress = clock_now();
	for (GBytes *head; (head = g_queue_peek_head(&p->out)) && p->out_offset >= g_bytes_get_size(head);) {
		p->out_offset -= g_bytes_get_size(head);
		g_bytes_unref(g_queue_pop_head(&p->out));
	}
}

static void flush_out(struct peer *p)
{
	if (tls_flush(p->tls) < 0) {
		if (errno != EAGAIN)
			fail_errno(p);
		return;
	}
	while (p->state == PEER_OPEN && p->out.head) {
		struct iovec iov[IOV_MAX_HERE];
		size_t count = gather(p, iov);
		bool torn = fault(FAULT_SEND_TORN);
		if (torn) {
			count = 1;
			iov[0].iov_len /= 2;
		}
		ssize_t n = tls_write(p->tls, iov, (int)count);
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0 && errno != EINTR)
			fail_errno(p);
		else if (torn)
			peer_fail(p, "torn by a fault point");
		else if (n >= 0)
			was_sent(p, (size_t)n);
	}
}

/* ---- in ---- */
static void on_ack(struct peer *p)
{
	struct message_header header;
	struct stream_ack ack;
	p->in_used = 0;
	if (!message_header_decode(p->in, CHANNEL_REPLICATION, &header) || header.type != MESSAGE_EPOCH_ACK ||
	    !stream_get_ack(p->in, p->in + MESSAGE_HEADER_BYTES, header.length, &ack))
		peer_fail(p, "malformed answer");
	else if (ack.status != STORE_OK)
		peer_fail(p, store_status_text(ack.status));
	else if (generation_cmp(ack.generation, p->generation) || epoch_cmp(ack.epoch, p->epoch) > 0)
		peer_fail(p, "answer for another epoch");
	else if (epoch_cmp(ack.epoch, p->epoch) == 0 && !p->ended)
		peer_fail(p, "answer before the end");
	else if (epoch_cmp(ack.epoch, p->epoch) == 0)
		p->acked = true;    /* if it was given up meanwhile, nobody looks; else: of an earlier one, given up too */
}

static void read_in(struct peer *p)
{
	while (p->state == PEER_OPEN) {
		ssize_t n = tls_read(p->tls, p->in + p->in_used, sizeof p->in - p->in_used);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n <= 0) {
			peer_fail(p, !n ? "connection closed" : errno == EPROTO ? "a record that TLS refuses" : g_strerror(errno));
			return;
		}
		p->in_used += (size_t)n;
		p->progress = clock_now();
		if (p->in_used == sizeof p->in)
			on_ack(p);
	}
}

/* ---- how fast it is ---- */
bool peer_measure(struct peer *p, size_t much)
{
	int unread = 0;
	nsec_t now = clock_now(), before = p->measured;
	if (ioctl(p->fd, SIOCOUTQ, &unread) < 0)
		return false;
	uint64_t arrived = p->sent - MIN(p->sent, (uint64_t)MAX(unread, 0)), last = p->arrived;
	bool waited = p->waits;
	p->measured = now;
	p->arrived = arrived;
	p->waits = p->out_bytes + (uint64_t)unread > much;
	if (!waited)
		return false;
	p->waited += now - before;
	p->taken += arrived - MIN(arrived, last);
	return true;
}

/* ---- poll ---- */
bool peer_busy(const struct peer *p)
{
	return p->state == PEER_CONNECTING || p->state == PEER_SECURING ||
	       (p->state == PEER_OPEN && (p->out.head || tls_unsent(p->tls) || (p->active && p->ended && !p->acked)));
}

short peer_events(const struct peer *p)
{
	bool writes = p->state == PEER_CONNECTING || (p->tls && tls_unsent(p->tls)) || (p->state == PEER_OPEN && p->out.head);
	return (short)(POLLIN | (writes ? POLLOUT : 0));
}

void peer_event(struct peer *p, short revents)
{
	if (p->state == PEER_CONNECTING && revents) {
		int e = 0;
		socklen_t n = sizeof e;
		getsockopt(p->fd, SOL_SOCKET, SO_ERROR, &e, &n);
		if (e) {
			peer_fail(p, g_strerror(e));
			return;
		}
		p->state = PEER_SECURING;
	}
	if (p->state == PEER_SECURING)
		secure(p);
	/* In first: a refusal says more than the broken pipe that follows it. */
	if (p->state == PEER_OPEN && revents & ~POLLOUT)
		read_in(p);
	if (p->state == PEER_OPEN)
		flush_out(p);
}
