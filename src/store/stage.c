/* stage.c - an epoch that came in over the stream and is not committed yet.
 *
 *   EPOCH ──► PAGES PAGES ... ──► DEVICES ──► CHANNEL ──► EPOCH_END        complete: totals and checksum are right (S2)
 *
 * Pages wait decoded, as words that change or whole: committing is a pass of memory, and needs nothing that could be missing. Nothing here looks at the
 * image before that.
 *
 *  S2 A stage is complete only if every chunk decoded, totals and checksum are right.
 *  S7 Pages come strictly ascending by (region, page) over the whole epoch: none comes twice, so a stage is never larger than the VM.
 *
 *  I6 What waits is applied only as it came: each chunk, device state and record have a checksum from when they came in, looked at again when they are
 *     applied.
 *
 * Thread: one at a time; `counter` (bytes of all stages) is atomic. */
#include "store/store-private.h"

#include "base/sum.h"

#include <gio/gio.h>

#include <stdlib.h>

enum stage_state { STAGE_NEW, STAGE_PAGES, STAGE_DEVICES, STAGE_CHANNEL, STAGE_COMPLETE, STAGE_BROKEN };

struct stage {
	enum stage_state state;
	struct store_shape shape;
	struct epoch_id epoch, base;
	size_t limit, bytes;
	gint64 *counter;
	XXH3_state_t *sum;
	GPtrArray *chunks;         /* struct delta_chunk */
	uint64_t pages, raw_bytes;
	struct fill_cursor next;   /* S7: pages before it have come or are left out */
	GBytes *devices, *record;
	uint64_t devices_sum, record_sum;
	struct stream_end end;
};

struct stage *stage_new(const struct store_shape *shape, struct epoch_id epoch, struct epoch_id base, size_t limit, gint64 *counter)
{
	struct stage *s = g_new0(struct stage, 1);
	s->shape = *shape;
	s->epoch = epoch;
	s->base = base;
	s->limit = limit ? limit : SIZE_MAX;
	s->counter = counter;
	s->sum = XXH3_createState();
	XXH3_128bits_reset(s->sum);
	s->chunks = g_ptr_array_new_with_free_func((GDestroyNotify)delta_chunk_free);
	return s;
}

void stage_free(struct stage *s)
{
	if (!s)
		return;
	if (s->counter)
		__atomic_sub_fetch(s->counter, (gint64)s->bytes, __ATOMIC_RELAXED);
	XXH3_freeState(s->sum);
	g_ptr_array_unref(s->chunks);
	g_clear_pointer(&s->devices, g_bytes_unref);
	g_clear_pointer(&s->record, g_bytes_unref);
	g_free(s);
}

static bool take_room(struct stage *s, size_t bytes)
{
	if (bytes > s->limit - s->bytes)
		return false;
	s->bytes += bytes;
	if (s->counter)
		__atomic_add_fetch(s->counter, (gint64)bytes, __ATOMIC_RELAXED);
	return true;
}

static enum store_status on_epoch(struct stage *s, const uint8_t *payload, size_t n)
{
	struct stream_epoch e;
	if (!stream_get_epoch(payload, n, &e) || epoch_cmp(e.epoch, s->epoch) || epoch_cmp(e.base, s->base))
		return STORE_BAD_MESSAGE;
	return STORE_OK;
}

static uint64_t chunk_sum(const struct delta_chunk *c)
{
	uint64_t fields = (uint64_t)c->region << 48 | (uint64_t)c->kind << 32 | c->count;
	return sum_number(XXH3_64bits(c->data, c->bytes)) + XXH3_64bits(c->index, c->count * sizeof *c->index) + sum_number(fields);
}

static enum store_status on_pages(struct stage *s, struct delta_decoder *decoder, const uint8_t *payload, size_t n)
{
	struct delta_header h;
	if (!delta_peek(payload, n, &s->shape, &h))
		return STORE_BAD_MESSAGE;
	if (!take_room(s, h.raw_bytes + (size_t)h.count * 8 + sizeof(struct delta_chunk)))
		return STORE_NO_ROOM;
	enum store_status status;
	struct delta_chunk *c = delta_decode(decoder, payload, n, &s->shape, &status);
	if (!c)
		return status;
	c->sum = chunk_sum(c);
	g_ptr_array_add(s->chunks, c);
	if (fill_before(c->region, c->index[0], s->next))
		return STORE_BAD_ORDER;
	s->next = (struct fill_cursor){ c->region, c->index[c->count - 1] + 1 };
	s->pages += c->count;
	s->raw_bytes += (uint64_t)h.count * VCFT_PAGE_SIZE;
	return STORE_OK;
}

static enum store_status on_bytes(struct stage *s, struct delta_decoder *decoder, GBytes **ret, uint64_t *ret_sum, const uint8_t *payload, size_t n)
{
	size_t bytes;
	enum store_status status;
	if (!delta_peek_bytes(payload, n, &bytes))
		return STORE_BAD_MESSAGE;
	if (!take_room(s, bytes))
		return STORE_NO_ROOM;
	*ret = delta_read_bytes(decoder, payload, n, bytes, &status);
	*ret_sum = store_bytes_sum(*ret);
	return *ret ? STORE_OK : status;
}

static enum store_status on_end(struct stage *s, const uint8_t *header, const uint8_t *payload, size_t n)
{
	if (!stream_get_end(payload, n, &s->end))
		return STORE_BAD_MESSAGE;
	XXH3_128bits_update(s->sum, header, MESSAGE_HEADER_BYTES);
	XXH3_128bits_update(s->sum, payload, STREAM_END_SUMMED);
	XXH128_hash_t h = XXH3_128bits_digest(s->sum);
	if (h.low64 != s->end.sum[0] || h.high64 != s->end.sum[1])
		return STORE_BAD_CHECKSUM;
	if (s->end.pages != s->pages || s->end.raw_bytes != s->raw_bytes || s->end.chunks != s->chunks->len)
		return STORE_BAD_MESSAGE;
	return STORE_OK;
}

/* The stream's grammar: state, message, next state. */
static const struct { enum stage_state state; enum message_type type; enum stage_state next; } grammar[] = {
	{ STAGE_NEW, MESSAGE_EPOCH, STAGE_PAGES },
	{ STAGE_PAGES, MESSAGE_PAGES, STAGE_PAGES },
	{ STAGE_PAGES, MESSAGE_DEVICES, STAGE_DEVICES },
	{ STAGE_DEVICES, MESSAGE_CHANNEL, STAGE_CHANNEL },
	{ STAGE_CHANNEL, MESSAGE_EPOCH_END, STAGE_COMPLETE },
};

static enum stage_state next_state(enum stage_state state, enum message_type type)
{
	for (size_t i = 0; i < G_N_ELEMENTS(grammar); i++)
		if (grammar[i].state == state && grammar[i].type == type)
			return grammar[i].next;
	return STAGE_BROKEN;
}

enum store_status stage_message(struct stage *s, struct delta_decoder *decoder, enum message_type type, const uint8_t *header,
                                const uint8_t *payload, size_t n)
{
	enum stage_state next = next_state(s->state, type);
	enum store_status status = STORE_BAD_ORDER;
	s->state = STAGE_BROKEN;
	if (next == STAGE_BROKEN)
		return status;
	if (type != MESSAGE_EPOCH_END) {
		XXH3_128bits_update(s->sum, header, MESSAGE_HEADER_BYTES);
		XXH3_128bits_update(s->sum, payload, n);
	}
	switch (type) {
	case MESSAGE_EPOCH: status = on_epoch(s, payload, n); break;
	case MESSAGE_PAGES: status = on_pages(s, decoder, payload, n); break;
	case MESSAGE_DEVICES: status = on_bytes(s, decoder, &s->devices, &s->devices_sum, payload, n); break;
	case MESSAGE_CHANNEL: status = on_bytes(s, decoder, &s->record, &s->record_sum, payload, n); break;
	case MESSAGE_EPOCH_END: status = on_end(s, header, payload, n); break;
	default: break;
	}
	if (status == STORE_OK)
		s->state = next;
	return status;
}

const struct delta_chunk *stage_last_chunk(const struct stage *s) { return g_ptr_array_index(s->chunks, s->chunks->len - 1); }
GBytes *stage_devices(const struct stage *s) { return s->devices; }
bool stage_complete(const struct stage *s) { return s->state == STAGE_COMPLETE; }
bool stage_fills(const struct stage *s) { return (s->end.flags & STREAM_COMPLETE) != 0; }
struct epoch_id stage_epoch(const struct stage *s) { return s->epoch; }
struct epoch_id stage_base(const struct stage *s) { return s->base; }
const uint64_t *stage_ram_hash(const struct stage *s) { return s->end.ram_hash; }
size_t stage_bytes(const struct stage *s) { return s->bytes; }

/* ---- apply ---- */
static gboolean fail_damaged(GError **error)
{
	g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "the stage is damaged: it is not what came in");
	return FALSE;
}

static gboolean apply_chunk(const struct delta_chunk *c, struct image *image, GError **error)
{
	if (c->sum != chunk_sum(c))
		return fail_damaged(error);
	const uint8_t *words = c->data + (size_t)c->count * PACK_MAP;
	for (uint32_t k = 0; k < c->count; k++)
		if (c->kind == DELTA_LITERAL)
			image_put(image, c->region, c->index[k], c->data + (size_t)k * VCFT_PAGE_SIZE);
		else if (!(words = image_patch(image, c->region, c->index[k], c->data + (size_t)k * PACK_MAP, words)))
			return image_intact(image, error);
	return TRUE;
}

gboolean stage_apply(const struct stage *s, struct image *image, GError **error)
{
	MUST("S1", stage_complete(s) && epoch_cmp(s->base, image_epoch(image)) == 0);
	if (store_bytes_sum(s->devices) != s->devices_sum || store_bytes_sum(s->record) != s->record_sum)
		return fail_damaged(error);
	for (guint i = 0; i < s->chunks->len; i++)
		if (!apply_chunk(g_ptr_array_index(s->chunks, i), image, error))
			return FALSE;
	image_advance(image, s->epoch, stage_fills(s), s->devices, s->record);
	return TRUE;
}
