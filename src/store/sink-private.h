/* sink-private.h - a sink, seen from the files that share its work: sink.c (VMs, images, what the agent asks for) and connection.c (streams).
 *
 * Locks, in order: vm->lock (long: image work), then sink->lock (short). Nothing is called back with sink->lock held. */
#ifndef VCFT_STORE_SINK_PRIVATE_H
#define VCFT_STORE_SINK_PRIVATE_H

#include "core/copy.h"
#include "store/store-private.h"

#define SINK_WORKERS 2u
#define APPLY_SLOW_US 2500000   /* of the fault point: the watchdog waits for 1.9 s */

struct connection;

struct post { bool commit; struct epoch_id epoch; };

struct sink_vm {
	struct sink *sink;
	struct vm_id id;
	GMutex lock;                      /* guards this block */
	GCond changed;                    /* image or stage changed, or a connection is to end */
	struct copy copy;                 /* what is decided about image and stage (core/copy.h); its stream: a connection */
	struct image *image;              /* copy.there */
	uint64_t image_ram;               /* bytes of its RAM, as counted in sink->image_bytes (K7) */
	struct stage *stage;              /* copy.staged */
	GArray *posts;                    /* struct post; sink->lock */
	gint used;                        /* atomic: it ever had an image or a connection */
};

struct connection {
	struct sink *sink;
	uint64_t number;                  /* in the order of accept(): K5 */
	int fd;                           /* closed with sink->lock held */
	struct tls *tls;
	gint closing, secured;            /* atomic */
	nsec_t since;                     /* it came */
	bool opened;                      /* sink->lock: vm and generation are set */
	struct sink_vm *vm;
	struct generation generation;
	struct host_id host;
	struct store_shape shape;
	struct stage *stage;              /* coming in */
	struct delta_decoder *decoder;
	uint8_t header[MESSAGE_HEADER_BYTES];
	uint8_t *payload; size_t room;
};

struct sink {
	struct host_id self;
	struct sink_limits limits;
	const struct tls_credentials *credentials;   /* NULL: plain */
	struct sink_callbacks callbacks;
	void *user;
	int listener, wake;
	GThread *thread, *worker[SINK_WORKERS];
	gint64 stage_bytes;               /* atomic */
	gint64 image_bytes;               /* atomic: RAM of all images (K7) */
	guint refused_memory, refused_space, damaged;   /* atomic */
	GMutex lock;                      /* guards this block */
	GCond gone;                       /* a connection has ended */
	GPtrArray *connections;
	GPtrArray *ended;                 /* threads of connections that are gone, to be joined */
	GQueue todo; GCond work;          /* VMs with posts, for the workers */
	struct copy_host host;
	uint64_t numbered;                /* connections so far */
	bool quit;
	char names[VCFT_HOST_MAX + 1][VCFT_NAME_MAX + 1];    /* S8; "": unknown */
	struct sink_vm vm[VCFT_VM_MAX];
};

/* ---- sink.c ---- */
/* callbacks.note, if there is one. */
void sink_note(const struct sink *sink, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* Carry out the posts of a VM; its lock is held (K1). */
void sink_settle(struct sink_vm *vm);
/* Lock it and settle. */
void sink_lock(struct sink_vm *vm);
/* What the copy no longer has goes; its lock is held. */
void sink_follow(struct sink_vm *vm);
struct copy_host sink_host(struct sink *sink);
/* K7: n more bytes of RAM for its image; false: the limit is reached. */
bool sink_charge(struct sink_vm *vm, uint64_t n);

/* ---- connection.c ---- */
/* Serve a new connection, in a thread of its own. */
void connection_start(struct sink *sink, int fd);
/* Those of which test() is true are hung up; returns when they are gone. */
typedef bool (*connection_test)(const struct connection *c, const void *what);
void connection_end_all(struct sink *sink, connection_test test, const void *what);
/* Waiting connections look again whether they still may (K2, K4). */
void connection_wake_all(struct sink *sink);
void connection_join_ended(struct sink *sink);

#endif
