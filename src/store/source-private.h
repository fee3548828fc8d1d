/* source-private.h - a source, seen from the files that share its work: source.c (requests, connections, the epoch) and encode.c (its pages). */
#ifndef VCFT_STORE_SOURCE_PRIVATE_H
#define VCFT_STORE_SOURCE_PRIVATE_H

#include "store/store-private.h"

#define SOURCE_FILL_DEFAULT (8u << 20)

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
	size_t fill_bytes;                         /* of the next epoch; 0: not yet known */
	nsec_t encoded, between;                   /* when the last epoch began to be encoded (0: none), and how long after the one before */
	uint64_t committed_bytes;    /* raw, of the last committed epoch (T5) */
	GBytes *record_sent;
	struct source_stats stats;
	char why[192];
};

static inline struct peer *source_peer(const struct source *s, guint i) { return g_ptr_array_index(s->peers, i); }
/* A backup whose cursor is there has all pages. */
static inline struct fill_cursor source_end(const struct source *s) { return (struct fill_cursor){ s->shape.regions, 0 }; }
static inline bool source_at_end(const struct source *s, struct fill_cursor c) { return c.region == s->shape.regions; }

/* source.c: queue a message of the epoch for these backups; pages: how many it carries. */
void source_put(struct source *s, host_mask receivers, GBytes *message, unsigned pages);
/* source.c: move bytes; false: leave the epoch (a backup failed, abort, the end). Waits while a backup has too much before it. */
bool source_go_on(struct source *s);
/* encode.c: all pages of the epoch to all backups, each backup what it needs (fill.c); sets peer->next. */
bool source_encode(struct source *s);

#endif
