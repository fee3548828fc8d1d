/* tunnel.c - to the other hosts: one TCP connection for each pair, frames and markers in one order.
 *
 *   lower id:  DOWN ──timer──► CONNECTING ──connected──► SECURING ──TLS, HELLO sent──► GREETING ──HELLO──► UP ──trouble──► DOWN
 *   higher id: DOWN ──a stranger: TLS, its HELLO names the host of its certificate (N7)──────────────────► UP ──trouble──► DOWN
 *
 * Both sides say TUNNEL_HELLO first; then FRAMEs and MARKERs. Their bytes are tunnel-message.c's.
 *
 * N5 One queue, written in order: a MARKER(r) goes behind the last frame of colour <= r. A host that sends a frame of a colour for which it
 *    has sent the marker, or its markers out of order, has broken its word: the connection is dropped.
 * N2 Only frames of ports of this host go in.
 * G1 Of an older generation: dropped. Of the one that runs: delivered. Of one that is not yet running here: kept, bounded, until net_run.
 * Everything that comes in is untrusted: what tunnel_parse() does not take, or what is not its host's to say, ends the connection, with a note.
 * What is queued before a tunnel is first up waits for it. When one breaks within a generation, frames that were under way are lost: P2 no
 * longer holds for them, in the live run as in the record, so P1 does. tunnel_state(host, false) says so; whoever decides may recover.
 * N7 A stranger is told nothing before its certificate and its HELLO are those of a host that is expected; when there are too many the one
 *    that has waited longest for its certificate to come goes. Frames go into TLS records as they fit, many to one (base/tls.h).
 * Thread: switch; a handshake costs it its computation, a fraction of a millisecond, and no waiting. */
#include "net/net-private.h"

#include "base/fault.h"
#include "base/must.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define WRITE_BATCH 64u                            /* frames of one sendmsg */
#define BACKOFF_LEAST (50 * NSEC_PER_MSEC)
#define BACKOFF_MOST (1 * NSEC_PER_SEC)
#define PATIENCE (3 * NSEC_PER_SEC)                /* with a connection that is not yet up */
#define USER_TIMEOUT_MS 10000                      /* for sent bytes that are not acknowledged */
#define STRANGERS_MAX 32u
#define QUEUE_PORTS 4u                             /* a tunnel's queue may be as long as that of so many ports */
#define AHEAD_BYTES_MAX (32u << 20)

static void tunnel_ready(struct net *net, struct source *source, uint32_t events);
static void read_some(struct net *net, struct tunnel *t);
static void write_some(struct net *net, struct tunnel *t);

static void timer_at(struct net *net, nsec_t at)
{
	if (at < net->next_timer)
		net->next_timer = at;
}

static void set_timer(struct net *net, struct tunnel *t, nsec_t at)
{
	t->timer = at;
	timer_at(net, at);
}

static void mark_dirty(struct net *net, struct tunnel *t)
{
	if (t->dirty)
		return;
	t->dirty = true;
	t->next_dirty = net->dirty_tunnels;
	net->dirty_tunnels = t;
}

/* ---- connection ---- */

static void tcp_options(int fd)
{
	int one = 1, timeout = USER_TIMEOUT_MS;
	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	(void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof timeout);
}

static bool connects(const struct net *net, const struct tunnel *t) { return net->self.n < t->host.n; }

static void tunnel_break(struct net *net, struct tunnel *t, const char *why)
{
	if (t->state == TUNNEL_DOWN)
		return;
	bool was_up = t->state == TUNNEL_UP;
	if (was_up)
		loop_note(net, "tunnel to host %u: %s", t->host.n, why);
	source_close(net, &t->connection);
	g_clear_pointer(&t->tls, tls_free);
	t->state = TUNNEL_DOWN;
	t->rx_used = t->written = 0;
	if (connects(net, t)) {
		set_timer(net, t, clock_now() + t->backoff);
		t->backoff = MIN(2 * t->backoff, BACKOFF_MOST);
	}
	if (was_up && net->callbacks.tunnel_state)
		net->callbacks.tunnel_state(t->host, false, net->user);
}

/* The TLS handshake failed: worth a line, but not the same at every attempt. */
static void tunnel_insecure(struct net *net, struct tunnel *t)
{
	if (g_strcmp0(t->refusal, tls_why(t->tls)) != 0) {
		g_free(t->refusal);
		t->refusal = g_strdup(tls_why(t->tls));
		loop_note(net, "tunnel to host %u (%s): TLS: %s", t->host.n, t->name, t->refusal);
	}
	tunnel_break(net, t, "no TLS");
}

void tunnel_refuse(struct net *net, struct host_id host, const char *why)
{
	if (net->tunnels[host.n])
		tunnel_break(net, net->tunnels[host.n], why);
}

static void tunnel_up(struct net *net, struct tunnel *t)
{
	MUST("N7", tls_names(t->tls, t->name));
	t->state = TUNNEL_UP;
	t->timer = INT64_MAX;
	t->backoff = BACKOFF_LEAST;
	g_clear_pointer(&t->refusal, g_free);
	if (net->callbacks.tunnel_state)
		net->callbacks.tunnel_state(t->host, true, net->user);
	mark_dirty(net, t);
}

static bool send_hello(struct net *net, struct tls *tls)
{
	uint8_t b[TUNNEL_HELLO_BYTES];
	tunnel_put_hello(b, net->self, net->generation);
	return tls_write(tls, &(struct iovec){ b, sizeof b }, 1) == (ssize_t)sizeof b; /* the first bytes always fit */
}

static void connect_now(struct net *net, struct tunnel *t)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	t->state = TUNNEL_CONNECTING;
	if (fd < 0) {
		tunnel_break(net, t, "no socket");
		return;
	}
	tcp_options(fd);
	source_open(net, &t->connection, fd, EPOLLOUT, tunnel_ready);
	set_timer(net, t, clock_now() + PATIENCE);
	if (connect(fd, (struct sockaddr *)&t->address, sizeof t->address) < 0 && errno != EINPROGRESS)
		tunnel_break(net, t, "no connection");
}

static uint32_t wanted_events(const struct tls *tls) { return EPOLLIN | (tls_unsent(tls) ? EPOLLOUT : 0); }

/* N7, the side that connects: HELLO follows the handshake. */
static void secure(struct net *net, struct tunnel *t)
{
	enum tls_progress progress = tls_handshake(t->tls);
	if (progress == TLS_FAILED) {
		tunnel_insecure(net, t);
		return;
	}
	if (progress == TLS_OPEN) {
		t->state = TUNNEL_GREETING;
		if (!send_hello(net, t->tls)) {
			tunnel_break(net, t, "no connection");
			return;
		}
	}
	source_arm(net, &t->connection, wanted_events(t->tls));
}

static void connected(struct net *net, struct tunnel *t)
{
	int e = 0;
	socklen_t n = sizeof e;
	if (getsockopt(t->connection.fd, SOL_SOCKET, SO_ERROR, &e, &n) < 0 || e) {
		tunnel_break(net, t, "no connection");
		return;
	}
	t->state = TUNNEL_SECURING;
	t->tls = tls_new(net->credentials, TLS_CONNECTS, t->connection.fd, t->name);
	secure(net, t);
}

/* ---- strangers ---- */

static void stranger_free(struct net *net, struct stranger *s)
{
	source_close(net, &s->connection);
	tls_free(s->tls);
	struct stranger **at = &net->strangers;
	while (*at != s)
		at = &(*at)->next;
	*at = s->next;
	net->stranger_count--;
	loop_bury(net, s);
}

/* The stranger is that host: its connection is the tunnel from now on. */
static void adopt(struct net *net, struct tunnel *t, struct stranger *s)
{
	if (!tls_names(s->tls, t->name)) {
		loop_note(net, "tunnel: somebody with another host's certificate says to be host %u (%s)", t->host.n, t->name);
		stranger_free(net, s);
		return;
	}
	tunnel_break(net, t, "the host has connected again");
	t->tls = g_steal_pointer(&s->tls);
	source_open(net, &t->connection, source_take(net, &s->connection), EPOLLIN, tunnel_ready);
	stranger_free(net, s);
	t->state = TUNNEL_GREETING;
	if (!send_hello(net, t->tls)) {
		tunnel_break(net, t, "no connection");
		return;
	}
	tunnel_up(net, t);
	if (tls_pending(t->tls))
		read_some(net, t);
}

/* Its TLS, then its HELLO; false: it is none of ours, *ret_why. */
static bool stranger_read(struct net *net, struct stranger *s, const char **ret_why)
{
	*ret_why = "it says no HELLO of a host that connects to this one";
	if (!s->secured) {
		enum tls_progress progress = tls_handshake(s->tls);
		*ret_why = progress == TLS_FAILED ? tls_why(s->tls) : *ret_why;
		s->secured = progress == TLS_OPEN;
		source_arm(net, &s->connection, wanted_events(s->tls));
		if (!s->secured)
			return progress == TLS_MORE;
	}
	ssize_t n = tls_read(s->tls, s->hello + s->used, sizeof s->hello - s->used);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return true;
	if (n <= 0)
		return false;
	s->used += (size_t)n;
	struct tunnel_message m;
	size_t bytes;
	enum tunnel_parsed parsed = tunnel_parse(s->hello, s->used, &m, &bytes);
	if (parsed == TUNNEL_PART)
		return s->used < sizeof s->hello;
	if (parsed == TUNNEL_BAD || m.type != MESSAGE_TUNNEL_HELLO || m.host.n >= net->self.n)
		return false;
	s->host = m.host;
	return true;
}

static void stranger_ready(struct net *net, struct source *source, uint32_t events)
{
	struct stranger *s = container_of(source, struct stranger, connection);
	if (s->host.n) { /* waits to be known */
		if (events & (EPOLLHUP | EPOLLERR))
			stranger_free(net, s);
		return;
	}
	const char *why;
	if (!stranger_read(net, s, &why)) {
		loop_note(net, "tunnel: somebody connected who is none of the hosts: %s", why);
		stranger_free(net, s);
		return;
	}
	if (!s->host.n)
		return;
	if (net->tunnels[s->host.n])
		adopt(net, net->tunnels[s->host.n], s);
	else
		source_arm(net, &s->connection, 0);
}

/* The one goes that has been here longest and has shown no certificate yet: a handshake takes less time than it takes to fill this up. */
static bool make_room(struct net *net)
{
	struct stranger *oldest = NULL;
	for (struct stranger *s = net->strangers; s; s = s->next)
		if (!s->secured)
			oldest = s;    /* new ones are put in front */
	if (oldest)
		stranger_free(net, oldest);
	return oldest != NULL;
}

static void tunnel_listener_ready(struct net *net, struct source *source, uint32_t events)
{
	(void)events;
	int fd = accept4(source->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd < 0) {
		source_rest(net, source);
		return;
	}
	if (net->stranger_count >= STRANGERS_MAX && !make_room(net)) {
		close(fd);
		return;
	}
	tcp_options(fd);
	struct stranger *s = g_new0(struct stranger, 1);
	s->tls = tls_new(net->credentials, TLS_ACCEPTS, fd, NULL);
	source_open(net, &s->connection, fd, EPOLLIN, stranger_ready);
	s->deadline = clock_now() + PATIENCE;
	timer_at(net, s->deadline);
	s->next = net->strangers;
	net->strangers = s;
	net->stranger_count++;
}

gboolean tunnel_listen(struct net *net, const char *address, uint16_t *inout_port, GError **error)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(*inout_port) };
	if (inet_pton(AF_INET, address, &a.sin_addr) != 1) {
		g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL, "%s: not a numeric IPv4 address", address);
		return FALSE;
	}
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
	socklen_t n = sizeof a;
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) < 0 ||
	    listen(fd, 64) < 0 || getsockname(fd, (struct sockaddr *)&a, &n) < 0) {
		loop_error(error, "tunnels on %s, port %u", address, *inout_port);
		if (fd >= 0)
			close(fd);
		return FALSE;
	}
	*inout_port = ntohs(a.sin_port);
	source_open(net, &net->tunnel_listener, fd, EPOLLIN, tunnel_listener_ready);
	return TRUE;
}

/* ---- in ---- */

/* Keep for a generation that does not run here yet; false: there is no room. */
static bool keep_ahead(struct net *net, struct frame *frame)
{
	if (net->ahead_bytes + frame_cost(frame) > AHEAD_BYTES_MAX)
		return false;
	net->ahead_bytes += frame_cost(frame);
	ring_push(&net->ahead, frame_ref(frame));
	return true;
}

/* G1: NULL, or why the connection must go. */
static const char *take(struct net *net, struct frame *f)
{
	int order = generation_cmp(f->generation, net->generation);
	if (order < 0 || (order == 0 && net->state == NET_FROZEN)) {
		net->stats.dropped++;
		return NULL;
	}
	if (order > 0 || net->state == NET_PLACING)
		return keep_ahead(net, f) ? NULL : "too much for a generation to come";
	if (f->kind == FRAME_MARKER)
		return record_marker_in(net, f->from, f->colour) ? NULL : "markers out of order";
	if (epoch_cmp(f->colour, net->marker_seen[f->from.n]) <= 0)
		return "a frame behind its marker";
	switch_from_tunnel(net, frame_ref(f));
	return NULL;
}

static const char *take_frame(struct net *net, struct tunnel *t, const struct tunnel_message *m)
{
	if (!net->networks[m->network].known)
		return "a frame of an unknown network";
	struct frame *f = frame_new(&net->pool, m->data, m->size);
	f->coloured = true;
	f->generation = m->generation;
	f->colour = m->colour;
	f->network = m->network;
	f->from = t->host;
	const char *why = take(net, f);
	frame_unref(&net->pool, f);
	return why;
}

static const char *take_marker(struct net *net, struct tunnel *t, const struct tunnel_message *m)
{
	struct frame *f = frame_new(&net->pool, NULL, 0);
	f->kind = FRAME_MARKER;
	f->generation = m->generation;
	f->colour = m->colour;
	f->from = t->host;
	const char *why = take(net, f);
	frame_unref(&net->pool, f);
	return why;
}

static const char *take_message(struct net *net, struct tunnel *t, const struct tunnel_message *m)
{
	if (t->state == TUNNEL_GREETING) {
		if (m->type != MESSAGE_TUNNEL_HELLO || m->host.n != t->host.n)
			return "not the host that was expected";
		tunnel_up(net, t);
		return NULL;
	}
	return m->type == MESSAGE_FRAME ? take_frame(net, t, m) : m->type == MESSAGE_MARKER ? take_marker(net, t, m) : "a second hello";
}

const char *tunnel_take(struct net *net, struct tunnel *t)
{
	enum tunnel_parsed parsed;
	struct tunnel_message m;
	size_t at = 0, bytes;
	while ((parsed = tunnel_parse(t->rx + at, t->rx_used - at, &m, &bytes)) == TUNNEL_WHOLE) {
		const char *why = take_message(net, t, &m);
		if (why)
			return why;
		at += bytes;
	}
	if (parsed == TUNNEL_BAD)
		return "not a message";
	t->rx_used -= at;
	if (at && t->rx_used)
		memmove(t->rx, t->rx + at, t->rx_used);
	return NULL;
}

static void read_some(struct net *net, struct tunnel *t)
{
	do {
		ssize_t n = tls_read(t->tls, t->rx + t->rx_used, TUNNEL_RX_BYTES - t->rx_used);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n <= 0) {
			tunnel_break(net, t, !n ? "closed by the other side" : errno == EPROTO ? "a record that TLS refuses" : g_strerror(errno));
			return;
		}
		t->rx_used += (size_t)n;
		const char *why = tunnel_take(net, t);
		if (why)
			tunnel_break(net, t, why);
	} while (t->tls && tls_pending(t->tls));
}

static void tunnel_ready(struct net *net, struct source *source, uint32_t events)
{
	struct tunnel *t = container_of(source, struct tunnel, connection);
	if (t->state == TUNNEL_CONNECTING) {
		connected(net, t);
		return;
	}
	if (t->state == TUNNEL_SECURING) {
		secure(net, t);
		return;
	}
	if (events & EPOLLOUT)
		write_some(net, t);
	if (t->connection.fd >= 0 && events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		read_some(net, t);
}

void tunnel_run_ahead(struct net *net)
{
	for (size_t left = net->ahead.count; left; left--) {
		struct frame *f = ring_pop(&net->ahead);
		net->ahead_bytes -= frame_cost(f);
		const char *why = take(net, f); /* one for a still newer generation goes behind the others again */
		if (why)
			tunnel_refuse(net, f->from, why);
		frame_unref(&net->pool, f);
	}
}

/* ---- out ---- */

void tunnel_queue(struct net *net, struct host_id host, struct frame *frame)
{
	MUST("N2", frame->coloured && frame->from.n == 0);
	struct tunnel *t = net->tunnels[host.n];
	if (!t || t->queue_bytes + frame_cost(frame) > QUEUE_PORTS * net->limits.port_bytes) {
		drop_full(net);
		return;
	}
	MUST("N5", epoch_cmp(frame->colour, t->marker_sent) > 0);
	if (!frame->head_bytes) {
		tunnel_put_frame_head(frame->head, frame);
		frame->head_bytes = TUNNEL_HEAD_BYTES;
	}
	ring_push(&t->queue, frame_ref(frame));
	t->queue_bytes += frame_cost(frame);
	mark_dirty(net, t);
}

void tunnel_queue_marker(struct net *net, struct host_id host, struct epoch_id r)
{
	struct tunnel *t = net->tunnels[host.n];
	if (!t)
		return;
	struct frame *f = frame_new(&net->pool, NULL, TUNNEL_MARKER_BYTES);
	f->kind = FRAME_MARKER;
	tunnel_put_marker(f->data, net->generation, r);
	t->marker_sent = r;
	ring_push(&t->queue, f);
	t->queue_bytes += frame_cost(f);
	mark_dirty(net, t);
}

static size_t wire_size(const struct frame *f) { return f->head_bytes + f->size; }

/* The pieces of the first frames of the queue, without what is written already. */
static int gather(const struct tunnel *t, struct iovec iov[static 2 * WRITE_BATCH])
{
	int n = 0;
	size_t skip = t->written;
	for (size_t i = 0; i < t->queue.count && i < WRITE_BATCH; i++) {
		struct frame *f = ring_at(&t->queue, i)->frame;
		if (skip < f->head_bytes)
			iov[n++] = (struct iovec){ f->head + skip, f->head_bytes - skip };
		skip -= MIN(skip, f->head_bytes);
		iov[n++] = (struct iovec){ f->data + skip, f->size - skip };
		skip = 0;
	}
	return n;
}

/* The fault: half of the first frame goes out, or of the marker; then the connection ends. */
static void tear(struct net *net, struct tunnel *t)
{
	struct iovec iov[2 * WRITE_BATCH];
	int pieces = gather(t, iov), torn = t->written < ring_at(&t->queue, 0)->frame->head_bytes && pieces > 1;
	iov[torn].iov_len /= 2;
	(void)tls_write(t->tls, iov, torn + 1);
	tunnel_break(net, t, "fault: tunnel-torn");
}

static void written(struct net *net, struct tunnel *t, size_t n)
{
	t->written += n;
	while (t->queue.count && t->written >= wire_size(ring_at(&t->queue, 0)->frame)) {
		struct frame *f = ring_pop(&t->queue);
		t->written -= wire_size(f);
		t->queue_bytes -= frame_cost(f);
		frame_unref(&net->pool, f);
	}
}

void tunnel_flush(struct net *net, struct tunnel *t)
{
	if (t->state != TUNNEL_UP)
		return;
	if (t->queue.count && fault(FAULT_TUNNEL_TORN)) {
		tear(net, t);
		return;
	}
	while (t->queue.count) {
		struct iovec iov[2 * WRITE_BATCH];
		ssize_t n = tls_write(t->tls, iov, gather(t, iov));
		if (n < 0 && errno != EAGAIN && errno != EINTR && errno != ENOBUFS) {
			tunnel_break(net, t, g_strerror(errno));
			return;
		}
		if (n < 0)
			break;
		written(net, t, (size_t)n);
	}
	source_arm(net, &t->connection, wanted_events(t->tls) | (t->queue.count ? EPOLLOUT : 0));
}

/* The socket takes more: what TLS holds, then the queue. */
static void write_some(struct net *net, struct tunnel *t)
{
	if (tls_flush(t->tls) < 0 && errno != EAGAIN && errno != ENOBUFS)
		tunnel_break(net, t, g_strerror(errno));
	else if (t->state == TUNNEL_UP)
		tunnel_flush(net, t);
	else
		source_arm(net, &t->connection, wanted_events(t->tls));
}

void tunnel_rollback(struct net *net, struct tunnel *t)
{
	t->marker_sent = epoch_of(0);
	size_t begun = t->written ? 1 : 0; /* the other side needs the rest of it to find the next message */
	ring_cut(&net->pool, &t->queue, begun);
	t->queue_bytes = begun ? frame_cost(ring_at(&t->queue, 0)->frame) : 0;
}

/* ---- which hosts ---- */

void tunnel_add_host(struct net *net, struct request *q)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(q->port) };
	if (q->host.n == net->self.n || inet_pton(AF_INET, q->text, &a.sin_addr) != 1) {
		q->ok = q->host.n == net->self.n;
		return;
	}
	struct tunnel *t = net->tunnels[q->host.n];
	if (t && memcmp(&t->address, &a, sizeof a) == 0 && !strcmp(t->name, q->name))
		return;
	tunnel_forget(net, q->host);
	t = net->tunnels[q->host.n] = g_new0(struct tunnel, 1);
	t->host = q->host;
	g_strlcpy(t->name, q->name, sizeof t->name);
	t->address = a;
	t->connection.fd = -1;
	t->timer = INT64_MAX;
	t->backoff = BACKOFF_LEAST;
	t->rx = g_malloc(TUNNEL_RX_BYTES);
	if (connects(net, t)) {
		connect_now(net, t);
		return;
	}
	for (struct stranger *s = net->strangers; s; s = s->next)
		if (s->host.n == q->host.n) {
			adopt(net, t, s);
			return;
		}
}

void tunnel_forget(struct net *net, struct host_id host)
{
	struct tunnel *t = net->tunnels[host.n];
	if (!t)
		return;
	switch_flush(net);
	net->tunnels[host.n] = NULL;
	source_close(net, &t->connection);
	tls_free(t->tls);
	g_free(t->refusal);
	ring_free(&net->pool, &t->queue);
	g_free(t->rx);
	loop_bury(net, t);
}

void tunnel_forget_host(struct net *net, struct request *q) { tunnel_forget(net, q->host); }

void tunnel_close_all(struct net *net)
{
	for (uint32_t h = 1; h <= VCFT_HOST_MAX; h++)
		tunnel_forget(net, (struct host_id){ h });
	while (net->strangers)
		stranger_free(net, net->strangers);
}

/* ---- time ---- */

static void tunnel_timer(struct net *net, struct tunnel *t, nsec_t now)
{
	if (t->timer > now) {
		timer_at(net, t->timer);
		return;
	}
	t->timer = INT64_MAX;
	if (t->state == TUNNEL_DOWN)
		connect_now(net, t);
	else if (t->state != TUNNEL_UP)
		tunnel_break(net, t, "no answer");
}

void tunnel_timers(struct net *net, nsec_t now)
{
	net->next_timer = INT64_MAX;
	for (uint32_t h = 1; h <= VCFT_HOST_MAX; h++)
		if (net->tunnels[h])
			tunnel_timer(net, net->tunnels[h], now);
	for (struct stranger *s = net->strangers, *next; s; s = next) {
		next = s->next;
		if (s->deadline <= now)
			stranger_free(net, s);
		else
			timer_at(net, s->deadline);
	}
}
