/* source.c - the sender: a VM's epochs to its backups, and its committed pages to the shadow.
 *
 *   source_send ─► plan ─► encode ─┬─► peer (backup 1) ──► OPEN EPOCH PAGES.. DEVICES, and once source_record() came: CHANNEL EPOCH_END
 *                   shadow ref. ◄──┴─► peer (backup 2)                                     │
 *   stored() ◄── all acknowledged ◄────────────────────────────────────────────────────────┘     source_commit ─► pages to the shadow
 *
 *      IDLE ──send──► POSTED ──thread──► SENDING ──all acknowledged──► STORED ──commit──► IDLE
 *                                           └──────a backup failed───► FAILED                    abort: from any to IDLE
 *
 *  S6 At most one epoch is uncommitted: source_send only in IDLE, commit only in STORED and of that epoch.
 *  S7 Pages go out strictly ascending by (region, page): region after region, in each first XOR (before the cursor), then LITERAL (the window).
 *  T1 A chunk is encoded once and sent to every backup that needs just that: chunks are cut where the set of receivers changes.
 *  T2 What the caller lends is read only in SENDING and during a commit; abort returns after the thread has left it.
 *  T3 stored() is called exactly once for an epoch that is not aborted before, without locks.
 *  T4 The shadow's space is taken before EPOCH_END goes out: a commit cannot fail. No space: stored(not ok, nobody failed).
 *  T5 A backup that makes no progress for timeout_ms, while it owes some, has failed. Waiting for the record is nobody's debt.
 *
 * Threads: the source's own does all work; callers post requests under `lock` and wait for `changed`. */
#include "store/store-private.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define FILL_DEFAULT (8u << 20)
#define TIMEOUT_DEFAULT 10000u
#define QUEUE_MAX (16u << 20)      /* bytes queued for a backup before encoding waits for it */

enum source_phase { SOURCE_IDLE, SOURCE_POSTED, SOURCE_SENDING, SOURCE_STORED, SOURCE_FAILED };

struct source {
	struct source_options options;
	struct image *shadow;
	struct source_callbacks callbacks;
	void *user;
	GThread *thread;
	int wake;                                  /* eventfd: a request was posted */

	GMutex lock;                               /* guards the rest of this block */
	GCond changed;
	enum source_phase phase;
	bool quit, abort_wanted, commit_wanted;
	struct source_epoch epoch;                 /* phase != IDLE */
	GBytes *record; struct epoch_id record_epoch;
	struct source_backup *wanted; unsigned wanted_count; host_mask wanted_complete; /* wanted NULL: nothing new */

	/* the thread's own */
	struct store_shape shape;
	GPtrArray *peers;
	struct delta_encoder *encoder;
	host_mask receivers;                       /* of the chunk that is being encoded */
	GBytes *record_sent;
	struct source_stats stats;
	char why[192];
};

/* ---- requests ---- */
static void wake(struct source *s)
{
	uint64_t one = 1;
	while (write(s->wake, &one, sizeof one) < 0 && errno == EINTR)
		;
}

/* The thread must leave the epoch. */
static bool cancelled(struct source *s)
{
	g_mutex_lock(&s->lock);
	bool c = s->quit || s->abort_wanted;
	g_mutex_unlock(&s->lock);
	return c;
}

void source_set_backups(struct source *s, const struct source_backup *backups, unsigned count, host_mask complete)
{
	g_mutex_lock(&s->lock);
	g_free(s->wanted);
	s->wanted = g_new0(struct source_backup, count + 1);
	if (count)
		memcpy(s->wanted, backups, count * sizeof *backups);
	s->wanted_count = count;
	s->wanted_complete = complete;
	g_mutex_unlock(&s->lock);
	wake(s);
}

void source_send(struct source *s, const struct source_epoch *epoch)
{
	g_mutex_lock(&s->lock);
	MUST("S6", s->phase == SOURCE_IDLE);
	s->epoch = *epoch;
	s->phase = SOURCE_POSTED;
	g_mutex_unlock(&s->lock);
	wake(s);
}

void source_record(struct source *s, struct epoch_id r, GBytes *record)
{
	g_mutex_lock(&s->lock);
	if (s->record)
		g_bytes_unref(s->record);
	s->record = g_bytes_ref(record);
	s->record_epoch = r;
	g_mutex_unlock(&s->lock);
	wake(s);
}

void source_commit(struct source *s, struct epoch_id r)
{
	g_mutex_lock(&s->lock);
	MUST("S6", s->phase == SOURCE_STORED && epoch_cmp(s->epoch.epoch, r) == 0);
	s->commit_wanted = true;
	wake(s);
	while (s->commit_wanted)
		g_cond_wait(&s->changed, &s->lock);
	g_mutex_unlock(&s->lock);
}

void source_abort(struct source *s, struct epoch_id r)
{
	g_mutex_lock(&s->lock);
	if (s->phase != SOURCE_IDLE && epoch_cmp(s->epoch.epoch, r) == 0) {
		s->abort_wanted = true;
		wake(s);
		while (s->abort_wanted)
			g_cond_wait(&s->changed, &s->lock);
	}
	if (s->record && epoch_cmp(s->record_epoch, r) <= 0)
		g_clear_pointer(&s->record, g_bytes_unref);
	g_mutex_unlock(&s->lock);
}

/* ---- backups ---- */
static struct fill_cursor cursor_end(const struct source *s) { return (struct fill_cursor){ s->shape.regions, 0 }; }
static bool at_end(const struct source *s, struct fill_cursor c) { return c.region == s->shape.regions; }

static struct peer *peer_at(const struct source *s, guint i) { return g_ptr_array_index(s->peers, i); }

static struct peer *find_peer(GPtrArray *peers, const struct source_backup *b)
{
	for (guint i = 0; i < peers->len; i++) {
		struct peer *p = g_ptr_array_index(peers, i);
		if (p->to.host.n == b->host.n && p->to.port == b->port && !strcmp(p->to.address, b->address) && p->state != PEER_FAILED)
			return g_ptr_array_steal_index(peers, i);
	}
	return NULL;
}

/* Back to before the connection. An image at epoch 0 is empty: filling it costs nothing. */
static void peer_reset(struct source *s, struct peer *p)
{
	p->state = PEER_NEW;
	p->cursor = p->told_complete && image_epoch(s->shadow).n ? cursor_end(s) : (struct fill_cursor){ 0, 0 };
}

static void apply_wanted(struct source *s, const struct source_backup *wanted, unsigned count, host_mask complete)
{
	GPtrArray *peers = g_ptr_array_new_with_free_func((GDestroyNotify)peer_free);
	for (unsigned i = 0; i < count; i++) {
		struct peer *p = find_peer(s->peers, &wanted[i]);
		bool kept = p != NULL;
		if (!kept)
			p = peer_new(&wanted[i]);
		p->told_complete = host_in(complete, p->to.host);
		if (!kept)
			peer_reset(s, p);
		g_ptr_array_add(peers, p);
	}
	g_ptr_array_unref(s->peers);
	s->peers = peers;
}

static void take_wanted(struct source *s)
{
	g_mutex_lock(&s->lock);
	g_autofree struct source_backup *wanted = g_steal_pointer(&s->wanted);
	unsigned count = s->wanted_count;
	host_mask complete = s->wanted_complete;
	g_mutex_unlock(&s->lock);
	if (wanted)
		apply_wanted(s, wanted, count, complete);
}

static host_mask failed_peers(const struct source *s)
{
	host_mask m = 0;
	for (guint i = 0; i < s->peers->len; i++)
		if (peer_at(s, i)->state == PEER_FAILED)
			m |= host_bit(peer_at(s, i)->to.host);
	return m;
}

/* ---- poll ---- */
static nsec_t time_limit(const struct source *s)
{
	return (nsec_t)(s->options.timeout_ms ? s->options.timeout_ms : TIMEOUT_DEFAULT) * NSEC_PER_MSEC;
}

/* ms until the first backup is too late; -1: none owes anything. */
static int next_deadline(const struct source *s)
{
	nsec_t now = clock_now(), first = INT64_MAX;
	for (guint i = 0; i < s->peers->len; i++)
		if (peer_busy(peer_at(s, i)))
			first = MIN(first, peer_at(s, i)->progress + time_limit(s));
	if (first == INT64_MAX)
		return -1;
	return first <= now ? 0 : (int)((first - now) / NSEC_PER_MSEC + 1);
}

static void check_deadlines(struct source *s)
{
	for (guint i = 0; i < s->peers->len; i++)
		if (peer_busy(peer_at(s, i)) && clock_now() - peer_at(s, i)->progress >= time_limit(s))
			peer_fail(peer_at(s, i), "no progress");
}

/* Move bytes; wait: until something happens (a request, too). */
static void pump(struct source *s, bool wait)
{
	struct pollfd fd[1 + VCFT_HOST_MAX] = { { .fd = s->wake, .events = POLLIN } };
	guint n = MIN(s->peers->len, VCFT_HOST_MAX);
	for (guint i = 0; i < n; i++)
		fd[1 + i] = (struct pollfd){ .fd = peer_at(s, i)->fd, .events = peer_events(peer_at(s, i)) };
	if (poll(fd, 1 + n, wait ? next_deadline(s) : 0) > 0) {
		uint64_t count;
		if (fd[0].revents && read(s->wake, &count, sizeof count) < 0 && errno != EAGAIN)
			g_assert_not_reached();
		for (guint i = 0; i < n; i++)
			if (fd[1 + i].revents)
				peer_event(peer_at(s, i), fd[1 + i].revents);
	}
	check_deadlines(s);
}

/* True: go on with the epoch. Waits while a backup has too much before it. */
static bool go_on(struct source *s)
{
	pump(s, false);
	for (guint i = 0; i < s->peers->len; i++)
		while (peer_at(s, i)->out_bytes > QUEUE_MAX && !cancelled(s))
			pump(s, true);
	return !failed_peers(s) && !cancelled(s);
}

/* ---- encode ---- */
static void put_to(struct source *s, host_mask receivers, GBytes *message, unsigned pages)
{
	for (guint i = 0; i < s->peers->len; i++) {
		struct peer *p = peer_at(s, i);
		if (!host_in(receivers, p->to.host))
			continue;
		peer_put(p, message, true);
		p->pages += pages;
		p->chunks += pages > 0;
	}
}

/* Send the chunk that is in the encoder. */
static bool flush_chunk(struct source *s)
{
	unsigned pages = delta_count(s->encoder);
	if (!pages)
		return true;
	g_autoptr(GBytes) message = delta_finish(s->encoder);
	s->stats.pages += pages;
	put_to(s, s->receivers, message, pages);
	return go_on(s);
}

/* The next page goes to these: T1. */
static bool page_for(struct source *s, host_mask receivers, unsigned region, enum delta_kind kind)
{
	if (s->receivers == receivers && delta_count(s->encoder) < STORE_CHUNK_PAGES)
		return true;
	if (!flush_chunk(s))
		return false;
	s->receivers = receivers;
	delta_begin(s->encoder, region, kind);
	return true;
}

/* Backups that have the shadow's content of this page. */
static host_mask peers_with(const struct source *s, unsigned region, uint64_t page)
{
	host_mask m = 0;
	for (guint i = 0; i < s->peers->len; i++)
		if (fill_before(region, page, peer_at(s, i)->cursor))
			m |= host_bit(peer_at(s, i)->to.host);
	return m;
}

static bool encode_xor(struct source *s, unsigned region)
{
	const struct source_pages *pages = &s->epoch.region[region];
	s->receivers = 0;
	delta_begin(s->encoder, region, DELTA_XOR);
	for (size_t i = 0; i < pages->count; i++) {
		host_mask to = peers_with(s, region, pages->index[i]);
		if (!to)
			break;    /* no cursor is behind this page, nor behind a later one */
		if (!page_for(s, to, region, DELTA_XOR))
			return false;
		const uint8_t *reference = image_page(s->shadow, region, pages->index[i]);
		delta_add(s->encoder, pages->index[i], pages->data[i], reference, region > 0 && !reference);
	}
	return flush_chunk(s);
}

/* Window pages of a region: the shadow's (list) and the epoch's, merged; the epoch's are newer. */
static bool encode_window(struct source *s, unsigned region, struct fill_cursor from, struct fill_cursor to, const GArray *list,
                          host_mask receivers)
{
	const struct source_pages *pages = &s->epoch.region[region];
	size_t i = 0, k = 0;
	s->receivers = 0;
	while (i < pages->count && fill_before(region, pages->index[i], from))
		i++;
	for (;;) {
		uint64_t dirty = i < pages->count && fill_before(region, pages->index[i], to) ? pages->index[i] : UINT64_MAX;
		uint64_t still = k < list->len ? g_array_index(list, uint64_t, k) : UINT64_MAX;
		uint64_t page = MIN(dirty, still);
		if (page == UINT64_MAX)
			return flush_chunk(s);
		if (!page_for(s, receivers, region, DELTA_LITERAL))
			return false;
		delta_add(s->encoder, page, page == dirty ? pages->data[i] : image_page(s->shadow, region, page), NULL, true);
		i += page == dirty;
		k += page == still;
	}
}

/* One window for all backups whose cursor is at the same place. */
struct window { struct fill_cursor from, to; host_mask receivers; GArray *list[STORE_REGION_MAX]; };

static void window_free(struct window *w)
{
	for (unsigned i = 0; i < STORE_REGION_MAX; i++)
		g_array_unref(w->list[i]);
	g_free(w);
}

static struct window *window_at(struct source *s, GPtrArray *windows, struct fill_cursor from)
{
	for (guint i = 0; i < windows->len; i++) {
		struct window *w = g_ptr_array_index(windows, i);
		if (w->from.region == from.region && w->from.page == from.page)
			return w;
	}
	struct window *w = g_new0(struct window, 1);
	w->from = from;
	for (unsigned i = 0; i < STORE_REGION_MAX; i++)
		w->list[i] = g_array_new(FALSE, FALSE, sizeof(uint64_t));
	w->to = fill_window(s->shadow, from, (s->options.fill_bytes ? s->options.fill_bytes : FILL_DEFAULT) / VCFT_PAGE_SIZE, w->list);
	g_ptr_array_add(windows, w);
	return w;
}

static GPtrArray *plan_windows(struct source *s)
{
	GPtrArray *windows = g_ptr_array_new_with_free_func((GDestroyNotify)window_free);
	for (guint i = 0; i < s->peers->len; i++) {
		struct peer *p = peer_at(s, i);
		p->next = p->cursor;
		if (at_end(s, p->cursor))
			continue;
		struct window *w = window_at(s, windows, p->cursor);
		w->receivers |= host_bit(p->to.host);
		p->next = w->to;
	}
	return windows;
}

static bool encode_pages(struct source *s)
{
	nsec_t start = clock_now();
	g_autoptr(GPtrArray) windows = plan_windows(s);
	bool ok = true;
	for (unsigned r = 0; ok && r < s->shape.regions; r++) {
		ok = encode_xor(s, r);
		for (guint i = 0; ok && i < windows->len; i++) {
			struct window *w = g_ptr_array_index(windows, i);
			ok = encode_window(s, r, w->from, w->to, w->list[r], w->receivers);
		}
	}
	s->stats.encode_time = clock_now() - start;
	return ok;
}

/* ---- an epoch ---- */
static void open_peer(struct source *s, struct peer *p)
{
	struct stream_open m = { .host = s->options.self, .vm = s->options.vm, .generation = s->epoch.generation,
	                         .base = image_epoch(s->shadow), .flags = at_end(s, p->cursor) ? 0 : STREAM_FRESH, .shape = s->shape };
	uint8_t out[STREAM_MESSAGE_MAX];
	peer_connect(p);
	p->generation = s->epoch.generation;
	peer_put_bytes(p, out, stream_put_open(out, &m), false);
}

/* OPEN where there is no connection of this generation, then EPOCH. */
static void begin_epoch(struct source *s, struct peer *p)
{
	struct stream_epoch m = { s->epoch.generation, s->epoch.epoch, image_epoch(s->shadow) };
	uint8_t out[STREAM_MESSAGE_MAX];
	p->pages = p->chunks = 0;
	p->active = true;
	p->ended = p->acked = false;
	p->epoch = s->epoch.epoch;
	if (p->state != PEER_NEW && generation_cmp(p->generation, s->epoch.generation))
		peer_reset(s, p);
	if (p->state == PEER_NEW)
		open_peer(s, p);
	if (p->state == PEER_FAILED)
		return;
	XXH3_128bits_reset(p->sum);
	peer_put_bytes(p, out, stream_put_epoch(out, &m), true);
}

static void put_message(struct source *s, enum message_type type, const void *data, size_t n)
{
	uint8_t *all = g_malloc(MESSAGE_HEADER_BYTES + n);
	message_header_encode(all, type, n);
	if (n)
		memcpy(all + MESSAGE_HEADER_BYTES, data, n);
	g_autoptr(GBytes) message = g_bytes_new_take(all, MESSAGE_HEADER_BYTES + n);
	put_to(s, ~UINT64_C(0), message, 0);
}

static bool wait_record(struct source *s)
{
	for (;;) {
		g_mutex_lock(&s->lock);
		if (s->record && epoch_cmp(s->record_epoch, s->epoch.epoch) == 0)
			s->record_sent = g_steal_pointer(&s->record);
		g_mutex_unlock(&s->lock);
		if (s->record_sent)
			return true;
		if (failed_peers(s) || cancelled(s))
			return false;
		pump(s, true);
	}
}

static void end_epoch(struct source *s, struct peer *p)
{
	struct stream_end m = { .pages = p->pages, .raw_bytes = p->pages * VCFT_PAGE_SIZE, .chunks = p->chunks,
	                        .ram_hash = { s->epoch.ram_hash[0], s->epoch.ram_hash[1] },
	                        .flags = at_end(s, p->next) ? STREAM_COMPLETE : 0 };
	uint8_t out[STREAM_MESSAGE_MAX];
	peer_put_bytes(p, out, stream_put_end(out, &m, p->sum), false);
	p->ended = true;
}

static bool wait_acks(struct source *s)
{
	for (;;) {
		bool all = true;
		for (guint i = 0; i < s->peers->len; i++)
			all = all && peer_at(s, i)->acked;
		if (failed_peers(s) || cancelled(s))
			return false;
		if (all)
			return true;
		pump(s, true);
	}
}

/* T4. Behind the encoding: pages that are reserved look like content to it. */
static bool reserve_shadow(struct source *s)
{
	g_autoptr(GError) error = NULL;
	if (image_reserve(s->shadow, 0, s->epoch.region[0].index, s->epoch.region[0].count, &error))
		return true;
	g_snprintf(s->why, sizeof s->why, "shadow: %s", error->message);
	return false;
}

static bool send_epoch(struct source *s)
{
	for (guint i = 0; i < s->peers->len; i++)
		begin_epoch(s, peer_at(s, i));
	if (failed_peers(s) || !encode_pages(s))
		return false;
	put_message(s, MESSAGE_DEVICES, s->epoch.devices, s->epoch.devices_bytes);
	pump(s, false);
	if (!reserve_shadow(s) || !wait_record(s))
		return false;
	gsize n;
	const void *record = g_bytes_get_data(s->record_sent, &n);
	put_message(s, MESSAGE_CHANNEL, record, n);
	for (guint i = 0; i < s->peers->len; i++)
		end_epoch(s, peer_at(s, i));
	return wait_acks(s);
}

static uint64_t bytes_sent(const struct source *s)
{
	uint64_t n = 0;
	for (guint i = 0; i < s->peers->len; i++)
		n += peer_at(s, i)->sent;
	return n;
}

static bool sizes_fit(struct source *s)
{
	if (s->epoch.devices_bytes <= STORE_DEVICES_MAX)
		return true;
	g_snprintf(s->why, sizeof s->why, "device state of %zu bytes is too large", s->epoch.devices_bytes);
	return false;
}

static void report(struct source *s, bool ok)
{
	host_mask complete = 0, failed = failed_peers(s);
	for (guint i = 0; i < s->peers->len; i++) {
		struct peer *p = peer_at(s, i);
		if (ok && at_end(s, p->next))
			complete |= host_bit(p->to.host);
		if (p->state == PEER_FAILED && !*s->why)
			g_strlcpy(s->why, p->why, sizeof s->why);
	}
	s->stats.why = ok ? NULL : s->why;
	s->callbacks.stored(s->options.vm, s->epoch.epoch, ok, complete, failed, &s->stats, s->user);
}

static void run_epoch(struct source *s)
{
	uint64_t sent = bytes_sent(s);
	s->stats = (struct source_stats){ .raw_bytes = s->epoch.devices_bytes };
	for (unsigned i = 0; i < s->shape.regions; i++)
		s->stats.raw_bytes += s->epoch.region[i].count * VCFT_PAGE_SIZE;
	*s->why = 0;
	bool ok = sizes_fit(s) && send_epoch(s);
	s->stats.sent_bytes = bytes_sent(s) - sent;
	g_mutex_lock(&s->lock);
	bool silent = s->quit || s->abort_wanted;
	if (!silent)
		s->phase = ok ? SOURCE_STORED : SOURCE_FAILED;
	g_mutex_unlock(&s->lock);
	if (!silent)
		report(s, ok);
}

/* ---- commit and abort ---- */
static void commit(struct source *s)
{
	const struct source_pages *ram = &s->epoch.region[0];
	g_autoptr(GBytes) devices = g_bytes_new(s->epoch.devices, s->epoch.devices_bytes);
	for (size_t i = 0; i < ram->count; i++)
		image_put(s->shadow, 0, ram->index[i], ram->data[i]);
	image_advance(s->shadow, s->epoch.epoch, true, devices, s->record_sent);
	for (guint i = 0; i < s->peers->len; i++)
		peer_at(s, i)->cursor = peer_at(s, i)->next;
}

static void leave_epoch(struct source *s)
{
	g_clear_pointer(&s->record_sent, g_bytes_unref);
	for (guint i = 0; i < s->peers->len; i++) {
		peer_forget(peer_at(s, i));
		peer_at(s, i)->active = false;
	}
}

/* What the thread was asked to do next. */
enum request { REQUEST_NONE, REQUEST_QUIT, REQUEST_ABORT, REQUEST_COMMIT, REQUEST_SEND };

static enum request next_request(struct source *s)
{
	g_mutex_lock(&s->lock);
	enum request q = s->quit ? REQUEST_QUIT : s->abort_wanted ? REQUEST_ABORT : s->commit_wanted ? REQUEST_COMMIT :
	                 s->phase == SOURCE_POSTED ? REQUEST_SEND : REQUEST_NONE;
	if (q == REQUEST_SEND)
		s->phase = SOURCE_SENDING;
	g_mutex_unlock(&s->lock);
	return q;
}

static void request_done(struct source *s, bool *wanted)
{
	leave_epoch(s);
	g_mutex_lock(&s->lock);
	s->phase = SOURCE_IDLE;
	*wanted = false;
	g_cond_broadcast(&s->changed);
	g_mutex_unlock(&s->lock);
}

static gpointer source_thread(gpointer data)
{
	struct source *s = data;
	for (;;) {
		switch (next_request(s)) {
		case REQUEST_QUIT:
			return NULL;
		case REQUEST_COMMIT:
			commit(s);
			request_done(s, &s->commit_wanted);
			break;
		case REQUEST_ABORT:
			request_done(s, &s->abort_wanted);
			break;
		case REQUEST_SEND:
			take_wanted(s);
			run_epoch(s);
			break;
		case REQUEST_NONE:
			pump(s, true);
			break;
		}
	}
}

/* ---- life ---- */
struct source *source_new(const struct source_options *options, struct image *shadow, const struct source_callbacks *callbacks, void *user)
{
	struct source *s = g_new0(struct source, 1);
	s->options = *options;
	s->shadow = shadow;
	s->callbacks = *callbacks;
	s->user = user;
	s->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	g_mutex_init(&s->lock);
	g_cond_init(&s->changed);
	image_shape(shadow, &s->shape);
	s->peers = g_ptr_array_new_with_free_func((GDestroyNotify)peer_free);
	s->encoder = delta_encoder_new();
	s->thread = g_thread_new("source", source_thread, s);
	return s;
}

void source_free(struct source *s)
{
	if (!s)
		return;
	g_mutex_lock(&s->lock);
	s->quit = true;
	g_mutex_unlock(&s->lock);
	wake(s);
	g_thread_join(s->thread);
	g_ptr_array_unref(s->peers);
	delta_encoder_free(s->encoder);
	g_clear_pointer(&s->record, g_bytes_unref);
	g_clear_pointer(&s->record_sent, g_bytes_unref);
	g_free(s->wanted);
	close(s->wake);
	g_mutex_clear(&s->lock);
	g_cond_clear(&s->changed);
	g_free(s);
}
