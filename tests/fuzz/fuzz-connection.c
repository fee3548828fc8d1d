/* fuzz-connection.c - a backup's side of a connection, from its first byte: a real sink, a stream that somebody else has made. Whatever comes: it is answered
 * or hung up; the image that is held moves by sink_commit() alone, and only to an epoch that was acknowledged (S1-S3).
 *
 * Input: records of u8 type, u16 length, payload:
 *   0 OPEN of fields, checksum made here   1 EPOCH of fields   2 PAGES   3 DEVICES   4 CHANNEL   5 a sound EPOCH_END   6 bytes as they are */
#include "store/sink-private.h"
#include "fuzz.h"

#include <sys/socket.h>
#include <unistd.h>

#define RAM_PAGES 4u

static char dir[] = "/dev/shm/vcft-fuzz-conn-XXXXXX", *ram;
static struct sink *sink;

struct stream { GByteArray *out; XXH3_state_t *sum; uint64_t pages; uint32_t chunks, epochs; };

static bool on_spec(struct vm_id vm, struct image_spec *ret_spec, void *user)
{
	(void)user;
	*ret_spec = (struct image_spec){ .ram_path = g_strdup(ram), .ram_pages = RAM_PAGES };
	return vm.n == 1;
}

static void clean(void)
{
	sink_clear(sink);
	sink_free(sink);
	unlink(ram);
	rmdir(dir);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	static const struct sink_callbacks callbacks = { NULL, on_spec };
	uint16_t port = 0;
	(void)argc, (void)argv;
	demand(mkdtemp(dir) != NULL);
	ram = g_build_filename(dir, "ram", NULL);
	sink = sink_new((struct host_id){ 2 }, "127.0.0.1", &port, NULL, &(struct sink_limits){ .stage_bytes = 1 << 20 }, &callbacks, NULL, NULL);
	demand(sink != NULL);
	sink_generation(sink, (struct generation){ 5 });
	atexit(clean);
	return 0;
}

static void put(struct stream *s, const void *bytes, size_t n, bool summed)
{
	g_byte_array_append(s->out, bytes, (guint)n);
	if (summed)
		XXH3_128bits_update(s->sum, bytes, n);
}

static void put_open(struct stream *s, struct input *in)
{
	uint8_t out[STREAM_MESSAGE_MAX];
	uint64_t odd = take(in, 1);
	struct stream_open m = { .host = { 1 }, .vm = { 1 }, .generation = { 5 }, .base = { odd & 1 ? take(in, 1) : 1 }, .flags = odd & 2 ? 0 : STREAM_FRESH,
	                         .shape = { 1, { RAM_PAGES } } };
	if (odd & 4)
		m.vm.n = (uint32_t)take(in, 2);
	if (odd & 8)
		m.generation.n = take(in, 1);
	if (odd & 16)
		m.shape.pages[0] = take(in, 8);
	put(s, out, stream_put_open(out, &m), false);
}

static void put_epoch(struct stream *s, struct input *in)
{
	uint8_t out[STREAM_MESSAGE_MAX];
	uint64_t odd = take(in, 1);
	struct stream_epoch m = { { 5 }, { odd & 1 ? take(in, 1) : 2 }, { odd & 2 ? take(in, 1) : 1 } };
	XXH3_128bits_reset(s->sum);
	s->pages = s->chunks = 0;
	s->epochs++;
	put(s, out, stream_put_epoch(out, &m), true);
}

static void put_pages(struct stream *s, struct input *in)
{
	uint8_t page[VCFT_PAGE_SIZE];
	struct delta_encoder *e = delta_encoder_new();
	uint64_t mask = take(in, 1);
	delta_begin(e, (uint32_t)(mask >> 7), mask & 0x40 ? DELTA_WORDS : DELTA_LITERAL);
	for (uint64_t i = 0; i < 6; i++) {
		if (!(mask >> i & 1))
			continue;
		memset(page, (int)take(in, 1), sizeof page);
		delta_add(e, i, page, NULL, true);
		s->pages++;
	}
	g_autoptr(GBytes) m = delta_finish(e);
	if (m)
		put(s, g_bytes_get_data(m, NULL), g_bytes_get_size(m), true);
	s->chunks += m != NULL;
	delta_encoder_free(e);
}

static void put_payload(struct stream *s, enum message_type type, struct input in)
{
	struct delta_encoder *e = delta_encoder_new();
	g_autoptr(GBytes) message = delta_bytes(e, type, in.at, in.left);
	put(s, g_bytes_get_data(message, NULL), g_bytes_get_size(message), true);
	delta_encoder_free(e);
}

static void put_end(struct stream *s, struct input *in)
{
	uint8_t out[STREAM_MESSAGE_MAX];
	uint64_t odd = take(in, 1);
	struct stream_end m = { .pages = s->pages + (odd & 1), .raw_bytes = s->pages * VCFT_PAGE_SIZE, .chunks = s->chunks + (odd >> 1 & 1),
	                        .flags = STREAM_COMPLETE };
	put(s, out, stream_put_end(out, &m, s->sum), false);
}

static void put_record(struct stream *s, struct input *in)
{
	uint64_t type = take(in, 1) % 7;
	size_t n = take(in, 2);
	const uint8_t *payload = take_bytes(in, &n);
	struct input p = { payload, n };
	switch (type) {
	case 0: put_open(s, &p); break;
	case 1: put_epoch(s, &p); break;
	case 2: put_pages(s, &p); break;
	case 3: put_payload(s, MESSAGE_DEVICES, p); break;
	case 4: put_payload(s, MESSAGE_CHANNEL, p); break;
	case 5: put_end(s, &p); break;
	default: put(s, payload, n, false); s->epochs++; break;   /* may be one */
	}
}

static bool any(const struct connection *c, const void *what) { (void)c, (void)what; return true; }

static struct message_holding holding(void)
{
	static struct message_holding h[VCFT_VM_MAX];
	sink_tell(sink);
	uint32_t n = sink_holdings(sink, h);
	sink_generation(sink, (struct generation){ 5 });
	demand(n <= 1);
	return n ? h[0] : (struct message_holding){ 0 };
}

/* Whole answers until the end; returns the last epoch that was acknowledged, 0: none. */
static uint64_t read_answers(int fd)
{
	uint8_t in[STREAM_ACK_BYTES];
	struct message_header h;
	struct stream_ack ack;
	uint64_t acked = 0;
	while (recv(fd, in, sizeof in, MSG_WAITALL) == sizeof in) {
		demand(message_header_decode(in, CHANNEL_REPLICATION, &h) && h.type == MESSAGE_EPOCH_ACK);
		demand(stream_get_ack(in, in + MESSAGE_HEADER_BYTES, h.length, &ack) && ack.status < STORE_STATUS_END);
		if (ack.status != STORE_OK)
			continue;
		acked = ack.epoch.n;
		sink_commit(sink, ack.epoch);   /* else the next epoch would wait for it: K2 */
	}
	return acked;
}

/* A source that sends another epoch relative to the same base before the acknowledged one is committed has said that that one is aborted (K3): when it is
 * committed after all the image is dropped (K6). Which of the two comes first is chance. */
static void check(const struct stream *s, uint64_t acked)
{
	struct message_holding h = holding();
	demand(h.staged.n == 0);
	if (s->epochs > 1 && h.complete.n == 0)
		return;
	demand(!acked || (h.image.n == acked && h.complete.n > 0 && h.complete.n <= acked));
	demand(acked || h.complete.n == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct input in = { data, n };
	struct stream s = { g_byte_array_new(), XXH3_createState(), 0, 0, 0 };
	int pair[2];
	XXH3_128bits_reset(s.sum);
	while (in.left && s.out->len < 60000)
		put_record(&s, &in);
	demand(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	(void)!send(pair[1], s.out->data, s.out->len, MSG_NOSIGNAL | MSG_DONTWAIT);
	shutdown(pair[1], SHUT_WR);
	connection_start(sink, pair[0]);
	uint64_t acked = read_answers(pair[1]);
	connection_end_all(sink, any, NULL);
	check(&s, acked);
	sink_clear(sink);
	close(pair[1]);
	XXH3_freeState(s.sum);
	g_byte_array_unref(s.out);
	return 0;
}
