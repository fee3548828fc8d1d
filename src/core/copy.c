/* copy.c - see copy.h. */
#include "core/copy.h"

#include "base/must.h"
#include "core/mutant.h"

/* ---- small things ---- */

static bool image_is_at(const struct copy *c, struct epoch_id e) { return c->there && epoch_cmp(c->image, e) == 0; }
static bool stage_is(const struct copy *c, struct epoch_id e) { return c->staged && epoch_cmp(c->stage, e) == 0; }

static void drop_stage(struct copy *c) { c->staged = c->fills = false; }

void copy_drop(struct copy *c) { *c = (struct copy){ .stream = c->stream, .newest = c->newest }; }

/* ---- a stream ---- */

enum copy_verdict copy_enter(struct copy *c, const struct copy_host *host, struct generation g, const void *stream, uint64_t number)
{
	if (generation_cmp(g, host->generation) != 0 && !MUTANT(copy_any_generation))
		return COPY_BAD_GENERATION;
	if (host->told || (number < c->newest && !MUTANT(copy_any_order)))
		return COPY_CLOSED;
	c->stream = stream;
	c->newest = number;
	return COPY_OK;
}

void copy_leave(struct copy *c, const void *stream)
{
	if (c->stream == stream)
		c->stream = NULL;
}

enum copy_verdict copy_find(const struct copy *c, struct epoch_id base)
{
	if (image_is_at(c, base) && c->complete.n)
		return COPY_OK;
	return stage_is(c, base) && (c->complete.n || c->fills) ? COPY_OK : COPY_BAD_BASE;
}

void copy_start(struct copy *c, struct epoch_id base)
{
	copy_drop(c);
	c->there = true;
	c->image = base;
}

/* K5, K4 */
enum copy_verdict copy_may_touch(const struct copy *c, const struct copy_host *host, const void *stream)
{
	bool has_place = c->stream == stream || MUTANT(copy_any_stream), told = host->told && !MUTANT(copy_after_told);
	return has_place && c->there && !told ? COPY_OK : COPY_CLOSED;
}

enum copy_verdict copy_begin(struct copy *c, const struct copy_host *host, const void *stream, struct epoch_id r, struct epoch_id base)
{
	enum copy_verdict verdict = copy_may_touch(c, host, stream);
	if (verdict != COPY_OK)
		return verdict;
	if (!image_is_at(c, base) && !MUTANT(copy_any_base))
		return stage_is(c, base) && !MUTANT(copy_no_wait) ? COPY_WAIT : COPY_BAD_BASE;   /* K2 */
	if (epoch_cmp(r, base) <= 0 || (c->staged && epoch_cmp(r, c->stage) <= 0))
		return COPY_BAD_ORDER;
	drop_stage(c);   /* K3 */
	return COPY_OK;
}

enum copy_verdict copy_keep(struct copy *c, const struct copy_host *host, const void *stream, struct epoch_id r, struct epoch_id base, bool fills, bool whole)
{
	enum copy_verdict verdict = copy_may_touch(c, host, stream);
	if (verdict != COPY_OK)
		return verdict;
	if (!whole && !MUTANT(copy_unfinished))   /* S2 */
		return COPY_UNFINISHED;
	if (!image_is_at(c, base) && !MUTANT(copy_any_base))
		return COPY_BAD_BASE;
	c->staged = true;
	c->stage = r;
	c->fills = fills || MUTANT(copy_always_fills);
	MUST("S6", epoch_cmp(c->stage, c->image) > 0);
	return COPY_OK;
}

/* ---- the agent ---- */

/* S1: the only place where an image changes. */
static bool apply(struct copy *c, struct epoch_id r)
{
	if (!stage_is(c, r))
		return false;
	MUST("S1", c->there && epoch_cmp(c->image, r) < 0);
	c->image = r;
	if (c->fills && !c->complete.n)
		c->complete = r;
	drop_stage(c);
	return true;
}

enum copy_change copy_commit(struct copy *c, struct epoch_id r)
{
	if (apply(c, r))
		return COPY_APPLIED;
	bool lacks = c->there && epoch_cmp(c->image, r) < 0 && !(c->staged && epoch_cmp(c->stage, r) > 0);
	if (!lacks || MUTANT(copy_keep_behind))
		return COPY_AS_IT_WAS;
	copy_drop(c);   /* K6 */
	return COPY_DROPPED;
}

bool copy_discard(struct copy *c, struct epoch_id r)
{
	if (!stage_is(c, r))
		return false;
	drop_stage(c);
	return true;
}

bool copy_holding(const struct copy *c, struct vm_id vm, struct message_holding *ret_holding)
{
	*ret_holding = (struct message_holding){ .vm = vm };
	if (!c->there)
		return false;
	ret_holding->image = c->image;
	ret_holding->complete = c->complete;
	if (c->staged) {
		ret_holding->staged = c->stage;
		if (!c->complete.n && c->fills)
			ret_holding->complete = c->stage;
	}
	return true;
}

bool copy_recover(struct copy *c, struct epoch_id r, bool *ret_applied)
{
	*ret_applied = apply(c, r);
	drop_stage(c);
	if (image_is_at(c, r) && c->complete.n)
		return true;
	copy_drop(c);
	return false;
}

void copy_give(struct copy *c, struct epoch_id image, struct epoch_id complete)
{
	copy_drop(c);
	c->there = true;
	c->image = image;
	c->complete = complete;
}

/* ---- all copies of a host ---- */

void copy_host_generation(struct copy_host *host, struct generation g)
{
	host->generation = g;
	host->told = false;
}

void copy_host_tell(struct copy_host *host) { host->told = true; }
