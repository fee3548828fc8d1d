/* gate.h - the gate of an uplink: which frames leave the cluster and when, and which that came in are delivered again (P3).
 *
 *   send ──► [epoch e] ──► [epoch e+1] ──released──► ready ──next, sent──► outside         (rollback to c: epochs > c dropped)
 *   outside ──keep──► kept ──release: epochs <= r forgotten──► ... ──rollback, run──► again ──► the VMs once more
 *
 *   FROZEN ──rollback──► PLACING ──run──► RUNNING ──freeze──► FROZEN        (rollback also from PLACING and RUNNING)
 *
 *  U1 A frame leaves only while the gate runs, and only if its epoch <= released, or the gate is immediate.
 *  U2 Within an epoch frames leave in the order they came; so do those of one VM, whose epochs only grow. A frame does not wait for a newer one of another VM
 *     that came before it.
 *  U3 A rollback to c drops the held frames of epochs > c and no others; what was released is never rolled back: released <= c.
 *  U4 What came in is delivered again after a rollback to c, unless it came in an epoch <= c, which no VM here has to see again. It is kept until the epoch in
 *     which it came is released, for no rollback goes behind that. What came while the gate stood has been seen by nobody.
 *  U5 No more than held_bytes are held: new frames are refused, as by any full queue. No more than kept_bytes are kept: the oldest are forgotten first.
 *
 * A frame is a handle and a size; its content is the caller's. Pure: no clock, socket, thread. The switch and the simulator link the same object. */
#ifndef VCFT_CORE_GATE_H
#define VCFT_CORE_GATE_H

#include "base/types.h"

struct gate;

struct gate_options {
	bool immediate;                                /* `output: immediate`: nothing is held */
	size_t held_bytes, kept_bytes;                 /* U5 */
	void (*drop)(void *frame, void *user);         /* the gate is done with a frame; call nothing of the gate here */
	void *user;
};

/* Frozen, nothing released. */
struct gate *gate_new(const struct gate_options *options);
/* Drops all frames. */
void gate_free(struct gate *gate);

/* A VM here has sent a frame in an epoch; 0: it is the word of no VM. False: no room, it is not taken (U5). */
bool gate_send(struct gate *gate, void *frame, size_t bytes, struct epoch_id epoch);
/* The frame that is to leave now; it stays the gate's. NULL: none may (U1). */
void *gate_next(const struct gate *gate);
/* That one has left: dropped. */
void gate_sent(struct gate *gate);

/* A frame came in and was given to the VMs here, the furthest of which is in `epoch`, 0: there is none; or, unless the gate runs, to nobody. */
void gate_keep(struct gate *gate, void *frame, size_t bytes, struct epoch_id epoch);
/* The next frame to be delivered again since gate_run(), the caller's now; whoever delivers it keeps it again, in the epoch that is now. NULL: no more. */
void *gate_again(struct gate *gate);

/* Epochs <= r may leave. No effect while frozen; between rollback and run it takes effect at run. */
void gate_release(struct gate *gate, struct epoch_id r);
void gate_freeze(struct gate *gate);
void gate_rollback(struct gate *gate, struct epoch_id c);
/* No effect unless after a rollback. */
void gate_run(struct gate *gate);

struct gate_view { struct epoch_id released; size_t held_frames, held_bytes, kept_frames, kept_bytes; bool waiting; };
/* What is now; held: ready or not. waiting: a frame is ready. */
void gate_view(const struct gate *gate, struct gate_view *ret_view);

#endif
