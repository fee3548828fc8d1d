/* encode.c - the pages of an epoch, coded once and sent to each backup that needs just that.
 *
 *   region r:   epoch's pages before the cursors ──words that differ───►  backups whose cursor is behind them
 *               each window at a cursor          ──literally──►            backups with that cursor
 *
 *  S7 Pages go out strictly ascending by (region, page), for each backup: region after region, in each first the words (before its cursor), then
 *     its window (behind it).
 *  T1 A chunk is encoded once and sent to every backup that needs just that: chunks are cut where the set of receivers changes.
 *  T7 An epoch carries as much filling as keeps it at about a quarter of the time between two epochs (of a second at most; FILL_TIME at least) to encode
 *     and hand on: twice as much after one that took less than half of that, half as much after one that took longer; never less than fill_bytes. So a
 *     backup is complete soon, also on a busy machine, and commits stay short.
 *
 *  I5 What is taken of the shadow, as the base of a delta or to fill a backup, is as it was put there, or the epoch is given up.
 *
 * A disk page that the shadow does not have is sent even if it is zero: that the guest wrote it is what the map says.
 * Thread: the source's. */
#include "store/source-private.h"

#define FILL_TIME (25 * NSEC_PER_MSEC)
#define FILL_SHARE 4

/* Send the chunk that is in the encoder. */
static bool flush_chunk(struct source *s)
{
	unsigned pages = delta_count(s->encoder);
	if (!pages)
		return true;
	g_autoptr(GBytes) message = delta_finish(s->encoder);
	s->stats.pages += pages;
	source_put(s, s->receivers, message, pages);
	return source_go_on(s);
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

/* I5 */
static bool shadow_sound(struct source *s, unsigned region, uint64_t page)
{
	g_autoptr(GError) error = NULL;
	if (image_sound(s->shadow, region, page))
		return true;
	if (!image_intact(s->shadow, &error))
		g_snprintf(s->why, sizeof s->why, "shadow: %s", error->message);
	return false;
}

/* Backups that have the shadow's content of this page. */
static host_mask peers_with(const struct source *s, unsigned region, uint64_t page)
{
	host_mask m = 0;
	for (guint i = 0; i < s->peers->len; i++)
		if (fill_before(region, page, source_peer(s, i)->cursor))
			m |= host_bit(source_peer(s, i)->to.host);
	return m;
}

static bool encode_words(struct source *s, unsigned region)
{
	const struct source_pages *pages = &s->epoch.region[region];
	s->receivers = 0;
	delta_begin(s->encoder, region, DELTA_WORDS);
	for (size_t i = 0; i < pages->count; i++) {
		host_mask to = peers_with(s, region, pages->index[i]);
		if (!to)
			break;    /* no cursor is behind this page, nor behind a later one */
		if (!shadow_sound(s, region, pages->index[i]) || !page_for(s, to, region, DELTA_WORDS))
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
		if ((page != dirty && !shadow_sound(s, region, page)) || !page_for(s, receivers, region, DELTA_LITERAL))
			return false;
		delta_add(s->encoder, page, page == dirty ? pages->data[i] : image_page(s->shadow, region, page), NULL, true);
		i += page == dirty;
		k += page == still;
	}
}

static size_t fill_least(const struct source *s) { return s->options.fill_bytes ? s->options.fill_bytes : SOURCE_FILL_DEFAULT; }

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
	w->to = fill_window(s->shadow, from, s->fill_bytes / VCFT_PAGE_SIZE, w->list);
	g_ptr_array_add(windows, w);
	return w;
}

static GPtrArray *plan_windows(struct source *s)
{
	GPtrArray *windows = g_ptr_array_new_with_free_func((GDestroyNotify)window_free);
	for (guint i = 0; i < s->peers->len; i++) {
		struct peer *p = source_peer(s, i);
		p->next = p->cursor;
		if (source_at_end(s, p->cursor))
			continue;
		struct window *w = window_at(s, windows, p->cursor);
		w->receivers |= host_bit(p->to.host);
		p->next = w->to;
	}
	return windows;
}

/* T7 */
static void learn_fill(struct source *s, bool filled)
{
	nsec_t most = MAX(FILL_TIME, MIN(s->between, NSEC_PER_SEC) / FILL_SHARE);
	if (filled && s->stats.encode_time < most / 2)
		s->fill_bytes = MAX(fill_least(s), MIN(2 * s->fill_bytes, s->options.fill_most));
	else if (s->stats.encode_time > most)
		s->fill_bytes = MAX(fill_least(s), s->fill_bytes / 2);
}

bool source_encode(struct source *s)
{
	nsec_t start = clock_now();
	s->between = s->encoded ? start - s->encoded : 0;
	s->encoded = start;
	s->fill_bytes = s->fill_bytes ? s->fill_bytes : fill_least(s);
	g_autoptr(GPtrArray) windows = plan_windows(s);
	bool ok = true;
	for (unsigned r = 0; ok && r < s->shape.regions; r++) {
		ok = encode_words(s, r);
		for (guint i = 0; ok && i < windows->len; i++) {
			struct window *w = g_ptr_array_index(windows, i);
			ok = encode_window(s, r, w->from, w->to, w->list[r], w->receivers);
		}
	}
	s->stats.encode_time = clock_now() - start;
	learn_fill(s, windows->len > 0);
	return ok;
}
