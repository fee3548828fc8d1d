/* connection.c - one stream that comes in from a VM's host: OPEN, then epoch by epoch, each an answer.
 *
 *   TLS ──► OPEN, of the host that the certificate names (S8)
 *     └──► EPOCH ─(wait for the base: K2)─► stage, chunk by chunk, space reserved ──► complete: the VM's stage ──► ACK
 *                                                  └─ anything wrong: status, end (S3)
 *
 * Who may touch image and stage, and when, is decided in core/copy.c (K2-K5, S2); here the bytes are moved.
 *
 * Thread: one for each connection; it ends by itself, and is joined later. */
#include "store/sink-private.h"

#include "base/fault.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define CONNECTIONS_MAX (2u * VCFT_VM_MAX)
#define OPEN_SECONDS 10         /* from the first byte of TLS to the last of OPEN */
#define STRANGERS_MAX 32u       /* that have not shown a certificate */
#define DRAIN_SECONDS 2         /* a refused sender has this long to read why */

/* ---- bytes ---- */
static bool receive(struct connection *c, void *out, size_t n)
{
	for (uint8_t *at = out; n;) {
		ssize_t got = tls_read(c->tls, at, n);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0 || g_atomic_int_get(&c->closing))
			return false;
		at += got;
		n -= (size_t)got;
	}
	return true;
}

static bool make_room(struct connection *c, size_t n)
{
	if (n <= c->room)
		return true;
	uint8_t *p = realloc(c->payload, n);
	if (!p)
		return false;
	c->payload = p;
	c->room = n;
	return true;
}

static void answer(struct connection *c, struct epoch_id epoch, enum store_status status)
{
	struct stream_ack ack = { c->generation, epoch, status };
	uint8_t out[STREAM_MESSAGE_MAX];
	size_t n = stream_put_ack(out, &ack);
	if (tls_write(c->tls, &(struct iovec){ out, n }, 1) != (ssize_t)n || tls_unsent(c->tls))    /* it blocks: not in time */
		g_atomic_int_set(&c->closing, 1);
}

/* S3: say why, and let the sender read it: closing with unread bytes would take the answer away from it. */
static void refuse(struct connection *c, struct epoch_id epoch, enum store_status status)
{
	uint8_t waste[16384];
	if (status == STORE_NO_ROOM)
		g_atomic_int_inc(&c->sink->refused_memory);
	if (status == STORE_NO_SPACE)
		g_atomic_int_inc(&c->sink->refused_space);
	answer(c, epoch, status);
	shutdown(c->fd, SHUT_WR);
	tls_set_deadline(c->tls, clock_now() + DRAIN_SECONDS * NSEC_PER_SEC);
	while (!g_atomic_int_get(&c->closing) && tls_read(c->tls, waste, sizeof waste) > 0)
		;
}

/* ---- OPEN ---- */
static void free_spec(struct image_spec *spec)
{
	g_free((char *)spec->ram_path);
	for (unsigned i = 0; i < VCFT_DISK_MAX; i++)
		g_free((char *)spec->disk_dir[i]);
}

static bool spec_has_shape(const struct image_spec *spec, const struct store_shape *shape)
{
	struct store_shape s = { .regions = 1 + spec->disk_count, .pages = { spec->ram_pages } };
	for (unsigned i = 0; i < spec->disk_count && i < VCFT_DISK_MAX; i++)
		s.pages[1 + i] = spec->disk_blocks[i];
	return store_shape_equal(&s, shape);
}

static enum store_status status_of(enum copy_verdict verdict)
{
	static const enum store_status of[] = { [COPY_OK] = STORE_OK,
		                                [COPY_WAIT] = STORE_BAD_BASE,
		                                [COPY_CLOSED] = STORE_CLOSED,
		                                [COPY_BAD_GENERATION] = STORE_BAD_GENERATION,
		                                [COPY_BAD_BASE] = STORE_BAD_BASE,
		                                [COPY_BAD_ORDER] = STORE_BAD_ORDER,
		                                [COPY_UNFINISHED] = STORE_BAD_ORDER };
	return of[verdict];
}

/* An empty image at base, in place of what is there. */
static enum store_status make_image(struct sink_vm *vm, const struct stream_open *m)
{
	struct image_spec spec = { 0 };
	enum store_status status = STORE_NO_VM;
	if (vm->sink->callbacks.spec(vm->id, &spec, vm->sink->user)) {
		status = STORE_BAD_SHAPE;
		if (spec_has_shape(&spec, &m->shape)) {
			copy_drop(&vm->copy);
			sink_follow(vm);
			image_remove_files(&spec);
			vm->image = image_open(&spec, NULL);
			status = vm->image ? STORE_OK : STORE_NO_SPACE;
		}
	}
	if (status == STORE_OK) {
		image_begin(vm->image, m->base);
		copy_start(&vm->copy, m->base);
	}
	free_spec(&spec);
	return status;
}

/* The image must be there. */
static enum store_status find_image(const struct sink_vm *vm, const struct stream_open *m)
{
	struct store_shape shape;
	if (!vm->image)
		return STORE_BAD_BASE;
	image_shape(vm->image, &shape);
	return store_shape_equal(&shape, &m->shape) ? status_of(copy_find(&vm->copy, m->base)) : STORE_BAD_SHAPE;
}

/* Make the connection the one of its VM (K5); the VM's lock is held. */
static enum store_status become_current(struct connection *c, const struct stream_open *m)
{
	struct sink *sink = c->sink;
	g_mutex_lock(&sink->lock);
	enum store_status status = sink->quit ? STORE_CLOSED : status_of(copy_enter(&c->vm->copy, &sink->host, m->generation, c, c->number));
	if (status == STORE_OK) {
		for (guint i = 0; i < sink->connections->len; i++) {
			struct connection *other = g_ptr_array_index(sink->connections, i);
			if (other->opened && other->vm == c->vm && other != c) {
				g_atomic_int_set(&other->closing, 1);
				shutdown(other->fd, SHUT_RDWR);
			}
		}
		c->opened = true;
	}
	g_mutex_unlock(&sink->lock);
	if (status == STORE_OK)
		g_cond_broadcast(&c->vm->changed);
	return status;
}

static enum store_status on_open(struct connection *c, const struct stream_open *m)
{
	struct sink_vm *vm = &c->sink->vm[m->vm.n];
	c->generation = m->generation;
	c->host = m->host;
	c->shape = m->shape;
	g_mutex_lock(&c->sink->lock);
	c->vm = vm;
	g_mutex_unlock(&c->sink->lock);
	g_atomic_int_set(&vm->used, 1);
	sink_lock(vm);
	enum store_status status = become_current(c, m);
	if (status == STORE_OK)
		status = m->flags & STREAM_FRESH ? make_image(vm, m) : find_image(vm, m);
	g_mutex_unlock(&vm->lock);
	return status;
}

/* ---- an epoch; the VM's lock is held ---- */
static enum store_status may_touch(struct connection *c)
{
	struct copy_host host = sink_host(c->sink);
	return g_atomic_int_get(&c->closing) ? STORE_CLOSED : status_of(copy_may_touch(&c->vm->copy, &host, c));
}

static enum copy_verdict try_begin(struct connection *c, const struct stream_epoch *e)
{
	struct copy_host host = sink_host(c->sink);
	return g_atomic_int_get(&c->closing) ? COPY_CLOSED : copy_begin(&c->vm->copy, &host, c, e->epoch, e->base);
}

static enum store_status begin_stage(struct connection *c, const struct stream_epoch *e)
{
	struct sink_vm *vm = c->vm;
	enum copy_verdict verdict;
	while ((verdict = try_begin(c, e)) == COPY_WAIT) {    /* K2 */
		g_cond_wait(&vm->changed, &vm->lock);
		sink_settle(vm);
	}
	if (verdict != COPY_OK)
		return status_of(verdict);
	sink_follow(vm);
	c->stage = stage_new(&c->shape, e->epoch, e->base, c->sink->limits.stage_bytes, &c->sink->stage_bytes);
	return STORE_OK;
}

static enum store_status on_epoch(struct connection *c, size_t n)
{
	struct stream_epoch e;
	if (!stream_get_epoch(c->payload, n, &e))
		return STORE_BAD_MESSAGE;
	if (generation_cmp(e.generation, c->generation))
		return STORE_BAD_GENERATION;
	stage_free(g_steal_pointer(&c->stage));
	if (fault(FAULT_STAGE_REFUSED))
		return STORE_NO_ROOM;
	sink_lock(c->vm);
	enum store_status status = begin_stage(c, &e);
	g_mutex_unlock(&c->vm->lock);
	return status;
}

/* The space for the chunk that came: from here on committing it cannot fail. */
static enum store_status reserve_chunk(struct connection *c)
{
	const struct delta_chunk *chunk = stage_last_chunk(c->stage);
	g_mutex_lock(&c->vm->lock);
	enum store_status status = may_touch(c);
	size_t missing = status == STORE_OK && chunk->region == 0 ? image_missing(c->vm->image, 0, chunk->index, chunk->count) : 0;
	if (status == STORE_OK && !sink_charge(c->vm, missing * VCFT_PAGE_SIZE))    /* K7 */
		status = STORE_NO_ROOM;
	if (status == STORE_OK && !image_reserve(c->vm->image, chunk->region, chunk->index, chunk->count, NULL))
		status = STORE_NO_SPACE;
	g_mutex_unlock(&c->vm->lock);
	return status;
}

/* The stage has come in: it is the VM's now, and acknowledged (S2). */
static enum store_status keep_stage(struct connection *c)
{
	struct sink_vm *vm = c->vm;
	struct epoch_id epoch = stage_epoch(c->stage);
	if (fault(FAULT_STAGE_SLOW))
		g_usleep(200 * 1000);
	sink_lock(vm);
	struct copy_host host = sink_host(c->sink);
	enum store_status status = g_atomic_int_get(&c->closing) ? STORE_CLOSED :
		status_of(copy_keep(&vm->copy, &host, c, epoch, stage_base(c->stage), stage_fills(c->stage), stage_complete(c->stage)));
	if (status == STORE_OK) {
		stage_free(vm->stage);
		vm->stage = g_steal_pointer(&c->stage);
	}
	g_mutex_unlock(&vm->lock);
	if (status == STORE_OK)
		answer(c, epoch, STORE_OK);
	return status;
}

static enum store_status on_message(struct connection *c, const struct message_header *h)
{
	enum store_status status = h->type == MESSAGE_EPOCH ? on_epoch(c, h->length) : STORE_OK;
	if (status == STORE_OK && !c->stage)
		status = STORE_BAD_ORDER;
	if (status == STORE_OK)
		status = stage_message(c->stage, c->decoder, h->type, c->header, c->payload, h->length);
	if (status == STORE_OK && h->type == MESSAGE_PAGES)
		status = reserve_chunk(c);
	if (status == STORE_OK && h->type == MESSAGE_EPOCH_END)
		status = keep_stage(c);
	return status;
}

/* ---- a connection ---- */
/* False: it has ended, or what came was refused. */
static bool receive_message(struct connection *c, struct message_header *ret_header, enum store_status *ret_status)
{
	*ret_status = STORE_OK;
	if (!receive(c, c->header, sizeof c->header))
		return false;
	*ret_status = STORE_BAD_MESSAGE;
	if (!message_header_decode(c->header, CHANNEL_REPLICATION, ret_header) ||
	    (ret_header->type == MESSAGE_REPLICATION_OPEN) == c->opened)
		return false;
	*ret_status = STORE_NO_ROOM;
	if (!make_room(c, MAX(ret_header->length, 1)))
		return false;
	*ret_status = STORE_OK;
	return receive(c, c->payload, ret_header->length);
}

static bool is_who_it_says(struct connection *c, struct host_id host)
{
	char name[VCFT_NAME_MAX + 1];
	g_mutex_lock(&c->sink->lock);
	g_strlcpy(name, c->sink->names[host.n], sizeof name);
	g_mutex_unlock(&c->sink->lock);
	if (!c->sink->credentials || (*name && tls_names(c->tls, name)))
		return true;
	sink_note(c->sink, "replication: somebody with another host's certificate says to be host %u (%s)", host.n, *name ? name : "unknown");
	return false;
}

static enum store_status first_message(struct connection *c)
{
	struct message_header h;
	struct stream_open open;
	enum store_status status;
	if (!receive_message(c, &h, &status))
		return status == STORE_OK ? STORE_CLOSED : status;
	if (!stream_get_open(c->header, c->payload, h.length, &open))
		return STORE_BAD_MESSAGE;
	tls_set_deadline(c->tls, 0);
	if (is_who_it_says(c, open.host))
		return on_open(c, &open);
	g_atomic_int_set(&c->closing, 1);
	return STORE_CLOSED;
}

/* S8: whoever has shown no certificate of the cluster, or another host's, is not even refused. */
static bool secure(struct connection *c)
{
	tls_set_deadline(c->tls, c->since + OPEN_SECONDS * NSEC_PER_SEC);
	enum tls_progress progress = tls_handshake(c->tls);
	if (progress != TLS_OPEN)
		sink_note(c->sink, "replication: somebody connected who is none of the hosts: %s", progress == TLS_FAILED ? tls_why(c->tls) : "no TLS in time");
	g_atomic_int_set(&c->secured, progress == TLS_OPEN);
	return progress == TLS_OPEN;
}

static void serve(struct connection *c)
{
	struct message_header h;
	if (!secure(c))
		return;
	enum store_status status = first_message(c);
	while (status == STORE_OK && receive_message(c, &h, &status))
		status = on_message(c, &h);
	if (status != STORE_OK && !g_atomic_int_get(&c->closing))
		refuse(c, c->stage ? stage_epoch(c->stage) : epoch_of(0), status);
}

static void connection_end(struct connection *c)
{
	struct sink *sink = c->sink;
	if (c->vm) {
		g_mutex_lock(&c->vm->lock);
		copy_leave(&c->vm->copy, c);
		g_mutex_unlock(&c->vm->lock);
	}
	stage_free(c->stage);
	delta_decoder_free(c->decoder);
	free(c->payload);
	tls_free(c->tls);
	g_mutex_lock(&sink->lock);
	close(c->fd);
	g_ptr_array_remove_fast(sink->connections, c);
	g_ptr_array_add(sink->ended, g_thread_self());
	g_cond_broadcast(&sink->gone);
	g_mutex_unlock(&sink->lock);
	g_free(c);
}

void connection_join_ended(struct sink *sink)
{
	g_mutex_lock(&sink->lock);
	GPtrArray *ended = sink->ended;
	sink->ended = g_ptr_array_new();
	g_mutex_unlock(&sink->lock);
	for (guint i = 0; i < ended->len; i++)
		g_thread_join(g_ptr_array_index(ended, i));
	g_ptr_array_unref(ended);
}

static gpointer connection_thread(gpointer data)
{
	serve(data);
	connection_end(data);
	return NULL;
}

/* Of those that have shown no certificate the one that came first goes, if there are many; sink->lock is held. */
static void thin_crowd(struct sink *sink)
{
	struct connection *first = NULL;
	unsigned n = 0;
	for (guint i = 0; i < sink->connections->len; i++) {
		struct connection *c = g_ptr_array_index(sink->connections, i);
		if (g_atomic_int_get(&c->secured) || g_atomic_int_get(&c->closing))
			continue;
		n++;
		first = !first || c->since < first->since ? c : first;
	}
	if (n < STRANGERS_MAX)
		return;
	g_atomic_int_set(&first->closing, 1);
	shutdown(first->fd, SHUT_RDWR);
}

void connection_start(struct sink *sink, int fd)
{
	int one = 1;
	struct connection *c = g_new0(struct connection, 1);
	c->sink = sink;
	c->fd = fd;
	c->tls = tls_new(sink->credentials, TLS_ACCEPTS, fd, NULL);
	c->since = clock_now();
	c->decoder = delta_decoder_new();
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &(struct timeval){ .tv_sec = OPEN_SECONDS }, sizeof(struct timeval));
	g_mutex_lock(&sink->lock);
	thin_crowd(sink);
	bool room = sink->connections->len < CONNECTIONS_MAX && !sink->quit;
	c->number = ++sink->numbered;
	if (room)
		g_ptr_array_add(sink->connections, c);
	g_mutex_unlock(&sink->lock);
	connection_join_ended(sink);
	if (room) {
		g_thread_new("sink-stream", connection_thread, c);
		return;
	}
	delta_decoder_free(c->decoder);
	tls_free(c->tls);
	close(fd);
	g_free(c);
}

/* ---- ending ---- */
/* Tell them; sink->lock is held. Returns how many there are. */
static unsigned hang_up(struct sink *sink, connection_test test, const void *what)
{
	unsigned n = 0;
	for (guint i = 0; i < sink->connections->len; i++) {
		struct connection *c = g_ptr_array_index(sink->connections, i);
		if (!test(c, what))
			continue;
		n++;
		g_atomic_int_set(&c->closing, 1);
		shutdown(c->fd, SHUT_RDWR);
	}
	return n;
}

/* Those in K2 look again. */
void connection_wake_all(struct sink *sink)
{
	for (unsigned i = 0; i < VCFT_VM_MAX; i++) {
		if (!g_atomic_int_get(&sink->vm[i].used))
			continue;
		g_mutex_lock(&sink->vm[i].lock);
		g_cond_broadcast(&sink->vm[i].changed);
		g_mutex_unlock(&sink->vm[i].lock);
	}
}

void connection_end_all(struct sink *sink, connection_test test, const void *what)
{
	g_mutex_lock(&sink->lock);
	unsigned n = hang_up(sink, test, what);
	g_mutex_unlock(&sink->lock);
	if (!n)
		return;
	connection_wake_all(sink);
	g_mutex_lock(&sink->lock);
	while (hang_up(sink, test, what))
		g_cond_wait(&sink->gone, &sink->lock);
	g_mutex_unlock(&sink->lock);
}
