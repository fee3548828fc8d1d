/* stream.c - the small messages of replication: OPEN, EPOCH, EPOCH_END, EPOCH_ACK, byte by byte (docs/format.md has the tables).
 *
 *   source ──► OPEN  (EPOCH  PAGES*  DEVICES  CHANNEL  EPOCH_END)*                        ACK for each epoch, and for a refusal ──► source
 *
 *  R1 Each byte of the stream, headers included, is covered by a checksum: OPEN and ACK carry their own (XXH3-64), an epoch ends with one
 *     over all of it (XXH3-128). A single flipped bit is never accepted. Against accidents, not attackers: that is the transport's part.
 *
 * Pure; any thread. */
#include "store/store-private.h"

#include "base/sum.h"

static const char *const texts[STORE_STATUS_END] = {
	[STORE_OK] = "stored",
	[STORE_BAD_GENERATION] = "wrong generation",
	[STORE_BAD_BASE] = "it has no image at the base",
	[STORE_BAD_SHAPE] = "memory or disks of another size",
	[STORE_BAD_MESSAGE] = "malformed message",
	[STORE_BAD_ORDER] = "message out of order",
	[STORE_BAD_CHECKSUM] = "wrong checksum",
	[STORE_NO_ROOM] = "no memory left for its image and stages: backup_memory",
	[STORE_NO_SPACE] = "no space for the image",
	[STORE_CLOSED] = "the generation is over",
	[STORE_NO_VM] = "no such VM",
};

const char *store_status_text(uint32_t status) { return status < STORE_STATUS_END ? texts[status] : "unknown status"; }

uint64_t store_bytes_sum(GBytes *bytes)
{
	gsize n = 0;
	const void *data = bytes ? g_bytes_get_data(bytes, &n) : NULL;
	return bytes ? sum_bytes(data, n) : 0;
}

bool store_shape_equal(const struct store_shape *a, const struct store_shape *b)
{
	return a->regions == b->regions && memcmp(a->pages, b->pages, a->regions * sizeof a->pages[0]) == 0;
}

/* Put the header before what w has written behind it; returns the message's bytes. */
static size_t finish(uint8_t *out, enum message_type type, const struct wire_writer *w)
{
	MUST("W3", wire_ok(w));
	message_header_encode(out, type, w->used);
	return MESSAGE_HEADER_BYTES + w->used;
}

static struct wire_writer payload_writer(uint8_t *out)
{
	return wire_writer(out + MESSAGE_HEADER_BYTES, STREAM_MESSAGE_MAX - MESSAGE_HEADER_BYTES);
}

/* Put the header and, as the last 8 bytes, the checksum of all before. */
static size_t finish_checked(uint8_t *out, enum message_type type, struct wire_writer *w)
{
	message_header_encode(out, type, w->used + 8);
	wire_put_u64(w, XXH3_64bits(out, MESSAGE_HEADER_BYTES + w->used));
	return finish(out, type, w);
}

/* The same, read: header and payload need not be in one piece. */
static bool check(const uint8_t *header, const uint8_t *payload, size_t n, uint64_t sum)
{
	uint8_t all[STREAM_MESSAGE_MAX];
	memcpy(all, header, MESSAGE_HEADER_BYTES);
	memcpy(all + MESSAGE_HEADER_BYTES, payload, n - 8);
	return XXH3_64bits(all, MESSAGE_HEADER_BYTES + n - 8) == sum;
}

size_t stream_put_open(uint8_t out[static STREAM_MESSAGE_MAX], const struct stream_open *m)
{
	struct wire_writer w = payload_writer(out);
	wire_put_u32(&w, m->host.n);
	wire_put_u32(&w, m->vm.n);
	wire_put_u64(&w, m->generation.n);
	wire_put_u64(&w, m->base.n);
	wire_put_u32(&w, m->flags);
	wire_put_u32(&w, m->shape.regions);
	for (uint32_t i = 0; i < m->shape.regions; i++)
		wire_put_u64(&w, m->shape.pages[i]);
	return finish_checked(out, MESSAGE_REPLICATION_OPEN, &w);
}

bool stream_get_open(const uint8_t *header, const uint8_t *payload, size_t n, struct stream_open *ret)
{
	struct wire_reader r = wire_reader(payload, n);
	*ret = (struct stream_open){ 0 };
	ret->host.n = wire_u32(&r);
	ret->vm.n = wire_u32(&r);
	ret->generation.n = wire_u64(&r);
	ret->base.n = wire_u64(&r);
	ret->flags = wire_u32(&r);
	ret->shape.regions = wire_u32(&r);
	if (r.bad || !ret->shape.regions || ret->shape.regions > STORE_REGION_MAX)
		return false;
	for (uint32_t i = 0; i < ret->shape.regions; i++)
		ret->shape.pages[i] = wire_u64(&r);
	uint64_t sum = wire_u64(&r);
	if (!wire_done(&r) || n > STREAM_MESSAGE_MAX - MESSAGE_HEADER_BYTES || !check(header, payload, n, sum))
		return false;
	return ret->host.n && ret->host.n <= VCFT_HOST_MAX && ret->vm.n < VCFT_VM_MAX && !(ret->flags & ~STREAM_FRESH) &&
	       ret->generation.n <= VCFT_NUMBER_MAX && ret->base.n <= VCFT_NUMBER_MAX;
}

size_t stream_put_epoch(uint8_t out[static STREAM_MESSAGE_MAX], const struct stream_epoch *m)
{
	struct wire_writer w = payload_writer(out);
	wire_put_u64(&w, m->generation.n);
	wire_put_u64(&w, m->epoch.n);
	wire_put_u64(&w, m->base.n);
	wire_put_u64(&w, 0);
	return finish(out, MESSAGE_EPOCH, &w);
}

bool stream_get_epoch(const uint8_t *payload, size_t n, struct stream_epoch *ret)
{
	struct wire_reader r = wire_reader(payload, n);
	ret->generation.n = wire_u64(&r);
	ret->epoch.n = wire_u64(&r);
	ret->base.n = wire_u64(&r);
	uint64_t reserved = wire_u64(&r);
	return wire_done(&r) && !reserved && epoch_cmp(ret->epoch, ret->base) > 0 && ret->epoch.n <= VCFT_NUMBER_MAX;
}

size_t stream_put_end(uint8_t out[static STREAM_MESSAGE_MAX], const struct stream_end *m, XXH3_state_t *sum)
{
	struct wire_writer w = payload_writer(out);
	wire_put_u64(&w, m->pages);
	wire_put_u64(&w, m->raw_bytes);
	wire_put_u64(&w, m->ram_hash[0]);
	wire_put_u64(&w, m->ram_hash[1]);
	wire_put_u32(&w, m->flags);
	wire_put_u32(&w, m->chunks);
	MUST("R1", w.used == STREAM_END_SUMMED);
	message_header_encode(out, MESSAGE_EPOCH_END, w.used + 16);
	XXH3_128bits_update(sum, out, MESSAGE_HEADER_BYTES + w.used);
	XXH128_hash_t h = XXH3_128bits_digest(sum);
	wire_put_u64(&w, h.low64);
	wire_put_u64(&w, h.high64);
	return finish(out, MESSAGE_EPOCH_END, &w);
}

bool stream_get_end(const uint8_t *payload, size_t n, struct stream_end *ret)
{
	struct wire_reader r = wire_reader(payload, n);
	ret->pages = wire_u64(&r);
	ret->raw_bytes = wire_u64(&r);
	ret->ram_hash[0] = wire_u64(&r);
	ret->ram_hash[1] = wire_u64(&r);
	ret->flags = wire_u32(&r);
	ret->chunks = wire_u32(&r);
	ret->sum[0] = wire_u64(&r);
	ret->sum[1] = wire_u64(&r);
	return wire_done(&r) && !(ret->flags & ~STREAM_COMPLETE);
}

size_t stream_put_ack(uint8_t out[static STREAM_MESSAGE_MAX], const struct stream_ack *m)
{
	struct wire_writer w = payload_writer(out);
	wire_put_u64(&w, m->generation.n);
	wire_put_u64(&w, m->epoch.n);
	wire_put_u32(&w, m->status);
	wire_put_u32(&w, 0);
	return finish_checked(out, MESSAGE_EPOCH_ACK, &w);
}

bool stream_get_ack(const uint8_t *header, const uint8_t *payload, size_t n, struct stream_ack *ret)
{
	struct wire_reader r = wire_reader(payload, n);
	ret->generation.n = wire_u64(&r);
	ret->epoch.n = wire_u64(&r);
	ret->status = wire_u32(&r);
	uint32_t reserved = wire_u32(&r);
	uint64_t sum = wire_u64(&r);
	return wire_done(&r) && !reserved && check(header, payload, n, sum);
}
