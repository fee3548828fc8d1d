/* sink.c - the receiver: streams in, stages, and the images of this host's backups.
 *
 *   listener ──accept──► connection (a thread each): OPEN, then epoch by epoch ──► stage (the connection's) ──complete──► stage (the VM's) ──► ACK
 *                                                                                            sink_commit ──post──► worker ──► image (the VM's)
 *
 *  S1 An image changes only in vm_commit(): by a post COMMIT(r) or a recovery to r, from the VM's complete stage of r with the image's epoch as base.
 *  S3 What is refused is answered with a status, then the connection ends; the VM's image and stage are as before.
 *  K1 Posts (commit, discard) of a VM are carried out in order, by whoever holds the VM's lock first: a worker, or a call that needs them done.
 *  K2 A stream whose base is an epoch that is staged but not committed here yet waits for that commit: the group may be slower than the stream.
 *  K3 A new EPOCH with the image's epoch as base replaces an uncommitted stage: its source was told that it is aborted.
 *  K4 After sink_holdings() no stage is replaced and none acknowledged until the next generation: what was told stays true.
 *  K5 One connection a VM: a newer one takes the older one's place. A connection touches image and stage only while it is vm->connection.
 *
 * Locks, in order: vm->lock (long: image work), then sink->lock (short). Nothing is called back with sink->lock held. */
#include "store/store-private.h"

#include "base/fault.h"

#include <arpa/inet.h>
#include <errno.h>
#include <gio/gio.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define CONNECTIONS_MAX (2u * VCFT_VM_MAX)
#define OPEN_SECONDS 10         /* a connection must say OPEN within this */
#define DRAIN_SECONDS 2         /* a refused sender has this long to read why */
#define WORKERS 2u

struct connection;

struct post { bool commit; struct epoch_id epoch; };

struct sink_vm {
	struct sink *sink;
	struct vm_id id;
	GMutex lock;                      /* guards this block */
	GCond changed;                    /* image or stage changed, or a connection is to end */
	struct image *image;
	struct stage *stage;              /* complete, not committed */
	struct connection *connection;    /* the newest */
	GArray *posts;                    /* struct post; sink->lock */
	gint used;                        /* atomic: it ever had an image or a connection */
};

struct connection {
	struct sink *sink;
	int fd;                           /* closed with sink->lock held */
	gint closing;                     /* atomic */
	bool opened;                      /* sink->lock: vm and generation are set */
	struct sink_vm *vm;
	struct generation generation;
	struct host_id host;
	struct store_shape shape;
	struct stage *stage;              /* coming in */
	struct delta_decoder *decoder;
	uint8_t header[MESSAGE_HEADER_BYTES];
	uint8_t *payload; size_t room;
};

struct sink {
	struct host_id self;
	struct sink_limits limits;
	struct sink_callbacks callbacks;
	void *user;
	int listener, wake;
	GThread *thread, *worker[WORKERS];
	gint64 stage_bytes;               /* atomic */
	GMutex lock;                      /* guards this block */
	GCond gone;                       /* a connection has ended */
	GPtrArray *connections;
	GPtrArray *ended;                 /* threads of connections that are gone, to be joined */
	GQueue todo; GCond work;          /* VMs with posts, for the workers */
	struct generation generation;
	bool told, quit;                  /* K4 */
	struct sink_vm vm[VCFT_VM_MAX];
};

/* ---- a VM's image and stage; vm->lock is held ---- */
static void drop_stage(struct sink_vm *vm)
{
	stage_free(g_steal_pointer(&vm->stage));
	g_cond_broadcast(&vm->changed);
}

static void drop_image(struct sink_vm *vm)
{
	image_remove(g_steal_pointer(&vm->image));
	g_cond_broadcast(&vm->changed);
}

/* S5 */
static void verify(struct sink_vm *vm, const uint64_t expected[2], struct epoch_id r)
{
	uint64_t hash[2];
	if ((!expected[0] && !expected[1]) || !image_complete(vm->image).n)
		return;
	image_hash_ram(vm->image, hash);
	if ((hash[0] != expected[0] || hash[1] != expected[1]) && vm->sink->callbacks.verify_failed)
		vm->sink->callbacks.verify_failed(vm->id, r, vm->sink->user);
}

/* S1: the only place where an image changes. */
static void vm_commit(struct sink_vm *vm, struct epoch_id r)
{
	if (!vm->stage || epoch_cmp(stage_epoch(vm->stage), r))
		return;
	MUST("S1", vm->image != NULL);
	stage_apply(vm->stage, vm->image);
	verify(vm, stage_ram_hash(vm->stage), r);
	drop_stage(vm);
}

static bool next_post(struct sink_vm *vm, struct post *ret_post)
{
	g_mutex_lock(&vm->sink->lock);
	bool any = vm->posts->len > 0;
	if (any) {
		*ret_post = g_array_index(vm->posts, struct post, 0);
		g_array_remove_index(vm->posts, 0);
	}
	g_mutex_unlock(&vm->sink->lock);
	return any;
}

/* K1 */
static void settle(struct sink_vm *vm)
{
	struct post p;
	while (next_post(vm, &p)) {
		if (p.commit)
			vm_commit(vm, p.epoch);
		else if (vm->stage && epoch_cmp(stage_epoch(vm->stage), p.epoch) == 0)
			drop_stage(vm);
	}
}

static void lock_settled(struct sink_vm *vm)
{
	g_mutex_lock(&vm->lock);
	settle(vm);
}

static struct sink_vm *next_todo(struct sink *sink)
{
	g_mutex_lock(&sink->lock);
	while (!sink->todo.head && !sink->quit)
		g_cond_wait(&sink->work, &sink->lock);
	struct sink_vm *vm = g_queue_pop_head(&sink->todo);
	g_mutex_unlock(&sink->lock);
	return vm;
}

static gpointer worker_thread(gpointer data)
{
	for (struct sink_vm *vm; (vm = next_todo(data));) {
		lock_settled(vm);
		g_mutex_unlock(&vm->lock);
	}
	return NULL;
}

static void post_all(struct sink *sink, struct post p)
{
	for (unsigned i = 0; i < VCFT_VM_MAX; i++) {
		struct sink_vm *vm = &sink->vm[i];
		if (!g_atomic_int_get(&vm->used))
			continue;
		g_mutex_lock(&sink->lock);
		g_array_append_val(vm->posts, p);
		g_queue_push_tail(&sink->todo, vm);
		g_cond_signal(&sink->work);
		g_mutex_unlock(&sink->lock);
	}
}

/* ---- bytes ---- */
static bool receive(struct connection *c, void *out, size_t n)
{
	for (uint8_t *at = out; n;) {
		ssize_t got = recv(c->fd, at, n, 0);
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
	if (send(c->fd, out, n, MSG_NOSIGNAL) != (ssize_t)n)
		g_atomic_int_set(&c->closing, 1);
}

static void set_timeout(int fd, int option, int seconds)
{
	struct timeval tv = { .tv_sec = seconds };
	setsockopt(fd, SOL_SOCKET, option, &tv, sizeof tv);
}

/* S3: say why, and let the sender read it: closing with unread bytes would take the answer away from it. */
static void refuse(struct connection *c, struct epoch_id epoch, enum store_status status)
{
	nsec_t end = clock_now() + DRAIN_SECONDS * NSEC_PER_SEC;
	uint8_t waste[16384];
	answer(c, epoch, status);
	shutdown(c->fd, SHUT_WR);
	set_timeout(c->fd, SO_RCVTIMEO, 1);
	while (clock_now() < end && !g_atomic_int_get(&c->closing) && recv(c->fd, waste, sizeof waste, 0) > 0)
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

/* An empty image at base, in place of what is there. */
static enum store_status make_image(struct sink_vm *vm, const struct stream_open *m)
{
	struct image_spec spec = { 0 };
	enum store_status status = STORE_NO_VM;
	if (vm->sink->callbacks.spec(vm->id, &spec, vm->sink->user)) {
		status = STORE_BAD_SHAPE;
		if (spec_has_shape(&spec, &m->shape)) {
			drop_stage(vm);
			drop_image(vm);
			image_remove_files(&spec);
			vm->image = image_open(&spec, NULL);
			status = vm->image ? STORE_OK : STORE_NO_SPACE;
		}
	}
	if (status == STORE_OK)
		image_begin(vm->image, m->base);
	free_spec(&spec);
	return status;
}

/* The image must be there: at base, or as soon as the stage is committed. */
static enum store_status find_image(const struct sink_vm *vm, const struct stream_open *m)
{
	struct store_shape shape;
	if (!vm->image)
		return STORE_BAD_BASE;
	image_shape(vm->image, &shape);
	if (!store_shape_equal(&shape, &m->shape))
		return STORE_BAD_SHAPE;
	if (!epoch_cmp(image_epoch(vm->image), m->base) && image_complete(vm->image).n)
		return STORE_OK;
	bool coming = vm->stage && !epoch_cmp(stage_epoch(vm->stage), m->base) && (image_complete(vm->image).n || stage_fills(vm->stage));
	return coming ? STORE_OK : STORE_BAD_BASE;
}

/* Make the connection the one of its VM and generation; the VM's lock is held. */
static enum store_status become_current(struct connection *c, const struct stream_open *m)
{
	struct sink *sink = c->sink;
	enum store_status status = STORE_OK;
	g_mutex_lock(&sink->lock);
	if (generation_cmp(m->generation, sink->generation))
		status = STORE_BAD_GENERATION;
	else if (sink->told || sink->quit)
		status = STORE_CLOSED;
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
	if (status == STORE_OK) {
		c->vm->connection = c;
		g_cond_broadcast(&c->vm->changed);
	}
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
	lock_settled(vm);
	enum store_status status = become_current(c, m);
	if (status == STORE_OK)
		status = m->flags & STREAM_FRESH ? make_image(vm, m) : find_image(vm, m);
	g_mutex_unlock(&vm->lock);
	return status;
}

/* ---- an epoch; the VM's lock is held ---- */
static bool is_told(struct sink *sink)
{
	g_mutex_lock(&sink->lock);
	bool told = sink->told;
	g_mutex_unlock(&sink->lock);
	return told;
}

static enum store_status may_touch(struct connection *c)
{
	if (g_atomic_int_get(&c->closing) || c->vm->connection != c || !c->vm->image)
		return STORE_CLOSED;
	return is_told(c->sink) ? STORE_CLOSED : STORE_OK;
}

static bool base_is_staged(const struct sink_vm *vm, struct epoch_id base)
{
	return vm->image && vm->stage && epoch_cmp(image_epoch(vm->image), base) && !epoch_cmp(stage_epoch(vm->stage), base);
}

static enum store_status begin_stage(struct connection *c, const struct stream_epoch *e)
{
	struct sink_vm *vm = c->vm;
	while (base_is_staged(vm, e->base) && may_touch(c) == STORE_OK) {    /* K2 */
		g_cond_wait(&vm->changed, &vm->lock);
		settle(vm);
	}
	enum store_status status = may_touch(c);
	if (status != STORE_OK)
		return status;
	if (epoch_cmp(image_epoch(vm->image), e->base))
		return STORE_BAD_BASE;
	if (vm->stage && epoch_cmp(e->epoch, stage_epoch(vm->stage)) <= 0)
		return STORE_BAD_ORDER;
	drop_stage(vm);    /* K3 */
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
	lock_settled(c->vm);
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
	if (status == STORE_OK && !image_reserve(c->vm->image, chunk->region, chunk->index, chunk->count, NULL))
		status = STORE_NO_SPACE;
	g_mutex_unlock(&c->vm->lock);
	return status;
}

/* S2: the stage is complete; it is the VM's now, and acknowledged. */
static enum store_status keep_stage(struct connection *c)
{
	struct sink_vm *vm = c->vm;
	struct epoch_id epoch = stage_epoch(c->stage);
	if (fault(FAULT_STAGE_SLOW))
		g_usleep(200 * 1000);
	lock_settled(vm);
	enum store_status status = may_touch(c);
	if (status == STORE_OK && epoch_cmp(image_epoch(vm->image), stage_base(c->stage)))
		status = STORE_BAD_BASE;
	if (status == STORE_OK) {
		drop_stage(vm);
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

static enum store_status first_message(struct connection *c)
{
	struct message_header h;
	struct stream_open open;
	enum store_status status;
	set_timeout(c->fd, SO_RCVTIMEO, OPEN_SECONDS);
	if (!receive_message(c, &h, &status))
		return status == STORE_OK ? STORE_CLOSED : status;
	if (!stream_get_open(c->header, c->payload, h.length, &open))
		return STORE_BAD_MESSAGE;
	set_timeout(c->fd, SO_RCVTIMEO, 0);
	return on_open(c, &open);
}

static void serve(struct connection *c)
{
	struct message_header h;
	enum store_status status = first_message(c);
	while (status == STORE_OK && receive_message(c, &h, &status))
		status = on_message(c, &h);
	if (status != STORE_OK)
		refuse(c, c->stage ? stage_epoch(c->stage) : epoch_of(0), status);
}

static void connection_end(struct connection *c)
{
	struct sink *sink = c->sink;
	if (c->vm) {
		g_mutex_lock(&c->vm->lock);
		if (c->vm->connection == c)
			c->vm->connection = NULL;
		g_mutex_unlock(&c->vm->lock);
	}
	stage_free(c->stage);
	delta_decoder_free(c->decoder);
	free(c->payload);
	g_mutex_lock(&sink->lock);
	close(c->fd);
	g_ptr_array_remove_fast(sink->connections, c);
	g_ptr_array_add(sink->ended, g_thread_self());
	g_cond_broadcast(&sink->gone);
	g_mutex_unlock(&sink->lock);
	g_free(c);
}

static void join_ended(struct sink *sink)
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

static void connection_start(struct sink *sink, int fd)
{
	int one = 1;
	struct connection *c = g_new0(struct connection, 1);
	c->sink = sink;
	c->fd = fd;
	c->decoder = delta_decoder_new();
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	set_timeout(fd, SO_SNDTIMEO, OPEN_SECONDS);
	g_mutex_lock(&sink->lock);
	bool room = sink->connections->len < CONNECTIONS_MAX && !sink->quit;
	if (room)
		g_ptr_array_add(sink->connections, c);
	g_mutex_unlock(&sink->lock);
	join_ended(sink);
	if (room) {
		g_thread_new("sink-stream", connection_thread, c);
		return;
	}
	delta_decoder_free(c->decoder);
	close(fd);
	g_free(c);
}

static gpointer listener_thread(gpointer data)
{
	struct sink *sink = data;
	struct pollfd fds[2] = { { .fd = sink->wake, .events = POLLIN }, { .fd = sink->listener, .events = POLLIN } };
	for (;;) {
		if (poll(fds, 2, -1) < 0)
			continue;
		if (fds[0].revents)
			return NULL;
		int fd = accept4(sink->listener, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0)
			connection_start(sink, fd);
		else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM)
			g_usleep(10 * 1000);
	}
}

/* ---- ending connections ---- */
typedef bool (*connection_test)(const struct connection *c, const void *what);

static bool of_older_generation(const struct connection *c, const void *g)
{
	return c->opened && generation_cmp(c->generation, *(const struct generation *)g) < 0;
}
static bool is_opened(const struct connection *c, const void *what G_GNUC_UNUSED) { return c->opened; }
static bool is_any(const struct connection *c G_GNUC_UNUSED, const void *what G_GNUC_UNUSED) { return true; }
static bool of_vm(const struct connection *c, const void *vm) { return c->opened && c->vm == vm; }

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
static void wake_waiters(struct sink *sink)
{
	for (unsigned i = 0; i < VCFT_VM_MAX; i++) {
		if (!g_atomic_int_get(&sink->vm[i].used))
			continue;
		g_mutex_lock(&sink->vm[i].lock);
		g_cond_broadcast(&sink->vm[i].changed);
		g_mutex_unlock(&sink->vm[i].lock);
	}
}

static void end_connections(struct sink *sink, connection_test test, const void *what)
{
	g_mutex_lock(&sink->lock);
	unsigned n = hang_up(sink, test, what);
	g_mutex_unlock(&sink->lock);
	if (!n)
		return;
	wake_waiters(sink);
	g_mutex_lock(&sink->lock);
	while (hang_up(sink, test, what))
		g_cond_wait(&sink->gone, &sink->lock);
	g_mutex_unlock(&sink->lock);
}

/* ---- what the agent asks for ---- */
void sink_generation(struct sink *sink, struct generation g)
{
	g_mutex_lock(&sink->lock);
	if (generation_cmp(g, sink->generation)) {
		sink->generation = g;
		sink->told = false;
	}
	g_mutex_unlock(&sink->lock);
	end_connections(sink, of_older_generation, &g);
}

void sink_commit(struct sink *sink, struct epoch_id r) { post_all(sink, (struct post){ true, r }); }
void sink_discard(struct sink *sink, struct epoch_id r) { post_all(sink, (struct post){ false, r }); }

static bool holding(struct sink_vm *vm, struct message_holding *out)
{
	lock_settled(vm);
	*out = (struct message_holding){ .vm = vm->id };
	if (vm->image) {
		out->image = image_epoch(vm->image);
		out->complete = image_complete(vm->image);
		if (vm->stage) {
			out->staged = stage_epoch(vm->stage);
			if (!out->complete.n && stage_fills(vm->stage))
				out->complete = out->staged;
		}
	}
	bool any = vm->image != NULL;
	g_mutex_unlock(&vm->lock);
	return any;
}

uint32_t sink_holdings(struct sink *sink, struct message_holding out[static VCFT_VM_MAX])
{
	uint32_t n = 0;
	g_mutex_lock(&sink->lock);
	sink->told = true;
	g_mutex_unlock(&sink->lock);
	wake_waiters(sink);
	for (unsigned i = 0; i < VCFT_VM_MAX; i++)
		if (g_atomic_int_get(&sink->vm[i].used))
			n += holding(&sink->vm[i], &out[n]);
	return n;
}

void sink_recover(struct sink *sink, struct epoch_id c)
{
	end_connections(sink, is_opened, NULL);
	for (unsigned i = 0; i < VCFT_VM_MAX; i++) {
		struct sink_vm *vm = &sink->vm[i];
		if (!g_atomic_int_get(&vm->used))
			continue;
		lock_settled(vm);
		vm_commit(vm, c);
		drop_stage(vm);
		if (vm->image && (epoch_cmp(image_epoch(vm->image), c) || !image_complete(vm->image).n))
			drop_image(vm);
		g_mutex_unlock(&vm->lock);
	}
}

struct image *sink_take(struct sink *sink, struct vm_id id)
{
	struct sink_vm *vm = &sink->vm[id.n];
	end_connections(sink, of_vm, vm);
	lock_settled(vm);
	drop_stage(vm);
	struct image *image = g_steal_pointer(&vm->image);
	g_mutex_unlock(&vm->lock);
	if (image)
		image_set_disks_writable(image, false, NULL);
	return image;
}

void sink_give(struct sink *sink, struct vm_id id, struct image *image)
{
	struct sink_vm *vm = &sink->vm[id.n];
	image_set_disks_writable(image, true, NULL);
	end_connections(sink, of_vm, vm);
	lock_settled(vm);
	drop_stage(vm);
	if (vm->image != image)
		image_free(g_steal_pointer(&vm->image));
	vm->image = image;
	g_mutex_unlock(&vm->lock);
	g_atomic_int_set(&vm->used, 1);
}

static void drop(struct sink_vm *vm)
{
	lock_settled(vm);
	drop_stage(vm);
	drop_image(vm);
	g_mutex_unlock(&vm->lock);
}

void sink_drop(struct sink *sink, struct vm_id id)
{
	end_connections(sink, of_vm, &sink->vm[id.n]);
	drop(&sink->vm[id.n]);
}

void sink_clear(struct sink *sink)
{
	end_connections(sink, is_opened, NULL);
	for (unsigned i = 0; i < VCFT_VM_MAX; i++)
		if (g_atomic_int_get(&sink->vm[i].used))
			drop(&sink->vm[i]);
}

void sink_memory(struct sink *sink, uint64_t *ret_image_bytes, uint64_t *ret_stage_bytes)
{
	uint64_t images = 0;
	for (unsigned i = 0; i < VCFT_VM_MAX; i++) {
		struct sink_vm *vm = &sink->vm[i];
		if (!g_atomic_int_get(&vm->used))
			continue;
		g_mutex_lock(&vm->lock);
		images += vm->image ? image_bytes(vm->image) : 0;
		g_mutex_unlock(&vm->lock);
	}
	*ret_image_bytes = images;
	*ret_stage_bytes = (uint64_t)__atomic_load_n(&sink->stage_bytes, __ATOMIC_RELAXED);
}

/* ---- life ---- */
static int listen_on(const char *address, uint16_t *inout_port, GError **error)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(*inout_port) };
	socklen_t n = sizeof at;
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (inet_pton(AF_INET, address, &at.sin_addr) != 1) {
		errno = EINVAL;
	} else if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0 &&
	           bind(fd, (struct sockaddr *)&at, sizeof at) == 0 && listen(fd, 128) == 0 &&
	           getsockname(fd, (struct sockaddr *)&at, &n) == 0) {
		*inout_port = ntohs(at.sin_port);
		return fd;
	}
	int e = errno;
	if (fd >= 0)
		close(fd);
	g_set_error(error, G_IO_ERROR, g_io_error_from_errno(e), "replication: listen on %s:%u: %s", address, *inout_port, g_strerror(e));
	return -1;
}

static void vms_init(struct sink *sink)
{
	for (unsigned i = 0; i < VCFT_VM_MAX; i++) {
		struct sink_vm *vm = &sink->vm[i];
		vm->sink = sink;
		vm->id.n = i;
		vm->posts = g_array_new(FALSE, FALSE, sizeof(struct post));
		g_mutex_init(&vm->lock);
		g_cond_init(&vm->changed);
	}
}

struct sink *sink_new(struct host_id self, const char *address, uint16_t *inout_port, const struct sink_limits *limits,
                      const struct sink_callbacks *callbacks, void *user, GError **error)
{
	int fd = listen_on(address, inout_port, error);
	if (fd < 0)
		return NULL;
	struct sink *sink = g_new0(struct sink, 1);
	sink->self = self;
	sink->limits = *limits;
	sink->callbacks = *callbacks;
	sink->user = user;
	sink->listener = fd;
	sink->wake = eventfd(0, EFD_CLOEXEC);
	sink->connections = g_ptr_array_new();
	sink->ended = g_ptr_array_new();
	g_mutex_init(&sink->lock);
	g_cond_init(&sink->gone);
	g_cond_init(&sink->work);
	g_queue_init(&sink->todo);
	vms_init(sink);
	for (unsigned i = 0; i < WORKERS; i++)
		sink->worker[i] = g_thread_new("sink-worker", worker_thread, sink);
	sink->thread = g_thread_new("sink-listen", listener_thread, sink);
	return sink;
}

static void vms_clear(struct sink *sink)
{
	for (unsigned i = 0; i < VCFT_VM_MAX; i++) {
		struct sink_vm *vm = &sink->vm[i];
		stage_free(vm->stage);
		image_free(vm->image);
		g_array_unref(vm->posts);
		g_mutex_clear(&vm->lock);
		g_cond_clear(&vm->changed);
	}
}

void sink_free(struct sink *sink)
{
	if (!sink)
		return;
	uint64_t one = 1;
	g_mutex_lock(&sink->lock);
	sink->quit = true;
	g_cond_broadcast(&sink->work);
	g_mutex_unlock(&sink->lock);
	while (write(sink->wake, &one, sizeof one) < 0 && errno == EINTR)
		;
	g_thread_join(sink->thread);
	end_connections(sink, is_any, NULL);
	for (unsigned i = 0; i < WORKERS; i++)
		g_thread_join(sink->worker[i]);
	join_ended(sink);
	close(sink->listener);
	close(sink->wake);
	vms_clear(sink);
	g_ptr_array_unref(sink->connections);
	g_ptr_array_unref(sink->ended);
	g_queue_clear(&sink->todo);
	g_mutex_clear(&sink->lock);
	g_cond_clear(&sink->gone);
	g_cond_clear(&sink->work);
	g_free(sink);
}
