/* sink.c - the receiver: streams in, stages, and the images of this host's backups.
 *
 *   listener ──accept──► connection.c ──► stage, complete (the VM's)
 *                        sink_commit ──post──► worker ──────┴──────► image (the VM's)
 *
 * What may be touched, applied, told and dropped is decided in core/copy.c (S1, S2, S4, S6, K2-K6); here it is done.
 *  S3 What is refused is answered with a status, then the connection ends; the VM's image and stage are as before.
 *  K1 Posts (commit, discard) of a VM are carried out in order, by whoever holds the VM's lock first: a worker, or who needs them done.
 *  K7 The RAM of all images and stages together takes at most limits.memory_bytes: what would take more is refused, before it is taken.
 *
 * Locks and their order: sink-private.h. */
#include "store/sink-private.h"

#include "base/fault.h"

#include <arpa/inet.h>
#include <errno.h>
#include <gio/gio.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

void sink_note(const struct sink *sink, const char *format, ...)
{
	if (!sink->callbacks.note)
		return;
	va_list ap;
	va_start(ap, format);
	g_autofree char *text = g_strdup_vprintf(format, ap);
	va_end(ap);
	sink->callbacks.note(text, sink->user);
}

/* ---- a VM's image and stage; vm->lock is held ---- */
/* K7: the image is not this sink's any more, or is another one. */
static void count_image(struct sink_vm *vm)
{
	uint64_t bytes = vm->image ? image_ram_pages(vm->image) * VCFT_PAGE_SIZE : 0;
	__atomic_add_fetch(&vm->sink->image_bytes, (gint64)(bytes - vm->image_ram), __ATOMIC_RELAXED);
	vm->image_ram = bytes;
}

void sink_follow(struct sink_vm *vm)
{
	if (!vm->copy.staged)
		stage_free(g_steal_pointer(&vm->stage));
	if (!vm->copy.there) {
		image_remove(g_steal_pointer(&vm->image));
		count_image(vm);
	}
	g_cond_broadcast(&vm->changed);
}

bool sink_charge(struct sink_vm *vm, uint64_t n)
{
	struct sink *sink = vm->sink;
	uint64_t images = (uint64_t)__atomic_add_fetch(&sink->image_bytes, (gint64)n, __ATOMIC_RELAXED);
	uint64_t all = images + (uint64_t)__atomic_load_n(&sink->stage_bytes, __ATOMIC_RELAXED);
	if (sink->limits.memory_bytes && all > sink->limits.memory_bytes) {
		__atomic_sub_fetch(&sink->image_bytes, (gint64)n, __ATOMIC_RELAXED);
		return false;
	}
	vm->image_ram += n;
	return true;
}

struct copy_host sink_host(struct sink *sink)
{
	g_mutex_lock(&sink->lock);
	struct copy_host host = sink->host;
	g_mutex_unlock(&sink->lock);
	return host;
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

/* The stage moves into the image, as the copy says. If either is damaged (I5, I6) no image at r can be had of them: it is dropped, as one that lacks r (K6). */
static void apply(struct sink_vm *vm, struct epoch_id r)
{
	g_autoptr(GError) error = NULL;
	if (fault(FAULT_APPLY_SLOW))
		g_usleep(APPLY_SLOW_US);
	if (!stage_apply(vm->stage, vm->image, &error)) {
		sink_note(vm->sink, "replication: VM %u, epoch %" PRIu64 ": %s; its image is dropped", vm->id.n, r.n, error->message);
		g_atomic_int_inc(&vm->sink->damaged);
		copy_drop(&vm->copy);
		return;
	}
	MUST("S1", epoch_cmp(image_epoch(vm->image), r) == 0);
	verify(vm, stage_ram_hash(vm->stage), r);
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
void sink_settle(struct sink_vm *vm)
{
	struct post p;
	while (next_post(vm, &p)) {
		if (!p.commit)
			copy_discard(&vm->copy, p.epoch);
		else if (copy_commit(&vm->copy, p.epoch) == COPY_APPLIED)
			apply(vm, p.epoch);
		sink_follow(vm);
	}
}

void sink_lock(struct sink_vm *vm)
{
	g_mutex_lock(&vm->lock);
	sink_settle(vm);
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
		sink_lock(vm);
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

/* ---- which connections ---- */
static bool of_older_generation(const struct connection *c, const void *g)
{
	return c->opened && generation_cmp(c->generation, *(const struct generation *)g) < 0;
}
static bool is_opened(const struct connection *c, const void *what G_GNUC_UNUSED) { return c->opened; }
static bool is_any(const struct connection *c G_GNUC_UNUSED, const void *what G_GNUC_UNUSED) { return true; }
static bool of_vm(const struct connection *c, const void *vm) { return c->opened && c->vm == vm; }

/* ---- what the agent asks for ---- */
void sink_generation(struct sink *sink, struct generation g)
{
	g_mutex_lock(&sink->lock);
	copy_host_generation(&sink->host, g);
	g_mutex_unlock(&sink->lock);
	connection_end_all(sink, of_older_generation, &g);
}

void sink_commit(struct sink *sink, struct epoch_id r) { post_all(sink, (struct post){ true, r }); }
void sink_discard(struct sink *sink, struct epoch_id r) { post_all(sink, (struct post){ false, r }); }

static bool holding(struct sink_vm *vm, struct message_holding *out)
{
	sink_lock(vm);
	bool any = copy_holding(&vm->copy, vm->id, out);
	g_mutex_unlock(&vm->lock);
	return any;
}

void sink_tell(struct sink *sink)
{
	g_mutex_lock(&sink->lock);
	copy_host_tell(&sink->host);
	g_mutex_unlock(&sink->lock);
}

uint32_t sink_holdings(struct sink *sink, struct message_holding out[static VCFT_VM_MAX])
{
	uint32_t n = 0;
	connection_wake_all(sink);
	for (unsigned i = 0; i < VCFT_VM_MAX; i++)
		if (g_atomic_int_get(&sink->vm[i].used))
			n += holding(&sink->vm[i], &out[n]);
	return n;
}

void sink_recover(struct sink *sink, struct epoch_id c)
{
	connection_end_all(sink, is_opened, NULL);
	for (unsigned i = 0; i < VCFT_VM_MAX; i++) {
		struct sink_vm *vm = &sink->vm[i];
		if (!g_atomic_int_get(&vm->used))
			continue;
		sink_lock(vm);
		bool applied;
		copy_recover(&vm->copy, c, &applied);
		if (applied)
			apply(vm, c);
		sink_follow(vm);
		g_mutex_unlock(&vm->lock);
	}
}

struct image *sink_take(struct sink *sink, struct vm_id id)
{
	struct sink_vm *vm = &sink->vm[id.n];
	connection_end_all(sink, of_vm, vm);
	sink_lock(vm);
	struct image *image = g_steal_pointer(&vm->image);
	copy_drop(&vm->copy);
	sink_follow(vm);
	g_mutex_unlock(&vm->lock);
	if (image)
		image_set_disks_writable(image, false, NULL);
	return image;
}

void sink_give(struct sink *sink, struct vm_id id, struct image *image)
{
	struct sink_vm *vm = &sink->vm[id.n];
	if (!image_set_disks_writable(image, true, NULL)) {
		image_remove(image);    /* then it is not held here */
		return;
	}
	connection_end_all(sink, of_vm, vm);
	sink_lock(vm);
	if (vm->image != image)
		image_free(g_steal_pointer(&vm->image));
	vm->image = image;
	copy_give(&vm->copy, image_epoch(image), image_complete(image));
	count_image(vm);
	sink_follow(vm);
	g_mutex_unlock(&vm->lock);
	g_atomic_int_set(&vm->used, 1);
}

static void drop(struct sink_vm *vm)
{
	sink_lock(vm);
	copy_drop(&vm->copy);
	sink_follow(vm);
	g_mutex_unlock(&vm->lock);
}

void sink_drop(struct sink *sink, struct vm_id id)
{
	connection_end_all(sink, of_vm, &sink->vm[id.n]);
	drop(&sink->vm[id.n]);
}

void sink_clear(struct sink *sink)
{
	connection_end_all(sink, is_opened, NULL);
	for (unsigned i = 0; i < VCFT_VM_MAX; i++)
		if (g_atomic_int_get(&sink->vm[i].used))
			drop(&sink->vm[i]);
}

void sink_memory(struct sink *sink, struct sink_memory *ret_memory)
{
	*ret_memory = (struct sink_memory){
		.image_bytes = (uint64_t)__atomic_load_n(&sink->image_bytes, __ATOMIC_RELAXED),
		.stage_bytes = (uint64_t)__atomic_load_n(&sink->stage_bytes, __ATOMIC_RELAXED),
		.refused_memory = (guint)g_atomic_int_get(&sink->refused_memory),
		.refused_space = (guint)g_atomic_int_get(&sink->refused_space),
		.damaged = (guint)g_atomic_int_get(&sink->damaged),
	};
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

void sink_name_host(struct sink *sink, struct host_id host, const char *name)
{
	MUST("S8", host.n && host.n <= VCFT_HOST_MAX);
	g_mutex_lock(&sink->lock);
	g_strlcpy(sink->names[host.n], name ? name : "", sizeof sink->names[host.n]);
	g_mutex_unlock(&sink->lock);
}

struct sink *sink_new(struct host_id self, const char *address, uint16_t *inout_port, const struct tls_credentials *credentials,
                      const struct sink_limits *limits, const struct sink_callbacks *callbacks, void *user, GError **error)
{
	int fd = address ? listen_on(address, inout_port, error) : -1;
	if (address && fd < 0)
		return NULL;
	struct sink *sink = g_new0(struct sink, 1);
	sink->self = self;
	sink->limits = *limits;
	sink->credentials = credentials;
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
	for (unsigned i = 0; i < SINK_WORKERS; i++)
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
	connection_end_all(sink, is_any, NULL);
	for (unsigned i = 0; i < SINK_WORKERS; i++)
		g_thread_join(sink->worker[i]);
	connection_join_ended(sink);
	if (sink->listener >= 0)
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
