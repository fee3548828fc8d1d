/* fuzz-stage.c - an epoch of a stream, message by message, into a stage and from there into an image: S1, S2, S7, C1, I2.
 *
 *   input ──► messages ──► stage ──complete──► image        and beside it an oracle: plain arrays, byte by byte
 *
 * Input: records of u8 type, u16 length, payload. EPOCH, a sound EPOCH_END and the compression of pages are made here, or nothing would come through:
 *   0 PAGES as given   1 PAGES: header and numbers as given, the rest is compressed here   2 DEVICES   3 CHANNEL   4 EPOCH_END as given   5 a sound one
 * DEVICES and CHANNEL: u8 whether as given, else compressed here. */
#include "fuzz-image.h"

#include <zstd.h>

#define RAM_PAGES 8u
#define BLOCKS 8u

struct bench {
	struct image *image;
	struct stage *stage;
	struct delta_decoder *decoder;
	XXH3_state_t *sum;
	uint64_t pages; uint32_t chunks;
	uint8_t want[2][RAM_PAGES][VCFT_PAGE_SIZE];
};

static const struct store_shape shape = { 2, { RAM_PAGES, BLOCKS } };

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	fuzz_image_folder(RAM_PAGES, BLOCKS, true);
	return 0;
}

static enum store_status feed(struct bench *b, enum message_type type, const uint8_t *payload, size_t n)
{
	uint8_t header[MESSAGE_HEADER_BYTES];
	message_header_encode(header, type, n);
	if (type != MESSAGE_EPOCH_END) {
		XXH3_128bits_update(b->sum, header, sizeof header);
		XXH3_128bits_update(b->sum, payload, n);
	}
	uint8_t *own = g_memdup2(payload, n);   /* of its own size */
	enum store_status status = stage_message(b->stage, b->decoder, type, header, own, n);
	g_free(own);
	return status;
}

/* What the chunk means, in the dumbest way. */
static void note_chunk(struct bench *b)
{
	const struct delta_chunk *c = stage_last_chunk(b->stage);
	demand(c->region < 2 && c->count >= 1 && c->count <= STORE_CHUNK_PAGES);
	const uint8_t *next = c->data + (c->kind == DELTA_WORDS ? c->count * PACK_MAP : 0);
	for (uint32_t i = 0; i < c->count; i++) {
		demand(c->index[i] < RAM_PAGES && (!i || c->index[i] > c->index[i - 1]));
		for (size_t k = 0; k < VCFT_PAGE_SIZE; k++)
			if (c->kind == DELTA_LITERAL || c->data[i * PACK_MAP + k / 64] >> k / 8 % 8 & 1)
				b->want[c->region][c->index[i]][k] = *next++;
	}
	demand(next == c->data + c->bytes);
	b->pages += c->count;
	b->chunks++;
	demand(image_reserve(b->image, c->region, c->index, c->count, NULL));
}

static enum store_status feed_pages(struct bench *b, const uint8_t *payload, size_t n)
{
	enum store_status status = n >= 33 ? feed(b, MESSAGE_PAGES, payload, n) : STORE_BAD_MESSAGE;
	if (status == STORE_OK)
		note_chunk(b);
	return status;
}

/* How long that many pages are in `raw`: as many words as the maps name, or one more or less. */
static size_t raw_bytes(const uint8_t *raw, uint32_t kind, uint32_t count, size_t odd)
{
	size_t n = (size_t)count * PACK_MAP;
	if (kind != DELTA_WORDS)
		return (size_t)count * VCFT_PAGE_SIZE;
	for (uint32_t i = 0; i < count; i++)
		n += pack_bytes(raw + i * PACK_MAP);
	return odd % 8 == 1 ? n + 8 : odd % 8 == 2 && n ? n - 8 : n;
}

/* u32 region, u32 kind, u32 count, numbers of one byte, then what the pages, or maps and words, start with. */
static enum store_status feed_compressed(struct bench *b, struct input in)
{
	static uint8_t raw[16 * (PACK_MAP + VCFT_PAGE_SIZE) + 8], out[24 + 16 * 8 + ZSTD_COMPRESSBOUND(sizeof raw)];
	uint32_t region = (uint32_t)take(&in, 1), kind = (uint32_t)take(&in, 1), count = (uint32_t)take(&in, 1) % 17;
	struct wire_writer w = wire_writer(out, 24 + count * 8);
	w.used = 24;
	for (uint32_t i = 0; i < count; i++)
		wire_put_u64(&w, take(&in, 1));
	memset(raw, 0, sizeof raw);
	memcpy(raw, in.at, in.left < sizeof raw ? in.left : sizeof raw);
	size_t n = raw_bytes(raw, kind, count, in.left), bytes = ZSTD_compress(out + w.used, sizeof out - w.used, raw, n, 1), head = w.used;
	w.used = 0;
	const uint32_t fields[] = { region, kind, count, (uint32_t)bytes, (uint32_t)n, 0 };
	for (size_t i = 0; i < G_N_ELEMENTS(fields); i++)
		wire_put_u32(&w, fields[i]);
	return feed_pages(b, out, head + bytes);
}

static enum store_status feed_end(struct bench *b)
{
	uint8_t out[STREAM_MESSAGE_MAX];
	struct stream_end m = { .pages = b->pages, .raw_bytes = b->pages * VCFT_PAGE_SIZE, .chunks = b->chunks, .flags = STREAM_COMPLETE };
	size_t n = stream_put_end(out, &m, b->sum);
	return feed(b, MESSAGE_EPOCH_END, out + MESSAGE_HEADER_BYTES, n - MESSAGE_HEADER_BYTES);
}

static enum store_status feed_bytes(struct bench *b, enum message_type type, struct input in)
{
	if (take(&in, 1))
		return in.left >= 9 ? feed(b, type, in.at, in.left) : STORE_BAD_MESSAGE;
	size_t room = ZSTD_compressBound(in.left);
	g_autofree uint8_t *out = g_malloc(room);
	enum store_status status = feed(b, type, out, ZSTD_compress(out, room, in.at, in.left, 1));
	GBytes *got = type == MESSAGE_DEVICES ? stage_devices(b->stage) : NULL;
	if (status == STORE_OK && got)
		demand(g_bytes_get_size(got) == in.left && memcmp(g_bytes_get_data(got, NULL), in.at, in.left) == 0);
	return status;
}

static enum store_status feed_record(struct bench *b, struct input *in)
{
	uint64_t type = take(in, 1) % 6;
	size_t n = take(in, 2);
	const uint8_t *payload = take_bytes(in, &n);
	switch (type) {
	case 0: return feed_pages(b, payload, n);
	case 1: return feed_compressed(b, (struct input){ payload, n });
	case 2: return feed_bytes(b, MESSAGE_DEVICES, (struct input){ payload, n });
	case 3: return feed_bytes(b, MESSAGE_CHANNEL, (struct input){ payload, n });
	case 4: return n == 56 ? feed(b, MESSAGE_EPOCH_END, payload, n) : STORE_BAD_MESSAGE;
	default: return feed_end(b);
	}
}

static void check_image(const struct bench *b)
{
	static const uint8_t zero[VCFT_PAGE_SIZE];
	for (unsigned region = 0; region < 2; region++)
		for (uint64_t page = 0; page < RAM_PAGES; page++) {
			const uint8_t *is = image_page(b->image, region, page);
			demand(memcmp(is ? is : zero, b->want[region][page], VCFT_PAGE_SIZE) == 0);
		}
}

/* One epoch r on r - 1; false: it was refused, or the input has ended. Then the image is as it was. */
static bool feed_epoch(struct bench *b, struct input *in, uint64_t r)
{
	uint8_t out[STREAM_MESSAGE_MAX];
	static uint8_t before[sizeof b->want];
	memcpy(before, b->want, sizeof before);
	b->pages = b->chunks = 0;
	XXH3_128bits_reset(b->sum);
	b->stage = stage_new(&shape, epoch_of(r), epoch_of(r - 1), 1 << 20, NULL);
	struct stream_epoch m = { { 1 }, { r }, { r - 1 } };
	size_t n = stream_put_epoch(out, &m);
	enum store_status status = feed(b, MESSAGE_EPOCH, out + MESSAGE_HEADER_BYTES, n - MESSAGE_HEADER_BYTES);
	while (status == STORE_OK && !stage_complete(b->stage) && in->left)
		status = feed_record(b, in);
	bool complete = stage_complete(b->stage);
	demand(!complete || status == STORE_OK);
	if (complete)
		demand(stage_apply(b->stage, b->image, NULL));
	else
		memcpy(b->want, before, sizeof before);
	check_image(b);
	stage_free(b->stage);
	return complete;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static struct bench b;
	struct input in = { data, n };
	memset(&b, 0, sizeof b);
	image_remove_files(&fuzz_spec);
	demand((b.image = image_open(&fuzz_spec, NULL)) != NULL);
	image_begin(b.image, epoch_of(0));
	b.decoder = delta_decoder_new();
	b.sum = XXH3_createState();
	for (uint64_t r = 1; in.left && feed_epoch(&b, &in, r); r++)
		;
	XXH3_freeState(b.sum);
	delta_decoder_free(b.decoder);
	image_free(b.image);
	return 0;
}
