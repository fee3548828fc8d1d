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
 *  T2 What the caller lends is read only in SENDING and during a commit; abort returns after the thread has left it.
 *  T3 stored() is called exactly once for an epoch that is not aborted before, without locks.
 *  T4 The shadow's space is taken before EPOCH_END goes out: a commit cannot fail. No space: stored(not ok, nobody failed).
 *  T5 A backup that makes no progress for timeout_ms, while it owes some, has failed; it takes nothing while it puts the last committed epoch into its
 *     image, for which it has the time that this may take (APPLY_LEAST). Waiting for the record is nobody's debt.
 *  T6 A backup that has taken less than rate_least, measured over RATE_WINDOW of the time in which more than RATE_QUEUE waited for it (here or in
 *     its socket), has failed: one that is slow would make all commits slow. What fits the queue counts for nothing: that is latency.
 *
 * Threads: the source's own does all work; callers post requests under `lock` and wait for `changed`. */
#include "store/source-private.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define TIMEOUT_DEFAULT 10000u
#define RATE_WINDOW (2 * NSEC_PER_SEC)
#define RATE_QUEUE (256u << 10)    /* bytes */
#define APPLY_LEAST 100000000u     /* bytes a second: T5 */
#define QUEUE_MAX (16u << 20)      /* bytes queued for a backup before encoding waits for it */

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
	s->record = record ? g_bytes_ref(record) : g_bytes_new(NULL, 0);
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
static struct peer *find_peer(GPtrArray *peers, const struct source_backup *b)
{
	for (guint i = 0; i < peers->len; i++) {
		struct peer *p = g_ptr_array_index(peers, i);
		if (p->to.host.n == b->host.n && p->to.port == b->port && !strcmp(p->to.address, b->address) && !strcmp(p->to.name, b->name) &&
		    p->state != PEER_FAILED)
			return g_ptr_array_steal_index(peers, i);
	}
	return NULL;
}

/* Back to before the connection. An image at epoch 0 is empty: filling it costs nothing. */
static void peer_reset(struct source *s, struct peer *p)
{
	p->state = PEER_NEW;
	p->cursor = p->told_complete && image_epoch(s->shadow).n ? source_end(s) : (struct fill_cursor){ 0, 0 };
}

static void apply_wanted(struct source *s, const struct source_backup *wanted, unsigned count, host_mask complete)
{
	GPtrArray *peers = g_ptr_array_new_with_free_func((GDestroyNotify)peer_free);
	for (unsigned i = 0; i < count; i++) {
		struct peer *p = find_peer(s->peers, &wanted[i]);
		bool kept = p != NULL;
		if (!kept)
			p = peer_new(&wanted[i], s->options.credentials);
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
		if (source_peer(s, i)->state == PEER_FAILED)
			m |= host_bit(source_peer(s, i)->to.host);
	return m;
}

/* ---- poll ---- */
static nsec_t time_limit(const struct source *s)
{
	nsec_t apply = (nsec_t)(s->committed_bytes * (NSEC_PER_SEC / NSEC_PER_MSEC) / APPLY_LEAST);   /* ms */
	return ((nsec_t)(s->options.timeout_ms ? s->options.timeout_ms : TIMEOUT_DEFAULT) + apply) * NSEC_PER_MSEC;
}

/* ms until the first backup is too late; -1: none owes anything. */
static int next_deadline(const struct source *s)
{
	nsec_t now = clock_now(), first = INT64_MAX;
	for (guint i = 0; i < s->peers->len; i++)
		if (peer_busy(source_peer(s, i)))
			first = MIN(first, source_peer(s, i)->progress + time_limit(s));
	if (first == INT64_MAX)
		return -1;
	if (s->options.rate_least)
		first = MIN(first, now + RATE_WINDOW / 4);
	return first <= now ? 0 : (int)((first - now) / NSEC_PER_MSEC + 1);
}

static void check_deadlines(struct source *s)
{
	for (guint i = 0; i < s->peers->len; i++)
		if (peer_busy(source_peer(s, i)) && clock_now() - source_peer(s, i)->progress >= time_limit(s))
			peer_fail(source_peer(s, i), "no progress");
}

/* T6 */
static void check_rate(struct source *s, struct peer *p)
{
	if (!peer_measure(p, RATE_QUEUE) || p->waited < RATE_WINDOW)
		return;
	double rate = (double)p->taken / ((double)p->waited / NSEC_PER_SEC);
	p->waited = 0;
	p->taken = 0;
	if (rate >= (double)s->options.rate_least)
		return;
	g_autofree char *why = g_strdup_printf("too slow: %.2f MB/s, at least %.2f are wanted", rate / 1e6, (double)s->options.rate_least / 1e6);
	peer_fail(p, why);
}

static void check_rates(struct source *s)
{
	for (guint i = 0; s->options.rate_least && i < s->peers->len; i++)
		if (source_peer(s, i)->state == PEER_OPEN)
			check_rate(s, source_peer(s, i));
}

/* Move bytes; wait: until something happens (a request, too). */
static void pump(struct source *s, bool wait)
{
	struct pollfd fd[1 + VCFT_HOST_MAX] = { { .fd = s->wake, .events = POLLIN } };
	guint n = MIN(s->peers->len, VCFT_HOST_MAX);
	for (guint i = 0; i < n; i++)
		fd[1 + i] = (struct pollfd){ .fd = source_peer(s, i)->fd, .events = peer_events(source_peer(s, i)) };
	if (poll(fd, 1 + n, wait ? next_deadline(s) : 0) > 0) {
		uint64_t count;
		if (fd[0].revents && read(s->wake, &count, sizeof count) < 0 && errno != EAGAIN)
			g_assert_not_reached();
		for (guint i = 0; i < n; i++)
			if (fd[1 + i].revents)
				peer_event(source_peer(s, i), fd[1 + i].revents);
	}
	check_deadlines(s);
	check_rates(s);
}

bool source_go_on(struct source *s)
{
	pump(s, false);
	for (guint i = 0; i < s->peers->len; i++)
		while (source_peer(s, i)->out_bytes > QUEUE_MAX && !cancelled(s))
			pump(s, true);
	return !failed_peers(s) && !cancelled(s);
}

void source_put(struct source *s, host_mask receivers, GBytes *message, unsigned pages)
{
	for (guint i = 0; i < s->peers->len; i++) {
		struct peer *p = source_peer(s, i);
		if (!host_in(receivers, p->to.host))
			continue;
		peer_put(p, message, true);
		p->pages += pages;
		p->chunks += pages > 0;
	}
}

/* ---- an epoch ---- */
static void open_peer(struct source *s, struct peer *p)
{
	struct stream_open m = { .host = s->options.self, .vm = s->options.vm, .generation = s->epoch.generation,
	                         .base = image_epoch(s->shadow), .flags = source_at_end(s, p->cursor) ? 0 : STREAM_FRESH, .shape = s->shape };
	uint8_t out[STREAM_MESSAGE_MAX];
	peer_connect(p);
	p->generation = s->epoch.generation;
	peer_put_open(p, out, stream_put_open(out, &m));
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

static void put_bytes(struct source *s, enum message_type type, const void *data, size_t n)
{
	g_autoptr(GBytes) message = delta_bytes(s->encoder, type, data, n);
	source_put(s, ~UINT64_C(0), message, 0);
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
	                        .flags = source_at_end(s, p->next) ? STREAM_COMPLETE : 0 };
	uint8_t out[STREAM_MESSAGE_MAX];
	peer_put_bytes(p, out, stream_put_end(out, &m, p->sum), false);
	p->ended = true;
}

static bool wait_acks(struct source *s)
{
	for (;;) {
		bool all = true;
		for (guint i = 0; i < s->peers->len; i++)
			all = all && source_peer(s, i)->acked;
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

static bool fits(struct source *s, const char *what, size_t bytes)
{
	if (bytes <= STORE_DEVICES_MAX)
		return true;
	g_snprintf(s->why, sizeof s->why, "%s of %zu bytes: at most %u", what, bytes, STORE_DEVICES_MAX);
	return false;
}

static bool send_epoch(struct source *s)
{
	if (!fits(s, "device state", s->epoch.devices_bytes))
		return false;
	for (guint i = 0; i < s->peers->len; i++)
		begin_epoch(s, source_peer(s, i));
	if (failed_peers(s) || !source_encode(s))
		return false;
	put_bytes(s, MESSAGE_DEVICES, s->epoch.devices, s->epoch.devices_bytes);
	pump(s, false);
	if (!reserve_shadow(s) || !wait_record(s))
		return false;
	gsize n;
	const void *record = g_bytes_get_data(s->record_sent, &n);
	if (!fits(s, "record", n))
		return false;
	put_bytes(s, MESSAGE_CHANNEL, record, n);
	for (guint i = 0; i < s->peers->len; i++)
		end_epoch(s, source_peer(s, i));
	return wait_acks(s);
}

static uint64_t bytes_sent(const struct source *s)
{
	uint64_t n = 0;
	for (guint i = 0; i < s->peers->len; i++)
		n += source_peer(s, i)->sent;
	return n;
}


static void report(struct source *s, bool ok)
{
	host_mask complete = 0, failed = failed_peers(s);
	for (guint i = 0; i < s->peers->len; i++) {
		struct peer *p = source_peer(s, i);
		if (ok && source_at_end(s, p->next))
			complete |= host_bit(p->to.host);
		if (p->state == PEER_FAILED && !*s->why)
			g_strlcpy(s->why, p->why, sizeof s->why);
	}
	s->stats.why = ok ? NULL : s->why;
	s->callbacks.stored(s->options.vm, s->epoch.epoch, ok, complete, failed, &s->stats, s->user);
}

/* S7 */
static size_t checked_count(const struct source_pages *pages, uint64_t room)
{
	for (size_t i = 0; i < pages->count; i++)
		MUST("S7", pages->index[i] < room && (!i || pages->index[i] > pages->index[i - 1]));
	return pages->count;
}

static void run_epoch(struct source *s)
{
	uint64_t sent = bytes_sent(s);
	s->stats = (struct source_stats){ .raw_bytes = s->epoch.devices_bytes };
	for (unsigned i = 0; i < s->shape.regions; i++)
		s->stats.raw_bytes += checked_count(&s->epoch.region[i], s->shape.pages[i]) * VCFT_PAGE_SIZE;
	*s->why = 0;
	bool ok = send_epoch(s);
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
	s->committed_bytes = s->stats.raw_bytes;
	for (guint i = 0; i < s->peers->len; i++)
		source_peer(s, i)->cursor = source_peer(s, i)->next;
}

static void leave_epoch(struct source *s)
{
	g_clear_pointer(&s->record_sent, g_bytes_unref);
	for (guint i = 0; i < s->peers->len; i++) {
		peer_forget(source_peer(s, i));
		source_peer(s, i)->active = false;
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
struct source *source_new(const struct source_options *options, struct image *shadow, const struct source_callbacks *callbacks, void *user,
                          GError **error)
{
	int wakeup = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (wakeup < 0) {
		g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(errno), "replication: %s", g_strerror(errno));
		return NULL;
	}
	struct source *s = g_new0(struct source, 1);
	s->options = *options;
	s->shadow = shadow;
	s->callbacks = *callbacks;
	s->user = user;
	s->wake = wakeup;
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
