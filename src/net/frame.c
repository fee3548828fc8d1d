/* frame.c - frames with counted references, and rings of them.
 *
 * A frame is read once and then shared by all ports, tunnels and the uplink that it goes to; nobody changes its bytes. Frames of ordinary
 * size come back to a pool. Thread: switch, so the counts are plain numbers. */
#include "net/net-private.h"

#include "base/must.h"

#include <endian.h>
#include <string.h>

#define POOL_KEEP 4096u         /* frames of each size */
#define RING_KEEP 4096u         /* entries that an empty ring keeps */

_Static_assert(offsetof(struct frame, data) == offsetof(struct frame, length) + 4, "a port writes length and data in one piece");

struct frame *frame_new(struct frame_pool *pool, const void *data, size_t size)
{
	unsigned kind = size > FRAME_SMALL;
	struct frame *f = pool->free[kind];
	if (size <= FRAME_USUAL && f) {
		pool->free[kind] = f->next_free;
		pool->count[kind]--;
	} else {
		size_t room = size <= FRAME_SMALL ? FRAME_SMALL : size <= FRAME_USUAL ? FRAME_USUAL : size;
		f = g_malloc(sizeof *f + room);
		f->room = (uint32_t)room;
	}
	f->refs = 1;
	f->size = (uint32_t)size;
	f->kind = FRAME_ETHERNET;
	f->coloured = false;
	f->generation = (struct generation){ 0 };
	f->colour = epoch_of(0);
	f->network = 0;
	f->from = (struct host_id){ 0 };
	f->sender = SENDER_OTHER;
	f->head_bytes = 0;
	uint32_t be = htobe32((uint32_t)size);
	memcpy(f->length, &be, sizeof be);
	if (data)
		memcpy(f->data, data, size);
	return f;
}

struct frame *frame_ref(struct frame *frame)
{
	frame->refs++;
	return frame;
}

void frame_unref(struct frame_pool *pool, struct frame *frame)
{
	if (--frame->refs)
		return;
	unsigned kind = frame->room > FRAME_SMALL;
	if (frame->room > FRAME_USUAL || pool->count[kind] >= POOL_KEEP) {
		g_free(frame);
		return;
	}
	frame->next_free = pool->free[kind];
	pool->free[kind] = frame;
	pool->count[kind]++;
}

void frame_pool_clear(struct frame_pool *pool)
{
	for (unsigned kind = 0; kind < 2; kind++) {
		while (pool->free[kind]) {
			struct frame *f = pool->free[kind];
			pool->free[kind] = f->next_free;
			g_free(f);
		}
		pool->count[kind] = 0;
	}
}

/* ---- shares ---- */

bool share_fits(const struct share *share, size_t limit, const struct frame *frame)
{
	size_t cost = frame_cost(frame);
	return share->bytes + cost <= limit && share->of[frame->sender] + cost <= limit - share->bytes;
}

void share_take(struct share *share, const struct frame *frame)
{
	share->bytes += frame_cost(frame);
	share->of[frame->sender] += frame_cost(frame);
}

void share_give(struct share *share, const struct frame *frame)
{
	MUST("N8", share->of[frame->sender] >= frame_cost(frame));
	share->bytes -= frame_cost(frame);
	share->of[frame->sender] -= frame_cost(frame);
}

/* ---- rings ---- */

static void ring_grow(struct ring *ring)
{
	size_t room = ring->room ? ring->room * 2 : 64;
	struct ring_entry *at = g_new(struct ring_entry, room);
	for (size_t i = 0; i < ring->count; i++)
		at[i] = *ring_at(ring, i);
	g_free(ring->at);
	*ring = (struct ring){ at, 0, ring->count, room };
}

void ring_push(struct ring *ring, struct frame *frame)
{
	if (ring->count == ring->room)
		ring_grow(ring);
	*ring_at(ring, ring->count) = (struct ring_entry){ frame, 0 };
	ring->count++;
}

struct frame *ring_pop(struct ring *ring)
{
	struct frame *f = ring_at(ring, 0)->frame;
	ring->head = (ring->head + 1) & (ring->room - 1);
	ring->count--;
	if (!ring->count && ring->room > RING_KEEP) {   /* what a burst has made it */
		g_free(ring->at);
		*ring = (struct ring){ 0 };
	}
	return f;
}

void ring_cut(struct frame_pool *pool, struct ring *ring, size_t from)
{
	while (ring->count > from) {
		ring->count--;
		frame_unref(pool, ring_at(ring, ring->count)->frame);
	}
}

void ring_clear(struct frame_pool *pool, struct ring *ring) { ring_cut(pool, ring, 0); }

void ring_free(struct frame_pool *pool, struct ring *ring)
{
	ring_clear(pool, ring);
	g_free(ring->at);
	*ring = (struct ring){ 0 };
}
