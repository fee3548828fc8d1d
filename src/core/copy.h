/* copy.h - a backup's copy of one VM: which stream may touch it, which epoch it takes, what is applied, told and dropped (P5, P6).
 *
 *           enter + start (an empty image) or find (go on)       begin(r)             keep(r)            commit(r)
 *   no image ─────────────────────────────────────► image at x ───────────► coming in ─────────► staged r ─────────► image at r
 *                                                       ▲    discard(r), a newer begin, recover      │
 *                                                       └────────────────────────────────────────────┘
 *
 *  S1 An image changes only by commit(r), or a recovery to r, from a complete stage of r whose base is the epoch the image is at.
 *  S2 Only a stage that came in whole is kept, and only a stage that is kept is acknowledged.
 *  S4 An image is complete as of r when stage r, or an earlier one, carried the last pages that it lacked; `complete` is the first such r and never grows.
 *  S6 At most one epoch is staged at a time, and it is newer than the image.
 *  K2 A stream whose base is staged but not committed here yet waits for that commit: the group may be slower than the stream.
 *  K3 A new epoch relative to the image replaces an uncommitted stage, which its source was told is aborted; so it is a later one.
 *  K4 Once the holdings were told, no stage is replaced and none kept until the next generation or BEGIN: what was told stays true.
 *  K5 One stream a copy: a newer one takes the older one's place, never the other way round, and only the one that has it touches the copy. A stream is
 *     of the generation that is. (A host that hung may find both in its backlog: the one that its source gave up would drop what the other has brought.)
 *  K6 An image that lacks an epoch is dropped when that epoch is committed, and not before: until then a recovery may need it, afterwards none can.
 *
 * What the pages are is the caller's; these are the decisions. Pure: no clock, socket, thread. The sink (store/) and the simulator link the same object. */
#ifndef VCFT_CORE_COPY_H
#define VCFT_CORE_COPY_H

#include "base/messages.h"
#include "base/types.h"

/* What is so for all copies of a host. */
struct copy_host { struct generation generation; bool told; };

struct copy {
	bool there;                                /* an image */
	struct epoch_id image, complete;           /* it is at; complete 0: being filled */
	bool staged, fills;                        /* a stage is kept; it carries the last pages */
	struct epoch_id stage;
	const void *stream;                        /* K5; NULL: none */
	uint64_t newest;                           /* number of the newest stream that had the place */
};

enum copy_verdict { COPY_OK, COPY_WAIT, COPY_CLOSED, COPY_BAD_GENERATION, COPY_BAD_BASE, COPY_BAD_ORDER, COPY_UNFINISHED };

/* ---- a stream ---- */
/* OPEN: a stream of a VM's host comes in, for generation g; number: in the order in which connections came, from 1. OK: it has the copy's place. */
enum copy_verdict copy_enter(struct copy *copy, const struct copy_host *host, struct generation g, const void *stream, uint64_t number);
/* It has ended. */
void copy_leave(struct copy *copy, const void *stream);
/* It goes on where the image is: at base, now or when the stage is committed, and complete by then. */
enum copy_verdict copy_find(const struct copy *copy, struct epoch_id base);
/* It starts anew: what is here is dropped; an empty image at base takes its place. */
void copy_start(struct copy *copy, struct epoch_id base);
/* May it touch the copy still? */
enum copy_verdict copy_may_touch(const struct copy *copy, const struct copy_host *host, const void *stream);
/* EPOCH: epoch r comes, relative to base. WAIT: ask again when something has changed (K2). OK: an older stage is dropped. */
enum copy_verdict copy_begin(struct copy *copy, const struct copy_host *host, const void *stream, struct epoch_id r, struct epoch_id base);
/* It has come in; whole: nothing was wrong with it. OK: it is the stage, and to be acknowledged. */
enum copy_verdict copy_keep(struct copy *copy, const struct copy_host *host, const void *stream, struct epoch_id r, struct epoch_id base, bool fills, bool whole);

/* ---- the agent ---- */
enum copy_change { COPY_AS_IT_WAS, COPY_APPLIED, COPY_DROPPED };   /* the stage moves into the image; the image is dropped, its stage too */
enum copy_change copy_commit(struct copy *copy, struct epoch_id r);
/* True: there was a stage of r; it is dropped. */
bool copy_discard(struct copy *copy, struct epoch_id r);
/* False: nothing is held. */
bool copy_holding(const struct copy *copy, struct vm_id vm, struct message_holding *ret_holding);
/* Recovery to c: ret_applied as by commit; then a stage that is left is dropped. False: the image is not complete at c, and dropped. */
bool copy_recover(struct copy *copy, struct epoch_id c, bool *ret_applied);
/* An image from elsewhere takes the place of what is here. */
void copy_give(struct copy *copy, struct epoch_id image, struct epoch_id complete);
/* Nothing is left. */
void copy_drop(struct copy *copy);

/* ---- all copies of a host ---- */
void copy_host_generation(struct copy_host *host, struct generation g);
void copy_host_tell(struct copy_host *host);

#endif
