/* fill.c - see fill.h. Threads: one that fills before the guest runs; then one that serves what QEMU waits for, and whoever calls fill_rest(). */
#include "vm/fill.h"

#include "base/fault.h"
#include "vm/preload/uffd.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#define MESSAGES 16u
#define BESIDE_NICE 10      /* of the early thread, where nobody waits for it: QEMU's start comes first */
#define ZERO_PAGES 16u      /* at most, for a page without content that is waited for */

static const uint8_t zeros[ZERO_PAGES * VCFT_PAGE_SIZE] __attribute__((aligned(4096)));

struct fill {
	const struct memory *memory;
	const struct vm_fill *from;
	bool done;                   /* atomic */
	bool enough;                 /* atomic: the early thread may end */
	bool beside;
	GThread *early, *server;
	GError *error;               /* of the early thread */
	uint64_t at;                 /* below it all is there */
	int uffd, stop;              /* -1: not yet */
	uint64_t address;
};

static bool is_set(const bool *flag) { return __atomic_load_n(flag, __ATOMIC_ACQUIRE); }
static void set(bool *flag) { __atomic_store_n(flag, true, __ATOMIC_RELEASE); }

bool fill_is_done(const struct fill *f) { return is_set(&f->done); }

static gboolean fail(GError **error, const char *what)
{
	int e = errno;
	g_set_error(error, VMM_ERROR, e == ENOSPC || e == ENOMEM ? VMM_ERROR_SPACE : VMM_ERROR_RAM, "RAM cannot be filled: %s: %s", what, g_strerror(e));
	return FALSE;
}

static const uint8_t *next_content(const struct fill *f, uint64_t *inout_first, uint64_t *ret_end, GError **error)
{
	return f->from->next(f->from->user, inout_first, ret_end, error);
}

/* ---- before the guest runs ---- */

static gboolean write_all(int fd, const uint8_t *data, uint64_t bytes, uint64_t offset, GError **error)
{
	while (bytes) {
		ssize_t n = pwrite(fd, data, bytes, (off_t)offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return fail(error, "write");
		data += n, offset += (uint64_t)n, bytes -= (uint64_t)n;
	}
	return TRUE;
}

typedef const uint8_t *(*next_pages)(void *user, uint64_t *inout_first, uint64_t *ret_end, GError **error);

/* At most so many pages, at or after *inout_at, until `enough` is set (NULL: never). True: there are no more. What is there already is written again: QEMU
 * looks at nothing yet, and it is the same (FI1). */
static bool put_early(struct fill *f, next_pages next, const bool *enough, uint64_t *inout_at, uint64_t *inout_left)
{
	for (uint64_t end; *inout_left && !(enough && is_set(enough)); *inout_left -= MIN(*inout_left, end - *inout_at), *inout_at = end) {
		const uint8_t *content = next(f->from->user, inout_at, &end, &f->error);
		if (!content)
			return !f->error;
		if (!write_all(f->memory->fd, content, (end - *inout_at) * VCFT_PAGE_SIZE, *inout_at * VCFT_PAGE_SIZE, &f->error))
			return false;
	}
	return false;
}

/* To the end. */
static void fill_all(struct fill *f)
{
	uint64_t left = UINT64_MAX;
	if (put_early(f, f->from->next, NULL, &f->at, &left))
		set(&f->done);
}

/* FILL_BESIDE is what fits beside a start: more of a large VM would hold up the starts of all others. */
static void fill_beside(struct fill *f)
{
	uint64_t left = f->beside ? FILL_BESIDE / VCFT_PAGE_SIZE : UINT64_MAX, at = 0;
	if (f->beside && f->from->recent)
		put_early(f, f->from->recent, &f->enough, &at, &left);
	if (!f->error && put_early(f, f->from->next, &f->enough, &f->at, &left))
		set(&f->done);
}

static gpointer early(gpointer user)
{
	struct fill *f = user;
	if (f->beside)
		setpriority(PRIO_PROCESS, (id_t)gettid(), BESIDE_NICE);
	if (!fault(FAULT_FILL_LATE))
		fill_beside(f);
	return NULL;
}

struct fill *fill_new(const struct memory *memory, const struct vm_fill *from, bool beside)
{
	struct fill *f = g_new0(struct fill, 1);
	*f = (struct fill){ .memory = memory, .from = from, .beside = beside, .uffd = -1, .stop = -1 };
	f->early = g_thread_new("fill", early, f);
	return f;
}

static void end_early(struct fill *f)
{
	if (f->early)
		g_thread_join(g_steal_pointer(&f->early));
}

static gboolean is_well(struct fill *f, GError **error)
{
	if (!f->error)
		return TRUE;
	g_propagate_error(error, g_steal_pointer(&f->error));
	return FALSE;
}

gboolean fill_finish(struct fill *f, GError **error)
{
	end_early(f);
	if (!f->error && !fill_is_done(f))
		fill_all(f);
	return is_well(f, error);
}

/* ---- while it runs ---- */

static void wake(const struct fill *f, uint64_t page)
{
	struct uffdio_range range = { f->address + page * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE };
	ioctl(f->uffd, UFFDIO_WAKE, &range);
}

/* FI2. A page that is there is left as it is; who waits for it may have come just before it was. */
static gboolean put(const struct fill *f, const uint8_t *content, uint64_t first, uint64_t end, GError **error)
{
	for (uint64_t page = first; page < end;) {
		struct uffdio_copy copy = { .dst = f->address + page * VCFT_PAGE_SIZE, .src = (uintptr_t)content + (page - first) * VCFT_PAGE_SIZE,
			                    .len = (end - page) * VCFT_PAGE_SIZE, .mode = UFFDIO_COPY_MODE_WP };
		if (ioctl(f->uffd, UFFDIO_COPY, &copy) == 0 || copy.copy > 0)
			page += (uint64_t)copy.copy / VCFT_PAGE_SIZE;
		else if (errno == EEXIST)
			wake(f, page++);
		else if (errno != EAGAIN && errno != EINTR)
			return fail(error, "UFFDIO_COPY");
	}
	return TRUE;
}

gboolean fill_rest(struct fill *f, const bool *stop, GError **error)
{
	GError *why = NULL;
	const uint8_t *content;
	for (uint64_t end; !fill_is_done(f) && (content = next_content(f, &f->at, &end, &why)); f->at = end) {
		if (stop && is_set(stop)) {
			g_set_error(error, VMM_ERROR, VMM_ERROR_RAM, "RAM is not filled: given up");
			return FALSE;
		}
		if (!put(f, content, f->at, end, error))
			return FALSE;
	}
	if (!why)
		set(&f->done);
	else
		g_propagate_error(error, why);
	return why == NULL;
}

/* The page, and some behind it. What fails is met again by fill_rest(), whose caller says so: QEMU waits until it is killed. */
static void serve(const struct fill *f, uint64_t page)
{
	g_autoptr(GError) error = NULL;
	uint64_t first = page, end;
	const uint8_t *content = next_content(f, &first, &end, &error);
	if (error)
		return;
	if (content && first == page)
		put(f, content, page, end, &error);
	else
		put(f, zeros, page, MIN(MIN(page + ZERO_PAGES, first), memory_pages(f->memory)), &error);
}

static void serve_messages(const struct fill *f)
{
	struct uffd_msg message[MESSAGES];
	ssize_t n = read(f->uffd, message, sizeof message);
	for (ssize_t i = 0; i < n / (ssize_t)sizeof message[0]; i++) {
		uint64_t page = (message[i].arg.pagefault.address - f->address) / VCFT_PAGE_SIZE;
		if (message[i].event == UFFD_EVENT_PAGEFAULT && page < memory_pages(f->memory))
			serve(f, page);
	}
}

/* FI5 */
static gpointer serve_until_stopped(gpointer user)
{
	struct fill *f = user;
	struct pollfd fd[] = { { .fd = f->stop, .events = POLLIN }, { .fd = f->uffd, .events = POLLIN } };
	while (fd[0].revents == 0) {
		if (poll(fd, 2, -1) < 0 && errno != EINTR)
			break;
		if (fd[1].revents & POLLIN)
			serve_messages(f);
		else if (fd[1].revents)
			fd[1].fd = -1;   /* QEMU has ended */
	}
	return NULL;
}

gboolean fill_go_on_behind(struct fill *f, int uffd, uint64_t address, GError **error)
{
	f->uffd = uffd;
	f->address = address;
	set(&f->enough);
	end_early(f);
	if (!is_well(f, error))
		return FALSE;
	f->stop = eventfd(0, EFD_CLOEXEC);
	if (f->stop < 0)
		return fail(error, "eventfd");
	f->server = g_thread_new("fill", serve_until_stopped, f);
	return TRUE;
}

/* ---- the end ---- */

void fill_stop(struct fill *f)
{
	set(&f->enough);
	end_early(f);
	if (f->server && eventfd_write(f->stop, 1) == 0)
		g_thread_join(g_steal_pointer(&f->server));
}

void fill_free(struct fill *f)
{
	if (!f)
		return;
	fill_stop(f);
	if (f->uffd >= 0)
		close(f->uffd);
	if (f->stop >= 0)
		close(f->stop);
	g_clear_error(&f->error);
	g_free(f);
}
