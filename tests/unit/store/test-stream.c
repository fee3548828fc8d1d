/* test-stream.c - a backup that gets what it should not: flipped bits, cut streams, wrong numbers. A stream is made by hand and sent to a real sink.
 *
 * In each case: no acknowledgement, the sender is told why where there is somebody to tell, image and stage stay as they were (S2, S3). */
#include "bed.h"

#include "store/store-private.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zstd.h>

#define RAM_PAGES 64u
#define DISK_BLOCKS 20u

struct rig {
	struct sink *sink;
	uint16_t port;
	char *dir;
	XXH3_state_t *sum;
	GByteArray *out;
	uint64_t pages; uint32_t chunks;
};

static bool on_spec(struct vm_id vm, struct image_spec *ret_spec, void *user)
{
	struct rig *rig = user;
	if (vm.n != 3)
		return false;
	*ret_spec = (struct image_spec){ .ram_path = g_build_filename(rig->dir, "ram", NULL), .ram_pages = RAM_PAGES, .disk_count = 1,
	                                 .disks_writable = true };
	ret_spec->disk_dir[0] = g_build_filename(rig->dir, "disk", NULL);
	ret_spec->disk_blocks[0] = DISK_BLOCKS;
	return true;
}

static struct rig *rig_new(void)
{
	static const struct sink_callbacks callbacks = { NULL, on_spec };
	struct rig *rig = g_new0(struct rig, 1);
	rig->dir = bed_temp();
	rig->sum = XXH3_createState();
	rig->out = g_byte_array_new();
	rig->sink = sink_new((struct host_id){ 2 }, "127.0.0.1", &rig->port, NULL, &(struct sink_limits){ 0 }, &callbacks, rig, NULL);
	sink_generation(rig->sink, (struct generation){ 5 });
	return rig;
}

static void rig_free(struct rig *rig)
{
	sink_clear(rig->sink);
	sink_free(rig->sink);
	bed_remove_tree(rig->dir);
	g_byte_array_unref(rig->out);
	XXH3_freeState(rig->sum);
	g_free(rig->dir);
	g_free(rig);
}

/* ---- a stream by hand ---- */
static void put(struct rig *rig, const void *data, size_t n, bool summed)
{
	g_byte_array_append(rig->out, data, (guint)n);
	if (summed)
		XXH3_128bits_update(rig->sum, data, n);
}

static struct stream_open good_open(void)
{
	return (struct stream_open){ .host = { 1 }, .vm = { 3 }, .generation = { 5 }, .base = { 10 }, .flags = STREAM_FRESH,
	                             .shape = { 2, { RAM_PAGES, DISK_BLOCKS } } };
}

static void put_open(struct rig *rig, struct stream_open m)
{
	uint8_t out[STREAM_MESSAGE_MAX];
	put(rig, out, stream_put_open(out, &m), false);
}

static void put_epoch(struct rig *rig, uint64_t generation, uint64_t epoch, uint64_t base)
{
	uint8_t out[STREAM_MESSAGE_MAX];
	struct stream_epoch m = { { generation }, { epoch }, { base } };
	XXH3_128bits_reset(rig->sum);
	rig->pages = rig->chunks = 0;
	put(rig, out, stream_put_epoch(out, &m), true);
}

static void put_pages(struct rig *rig, unsigned region, enum delta_kind kind, uint64_t first, unsigned count)
{
	uint8_t page[VCFT_PAGE_SIZE];
	struct delta_encoder *e = delta_encoder_new();
	delta_begin(e, region, kind);
	for (unsigned i = 0; i < count; i++) {
		memset(page, (int)(first + i + 1), sizeof page);
		delta_add(e, first + i, page, NULL, true);
	}
	g_autoptr(GBytes) message = delta_finish(e);
	put(rig, g_bytes_get_data(message, NULL), g_bytes_get_size(message), true);
	rig->pages += count;
	rig->chunks++;
	delta_encoder_free(e);
}

static void put_text(struct rig *rig, enum message_type type, const char *text)
{
	struct delta_encoder *e = delta_encoder_new();
	g_autoptr(GBytes) message = delta_bytes(e, type, text, strlen(text));
	put(rig, g_bytes_get_data(message, NULL), g_bytes_get_size(message), true);
	delta_encoder_free(e);
}

static void put_end(struct rig *rig)
{
	uint8_t out[STREAM_MESSAGE_MAX];
	struct stream_end m = { .pages = rig->pages, .raw_bytes = rig->pages * VCFT_PAGE_SIZE, .chunks = rig->chunks, .flags = STREAM_COMPLETE };
	put(rig, out, stream_put_end(out, &m, rig->sum), false);
}

static void put_tail(struct rig *rig)
{
	put_text(rig, MESSAGE_DEVICES, "dev");
	put_text(rig, MESSAGE_CHANNEL, "rec");
	put_end(rig);
}

static void put_good(struct rig *rig)
{
	put_open(rig, good_open());
	put_epoch(rig, 5, 11, 10);
	put_pages(rig, 0, DELTA_LITERAL, 3, 2);
	put_pages(rig, 1, DELTA_WORDS, 7, 1);
	put_tail(rig);
}

/* ---- and what comes back: -1 nothing, else the status ---- */
static int talk(struct rig *rig, const uint8_t *data, size_t n)
{
	uint8_t in[STREAM_ACK_BYTES];
	struct message_header h;
	struct stream_ack ack;
	int fd = bed_connect(rig->port);
	bed_send_all(fd, data, n);
	shutdown(fd, SHUT_WR);
	size_t got = bed_receive(fd, in, sizeof in, 5000);
	close(fd);
	if (got != sizeof in)
		return -1;
	g_assert_true(message_header_decode(in, CHANNEL_REPLICATION, &h));
	g_assert_true(stream_get_ack(in, in + MESSAGE_HEADER_BYTES, h.length, &ack));
	return (int)ack.status;
}

static int talk_all(struct rig *rig)
{
	int status = talk(rig, rig->out->data, rig->out->len);
	g_byte_array_set_size(rig->out, 0);
	return status;
}

/* Neither a stage nor a change. sink_tell() closes the generation: open it again. */
static void check_untouched(struct rig *rig, uint64_t image, uint64_t staged)
{
	static uint64_t generations = 100;
	struct message_holding h[VCFT_VM_MAX];
	sink_tell(rig->sink);
	uint32_t n = sink_holdings(rig->sink, h);
	g_assert_cmpuint(n, <=, 1);
	if (n) {
		g_assert_cmpuint(h[0].image.n, ==, image);
		g_assert_cmpuint(h[0].staged.n, ==, staged);
	} else {
		g_assert_cmpuint(staged, ==, 0);
	}
	sink_generation(rig->sink, (struct generation){ ++generations });
	sink_generation(rig->sink, (struct generation){ 5 });
}

static void test_good(void)
{
	struct rig *rig = rig_new();
	put_good(rig);
	g_assert_cmpint(talk_all(rig), ==, STORE_OK);
	check_untouched(rig, 10, 11);
	sink_commit(rig->sink, epoch_of(11));
	check_untouched(rig, 11, 0);
	struct image *image = sink_take(rig->sink, (struct vm_id){ 3 });
	g_assert_cmpuint(image_ram(image)[3 * VCFT_PAGE_SIZE + 5], ==, 4);
	g_assert_cmpuint(image_ram(image)[4 * VCFT_PAGE_SIZE + 4095], ==, 5);
	g_assert_nonnull(image_page(image, 1, 7));
	g_assert_null(image_page(image, 1, 6));
	g_assert_cmpuint(image_page(image, 1, 7)[0], ==, 8);
	image_remove(image);
	rig_free(rig);
}

static void test_S2_every_bit(void)
{
	struct rig *rig = rig_new();
	put_good(rig);
	g_autofree uint8_t *good = g_memdup2(rig->out->data, rig->out->len);
	size_t n = rig->out->len;
	for (size_t bit = 0; bit < n * 8; bit++) {
		good[bit / 8] ^= (uint8_t)(1u << bit % 8);
		int status = talk(rig, good, n);
		if (status == STORE_OK)
			g_error("bit %zu of %zu flipped: stored", bit, n * 8);
		if (bit % 64 == 0)
			check_untouched(rig, 10, 0);
		good[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	check_untouched(rig, 10, 0);
	g_assert_cmpint(talk(rig, good, n), ==, STORE_OK);
	rig_free(rig);
}

static void test_S2_every_cut(void)
{
	struct rig *rig = rig_new();
	put_good(rig);
	for (size_t n = 0; n < rig->out->len; n++) {
		g_assert_cmpint(talk(rig, rig->out->data, n), !=, STORE_OK);
		if (n % 16 == 0)
			check_untouched(rig, 10, 0);
	}
	check_untouched(rig, 10, 0);
	rig_free(rig);
}

/* A flipped bit in an answer is not an answer. */
static void test_R1_answer(void)
{
	uint8_t out[STREAM_MESSAGE_MAX];
	struct message_header h;
	struct stream_ack ack = { { 5 }, { 11 }, STORE_NO_ROOM };
	size_t n = stream_put_ack(out, &ack);
	g_assert_cmpuint(n, ==, STREAM_ACK_BYTES);
	for (size_t bit = 0; bit < n * 8; bit++) {
		out[bit / 8] ^= (uint8_t)(1u << bit % 8);
		g_assert_false(message_header_decode(out, CHANNEL_REPLICATION, &h) && h.type == MESSAGE_EPOCH_ACK &&
		               stream_get_ack(out, out + MESSAGE_HEADER_BYTES, h.length, &ack));
		out[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
}

static int try_open(struct rig *rig, struct stream_open m)
{
	put_open(rig, m);
	put_epoch(rig, m.generation.n, m.base.n + 1, m.base.n);
	put_tail(rig);
	return talk_all(rig);
}

static void test_S3_open(void)
{
	struct rig *rig = rig_new();
	struct stream_open m = good_open();
	put_good(rig);
	g_assert_cmpint(talk_all(rig), ==, STORE_OK);
	m.generation.n = 4;
	g_assert_cmpint(try_open(rig, m), ==, STORE_BAD_GENERATION);
	m.generation.n = 6;
	g_assert_cmpint(try_open(rig, m), ==, STORE_BAD_GENERATION);
	m = good_open();
	m.vm.n = 4;
	g_assert_cmpint(try_open(rig, m), ==, STORE_NO_VM);
	m = good_open();
	m.shape.pages[1]++;
	g_assert_cmpint(try_open(rig, m), ==, STORE_BAD_SHAPE);
	m.shape.regions = 1;
	g_assert_cmpint(try_open(rig, m), ==, STORE_BAD_SHAPE);
	m = good_open();
	m.flags = 0;
	m.base.n = 12;
	g_assert_cmpint(try_open(rig, m), ==, STORE_BAD_BASE);
	m.base.n = 9;
	g_assert_cmpint(try_open(rig, m), ==, STORE_BAD_BASE);
	m.base.n = 10;    /* it is there, but has not all pages */
	g_assert_cmpint(try_open(rig, m), ==, STORE_BAD_BASE);
	check_untouched(rig, 10, 11);
	rig_free(rig);
}

static void test_S3_base(void)
{
	struct rig *rig = rig_new();
	put_open(rig, good_open());
	put_epoch(rig, 5, 12, 11);
	put_tail(rig);
	g_assert_cmpint(talk_all(rig), ==, STORE_BAD_BASE);
	put_open(rig, good_open());
	put_epoch(rig, 5, 12, 9);
	put_tail(rig);
	g_assert_cmpint(talk_all(rig), ==, STORE_BAD_BASE);
	put_open(rig, good_open());
	put_epoch(rig, 4, 11, 10);
	put_tail(rig);
	g_assert_cmpint(talk_all(rig), ==, STORE_BAD_GENERATION);
	check_untouched(rig, 10, 0);
	rig_free(rig);
}

/* A stage is replaced only by a later epoch of the same base. */
static void test_K3_replace(void)
{
	struct rig *rig = rig_new();
	struct stream_open again = good_open();
	struct message_holding h[VCFT_VM_MAX];
	put_good(rig);
	g_assert_cmpint(talk_all(rig), ==, STORE_OK);
	sink_commit(rig->sink, epoch_of(11));
	again.flags = 0;
	again.base.n = 11;
	put_open(rig, again);
	put_epoch(rig, 5, 12, 11);
	put_pages(rig, 0, DELTA_WORDS, 3, 1);
	put_tail(rig);
	g_assert_cmpint(talk_all(rig), ==, STORE_OK);
	put_open(rig, again);
	put_epoch(rig, 5, 12, 11);
	put_tail(rig);
	g_assert_cmpint(talk_all(rig), ==, STORE_BAD_ORDER);
	put_open(rig, again);
	put_epoch(rig, 5, 13, 10);
	put_tail(rig);
	g_assert_cmpint(talk_all(rig), ==, STORE_BAD_BASE);
	check_untouched(rig, 11, 12);
	put_open(rig, again);
	put_epoch(rig, 5, 13, 11);
	put_pages(rig, 0, DELTA_LITERAL, 9, 1);
	put_tail(rig);
	g_assert_cmpint(talk_all(rig), ==, STORE_OK);
	sink_commit(rig->sink, epoch_of(12));
	sink_commit(rig->sink, epoch_of(13));
	g_assert_cmpuint(sink_holdings(rig->sink, h), ==, 1);
	g_assert_cmpuint(h[0].image.n, ==, 13);
	struct image *image = sink_take(rig->sink, (struct vm_id){ 3 });
	g_assert_cmpuint(image_ram(image)[3 * VCFT_PAGE_SIZE], ==, 4);
	g_assert_cmpuint(image_ram(image)[9 * VCFT_PAGE_SIZE], ==, 10);
	image_remove(image);
	rig_free(rig);
}

/* One message changed by hand, with a right checksum: the content is what is wrong. */
static int try_pages(struct rig *rig, size_t at, uint32_t value)
{
	struct delta_encoder *e = delta_encoder_new();
	uint8_t page[VCFT_PAGE_SIZE] = { 1 };
	delta_begin(e, 0, DELTA_LITERAL);
	delta_add(e, 5, page, NULL, true);
	delta_add(e, 6, page, NULL, true);
	g_autoptr(GBytes) message = delta_finish(e);
	g_autofree uint8_t *copy = g_memdup2(g_bytes_get_data(message, NULL), g_bytes_get_size(message));
	struct wire_writer w = wire_writer(copy + MESSAGE_HEADER_BYTES + at, 4);
	wire_put_u32(&w, value);
	put_open(rig, good_open());
	put_epoch(rig, 5, 11, 10);
	put(rig, copy, g_bytes_get_size(message), true);
	rig->pages = 2;
	rig->chunks = 1;
	put_tail(rig);
	delta_encoder_free(e);
	return talk_all(rig);
}

static void test_C1_pages(void)
{
	static const struct { size_t at; uint32_t value; } bad[] = {
		{ 0, 2 }, { 0, UINT32_MAX }, { 4, 0 }, { 4, 3 }, { 8, 0 }, { 8, 1 }, { 8, 3 }, { 8, STORE_CHUNK_PAGES + 1 }, { 8, UINT32_MAX }, { 12, 1 },
		{ 12, UINT32_MAX }, { 16, 4096 }, { 16, UINT32_MAX }, { 20, 1 }, { 24, 6 }, { 24, 7 }, { 24, RAM_PAGES }, { 28, 1 }, { 32, RAM_PAGES },
		{ 32, 5 }, { 32, 4 }, { 36, 0x80000000 }, { 40, 0 }, { 4, DELTA_WORDS },
	};
	struct rig *rig = rig_new();
	g_assert_cmpint(try_pages(rig, 4, DELTA_LITERAL), ==, STORE_OK);
	for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
		int status = try_pages(rig, bad[i].at, bad[i].value);
		if (status != STORE_BAD_MESSAGE)
			g_error("u32 at %zu = %" PRIu32 ": status %d", bad[i].at, bad[i].value, status);
	}
	check_untouched(rig, 10, 0);
	rig_free(rig);
}

/* A chunk of one page, made by hand: a map that names two words, and so many bytes behind it. */
static int try_words(struct rig *rig, size_t bytes)
{
	uint8_t raw[PACK_MAP + 64] = { 0x81 }, message[512];
	size_t head = MESSAGE_HEADER_BYTES + STORE_PAGES_HEADER + 8;
	size_t n = ZSTD_compress(message + head, sizeof message - head, raw, bytes, 1);
	const uint32_t fields[] = { 0, DELTA_WORDS, 1, (uint32_t)n, (uint32_t)bytes, 0, 5, 0 };
	struct wire_writer w = wire_writer(message + MESSAGE_HEADER_BYTES, STORE_PAGES_HEADER + 8);
	for (size_t i = 0; i < G_N_ELEMENTS(fields); i++)
		wire_put_u32(&w, fields[i]);
	message_header_encode(message, MESSAGE_PAGES, head - MESSAGE_HEADER_BYTES + n);
	put_open(rig, good_open());
	put_epoch(rig, 5, 11, 10);
	put(rig, message, head + n, true);
	rig->pages = rig->chunks = 1;
	put_tail(rig);
	return talk_all(rig);
}

/* As many words as the maps name, and all maps. */
static void test_C1_words(void)
{
	struct rig *rig = rig_new();
	g_assert_cmpint(try_words(rig, PACK_MAP + 16), ==, STORE_OK);
	for (size_t bytes = 0; bytes <= PACK_MAP + 64; bytes += 8)
		if (bytes != PACK_MAP + 16)
			g_assert_cmpint(try_words(rig, bytes), ==, STORE_BAD_MESSAGE);
	check_untouched(rig, 10, 0);
	rig_free(rig);
}

static int try_devices(struct rig *rig, const uint8_t *payload, size_t n)
{
	uint8_t header[MESSAGE_HEADER_BYTES];
	message_header_encode(header, MESSAGE_DEVICES, n);
	put_open(rig, good_open());
	put_epoch(rig, 5, 11, 10);
	put(rig, header, sizeof header, true);
	put(rig, payload, n, true);
	put_text(rig, MESSAGE_CHANNEL, "rec");
	put_end(rig);
	return talk_all(rig);
}

static size_t frame_of(uint8_t *out, size_t room, const void *data, size_t n, bool tells_size)
{
	ZSTD_CCtx *c = ZSTD_createCCtx();
	ZSTD_CCtx_setParameter(c, ZSTD_c_contentSizeFlag, tells_size);
	size_t bytes = ZSTD_compress2(c, out, room, data, n);
	ZSTD_freeCCtx(c);
	return bytes;
}

/* Device state and record: one frame, no more and no less, that tells its size. */
static void test_C1_bytes(void)
{
	struct rig *rig = rig_new();
	uint8_t frame[256] = { 0 }, text[100] = "state";
	size_t n = frame_of(frame, sizeof frame, text, sizeof text, true);
	g_assert_cmpint(try_devices(rig, frame, n), ==, STORE_OK);
	g_assert_cmpint(try_devices(rig, frame, n + 1), ==, STORE_BAD_MESSAGE);
	for (size_t cut = 9; cut < n; cut++)
		g_assert_cmpint(try_devices(rig, frame, cut), ==, STORE_BAD_MESSAGE);
	memcpy(frame + n, frame, n);
	g_assert_cmpint(try_devices(rig, frame, 2 * n), ==, STORE_BAD_MESSAGE);
	g_assert_cmpint(try_devices(rig, text, sizeof text), ==, STORE_BAD_MESSAGE);
	n = frame_of(frame, sizeof frame, text, sizeof text, false);
	g_assert_cmpint(try_devices(rig, frame, n), ==, STORE_BAD_MESSAGE);
	for (size_t over = 0; over < 2; over++) {
		size_t bytes = STORE_DEVICES_MAX + over, room = ZSTD_compressBound(bytes);
		g_autofree uint8_t *zeros = g_malloc0(bytes), *out = g_malloc(room);
		g_assert_cmpint(try_devices(rig, out, frame_of(out, room, zeros, bytes, true)), ==, over ? STORE_BAD_MESSAGE : STORE_OK);
	}
	rig_free(rig);
}

static void test_S7_ascending(void)
{
	static const struct { unsigned region, first; } second[] = { { 0, 10 }, { 0, 11 }, { 0, 9 }, { 0, 0 } };
	struct rig *rig = rig_new();
	for (size_t i = 0; i < G_N_ELEMENTS(second); i++) {
		put_open(rig, good_open());
		put_epoch(rig, 5, 11, 10);
		put_pages(rig, 0, DELTA_WORDS, 10, 2);
		put_pages(rig, second[i].region, DELTA_LITERAL, second[i].first, 1);
		put_tail(rig);
		g_assert_cmpint(talk_all(rig), ==, STORE_BAD_ORDER);
	}
	put_open(rig, good_open());
	put_epoch(rig, 5, 11, 10);
	put_pages(rig, 1, DELTA_WORDS, 10, 2);
	put_pages(rig, 0, DELTA_WORDS, 12, 2);
	put_tail(rig);
	g_assert_cmpint(talk_all(rig), ==, STORE_BAD_ORDER);
	check_untouched(rig, 10, 0);
	rig_free(rig);
}

/* Messages left out, twice, or before their time. */
static void test_S2_grammar(void)
{
	static const char *const bad[] = { "eP", "eC", "eE", "eDE", "eDP", "eDDC", "eDCC", "eDCP", "P", "D", "C", "E", "o", "eo", "eDCA", "eDCEP", "eDCED" };
	struct rig *rig = rig_new();
	for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
		put_open(rig, good_open());
		for (const char *c = bad[i]; *c; c++) {
			uint8_t ack[STREAM_MESSAGE_MAX];
			switch (*c) {
			case 'e': put_epoch(rig, 5, 11, 10); break;
			case 'o': put_open(rig, good_open()); break;
			case 'P': put_pages(rig, 0, DELTA_WORDS, 0, 1); break;
			case 'D': put_text(rig, MESSAGE_DEVICES, "dev"); break;
			case 'C': put_text(rig, MESSAGE_CHANNEL, "rec"); break;
			case 'E': put_end(rig); break;
			case 'A': put(rig, ack, stream_put_ack(ack, &(struct stream_ack){ { 5 }, { 11 }, 0 }), true); break;
			}
		}
		bool stored = strstr(bad[i], "DCE") != NULL;
		int status = talk_all(rig);
		if (strcmp(bad[i], "eP") == 0)
			g_assert_cmpint(status, ==, -1);    /* right, but it ends too soon */
		else if (!stored)
			g_assert_true(status == STORE_BAD_ORDER || status == STORE_BAD_MESSAGE);
		check_untouched(rig, 10, stored ? 11 : 0);
	}
	put_epoch(rig, 5, 11, 10);    /* no OPEN */
	put_tail(rig);
	g_assert_cmpint(talk_all(rig), ==, STORE_BAD_MESSAGE);
	rig_free(rig);
}

static void test_S2_totals(void)
{
	struct rig *rig = rig_new();
	for (unsigned i = 0; i < 3; i++) {
		put_open(rig, good_open());
		put_epoch(rig, 5, 11, 10);
		put_pages(rig, 0, DELTA_WORDS, 0, 3);
		rig->pages -= i == 0;
		rig->pages += i == 1;
		rig->chunks += i == 2;
		put_tail(rig);
		g_assert_cmpint(talk_all(rig), ==, STORE_BAD_MESSAGE);
	}
	check_untouched(rig, 10, 0);
	rig_free(rig);
}

/* Random bytes behind a right header. */
static void test_garbage(void)
{
	struct rig *rig = rig_new();
	for (unsigned i = 0; i < 300; i++) {
		uint8_t junk[200], header[MESSAGE_HEADER_BYTES];
		size_t n = 33 + bed_random() % (sizeof junk - 33);
		for (size_t k = 0; k < n; k++)
			junk[k] = (uint8_t)(bed_random() >> (bed_random() % 2 ? 0 : 60));
		put_open(rig, good_open());
		put_epoch(rig, 5, 11, 10);
		message_header_encode(header, MESSAGE_PAGES, n);
		put(rig, header, sizeof header, true);
		put(rig, junk, n, true);
		rig->chunks = 1;
		put_tail(rig);
		g_assert_cmpint(talk_all(rig), ==, STORE_BAD_MESSAGE);
	}
	check_untouched(rig, 10, 0);
	rig_free(rig);
}

/* K5: a second connection takes the first one's place; the first can do nothing more. */
static void test_K5_newer_connection(void)
{
	struct rig *rig = rig_new();
	uint8_t in[STREAM_ACK_BYTES];
	put_open(rig, good_open());
	put_epoch(rig, 5, 11, 10);
	put_pages(rig, 0, DELTA_WORDS, 0, 3);
	int old = bed_connect(rig->port);
	bed_send_all(old, rig->out->data, rig->out->len);
	g_usleep(10000);    /* any pause: the first one is mostly in its epoch then */
	g_byte_array_set_size(rig->out, 0);
	put_good(rig);
	g_assert_cmpint(talk_all(rig), ==, STORE_OK);
	gint64 start = g_get_monotonic_time();
	g_assert_cmpuint(bed_receive(old, in, sizeof in, 5000), ==, 0);
	g_assert_cmpint(g_get_monotonic_time() - start, <, 4000000);    /* closed, not silent */
	close(old);
	check_untouched(rig, 10, 11);
	rig_free(rig);
}

/* A generation ends with streams in all places: it must not hang, and nothing of them is left. */
static void test_generation_ends(void)
{
	struct rig *rig = rig_new();
	put_good(rig);
	g_autofree uint8_t *good = g_memdup2(rig->out->data, rig->out->len);
	size_t n = rig->out->len;
	for (size_t cut = 1; cut < n; cut += 7) {
		int fd = bed_connect(rig->port);
		uint8_t in[STREAM_ACK_BYTES];
		bed_send_all(fd, good, cut);
		if (cut % 2)
			g_usleep(500);    /* so that cuts happen at both sides of the reading */
		sink_generation(rig->sink, (struct generation){ 6 });
		sink_recover(rig->sink, epoch_of(10));
		bed_send_all(fd, good + cut, n - cut);
		shutdown(fd, SHUT_WR);
		if (bed_receive(fd, in, sizeof in, 5000) == sizeof in)
			g_assert_cmpuint(in[MESSAGE_HEADER_BYTES + 16], !=, STORE_OK);
		close(fd);
		check_untouched(rig, 10, 0);
	}
	rig_free(rig);
}

/* S7 in the sender: pages that are not ascending are a mistake of the caller. */
static void test_S7_sender(void)
{
	if (g_test_subprocess()) {
		uint8_t page[VCFT_PAGE_SIZE] = { 1 };
		struct delta_encoder *e = delta_encoder_new();
		delta_begin(e, 0, DELTA_WORDS);
		delta_add(e, 5, page, NULL, false);
		delta_add(e, 5, page, NULL, false);
		return;
	}
	g_test_trap_subprocess(NULL, 0, G_TEST_SUBPROCESS_DEFAULT);
	g_test_trap_assert_failed();
	g_test_trap_assert_stderr("*rule S7*");
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/stream/good", test_good);
	g_test_add_func("/stream/S2/every-bit", test_S2_every_bit);
	g_test_add_func("/stream/S2/every-cut", test_S2_every_cut);
	g_test_add_func("/stream/S2/grammar", test_S2_grammar);
	g_test_add_func("/stream/S2/totals", test_S2_totals);
	g_test_add_func("/stream/R1/answer", test_R1_answer);
	g_test_add_func("/stream/S3/open", test_S3_open);
	g_test_add_func("/stream/S3/base", test_S3_base);
	g_test_add_func("/stream/K3/replace", test_K3_replace);
	g_test_add_func("/stream/C1/pages", test_C1_pages);
	g_test_add_func("/stream/C1/words", test_C1_words);
	g_test_add_func("/stream/C1/bytes", test_C1_bytes);
	g_test_add_func("/stream/S7/ascending", test_S7_ascending);
	g_test_add_func("/stream/S7/sender", test_S7_sender);
	g_test_add_func("/stream/garbage", test_garbage);
	g_test_add_func("/stream/K5/newer-connection", test_K5_newer_connection);
	g_test_add_func("/stream/generation-ends", test_generation_ends);
	return g_test_run();
}
