/* delta.c - chunks of pages, device state and record, as they travel: what differs from the reference, then zstd.
 *
 *   page, reference ──► words that differ (pack.c) ──zstd──► PAGES          PAGES ──zstd──► chunk: page numbers, maps and words
 *
 * Payload of PAGES: u32 region, u32 kind, u32 count, u32 compressed bytes, u32 raw bytes, u32 0; count x u64 page numbers; one zstd frame.
 * Kind WORDS: words to be put into the page; staging and the checksum of it do not depend on the image. A page equal to its reference is left out.
 * Raw are the maps of all pages, then their words. Kind LITERAL: the bytes are the page; for pages that the backup does not have.
 *
 *  C1 A payload is accepted only if every number in it is within its bounds, before memory is taken for it: 1..64 pages of an existing
 *     region, numbers ascending and below the region's size, raw bytes = pages, or maps and as many words as they name, the frame exactly the rest
 *     and exactly that big. Device state and record are one frame each, of at most STORE_DEVICES_MAX.
 *
 * Contexts and buffers are kept from chunk to chunk. Thread: one for each encoder or decoder. */
#include "store/store-private.h"

#include <stdlib.h>
#include <string.h>
#include <zstd.h>

/* Measured on the words of an MPI job and of Redis: level -2 leaves 18.2 and 5.4 % of the pages, -1 17.6 and 5.0 (at 0.94 to 0.98 of its pace), 1 16.6 and
 * 4.6 (0.74 to 0.85). Whole pages cost the same either way, and are 25% smaller with level 1. */
#define LEVEL_WORDS (-1)
#define LEVEL_LITERAL 1
#define LEVEL_BYTES 1

#define MAPS_ROOM ((size_t)STORE_CHUNK_PAGES * PACK_MAP)
#define RAW_MOST (MAPS_ROOM + STORE_CHUNK_RAW)

static_assert(STORE_PAGES_HEADER + STORE_CHUNK_PAGES * 8u + ZSTD_COMPRESSBOUND(RAW_MOST) == 267816u,
              "limit of PAGES in base/messages.def");
static_assert(ZSTD_COMPRESSBOUND(STORE_DEVICES_MAX) <= 67108864u, "limit of DEVICES and CHANNEL in base/messages.def");

/* 64 bytes at once: the compiler uses what the machine has. */
typedef uint64_t lane __attribute__((vector_size(64), aligned(1), may_alias));
#define LANES (VCFT_PAGE_SIZE / sizeof(lane))

bool delta_is_zero(const uint8_t *page)
{
	const lane *l = (const lane *)page;
	for (size_t i = 0; i < LANES; i += 4) {
		lane x = l[i] | l[i + 1] | l[i + 2] | l[i + 3];
		if (x[0] | x[1] | x[2] | x[3] | x[4] | x[5] | x[6] | x[7])
			return false;
	}
	return true;
}

/* ---- encoder ---- */
struct delta_encoder {
	ZSTD_CCtx *zstd;
	uint32_t region, kind, count;
	uint64_t index[STORE_CHUNK_PAGES];
	uint8_t *raw;          /* MAPS_ROOM, then words, or pages */
	size_t words;          /* bytes behind the maps */
	uint8_t *message;      /* room for the largest */
	size_t room;
};

struct delta_encoder *delta_encoder_new(void)
{
	struct delta_encoder *e = g_new0(struct delta_encoder, 1);
	e->zstd = ZSTD_createCCtx();
	e->raw = g_malloc(RAW_MOST + PACK_ROOM - VCFT_PAGE_SIZE);
	e->room = MESSAGE_HEADER_BYTES + STORE_PAGES_HEADER + STORE_CHUNK_PAGES * 8 + ZSTD_COMPRESSBOUND(RAW_MOST);
	e->message = g_malloc(e->room);
	return e;
}

void delta_encoder_free(struct delta_encoder *e)
{
	ZSTD_freeCCtx(e->zstd);
	g_free(e->raw);
	g_free(e->message);
	g_free(e);
}

void delta_begin(struct delta_encoder *e, uint32_t region, enum delta_kind kind)
{
	e->region = region;
	e->kind = kind;
	e->count = 0;
	e->words = 0;
}

unsigned delta_count(const struct delta_encoder *e) { return e->count; }

void delta_add(struct delta_encoder *e, uint64_t page, const uint8_t *data, const uint8_t *reference, bool keep)
{
	MUST("S7", e->count < STORE_CHUNK_PAGES && (!e->count || e->index[e->count - 1] < page));
	uint8_t *at = e->raw + MAPS_ROOM + e->words;
	size_t n = VCFT_PAGE_SIZE;
	if (e->kind == DELTA_WORDS)
		n = pack_page(e->raw + (size_t)e->count * PACK_MAP, at, data, reference);
	else
		memcpy(at, data, VCFT_PAGE_SIZE);
	if (!n && !keep)
		return;
	e->words += n;
	e->index[e->count++] = page;
}

/* Maps and words, one behind the other; or pages. */
static const uint8_t *raw_of(struct delta_encoder *e, size_t *ret_bytes)
{
	size_t maps = e->kind == DELTA_WORDS ? (size_t)e->count * PACK_MAP : 0;
	*ret_bytes = maps + e->words;
	return memmove(e->raw + MAPS_ROOM - maps, e->raw, maps);
}

GBytes *delta_finish(struct delta_encoder *e)
{
	if (!e->count)
		return NULL;
	uint8_t *payload = e->message + MESSAGE_HEADER_BYTES;
	size_t head = STORE_PAGES_HEADER + (size_t)e->count * 8, raw;
	const uint8_t *bytes = raw_of(e, &raw);
	size_t n = ZSTD_compressCCtx(e->zstd, payload + head, e->room - MESSAGE_HEADER_BYTES - head, bytes, raw,
	                             e->kind == DELTA_WORDS ? LEVEL_WORDS : LEVEL_LITERAL);
	MUST("C1", !ZSTD_isError(n));
	struct wire_writer w = wire_writer(payload, head);
	wire_put_u32(&w, e->region);
	wire_put_u32(&w, e->kind);
	wire_put_u32(&w, e->count);
	wire_put_u32(&w, (uint32_t)n);
	wire_put_u32(&w, (uint32_t)raw);
	wire_put_u32(&w, 0);
	for (uint32_t i = 0; i < e->count; i++)
		wire_put_u64(&w, e->index[i]);
	message_header_encode(e->message, MESSAGE_PAGES, head + n);
	delta_begin(e, e->region, e->kind);
	return g_bytes_new(e->message, MESSAGE_HEADER_BYTES + head + n);
}

GBytes *delta_bytes(struct delta_encoder *e, enum message_type type, const void *data, size_t n)
{
	size_t room = ZSTD_compressBound(n);
	uint8_t *message = g_malloc(MESSAGE_HEADER_BYTES + room);
	size_t bytes = ZSTD_compressCCtx(e->zstd, message + MESSAGE_HEADER_BYTES, room, data, n, LEVEL_BYTES);
	MUST("C1", !ZSTD_isError(bytes));
	message_header_encode(message, type, bytes);
	return g_bytes_new_take(message, MESSAGE_HEADER_BYTES + bytes);
}

/* ---- decoder ---- */
struct delta_decoder { ZSTD_DCtx *zstd; };

struct delta_decoder *delta_decoder_new(void)
{
	struct delta_decoder *d = g_new0(struct delta_decoder, 1);
	d->zstd = ZSTD_createDCtx();
	return d;
}

void delta_decoder_free(struct delta_decoder *d)
{
	if (!d)
		return;
	ZSTD_freeDCtx(d->zstd);
	g_free(d);
}

void delta_chunk_free(struct delta_chunk *chunk)
{
	free(chunk->index);
	free(chunk->data);
	free(chunk);
}

static bool raw_fits(const struct delta_header *h)
{
	uint64_t pages = (uint64_t)h->count * VCFT_PAGE_SIZE, maps = (uint64_t)h->count * PACK_MAP;
	return h->kind == DELTA_LITERAL ? h->raw_bytes == pages : h->raw_bytes >= maps && h->raw_bytes <= maps + pages;
}

bool delta_peek(const uint8_t *payload, size_t n, const struct store_shape *shape, struct delta_header *ret_header)
{
	struct wire_reader r = wire_reader(payload, n);
	struct delta_header h;
	h.region = wire_u32(&r);
	h.kind = wire_u32(&r);
	h.count = wire_u32(&r);
	h.compressed_bytes = wire_u32(&r);
	h.raw_bytes = wire_u32(&r);
	uint32_t reserved = wire_u32(&r);
	if (r.bad || reserved || h.region >= shape->regions || (h.kind != DELTA_WORDS && h.kind != DELTA_LITERAL))
		return false;
	if (!h.count || h.count > STORE_CHUNK_PAGES || !raw_fits(&h))
		return false;
	if (r.left < (size_t)h.count * 8 || r.left - (size_t)h.count * 8 != h.compressed_bytes)
		return false;
	*ret_header = h;
	return true;
}

static bool read_index(struct wire_reader *r, struct delta_chunk *c, uint64_t pages)
{
	for (uint32_t i = 0; i < c->count; i++) {
		c->index[i] = wire_u64(r);
		if (c->index[i] >= pages || (i && c->index[i] <= c->index[i - 1]))
			return false;
	}
	return !r->bad;
}

static bool read_frame(struct delta_decoder *d, const uint8_t *frame, size_t n, uint8_t *out, size_t raw)
{
	return ZSTD_getFrameContentSize(frame, n) == raw && ZSTD_findFrameCompressedSize(frame, n) == n &&
	       ZSTD_decompressDCtx(d->zstd, out, raw, frame, n) == raw;
}

/* As many words as the maps name. */
static bool words_fit(const struct delta_chunk *c)
{
	size_t n = (size_t)c->count * PACK_MAP;
	for (uint32_t i = 0; i < c->count; i++)
		n += pack_bytes(c->data + i * PACK_MAP);
	return n == c->bytes;
}

struct delta_chunk *delta_decode(struct delta_decoder *d, const uint8_t *payload, size_t n, const struct store_shape *shape,
                                 enum store_status *ret_status)
{
	struct delta_header h;
	*ret_status = STORE_BAD_MESSAGE;
	if (!delta_peek(payload, n, shape, &h))
		return NULL;
	struct delta_chunk *c = calloc(1, sizeof *c);
	if (c) {
		*c = (struct delta_chunk){ .region = h.region, .kind = h.kind, .count = h.count, .bytes = h.raw_bytes };
		c->index = malloc((size_t)h.count * sizeof *c->index);
		c->data = malloc(c->bytes);
	}
	if (!c || !c->index || !c->data) {
		*ret_status = STORE_NO_ROOM;
	} else {
		struct wire_reader r = wire_reader(payload + STORE_PAGES_HEADER, n - STORE_PAGES_HEADER);
		if (read_index(&r, c, shape->pages[h.region]) && read_frame(d, r.at, r.left, c->data, c->bytes) &&
		    (c->kind == DELTA_LITERAL || words_fit(c)))
			return c;
	}
	if (c)
		delta_chunk_free(c);
	return NULL;
}

bool delta_peek_bytes(const uint8_t *payload, size_t n, size_t *ret_bytes)
{
	unsigned long long bytes = ZSTD_getFrameContentSize(payload, n);   /* its two errors are above all sizes */
	*ret_bytes = (size_t)bytes;
	return bytes <= STORE_DEVICES_MAX;
}

GBytes *delta_read_bytes(struct delta_decoder *d, const uint8_t *payload, size_t n, size_t bytes, enum store_status *ret_status)
{
	uint8_t *data = malloc(MAX(bytes, 1));
	*ret_status = data ? STORE_BAD_MESSAGE : STORE_NO_ROOM;
	if (data && read_frame(d, payload, n, data, bytes))
		return g_bytes_new_with_free_func(data, bytes, free, data);
	free(data);
	return NULL;
}
