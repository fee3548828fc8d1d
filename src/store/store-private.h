/* store-private.h - what the files of store/ share: limits, statuses, pages of an image, chunks, the messages of the stream. */
#ifndef VCFT_STORE_PRIVATE_H
#define VCFT_STORE_PRIVATE_H

#include "base/must.h"
#include "base/wire.h"
#include "store/store.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>
#include <xxhash.h>

#define STORE_CHUNK_PAGES 64u
#define STORE_CHUNK_RAW ((size_t)STORE_CHUNK_PAGES * VCFT_PAGE_SIZE)
#define STORE_PAGES_HEADER 24u
#define STORE_DEVICES_MAX (63u << 20)   /* bytes of device state or record */

/* Why a backup refused; goes over the wire. Numbers are never used twice. */
enum store_status {
	STORE_OK = 0,
	STORE_BAD_GENERATION = 1,
	STORE_BAD_BASE = 2,
	STORE_BAD_SHAPE = 3,
	STORE_BAD_MESSAGE = 4,
	STORE_BAD_ORDER = 5,
	STORE_BAD_CHECKSUM = 6,
	STORE_NO_ROOM = 7,        /* the limit on memory (K7) or on a stage, or no memory */
	STORE_NO_SPACE = 8,       /* the file system of the image is full */
	STORE_CLOSED = 9,         /* the generation is over here: holdings have been told */
	STORE_NO_VM = 10,
	STORE_STATUS_END
};
const char *store_status_text(uint32_t status);

/* Checksum of device state or record; 0 for NULL. */
uint64_t store_bytes_sum(GBytes *bytes);

/* The regions of a VM and their pages. */
struct store_shape { uint32_t regions; uint64_t pages[STORE_REGION_MAX]; };
bool store_shape_equal(const struct store_shape *a, const struct store_shape *b);

/* ---- image.c: pages of an image. Thread: whoever owns the image. ---- */
void image_shape(const struct image *image, struct store_shape *ret_shape);
/* Content of a page; NULL: there is none (RAM: zero; disk: the base's). Never makes the file grow. */
const uint8_t *image_page(const struct image *image, unsigned region, uint64_t page);
/* The first page >= from with content; the region's pages if there is none. */
uint64_t image_next(const struct image *image, unsigned region, uint64_t from);
/* Take the space for pages (ascending) from the file system, so that writing them cannot fail. */
gboolean image_reserve(struct image *image, unsigned region, const uint64_t *index, size_t count, GError **error);
/* RAM pages with content or reserved: what the image takes of a limit on memory. */
uint64_t image_ram_pages(const struct image *image);
/* How many of the pages image_reserve() would have to take. */
size_t image_missing(const struct image *image, unsigned region, const uint64_t *index, size_t count);
/* Assign a reserved page. */
void image_put(struct image *image, unsigned region, uint64_t page, const uint8_t *data);
/* Put the words that the map names (pack.c) into a reserved page; one without content counts as zero. Returns the end of the words; NULL: the page is
 * damaged, and as it was (I5). */
const uint8_t *image_patch(struct image *image, unsigned region, uint64_t page, const uint8_t *map, const uint8_t *words);
/* I5: the page is as it was put, or has no content. False: from now on image_intact() is false. */
bool image_sound(struct image *image, unsigned region, uint64_t page);
/* A page of RAM with content is zero and was put so: nothing is lost by leaving it out. */
bool image_zero(const struct image *image, uint64_t page);
/* A new image on a backup: at `base`, to be filled. */
void image_begin(struct image *image, struct epoch_id base);
/* It is at r now; complete: it has all pages. Takes refs of devices and record. */
void image_advance(struct image *image, struct epoch_id r, bool complete, GBytes *devices, GBytes *record);
void image_hash_ram(const struct image *image, uint64_t ret_hash[2]);
/* Bytes that its files take. */
uint64_t image_bytes(const struct image *image);
gboolean image_set_disks_writable(struct image *image, bool writable, GError **error);
/* Unlink what image_open() would find. */
void image_remove_files(const struct image_spec *spec);

/* ---- pack.c: the words of a page that differ from its reference ---- */
#define PACK_MAP 64u                                                        /* bytes of a page's map */
#define PACK_ROOM (VCFT_PAGE_SIZE + sizeof(uint64_t))                       /* bytes that pack_page() may write to `words` */

/* The words of data that are others in reference (NULL: zero); returns their bytes, 0: no difference. */
size_t pack_page(uint8_t *map, uint8_t *words, const uint8_t *data, const uint8_t *reference);
/* How many bytes of words go with that map. */
size_t pack_bytes(const uint8_t *map);
/* Put them into the page, which is as the reference was; returns the end of its words. */
const uint8_t *unpack_page(uint8_t *page, const uint8_t *map, const uint8_t *words);

/* ---- delta.c: chunks of pages ---- */
enum delta_kind { DELTA_WORDS = 1, DELTA_LITERAL = 2 };

/* A decoded chunk, as it waits in a stage. */
struct delta_chunk {
	uint32_t region, kind, count;
	uint64_t *index;        /* count page numbers, ascending */
	uint8_t *data;          /* WORDS: count maps, then their words; LITERAL: count pages */
	size_t bytes;           /* of data */
	uint64_t sum;           /* of all above (I6) */
};
void delta_chunk_free(struct delta_chunk *chunk);

struct delta_encoder;
struct delta_encoder *delta_encoder_new(void);
void delta_encoder_free(struct delta_encoder *e);
/* Start a chunk. */
void delta_begin(struct delta_encoder *e, uint32_t region, enum delta_kind kind);
/* Add a page; WORDS: against reference (NULL: zero), and one without a difference is left out unless keep. LITERAL: as it is. */
void delta_add(struct delta_encoder *e, uint64_t page, const uint8_t *data, const uint8_t *reference, bool keep);
unsigned delta_count(const struct delta_encoder *e);
/* The whole message PAGES, header included; NULL if no page was added. The encoder is empty again. */
GBytes *delta_finish(struct delta_encoder *e);

struct delta_decoder;
struct delta_decoder *delta_decoder_new(void);
void delta_decoder_free(struct delta_decoder *d);
/* What a payload of PAGES says of itself; false: refused. raw_bytes: before zstd. */
struct delta_header { uint32_t region, kind, count, compressed_bytes, raw_bytes; };
bool delta_peek(const uint8_t *payload, size_t n, const struct store_shape *shape, struct delta_header *ret_header);
/* Decode a payload that delta_peek() accepted. NULL: refused, *ret_status says why. */
struct delta_chunk *delta_decode(struct delta_decoder *d, const uint8_t *payload, size_t n, const struct store_shape *shape,
                                 enum store_status *ret_status);
/* The whole message DEVICES or CHANNEL. */
GBytes *delta_bytes(struct delta_encoder *e, enum message_type type, const void *data, size_t n);
/* How many bytes such a payload has by what it says of itself; false: refused. */
bool delta_peek_bytes(const uint8_t *payload, size_t n, size_t *ret_bytes);
/* They themselves. NULL: refused, *ret_status says why. */
GBytes *delta_read_bytes(struct delta_decoder *d, const uint8_t *payload, size_t n, size_t bytes, enum store_status *ret_status);
bool delta_is_zero(const uint8_t *page);

/* ---- stream.c: the other messages ---- */
#define STREAM_MESSAGE_MAX (MESSAGE_HEADER_BYTES + 112u)
#define STREAM_FRESH 1u       /* OPEN: start with an empty image */
#define STREAM_COMPLETE 1u    /* EPOCH_END: with this epoch the image has all pages */

struct stream_open {
	struct host_id host; struct vm_id vm; struct generation generation; struct epoch_id base;
	uint32_t flags;
	struct store_shape shape;
};
struct stream_epoch { struct generation generation; struct epoch_id epoch, base; };
struct stream_end { uint64_t pages, raw_bytes, ram_hash[2]; uint32_t flags, chunks; uint64_t sum[2]; };
struct stream_ack { struct generation generation; struct epoch_id epoch; uint32_t status; };

/* Whole messages; return their bytes. */
size_t stream_put_open(uint8_t out[static STREAM_MESSAGE_MAX], const struct stream_open *m);
size_t stream_put_epoch(uint8_t out[static STREAM_MESSAGE_MAX], const struct stream_epoch *m);
size_t stream_put_ack(uint8_t out[static STREAM_MESSAGE_MAX], const struct stream_ack *m);
/* sum: the epoch's running hash; what stands before m->sum is added to it here. */
size_t stream_put_end(uint8_t out[static STREAM_MESSAGE_MAX], const struct stream_end *m, XXH3_state_t *sum);
/* header: the 12 bytes that came before the payload. */
bool stream_get_open(const uint8_t *header, const uint8_t *payload, size_t n, struct stream_open *ret);
bool stream_get_epoch(const uint8_t *payload, size_t n, struct stream_epoch *ret);
bool stream_get_end(const uint8_t *payload, size_t n, struct stream_end *ret);
bool stream_get_ack(const uint8_t *header, const uint8_t *payload, size_t n, struct stream_ack *ret);
#define STREAM_END_SUMMED 40u /* bytes of EPOCH_END's payload that the checksum covers */
#define STREAM_ACK_BYTES (MESSAGE_HEADER_BYTES + 32u)

/* ---- stage.c: an epoch that came in, not committed ---- */
struct stage;
struct stage *stage_new(const struct store_shape *shape, struct epoch_id epoch, struct epoch_id base, size_t limit, gint64 *counter);
void stage_free(struct stage *stage);
/* One message after EPOCH, in the order of the stream. header is the EPOCH's own for the first call with MESSAGE_EPOCH. */
enum store_status stage_message(struct stage *stage, struct delta_decoder *decoder, enum message_type type, const uint8_t *header,
                                const uint8_t *payload, size_t n);
/* The chunk that the last PAGES brought. */
const struct delta_chunk *stage_last_chunk(const struct stage *stage);
/* Device state, NULL before it came. Borrowed. */
GBytes *stage_devices(const struct stage *stage);
bool stage_complete(const struct stage *stage);      /* EPOCH_END came and everything was right (S2) */
bool stage_fills(const struct stage *stage);         /* the image has all pages with it */
struct epoch_id stage_epoch(const struct stage *stage);
struct epoch_id stage_base(const struct stage *stage);
const uint64_t *stage_ram_hash(const struct stage *stage);
size_t stage_bytes(const struct stage *stage);
/* S1: the image, which is at the stage's base, moves to the stage's epoch. Its pages have been reserved: only damage of the one or the other makes it fail
 * (I5, I6); then the image is of no use any more. */
gboolean stage_apply(const struct stage *stage, struct image *image, GError **error);

/* ---- fill.c: which pages a backup that is not complete still lacks ---- */
/* Everything before it is on the backup. region = regions: complete. */
struct fill_cursor { uint32_t region; uint64_t page; };
static inline bool fill_before(unsigned region, uint64_t page, struct fill_cursor c)
{
	return region < c.region || (region == c.region && page < c.page);
}
/* The next pages that the shadow has from `from` on, at most `budget`: page numbers in list[region]; returns where that ends. */
struct fill_cursor fill_window(const struct image *shadow, struct fill_cursor from, size_t budget, GArray *list[STORE_REGION_MAX]);

/* ---- peer.c: a source's connection to one backup ---- */
enum peer_state { PEER_NEW, PEER_CONNECTING, PEER_SECURING, PEER_OPEN, PEER_FAILED };

struct peer {
	struct source_backup to;
	enum peer_state state;
	struct generation generation;      /* of OPEN */
	bool told_complete;                /* the last source_set_backups() says that it has the image */
	struct fill_cursor cursor, next;   /* committed; and if the epoch in flight is committed */
	const struct tls_credentials *credentials;
	int fd;
	struct tls *tls;                   /* fd >= 0 */
	GQueue out;                        /* GBytes */
	size_t out_offset, out_bytes;      /* sent of the head; bytes not sent */
	bool open_waits;                   /* the head is OPEN, none of it sent */
	XXH3_state_t *sum;
	uint64_t pages; uint32_t chunks;   /* of the epoch in flight */
	bool active, ended, acked;         /* an epoch is in flight; its EPOCH_END was queued; and answered */
	struct epoch_id epoch;             /* in flight, or the last that was */
	nsec_t progress;                   /* last time that it moved */
	uint64_t sent;                     /* bytes, ever */
	nsec_t measured, waited;           /* T6: last peer_measure(); time in which much waited for it, since the last judgement */
	uint64_t arrived, taken;           /* bytes that its host has, as of then; of these, in that time */
	bool waits;
	uint8_t in[STREAM_ACK_BYTES]; size_t in_used;
	char why[160];                     /* PEER_FAILED */
};
struct peer *peer_new(const struct source_backup *to, const struct tls_credentials *credentials);
void peer_free(struct peer *p);
/* Start a connection. */
void peer_connect(struct peer *p);
void peer_fail(struct peer *p, const char *why);
/* Queue a message of the stream; summed: it is part of the epoch's checksum. */
void peer_put(struct peer *p, GBytes *message, bool summed);
void peer_put_bytes(struct peer *p, const void *message, size_t n, bool summed);
/* The first message of a connection. */
void peer_put_open(struct peer *p, const void *message, size_t n);
/* Drop what is queued, but for a message that is half sent, and OPEN: the connection has only the one. */
void peer_forget(struct peer *p);
/* The connection can do what `revents` says. */
void peer_event(struct peer *p, short revents);
short peer_events(const struct peer *p);
/* Keep account of the time in which more than `much` bytes wait for it, and of what it takes in that time; false: nothing to account for. */
bool peer_measure(struct peer *p, size_t much);
bool peer_busy(const struct peer *p);      /* it owes us progress */

#endif
